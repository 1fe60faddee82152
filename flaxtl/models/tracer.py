"""Partial execution of a network: which layers run, on which values, and what each of them returned.

One function covers four uses, because a layer that is not needed is skipped and creates no parameters:

* whole network;
* up to a layer (`stop`): the output of that layer is the result;
* from a layer on (`start`): the output of that layer is given; it and everything below it are skipped;
* with taps: the outputs of named layers are returned as well.

Running up to a layer and then from it gives the same result as running the whole network.

Arrays may be added to the outputs of named layers (`perturbations`). The gradient with respect to zeros that are added
to a layer is the gradient with respect to its output. This also works inside a branch, where a network cannot be cut.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flaxtl.errors import UserError, unknown


class Skipped:
    """Placeholder for the output of a layer that did not run."""


SKIPPED = Skipped()
Value = jax.Array | Skipped

OPERATION = "operation"
"""Kind of a computation that Keras does without a layer: part of the graph, but not listed as a layer."""


class Layer(NamedTuple):
    """A layer: its section ('backbone' or 'head'), name, kind, output shape without batch, and input layers."""

    section: str
    name: str
    kind: str
    shape: tuple[int, ...]
    inputs: tuple[str, ...] = ()


@dataclass
class LayerRunner:
    """Run a network, or a part of it, layer by layer, and record its layers and outputs.

    Settings:
      dtype: of the computation; parameters stay float32.
      train_layers: names of the layers in train mode; empty for inference.
      dropout_keys: random keys [batch], one per example. None: no dropout layer is in train mode.
      start: name of the layer to start from; its output is `start_value`.
      stop: name of the last layer to run.
      taps: names of the layers whose outputs are kept in `tapped`.
      perturbations: layer name -> array that is added to the output of the layer.
      num_chunks: number of batches of this size that the program runs, one after the other.

    Results:
      output: of the last layer that ran.
      logits: float32 [batch, classes], the input of the softmax; None if it was not reached.
      tapped: layer name -> output.
      layers: every layer that ran, in the order of the calls.
    """

    dtype: Any = jnp.float32
    train_layers: frozenset[str] = frozenset()
    dropout_keys: jax.Array | None = None
    start: str | None = None
    start_value: jax.Array | None = None
    stop: str | None = None
    taps: tuple[str, ...] = ()
    perturbations: Mapping[str, jax.Array] = field(default_factory=dict)
    num_chunks: int = 1

    output: Value = SKIPPED
    logits: jax.Array | None = None
    tapped: dict[str, jax.Array] = field(default_factory=dict)
    layers: list[Layer] = field(default_factory=list)

    _names: dict[str, None] = field(default_factory=dict)  # of all layers, including skipped ones, in order
    _auto_names: dict[str, int] = field(default_factory=dict)  # class name -> number of unnamed layers
    _producers: dict[int, tuple[str, jax.Array]] = field(default_factory=dict)  # id of an array -> layer, array
    _section: str = ""
    _last_layer: str | None = None  # of the section
    _closed: bool = False  # no further layer of the section runs
    _last_with_params: str = ""

    def begin_section(self, name: str, last_layer: str | None = None) -> None:
        """Begin the section `name` of the network. Layers after `last_layer` do not exist."""
        self._section, self._last_layer = name, last_layer
        self._closed = self.stopped

    @property
    def stopped(self) -> bool:
        """Whether `stop` has been reached, so that no later section runs."""
        return self.stop is not None and self.stop in self._names

    def check_names(self, names: Iterable[str]) -> None:
        """Raise UserError if one of `names` is not a layer of the network; call it after the network has run."""
        for name in names:
            if name not in self._names:
                raise unknown("layer", name, self._names)

    def _auto_name(self, class_name: str) -> str:
        """Return the name that Keras gives the next unnamed layer of a class (in snake case): `add`, `add_1`, ..."""
        count = self._auto_names.get(class_name, 0)
        self._auto_names[class_name] = count + 1
        return f"{class_name}_{count}" if count else class_name

    @property
    def _in_train_mode(self) -> bool:
        """Whether a layer without parameters is in train mode here: that of the last layer with parameters."""
        return self._last_with_params in self.train_layers

    def _layer_with_params(self, kind: str, name: str, function: Callable[..., jax.Array], *inputs: Value) -> Value:
        self._last_with_params = name
        return self._layer(kind, name, function, *inputs)

    def _layer(self, kind: str, name: str, function: Callable[..., jax.Array], *inputs: Value) -> Value:
        """Run one layer, or skip it; returns its output."""
        if name in self._names:
            raise UserError(
                f"Two layers are named {name!r}; the second is in the {self._section}. Rename the first, in the "
                "function that builds the backbone."
            )
        self._names[name] = None
        output = SKIPPED if self._closed else self._compute(name, function, inputs)
        if not isinstance(output, Skipped):
            if name in self.perturbations:
                output = output + self.perturbations[name].astype(output.dtype)
            self._record(kind, name, output, inputs)
        if name in (self.stop, self._last_layer):
            self._closed = True
        return output

    def _compute(self, name: str, function: Callable[..., jax.Array], inputs: tuple[Value, ...]) -> Value:
        if name == self.start and self.start_value is not None:
            return self.start_value
        arrays = [value for value in inputs if not isinstance(value, Skipped)]
        if not arrays:
            return SKIPPED
        if len(arrays) < len(inputs):
            raise UserError(
                f"Cannot start at layer {self.start!r}: layer {name!r} also reads a layer that does not come after it. "
                "Choose a layer that all paths pass through."
            )
        output = function(*arrays)
        # An identity returns its input; a copy has its own id, by which `_record` knows the layer that produced it.
        return jnp.copy(output) if any(output is array for array in arrays) else output

    def _record(self, kind: str, name: str, output: jax.Array, inputs: tuple[Value, ...]) -> None:
        self.output = output
        input_names = tuple(self._producers[id(value)][0] for value in inputs if id(value) in self._producers)
        # Keeping the array alive keeps its id from being reused.
        self._producers[id(output)] = (name, output)
        self.layers.append(Layer(self._section, name, kind, output.shape[1:], input_names))
        if name in self.taps:
            self.tapped[name] = output


def keras_order(layers: Sequence[Layer]) -> list[Layer]:
    """Sort layers as Keras does, by their depth in the graph.

    Operations that are not layers take part in the sorting and are left out of the result: a layer that reads one is
    listed as reading what the operation reads.

    Args:
      layers: in an order in which every layer comes after its inputs.
    """
    by_name = {layer.name: layer for layer in layers}
    depths = _depths(layers)
    visits = _depth_first_visits(layers[-1], by_name) if layers else {}
    connected = [layer for layer in layers if layer.name in visits]
    connected.sort(key=lambda layer: (-depths[layer.name], visits[layer.name]))
    return [
        layer._replace(inputs=tuple(_input_layers(layer, by_name))) for layer in connected if layer.kind != OPERATION
    ]


def cut_points(layers: Sequence[Layer]) -> list[str]:
    """Return the names of the layers that all paths pass through: no layer above one reads a layer below it.

    Args:
      layers: as returned by `keras_order`.
    """
    index = {layer.name: i for i, layer in enumerate(layers)}
    names: list[str] = []
    lowest_input = len(layers)  # of all layers above
    for i, layer in reversed(list(enumerate(layers))):
        if i <= lowest_input:
            names.append(layer.name)
        lowest_input = min(lowest_input, min((index[name] for name in layer.inputs), default=-1))
    return names[::-1]


def _input_layers(layer: Layer, by_name: Mapping[str, Layer]) -> Iterator[str]:
    """Yield the layers that `layer` reads, directly or through operations."""
    for name in layer.inputs:
        if by_name[name].kind == OPERATION:
            yield from _input_layers(by_name[name], by_name)
        else:
            yield name


def _depths(layers: Sequence[Layer]) -> dict[str, int]:
    """Return the length of the longest path from each layer to the last one."""
    depths = dict.fromkeys((layer.name for layer in layers), 0)
    for layer in reversed(layers):
        for name in layer.inputs:
            depths[name] = max(depths[name], depths[layer.name] + 1)
    return depths


def _depth_first_visits(last: Layer, by_name: Mapping[str, Layer]) -> dict[str, int]:
    """Return when a depth-first search from the last layer, with inputs in order, first visits each layer."""
    visits: dict[str, int] = {}
    stack = [last.name]
    while stack:
        name = stack.pop()
        if name not in visits:
            visits[name] = len(visits)
            stack.extend(reversed(by_name[name].inputs))
    return visits
