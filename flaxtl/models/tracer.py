"""One pass through a network: which layers run, under which names, from what, and what came of them.

Four uses of one function, because a layer that is not wanted is skipped and creates nothing:

* whole;
* up to a layer (`stop`): its output is the result, layers above never exist;
* from a layer (`start`): the output of that layer is given, it and everything below are skipped;
* with taps: the outputs of named layers are handed out beside the result.

Arrays may be added to the outputs of named layers. A gradient with respect to zeros so added is the gradient with
respect to that layer's output, wherever it lies: within a branch, too, where the network cannot be cut.

`start=NAME` continues exactly where `stop=NAME` ended: running to a cut and on from it equals running through.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flaxtl.errors import UserError, unknown


class Skipped:
    """Stands for the output of a layer that did not run."""


SKIPPED = Skipped()
Value = jax.Array | Skipped

OPERATION = "operation"
"""Kind of what Keras computes without a layer: it counts in the order of layers and is not listed."""


class Layer(NamedTuple):
    """One layer as it was traced: its section, name, kind and output's shape, and the layers that it reads from."""

    section: str
    name: str
    kind: str
    shape: tuple[int, ...]
    inputs: tuple[str, ...] = ()


@dataclass
class Tracer:
    """What to run, and what came of it.

    Set before the pass: `dtype` of the computation, `learning` (names of the layers that learn in this pass; empty
    for inference), `keys` (random, one an example, [batch]; None: nothing is dropped), the cut names, the taps and the
    `perturbations` (layer name -> what is added to its output).
    Read after it: `output` (of the last layer that ran), `logits` (float32, before the softmax, if it was reached),
    `tapped` (layer name -> output) and `layers` (every layer that ran, in order).
    """

    dtype: Any = jnp.float32
    learning: frozenset[str] = frozenset()
    keys: jax.Array | None = None
    start: str | None = None
    given: jax.Array | None = None
    stop: str | None = None
    taps: tuple[str, ...] = ()
    perturbations: Mapping[str, jax.Array] = field(default_factory=dict)
    output: Value = SKIPPED
    logits: jax.Array | None = None
    tapped: dict[str, jax.Array] = field(default_factory=dict)
    layers: list[Layer] = field(default_factory=list)
    _names: dict[str, None] = field(default_factory=dict)
    _unnamed: dict[str, int] = field(default_factory=dict)
    _sources: dict[int, tuple[str, jax.Array]] = field(default_factory=dict)
    _section: str = ""
    _last: str | None = None
    _closed: bool = False
    _owner: str = ""

    def section(self, name: str, last: str | None = None) -> None:
        """Begin the part of the network called `name`; layers after its layer `last` do not exist."""
        self._section, self._last = name, last
        self._closed = self.stopped

    @property
    def stopped(self) -> bool:
        """Whether the pass has come to `stop`: no later section runs."""
        return self.stop is not None and self.stop in self._names

    def require(self, names: Iterable[str]) -> None:
        """Raise if one of `names` is no layer of the network that was passed through."""
        for name in names:
            if name not in self._names:
                raise unknown("layer", name, self._names)

    def _auto(self, keras: str) -> str:
        """The name that Keras gives the next layer of class `keras` (in snake case) that was given none."""
        count = self._unnamed.get(keras, 0)
        self._unnamed[keras] = count + 1
        return f"{keras}_{count}" if count else keras

    @property
    def _active(self) -> bool:
        """Whether dropout acts here: the last layer with parameters before it learns."""
        return self._owner in self.learning

    def _layer(self, kind: str, name: str, function: Callable[..., jax.Array], *inputs: Value) -> Value:
        """Run one layer, or skip it, and note what was asked of it."""
        if name in self._names:
            raise ValueError(f"two layers are named {name!r}")
        self._names[name] = None
        output = SKIPPED if self._closed else self._run(name, function, inputs)
        if not isinstance(output, Skipped):
            if name in self.perturbations:
                output = output + self.perturbations[name].astype(output.dtype)
            self._note(kind, name, output, inputs)
        if name in (self.stop, self._last):
            self._closed = True
        return output

    def _run(self, name: str, function: Callable[..., jax.Array], inputs: tuple[Value, ...]) -> Value:
        if name == self.start and self.given is not None:
            return self.given
        arrays = [value for value in inputs if not isinstance(value, Skipped)]
        if 0 < len(arrays) < len(inputs):
            raise UserError(
                f"the network cannot start at {self.start!r}: {name!r} also needs a layer that does not come "
                "after it; choose a layer through which everything passes"
            )
        if not arrays:
            return SKIPPED
        output = function(*arrays)
        # A layer that changes nothing still has an output of its own, by which the graph is known.
        return jnp.copy(output) if any(output is array for array in arrays) else output

    def _note(self, kind: str, name: str, output: jax.Array, inputs: tuple[Value, ...]) -> None:
        self.output = output
        read = tuple(self._sources[id(value)][0] for value in inputs if id(value) in self._sources)
        # The array is kept beside its name: else another one might be given its id.
        self._sources[id(output)] = (name, output)
        self.layers.append(Layer(self._section, name, kind, output.shape[1:], read))
        if name in self.taps:
            self.tapped[name] = output


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


def cut_points(layers: Sequence[Layer]) -> list[str]:
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
