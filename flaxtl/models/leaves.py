"""Layers whose parameters Flax has no layer for; each is named and shaped so that Keras' arrays fit."""

from typing import Any

import jax
from flax import linen as nn

from flaxtl.models.depthwise import LAYOUT, depthwise

GLOROT = nn.initializers.glorot_uniform()
"""How Keras starts every kernel (Glorot and Bengio 2010); biases start at zero."""


class DepthwiseConv(nn.Module):
    """Convolution of every channel on its own (Keras' DepthwiseConv2D, depth multiplier 1).

    Parameters: kernel [height, width, 1, channels], with `use_bias` bias [channels], float32.
    """

    size: tuple[int, int]
    strides: int
    padding: str
    use_bias: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, height, width, channels] -> the same channels."""
        channels = x.shape[-1]
        kernel = self.param("kernel", GLOROT, (*self.size, 1, channels)).astype(self.dtype)
        y = depthwise(x.astype(self.dtype), kernel, (self.strides, self.strides), self.padding)
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros_init(), (channels,)).astype(self.dtype)
        return y


class SeparableConv(nn.Module):
    """Depthwise, then pointwise convolution, nothing in between (Keras' SeparableConv2D, depth multiplier 1, no bias).

    Parameters: depthwise_kernel [height, width, 1, inputs], pointwise_kernel [1, 1, inputs, features], float32.
    """

    features: int
    size: tuple[int, int]
    strides: int
    padding: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, height, width, inputs] -> [batch, height, width, features]."""
        inputs = x.shape[-1]
        kernel = self.param("depthwise_kernel", GLOROT, (*self.size, 1, inputs)).astype(self.dtype)
        pointwise = self.param("pointwise_kernel", GLOROT, (1, 1, inputs, self.features)).astype(self.dtype)
        x = depthwise(x.astype(self.dtype), kernel, (self.strides, self.strides), self.padding)
        return jax.lax.conv_general_dilated(x, pointwise, (1, 1), "VALID", dimension_numbers=LAYOUT)
