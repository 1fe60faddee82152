"""The vocabulary in which every architecture is written.

An architecture is a function that calls a `Net`: `x = net.conv(x, 64, 3, act='relu', name='block1_conv1')`.
Each call is one layer under Keras' name for it, so that a network reads like Keras' own source and its parameters
lie flat, by layer name. A call without a name gets the one that Keras would have made up: `conv2d`, `conv2d_1`, ...
What runs and what is skipped is the business of trace.py.
"""

from collections.abc import Callable, Sequence
from zlib import crc32

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxtl.models.layers import GLOROT, DepthwiseConv, SeparableConv
from flaxtl.models.tracer import OPERATION, Tracer, Value

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "linear": lambda x: x,
    "relu": nn.relu,
    "relu6": nn.relu6,
    "sigmoid": nn.sigmoid,
    "swish": nn.swish,
    "hard_swish": nn.hard_swish,
    "softmax": nn.softmax,
}

Size = int | tuple[int, int]
"""Of a window: one number for both sides, or (height, width)."""

Border = tuple[tuple[int, int], tuple[int, int]]
"""((top, bottom), (left, right)) pixels."""


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


class Net(Tracer):
    """One pass through a network, layer by layer.

    Images and feature maps are [batch, height, width, channels]. `padding` is Keras': 'valid', or 'same', which
    adds zeros so that the output is the input's size divided by the stride, the odd one at the bottom and right.
    """

    # ------------------------------------------------------------------ layers with parameters

    def conv(
        self,
        x: Value,
        features: int,
        size: Size,
        *,
        name: str = "",
        strides: int = 1,
        padding: str = "same",
        bias: bool = True,
        groups: int = 1,
        act: str = "linear",
    ) -> Value:
        """Convolution (Keras' Conv2D). Kernel [height, width, inputs / groups, features]."""
        name = name or self._auto("conv2d")

        def run(x: jax.Array) -> jax.Array:
            return ACTIVATIONS[act](self._convolution(features, _pair(size), strides, padding, bias, groups, name)(x))

        return self._with_parameters("conv", name, run, x)

    def depthwise_conv(
        self,
        x: Value,
        size: Size,
        *,
        name: str = "",
        strides: int = 1,
        padding: str = "same",
        bias: bool = False,
    ) -> Value:
        """Every channel convolved on its own (Keras' DepthwiseConv2D). Kernel [height, width, 1, channels]."""
        name = name or self._auto("depthwise_conv2d")

        def run(x: jax.Array) -> jax.Array:
            return DepthwiseConv(_pair(size), strides, padding.upper(), bias, self.dtype, name=name)(x)

        return self._with_parameters("depthwise conv", name, run, x)

    def _convolution(
        self, features: int, size: tuple[int, int], strides: int, padding: str, bias: bool, groups: int, name: str
    ) -> nn.Conv:
        return nn.Conv(
            features,
            size,
            strides,
            padding.upper(),
            feature_group_count=groups,
            use_bias=bias,
            kernel_init=GLOROT,
            dtype=self.dtype,
            name=name,
        )

    def separable_conv(
        self,
        x: Value,
        features: int,
        size: Size,
        *,
        name: str = "",
        strides: int = 1,
        padding: str = "same",
    ) -> Value:
        """A depthwise convolution, then one of 1x1, without bias (Keras' SeparableConv2D with use_bias=False)."""
        name = name or self._auto("separable_conv2d")

        def run(x: jax.Array) -> jax.Array:
            return SeparableConv(features, _pair(size), strides, padding.upper(), self.dtype, name=name)(x)

        return self._with_parameters("separable conv", name, run, x)

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

        return self._with_parameters("dense", name, run, x)

    def batch_norm(
        self, x: Value, *, name: str = "", epsilon: float = 1e-3, momentum: float = 0.99, scale: bool = True
    ) -> Value:
        """Batch normalisation, in float32 whatever the dtype (Keras' BatchNormalization; its defaults).

        In a layer that learns, by the mean and the biased variance of the whole batch, which move the statistics:
        momentum * old + (1 - momentum) * new. In all others by the statistics as they are.
        """
        name = name or self._auto("batch_normalization")

        def run(x: jax.Array) -> jax.Array:
            norm = nn.BatchNorm(
                use_running_average=name not in self.learning,
                momentum=momentum,
                epsilon=epsilon,
                dtype=jnp.float32,
                use_scale=scale,
                use_fast_variance=False,  # the mean of squares less the square of the mean loses digits
                name=name,
            )
            y: jax.Array = norm(x.astype(jnp.float32))
            return y.astype(self.dtype)

        return self._with_parameters("batch norm", name, run, x)

    def _with_parameters(self, kind: str, name: str, run: Callable[[jax.Array], jax.Array], x: Value) -> Value:
        self._owner = name
        return self._layer(kind, name, run, x)

    # ------------------------------------------------------------------ activations

    def activation(self, x: Value, act: str, *, name: str = "", keras: str = "activation") -> Value:
        """An activation as a layer of its own; `keras` is the class, in snake case, that an unnamed one is called by.

        With 'softmax' its input is kept as the logits, in float32.
        """

        def run(x: jax.Array) -> jax.Array:
            if act == "softmax":
                x = self.logits = x.astype(jnp.float32)
            return ACTIVATIONS[act](x)

        return self._layer(act, name or self._auto(keras), run, x)

    def relu(self, x: Value, *, name: str = "", most: float = 0) -> Value:
        """max(x, 0), and with `most` = 6 no more than 6 (Keras' ReLU layer, unnamed `re_lu`)."""
        return self.activation(x, f"relu{most:g}" if most else "relu", name=name, keras="re_lu")

    def operation(self, function: Callable[..., jax.Array], *inputs: Value) -> Value:
        """What Keras computes without a layer, such as x + 3: not listed, but part of the graph."""
        return self._layer(OPERATION, self._auto("(operation)"), function, *inputs)

    # ------------------------------------------------------------------ several inputs

    def add(self, values: Sequence[Value], *, name: str = "") -> Value:
        """The sum (Keras' Add)."""
        return self._layer("add", name or self._auto("add"), lambda first, *rest: sum(rest, start=first), *values)

    def scaled_add(self, x: Value, residual: Value, scale: float, *, name: str = "") -> Value:
        """x + scale * residual (InceptionResNetV2's CustomScaleLayer)."""
        name = name or self._auto("custom_scale_layer")
        return self._layer("scaled add", name, lambda x, residual: x + scale * residual, x, residual)

    def multiply(self, values: Sequence[Value], *, name: str = "") -> Value:
        """The product of two, one of which may be [batch, 1, 1, channels] (Keras' Multiply)."""
        return self._layer("multiply", name or self._auto("multiply"), lambda a, b: a * b, *values)

    def concat(self, values: Sequence[Value], *, name: str = "") -> Value:
        """All channels, in order (Keras' Concatenate)."""
        name = name or self._auto("concatenate")
        return self._layer("concat", name, lambda *arrays: jnp.concatenate(arrays, axis=-1), *values)

    # ------------------------------------------------------------------ layers without parameters

    def pad(self, x: Value, border: Border, *, name: str = "") -> Value:
        """Zeros around the image (Keras' ZeroPadding2D)."""
        name = name or self._auto("zero_padding2d")
        return self._layer("pad", name, lambda x: jnp.pad(x, ((0, 0), *border, (0, 0))), x)

    def correct_pad(self, x: Value, size: int, *, name: str = "") -> Value:
        """The zeros that a 'same' convolution of stride 2 with a window of `size`, an odd number, would add."""

        def run(x: jax.Array) -> jax.Array:
            border = [(size // 2 - 1 + side % 2, size // 2) for side in x.shape[1:3]]
            return jnp.pad(x, ((0, 0), *border, (0, 0)))

        return self._layer("pad", name or self._auto("zero_padding2d"), run, x)

    def crop(self, x: Value, border: Border, *, name: str = "") -> Value:
        """The image without its border (Keras' Cropping2D)."""
        (top, bottom), (left, right) = border

        def run(x: jax.Array) -> jax.Array:
            return x[:, top : x.shape[1] - bottom, left : x.shape[2] - right]

        return self._layer("crop", name or self._auto("cropping2d"), run, x)

    def local_response_norm(
        self, x: Value, *, name: str, size: int = 5, alpha: float = 1e-4, beta: float = 0.75
    ) -> Value:
        """Every value over (1 + alpha * m) ** beta, m the mean square of `size` channels around it.

        Krizhevsky et al. 2012, section 3.3, with the constants that Caffe's networks were trained with: the mean in
        place of the sum, 1 in place of 2; zeros stand beside the first and the last channel. In float32 always.
        """

        def run(x: jax.Array) -> jax.Array:
            channels, border = x.shape[-1], (size // 2, size // 2)
            squares = jnp.pad(jnp.square(x.astype(jnp.float32)), ((0, 0), (0, 0), (0, 0), border))
            total = sum(squares[..., first : first + channels] for first in range(size))
            return (x / (1 + alpha / size * total) ** beta).astype(self.dtype)

        return self._layer("local response norm", name, run, x)

    def max_pool(
        self, x: Value, size: int, *, name: str = "", strides: int | None = None, padding: str = "valid"
    ) -> Value:
        """Maximum over size x size windows, the stride as large unless given; padding never wins."""
        step = strides or size

        def run(x: jax.Array) -> jax.Array:
            pooled: jax.Array = nn.max_pool(x, (size, size), (step, step), padding.upper())
            return pooled

        return self._layer("max pool", name or self._auto("max_pooling2d"), run, x)

    def average_pool(
        self, x: Value, size: int, *, name: str = "", strides: int | None = None, padding: str = "valid"
    ) -> Value:
        """Mean over size x size windows, the stride as large unless given; padding does not count."""
        step = strides or size

        def run(x: jax.Array) -> jax.Array:
            window = (size, size)
            pooled: jax.Array = nn.avg_pool(x, window, (step, step), padding.upper(), count_include_pad=False)
            return pooled.astype(x.dtype)  # the counts of pixels are float32

        return self._layer("average pool", name or self._auto("average_pooling2d"), run, x)

    def global_average_pool(self, x: Value, *, name: str = "", keep: bool = False) -> Value:
        """[batch, height, width, channels] -> [batch, channels], the mean; with `keep` [batch, 1, 1, channels]."""
        name = name or self._auto("global_average_pooling2d")
        return self._layer("global average pool", name, lambda x: x.mean((1, 2), keepdims=keep), x)

    def global_max_pool(self, x: Value, *, name: str = "") -> Value:
        """[batch, height, width, channels] -> [batch, channels], the maximum over the image."""
        name = name or self._auto("global_max_pooling2d")
        return self._layer("global max pool", name, lambda x: x.max((1, 2)), x)

    def flatten(self, x: Value, *, name: str = "") -> Value:
        """[batch, height, width, channels] -> [batch, height * width * channels], in that order."""
        return self._layer("flatten", name or self._auto("flatten"), lambda x: x.reshape(x.shape[0], -1), x)

    def reshape(self, x: Value, shape: tuple[int, ...], *, name: str = "") -> Value:
        """[batch, ...] -> [batch, *shape], in that order (Keras' Reshape)."""
        return self._layer("reshape", name or self._auto("reshape"), lambda x: x.reshape(x.shape[0], *shape), x)

    def dropout(self, x: Value, rate: float, *, name: str = "", whole: bool = False) -> Value:
        """Zero a share `rate` of the values and scale up the rest (Keras' Dropout), where the network learns.

        It acts if the last layer with parameters before it learns: in a frozen base it is inactive, which Keras has
        only when the base is called with training=False. With `whole` all values of an example are dropped together
        (DropConnect, as Keras calls stochastic depth: noise_shape=(None, 1, 1, 1)).
        """
        name = name or self._auto("dropout")

        def run(x: jax.Array) -> jax.Array:
            if not rate or not self._active or self.keys is None:
                return x
            number = crc32(name.encode())  # by its name, whatever layers were skipped

            def keep(key: jax.Array) -> jax.Array:
                shape = (1,) * (x.ndim - 1) if whole else x.shape[1:]
                return jax.random.bernoulli(jax.random.fold_in(key, number), 1 - rate, shape)

            return jnp.where(jax.vmap(keep)(self.keys), x / (1 - rate), 0)

        return self._layer("dropout", name, run, x)
