"""Layers that Flax does not have: convolutions that are fast on CPU, layer scale, standardization, unit norm."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from flaxtl.models.convolution import DIMENSION_NUMBERS, conv

GLOROT = nn.initializers.glorot_uniform(dtype=jnp.float32)
"""Keras' default initializer of kernels (Glorot and Bengio 2010); biases are initialized to zero.

Parameters are float32 also where `jax_enable_x64` makes float64 JAX's default."""

LAYER_SCALE = 1e-6
"""Initial value of a layer scale (Keras' convnext.py)."""

EPSILON = 1e-3
"""Added to a variance: Keras' default of BatchNormalization. A feature that is constant stays small."""

SMALLEST_SQUARE = 1e-12
"""Lower limit of a squared length (Keras' UnitNormalization)."""


class Conv(nn.Module):
    """Convolution (Keras' Conv2D), with `relu` followed by this activation.

    Parameters, float32: kernel [height, width, inputs / groups, features] and, with `use_bias`, bias [features].
    """

    features: int
    kernel_size: tuple[int, int]
    strides: int
    padding: str
    groups: int
    use_bias: bool
    relu: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, num_chunks: int = 1) -> jax.Array:
        """[batch, height, width, inputs] -> [batch, height, width, features]. `num_chunks`: see `conv`."""
        shape = (*self.kernel_size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", GLOROT, shape).astype(self.dtype)
        bias = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32).astype(self.dtype)
        strides = (self.strides, self.strides)
        return conv(
            x.astype(self.dtype),
            kernel,
            bias,
            strides=strides,
            padding=self.padding,
            groups=self.groups,
            relu=self.relu,
            num_chunks=num_chunks,
        )


class DepthwiseConv(nn.Module):
    """Convolution of each channel separately (Keras' DepthwiseConv2D, depth multiplier 1).

    Parameters, float32: kernel [height, width, 1, channels] and, with `use_bias`, bias [channels].
    """

    kernel_size: tuple[int, int]
    strides: int
    padding: str
    use_bias: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, height, width, channels] -> the same channels."""
        channels = x.shape[-1]
        kernel = self.param("kernel", GLOROT, (*self.kernel_size, 1, channels)).astype(self.dtype)
        y = depthwise_conv(x.astype(self.dtype), kernel, (self.strides, self.strides), self.padding)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (channels,), jnp.float32).astype(self.dtype)
            y += lax.broadcast_to_rank(bias, y.ndim)
        return y


class SeparableConv(nn.Module):
    """Depthwise convolution, then a 1x1 convolution (Keras' SeparableConv2D, depth multiplier 1, use_bias=False).

    Parameters, float32: depthwise_kernel [height, width, 1, inputs] and pointwise_kernel [1, 1, inputs, features].
    """

    features: int
    kernel_size: tuple[int, int]
    strides: int
    padding: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, height, width, inputs] -> [batch, height, width, features]."""
        inputs = x.shape[-1]
        kernel = self.param("depthwise_kernel", GLOROT, (*self.kernel_size, 1, inputs)).astype(self.dtype)
        pointwise = self.param("pointwise_kernel", GLOROT, (1, 1, inputs, self.features)).astype(self.dtype)
        x = depthwise_conv(x.astype(self.dtype), kernel, (self.strides, self.strides), self.padding)
        return conv(x, pointwise)


class LayerScale(nn.Module):
    """Multiply each channel by a parameter (Touvron et al. 2021, arXiv:2103.17239).

    Parameter, float32: scale [channels].
    """

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., channels] -> the same shape."""
        scale = self.param("scale", nn.initializers.constant(LAYER_SCALE), (x.shape[-1],), jnp.float32)
        return x.astype(self.dtype) * lax.broadcast_to_rank(scale.astype(self.dtype), x.ndim)


class Standardize(nn.Module):
    """(x - mean) / sqrt(var + EPSILON) by fixed statistics, in float32.

    As Keras' BatchNormalization with scale=False, center=False, trainable=False. Batch statistics, float32: mean
    [channels] and var [channels], 0 and 1 until they are set.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, ..., channels] -> the same shape, float32."""
        mean = self.variable("batch_stats", "mean", jnp.zeros, x.shape[-1], jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, x.shape[-1], jnp.float32)
        centered = x.astype(jnp.float32) - lax.broadcast_to_rank(mean.value, x.ndim)
        return centered * lax.broadcast_to_rank(lax.rsqrt(var.value + EPSILON), x.ndim)


def unit_norm(x: jax.Array) -> jax.Array:
    """Divide x [..., channels] by its length over the channels, in float32; zeros stay zeros."""
    x = x.astype(jnp.float32)
    return x * lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), SMALLEST_SQUARE))


def depthwise_conv(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: str) -> jax.Array:
    """Convolve each channel separately.

    XLA has no fast kernel for this on CPU. A sum over the positions of the kernel is 14 to 54 times as fast there, and
    its gradients 3 to 30 times (2 cores, 7 to 100 pixels, 32 to 960 channels).

    Args:
      x: [batch, height, width, channels].
      kernel: [height, width, 1, channels].
      strides: (vertical, horizontal).
      padding: 'SAME' or 'VALID'.
    """

    def xla_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        return lax.conv_general_dilated(
            x, kernel, strides, padding, dimension_numbers=DIMENSION_NUMBERS, feature_group_count=channels
        )

    def sum_of_shifts(x: jax.Array, kernel: jax.Array) -> jax.Array:
        total: jax.Array = _sum_of_shifts(x, kernel, strides, padding)
        return total

    output: jax.Array = lax.platform_dependent(x, kernel, cpu=sum_of_shifts, default=xla_conv)
    return output


# Inlined, so that the program is the same; but traced once a shape, where NASNet repeats shapes often.
@partial(jax.jit, static_argnums=(2, 3), inline=True)
def _sum_of_shifts(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: str) -> jax.Array:
    """Add up the shifted image times each position of the kernel, in float32 as XLA does."""
    rows, columns = kernel.shape[:2]
    down, across = strides
    pads = lax.padtype_to_pads(x.shape[1:3], (rows, columns), strides, padding)
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0))).astype(jnp.float32)
    height = (padded.shape[1] - rows) // down + 1
    width = (padded.shape[2] - columns) // across + 1
    total = jnp.zeros((), jnp.float32)
    for i in range(rows):
        for j in range(columns):
            shifted = padded[:, i : i + down * (height - 1) + 1 : down, j : j + across * (width - 1) + 1 : across]
            total += shifted * lax.broadcast_to_rank(kernel[i, j, 0].astype(jnp.float32), x.ndim)
    return total.astype(x.dtype)
