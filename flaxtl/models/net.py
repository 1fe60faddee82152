"""The vocabulary in which every architecture is written.

An architecture is a function that calls a `Net`: `x = net.conv(x, 64, 3, act='relu', name='block1_conv1')`.
Each call is one layer under Keras' name for it, so that a network reads like Keras' own source and its parameters
lie flat, by layer name. The same function serves four uses, because a layer that is not wanted is skipped and
creates nothing:

* whole;
* up to a layer (`stop`): its output is the result, layers above never exist;
* from a layer (`start`): the output of that layer is given, it and everything below are skipped;
* with taps: the outputs of named layers are handed out beside the result.

`start=NAME` continues exactly where `stop=NAME` ended: running to a cut and on from it equals running through.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxtl.errors import UserError, unknown

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "linear": lambda x: x,
    "relu": nn.relu,
    "softmax": nn.softmax,
}

GLOROT = nn.initializers.glorot_uniform()
"""How Keras starts every kernel (Glorot and Bengio 2010); biases start at zero."""


class Skipped:
    """Stands for the output of a layer that did not run."""


SKIPPED = Skipped()
Value = jax.Array | Skipped


class Layer(NamedTuple):
    """One layer as it was traced: which section it belongs to, its name, its kind and its output's shape."""

    section: str
    name: str
    kind: str
    shape: tuple[int, ...]


@dataclass
class Net:
    """One pass through a network: what to run, and what came of it.

    Set before the pass: `dtype` of the computation, `train` (dropout acts), the cut names and the taps.
    Read after it: `output` (of the last layer that ran), `logits` (float32, before the softmax, if it was reached),
    `tapped` (layer name -> output) and `layers` (every layer that ran, in order).
    """

    dtype: Any = jnp.float32
    train: bool = False
    start: str | None = None
    given: jax.Array | None = None
    stop: str | None = None
    taps: tuple[str, ...] = ()
    output: Value = SKIPPED
    logits: jax.Array | None = None
    tapped: dict[str, jax.Array] = field(default_factory=dict)
    layers: list[Layer] = field(default_factory=list)
    _names: list[str] = field(default_factory=list)
    _section: str = ""
    _last: str | None = None
    _closed: bool = False

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

    def _layer(self, kind: str, name: str, function: Callable[..., jax.Array], *inputs: Value) -> Value:
        """Run one layer, or skip it, and note what was asked of it."""
        if name in self._names:
            raise ValueError(f"two layers are named {name!r}")
        self._names.append(name)
        output = SKIPPED if self._closed else self._run(name, function, inputs)
        if not isinstance(output, Skipped):
            self._note(kind, name, output)
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
        return function(*arrays) if arrays else SKIPPED

    def _note(self, kind: str, name: str, output: jax.Array) -> None:
        self.output = output
        self.layers.append(Layer(self._section, name, kind, output.shape[1:]))
        if name in self.taps:
            self.tapped[name] = output

    # ------------------------------------------------------------------ layers with parameters

    def conv(self, x: Value, features: int, size: int, *, name: str, act: str = "linear") -> Value:
        """Convolution over [batch, height, width, channels], padded `same`, with bias (Keras' Conv2D)."""

        def run(x: jax.Array) -> jax.Array:
            conv = nn.Conv(features, (size, size), padding="SAME", kernel_init=GLOROT, dtype=self.dtype, name=name)
            return ACTIVATIONS[act](conv(x))

        return self._layer("conv", name, run, x)

    def dense(self, x: Value, features: int, *, name: str, act: str = "linear") -> Value:
        """Fully connected layer over [batch, inputs] (Keras' Dense).

        With `act='softmax'` it computes in float32 whatever the dtype, and the logits are kept for the loss.
        """

        def run(x: jax.Array) -> jax.Array:
            dtype = jnp.float32 if act == "softmax" else self.dtype
            y = nn.Dense(features, kernel_init=GLOROT, dtype=dtype, name=name)(x)
            if act == "softmax":
                self.logits = y
            return ACTIVATIONS[act](y)

        return self._layer("dense", name, run, x)

    # ------------------------------------------------------------------ layers without parameters

    def max_pool(self, x: Value, size: int, *, name: str) -> Value:
        """Maximum over size x size windows, the stride as large; a rest at the border is dropped (`valid`)."""
        return self._layer("max pool", name, lambda x: nn.max_pool(x, (size, size), (size, size)), x)

    def average_pool(self, x: Value, size: int, *, name: str) -> Value:
        """Mean over size x size windows, the stride as large; a rest at the border is dropped (`valid`)."""
        return self._layer("average pool", name, lambda x: nn.avg_pool(x, (size, size), (size, size)), x)

    def global_average_pool(self, x: Value, *, name: str) -> Value:
        """[batch, height, width, channels] -> [batch, channels], the mean over the picture."""
        return self._layer("global average pool", name, lambda x: x.mean((1, 2)), x)

    def global_max_pool(self, x: Value, *, name: str) -> Value:
        """[batch, height, width, channels] -> [batch, channels], the maximum over the picture."""
        return self._layer("global max pool", name, lambda x: x.max((1, 2)), x)

    def flatten(self, x: Value, *, name: str) -> Value:
        """[batch, height, width, channels] -> [batch, height * width * channels], in that order."""
        return self._layer("flatten", name, lambda x: x.reshape(x.shape[0], -1), x)

    def dropout(self, x: Value, rate: float, *, name: str) -> Value:
        """Zero a share `rate` of the values while training and scale up the rest (Keras' Dropout)."""
        return self._layer("dropout", name, lambda x: nn.Dropout(rate, deterministic=not self.train)(x), x)
