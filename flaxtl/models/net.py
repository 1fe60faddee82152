"""The layer vocabulary in which every architecture is written.

An architecture is a function that calls the methods of a `Net`:

    x = net.conv(x, 64, 3, act="relu", name="block1_conv1")

Each call is one layer, under the name that Keras gives it, so an architecture reads like Keras' own source, and its
parameters are held flat, by layer name. A call without a name gets Keras' automatic name: `conv2d`, `conv2d_1`, ...
`LayerRunner`, the base class, decides which layers run and which are skipped.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast
from zlib import crc32

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from flaxtl.errors import UserError
from flaxtl.models import tokens
from flaxtl.models.layers import GLOROT, Conv, DepthwiseConv, LayerScale, SeparableConv, Standardize, unit_norm
from flaxtl.models.tracer import OPERATION, LayerRunner, Value

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "linear": lambda x: x,
    "relu": nn.relu,
    "relu6": nn.relu6,
    "sigmoid": nn.sigmoid,
    "swish": nn.swish,
    "gelu": partial(nn.gelu, approximate=False),
    "gelu_tanh": partial(nn.gelu, approximate=True),
    "hard_swish": nn.hard_swish,
    "softmax": nn.softmax,
}

Size = int | tuple[int, int]
"""Size of a window: one number for both sides, or (height, width)."""

Border = tuple[tuple[int, int], tuple[int, int]]
"""((top, bottom), (left, right)) in pixels."""


class Net(LayerRunner):
    """A network that is run layer by layer.

    Images and feature maps are [batch, height, width, channels]. `padding` is Keras': 'valid' adds no zeros, 'same'
    adds zeros so that the output size is the input size divided by the stride, rounded up; an odd row or column of
    zeros is added at the bottom or right.
    """

    # ------------------------------------------------------------------ layers with parameters

    def conv(
        self,
        x: Value,
        features: int,
        kernel_size: Size,
        *,
        name: str = "",
        strides: int = 1,
        padding: str = "same",
        use_bias: bool = True,
        groups: int = 1,
        act: str = "linear",
    ) -> Value:
        """Convolution (Keras' Conv2D). Kernel [height, width, inputs / groups, features]."""
        name = name or self._auto_name("conv2d")

        def run(x: jax.Array) -> jax.Array:
            relu = act == "relu"  # part of the convolution, which can do it while its outputs are in the cache
            window = _pair(kernel_size)
            layer = Conv(features, window, strides, padding.upper(), groups, use_bias, relu, self.dtype, name=name)
            y = layer(x, self.num_chunks)
            return y if relu else ACTIVATIONS[act](y)

        return self._layer_with_params("conv", name, run, x)

    def depthwise_conv(
        self,
        x: Value,
        kernel_size: Size,
        *,
        name: str = "",
        strides: int = 1,
        padding: str = "same",
        use_bias: bool = False,
    ) -> Value:
        """Convolution of each channel separately (Keras' DepthwiseConv2D). Kernel [height, width, 1, channels]."""
        name = name or self._auto_name("depthwise_conv2d")

        def run(x: jax.Array) -> jax.Array:
            return DepthwiseConv(_pair(kernel_size), strides, padding.upper(), use_bias, self.dtype, name=name)(x)

        return self._layer_with_params("depthwise conv", name, run, x)

    def separable_conv(
        self,
        x: Value,
        features: int,
        kernel_size: Size,
        *,
        name: str = "",
        strides: int = 1,
        padding: str = "same",
    ) -> Value:
        """Depthwise convolution, then a 1x1 convolution, without bias (Keras' SeparableConv2D, use_bias=False)."""
        name = name or self._auto_name("separable_conv2d")

        def run(x: jax.Array) -> jax.Array:
            return SeparableConv(features, _pair(kernel_size), strides, padding.upper(), self.dtype, name=name)(x)

        return self._layer_with_params("separable conv", name, run, x)

    def dense(self, x: Value, features: int, *, name: str, act: str = "linear") -> Value:
        """Fully connected layer (Keras' Dense): [batch, ..., inputs] -> [batch, ..., features].

        With `act="softmax"` it computes in float32 regardless of `dtype`, and keeps the logits.
        """

        def run(x: jax.Array) -> jax.Array:
            dtype = jnp.float32 if act == "softmax" else self.dtype
            y = nn.Dense(features, kernel_init=GLOROT, dtype=dtype, name=name)(x)
            if act == "softmax":
                self.logits = y
            return ACTIVATIONS[act](y)

        return self._layer_with_params("dense", name, run, x)

    def batch_norm(
        self, x: Value, *, name: str = "", epsilon: float = 1e-3, momentum: float = 0.99, use_scale: bool = True
    ) -> Value:
        """Batch normalization, in float32 regardless of `dtype` (Keras' BatchNormalization, with its defaults).

        In train mode it normalizes by the mean and the biased variance of the whole batch, and updates the statistics:
        momentum * old + (1 - momentum) * new. Otherwise it normalizes by the statistics.
        """
        name = name or self._auto_name("batch_normalization")

        def run(x: jax.Array) -> jax.Array:
            norm = nn.BatchNorm(
                use_running_average=name not in self.train_layers,
                momentum=momentum,
                epsilon=epsilon,
                dtype=jnp.float32,
                use_scale=use_scale,
                use_fast_variance=False,  # E[x^2] - E[x]^2 loses digits
                name=name,
            )
            y: jax.Array = norm(x.astype(jnp.float32))
            return y.astype(self.dtype)

        return self._layer_with_params("batch norm", name, run, x)

    def layer_norm(self, x: Value, *, name: str = "", epsilon: float = 1e-3, use_params: bool = True) -> Value:
        """Normalize each position by the mean and variance of its channels, in float32 (Keras' LayerNormalization).

        Without `use_params` it has neither scale nor bias (Keras: scale=False, center=False).
        """
        name = name or self._auto_name("layer_normalization")

        def run(x: jax.Array) -> jax.Array:
            norm = nn.LayerNorm(
                epsilon, jnp.float32, use_bias=use_params, use_scale=use_params, use_fast_variance=False, name=name
            )
            return cast(jax.Array, norm(x.astype(jnp.float32))).astype(self.dtype)

        return (self._layer_with_params if use_params else self._layer)("layer norm", name, run, x)

    def standardize(self, x: Value, *, name: str) -> Value:
        """Subtract a fixed mean and divide by a fixed standard deviation; see `layers.Standardize`."""
        return self._layer_with_params("standardize", name, lambda x: Standardize(name=name)(x).astype(self.dtype), x)

    def unit_norm(self, x: Value, *, name: str) -> Value:
        """Divide each example [batch, channels] by its length, in float32 (Keras' UnitNormalization)."""
        return self._layer("unit norm", name, lambda x: unit_norm(x).astype(self.dtype), x)

    def layer_scale(self, x: Value, *, name: str) -> Value:
        """Multiply each channel by a parameter (LayerScale of Keras' convnext.py)."""
        return self._layer_with_params("layer scale", name, lambda x: LayerScale(self.dtype, name=name)(x), x)

    # ------------------------------------------------------------------ activations

    def activation(self, x: Value, act: str, *, name: str = "", class_name: str = "activation") -> Value:
        """Activation as a separate layer (Keras' Activation).

        With 'softmax' its input is kept as the logits, in float32. `class_name` is the Keras class, in snake case, that
        an unnamed layer is named after.
        """

        def run(x: jax.Array) -> jax.Array:
            if act == "softmax":
                x = self.logits = x.astype(jnp.float32)
            return ACTIVATIONS[act](x)

        return self._layer(act, name or self._auto_name(class_name), run, x)

    def relu(self, x: Value, *, name: str = "", max_value: float = 0) -> Value:
        """max(x, 0), limited to `max_value` if that is 6 (Keras' ReLU layer)."""
        return self.activation(x, f"relu{max_value:g}" if max_value else "relu", name=name, class_name="re_lu")

    def operation(self, function: Callable[..., jax.Array], *inputs: Value) -> Value:
        """Compute something that is not a layer in Keras, such as x + 3: part of the graph, but not listed."""
        return self._layer(OPERATION, self._auto_name("(operation)"), function, *inputs)

    # ------------------------------------------------------------------ several inputs

    def add(self, values: Sequence[Value], *, name: str = "") -> Value:
        """Sum (Keras' Add)."""
        name = name or self._auto_name("add")
        return self._layer("add", name, lambda first, *rest: sum(rest, start=first), *values)

    def scaled_add(self, x: Value, residual: Value, scale: float, *, name: str = "") -> Value:
        """x + scale * residual (CustomScaleLayer of Keras' inception_resnet_v2.py)."""
        name = name or self._auto_name("custom_scale_layer")
        return self._layer("scaled add", name, lambda x, residual: x + scale * residual, x, residual)

    def multiply(self, values: Sequence[Value], *, name: str = "") -> Value:
        """Product of two values, one of which may be [batch, 1, 1, channels] (Keras' Multiply)."""
        return self._layer("multiply", name or self._auto_name("multiply"), lambda a, b: a * b, *values)

    def concat(self, values: Sequence[Value], *, name: str = "") -> Value:
        """Concatenation of the channels, in order (Keras' Concatenate)."""
        name = name or self._auto_name("concatenate")
        return self._layer("concat", name, lambda *arrays: jnp.concatenate(arrays, axis=-1), *values)

    # ------------------------------------------------------------------ borders and pools

    def pad(self, x: Value, border: Border, *, name: str = "") -> Value:
        """Add zeros around the image (Keras' ZeroPadding2D)."""
        name = name or self._auto_name("zero_padding2d")
        return self._layer("pad", name, lambda x: jnp.pad(x, ((0, 0), *border, (0, 0))), x)

    def correct_pad(self, x: Value, kernel_size: int, *, name: str = "") -> Value:
        """Add the zeros that a 'same' convolution of stride 2 with an odd kernel size adds (Keras' `correct_pad`)."""

        def run(x: jax.Array) -> jax.Array:
            border = [(kernel_size // 2 - 1 + side % 2, kernel_size // 2) for side in x.shape[1:3]]
            return jnp.pad(x, ((0, 0), *border, (0, 0)))

        return self._layer("pad", name or self._auto_name("zero_padding2d"), run, x)

    def crop(self, x: Value, border: Border, *, name: str = "") -> Value:
        """Remove a border of the image (Keras' Cropping2D)."""
        (top, bottom), (left, right) = border

        def run(x: jax.Array) -> jax.Array:
            return x[:, top : x.shape[1] - bottom, left : x.shape[2] - right]

        return self._layer("crop", name or self._auto_name("cropping2d"), run, x)

    def max_pool(
        self, x: Value, pool_size: int, *, name: str = "", strides: int | None = None, padding: str = "valid"
    ) -> Value:
        """Maximum over square windows; the stride defaults to their size. Padding is never the maximum."""
        strides = strides or pool_size

        def run(x: jax.Array) -> jax.Array:
            pooled: jax.Array = nn.max_pool(x, (pool_size, pool_size), (strides, strides), padding.upper())
            return pooled

        return self._layer("max pool", name or self._auto_name("max_pooling2d"), run, x)

    def average_pool(
        self, x: Value, pool_size: int, *, name: str = "", strides: int | None = None, padding: str = "valid"
    ) -> Value:
        """Mean over square windows; the stride defaults to their size. Padding is not counted."""
        strides = strides or pool_size

        def run(x: jax.Array) -> jax.Array:
            window = (pool_size, pool_size)
            pooled: jax.Array = nn.avg_pool(x, window, (strides, strides), padding.upper(), count_include_pad=False)
            return pooled.astype(x.dtype)  # Flax divides by float32 counts

        return self._layer("average pool", name or self._auto_name("average_pooling2d"), run, x)

    def global_average_pool(self, x: Value, *, name: str = "", keepdims: bool = False) -> Value:
        """Mean over the image: [batch, height, width, channels] -> [batch, channels], or [batch, 1, 1, channels].

        Of tokens [batch, tokens, channels] it is the mean over all; a single one [batch, channels] stays as it is.
        """
        name = name or self._auto_name("global_average_pooling2d")
        return self._layer("global average pool", name, lambda x: x.mean(_positions(x), keepdims=keepdims), x)

    def global_max_pool(self, x: Value, *, name: str = "") -> Value:
        """Maximum over the image or tokens: [batch, ..., channels] -> [batch, channels]."""
        name = name or self._auto_name("global_max_pooling2d")
        return self._layer("global max pool", name, lambda x: x.max(_positions(x)), x)

    # ------------------------------------------------------------------ tokens

    def class_token(self, patches: Value, *, name: str) -> Value:
        """Put a class token first: [batch, rows, columns, channels] -> [batch, 1 + rows * columns, channels]."""
        return self._layer_with_params(
            "class token", name, lambda x: tokens.ClassToken(self.dtype, name=name)(x), patches
        )

    def position_embedding(self, x: Value, patches: Value, grid: tokens.Grid, *, name: str) -> Value:
        """Add an embedding of its position to each token; resampled if `patches` have another grid than `grid`."""

        def run(x: jax.Array, patches: jax.Array) -> jax.Array:
            _, rows, columns, _ = patches.shape
            return tokens.PositionEmbedding(grid, self.dtype, name=name)(x, (rows, columns))

        return self._layer_with_params("position embedding", name, run, x, patches)

    def attention(self, query: Value, key: Value, value: Value, num_heads: int, *, name: str) -> Value:
        """Attention of each token to all: three times [batch, tokens, channels] -> the same shape."""
        run = partial(tokens.attention, num_heads=num_heads)
        return self._layer("attention", name, run, query, key, value)

    def first_token(self, x: Value, *, name: str) -> Value:
        """Return the class token: [batch, tokens, channels] -> [batch, channels]."""
        return self._layer("first token", name, lambda x: lax.index_in_dim(x, 0, axis=1, keepdims=False), x)

    # ------------------------------------------------------------------ other layers without parameters

    def flatten(self, x: Value, *, name: str = "") -> Value:
        """[batch, height, width, channels] -> [batch, height * width * channels], in that order (Keras' Flatten)."""

        def run(x: jax.Array) -> jax.Array:
            return x.reshape(x.shape[0], math.prod(x.shape[1:]))  # -1 is undefined for a batch without images

        return self._layer("flatten", name or self._auto_name("flatten"), run, x)

    def reshape(self, x: Value, shape: tuple[int, ...], *, name: str = "") -> Value:
        """[batch, ...] -> [batch, *shape], in that order (Keras' Reshape)."""
        return self._layer("reshape", name or self._auto_name("reshape"), lambda x: x.reshape(x.shape[0], *shape), x)

    def dropout(
        self, x: Value, rate: float, *, name: str = "", per_example: bool = False, trains_with: str = ""
    ) -> Value:
        """Zero a fraction `rate` of the values and scale the others up, in train mode (Keras' Dropout).

        It is in train mode if the layer `trains_with` is; by default, the last layer with parameters before it. In a
        frozen base it is therefore inactive, as in Keras when the base is called with training=False. With
        `per_example` all values of an example are dropped together (DropConnect, also called stochastic depth; Keras:
        noise_shape=(None, 1, 1, 1)).
        """
        name = name or self._auto_name("dropout")

        def run(x: jax.Array) -> jax.Array:
            in_train_mode = trains_with in self.train_layers if trains_with else self._in_train_mode
            if not rate or not in_train_mode:
                return x
            if self.dropout_keys is None:
                raise UserError(f"Layer {name!r} is in train mode and needs a key: give rngs={{'dropout': key}}.")
            layer_id = crc32(name.encode())  # depends on the name only, not on which layers were skipped
            shape = (1,) * (x.ndim - 1) if per_example else x.shape[1:]

            def keep(key: jax.Array) -> jax.Array:
                return jax.random.bernoulli(jax.random.fold_in(key, layer_id), 1 - rate, shape)

            return jnp.where(jax.vmap(keep)(self.dropout_keys), x / (1 - rate), 0)

        return self._layer("dropout", name, run, x)

    def local_response_norm(self, x: Value, *, name: str) -> Value:
        """x / (1 + 1e-4 * m) ** 0.75, where m is the mean square over 5 neighboring channels.

        Krizhevsky et al. 2012, section 3.3, as Caffe trained its networks: the mean instead of the sum, and 1 instead
        of 2. Channels beyond the first and the last count as zero. In float32 regardless of `dtype`.
        """

        def run(x: jax.Array) -> jax.Array:
            channels = x.shape[-1]
            squares = jnp.pad(jnp.square(x.astype(jnp.float32)), ((0, 0), (0, 0), (0, 0), (2, 2)))
            total = sum(squares[..., first : first + channels] for first in range(5))
            return (x / (1 + 1e-4 / 5 * total) ** 0.75).astype(self.dtype)

        return self._layer("local response norm", name, run, x)


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _positions(x: jax.Array) -> tuple[int, ...]:
    """Return the axes between the batch and the channels."""
    return tuple(range(1, x.ndim - 1))
