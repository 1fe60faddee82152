"""The order of a network's layers as Keras has it: by depth, not as they were called.

Keras' `model.layers`, and with it the order of arrays in its legacy weight files, sorts layers by their distance from
the output, the farthest first, and equally distant ones by when a depth-first search from the output meets them
(keras/src/ops/function.py, map_graph).
"""

from collections.abc import Iterator, Sequence

from flaxtl.models.trace import OPERATION, Layer


def keras_order(layers: Sequence[Layer]) -> list[Layer]:
    """`layers`, given in an order in which every layer comes after those it reads, as Keras sorts them.

    Operations that are no layers take part and are left out of the result, where a layer reads what they read.
    """
    known = {layer.name: layer for layer in layers}
    depth = _depths(layers, known)
    met = _met(layers[-1], known) if layers else {}
    connected = [layer for layer in layers if layer.name in met]
    connected.sort(key=lambda layer: (-depth[layer.name], met[layer.name]))
    return [layer._replace(inputs=tuple(_sources(layer, known))) for layer in connected if layer.kind != OPERATION]


def passages(layers: Sequence[Layer]) -> list[str]:
    """Names of the layers that everything passes through, in order: nothing behind one reads what lies before it.

    `layers` as `keras_order` gives them.
    """
    place = {layer.name: number for number, layer in enumerate(layers)}
    found: list[str] = []
    lowest = len(layers)  # of all that the layers above read
    for number, layer in reversed(list(enumerate(layers))):
        if number <= lowest:
            found.append(layer.name)
        lowest = min(lowest, min((place[name] for name in layer.inputs), default=-1))
    return found[::-1]


def _sources(layer: Layer, known: dict[str, Layer]) -> Iterator[str]:
    """The layers that `layer` reads, itself or through operations."""
    for name in layer.inputs:
        if known[name].kind == OPERATION:
            yield from _sources(known[name], known)
        else:
            yield name


def _depths(layers: Sequence[Layer], known: dict[str, Layer]) -> dict[str, int]:
    """Of every layer the longest way to the last one."""
    depth = dict.fromkeys(known, 0)
    for layer in reversed(layers):
        for name in layer.inputs:
            depth[name] = max(depth[name], depth[layer.name] + 1)
    return depth


def _met(last: Layer, known: dict[str, Layer]) -> dict[str, int]:
    """When a depth-first search from `last`, inputs in their order, first meets each layer."""
    met: dict[str, int] = {}
    ahead = [last.name]
    while ahead:
        name = ahead.pop()
        if name not in met:
            met[name] = len(met)
            ahead.extend(reversed(known[name].inputs))
    return met
