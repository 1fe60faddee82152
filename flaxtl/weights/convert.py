"""Keras' arrays, known by their position in a layer, become Flax leaves, known by name."""

from collections.abc import Mapping
from dataclasses import replace

from flaxtl.weights.tree import Expected, Found, Layers, Stored

_USUAL = ("kernel", "bias")  # of a layer that the network does not have


def to_leaves(layers: Layers, expected: Expected) -> Found:
    """Name the arrays of each layer by position, in the order in which `expected` has its leaves.

    The name in the file is no guide: a kernel is `W`, `kernel`, or just a number, by vintage, and Keras 1 calls a
    variance `running_std`. Arrays past the last leaf are named by their index. Kernel layouts, HWIO and (in, out), are
    Flax' own; only depthwise kernels, [height, width, channels, multiplier] in Keras, are [height, width, 1, channels
    * multiplier] here, in the same order of numbers.
    """
    return {
        layer: dict(_named(arrays, expected.get(layer, dict.fromkeys(_USUAL, ()))))
        for layer, arrays in layers.items()
        if arrays
    }


def _named(arrays: list[Stored], shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[str, Stored]]:
    names = [*shapes, *map(str, range(len(shapes), len(arrays)))]
    return [(name, _depthwise(array, shapes.get(name, ()))) for name, array in zip(names, arrays, strict=False)]


def _depthwise(array: Stored, shape: tuple[int, ...]) -> Stored:
    """A depthwise kernel as Flax has it; every other array as it is."""
    kernel = array.values
    if len(shape) == kernel.ndim == 4 and shape[2] == 1 and kernel.shape[2] > 1:
        return replace(array, values=kernel.reshape(*kernel.shape[:2], 1, -1))
    return array
