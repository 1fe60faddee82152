"""Layers whose parameters Flax has no layer for; each is named and shaped so that Keras' arrays fit."""

from typing import Any

import jax
from flax import linen as nn

GLOROT = nn.initializers.glorot_uniform()
"""How Keras starts every kernel (Glorot and Bengio 2010); biases start at zero."""

LAYOUT = ("NHWC", "HWIO", "NHWC")


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
        depthwise = self.param("depthwise_kernel", GLOROT, (*self.size, 1, inputs)).astype(self.dtype)
        pointwise = self.param("pointwise_kernel", GLOROT, (1, 1, inputs, self.features)).astype(self.dtype)
        strides = (self.strides, self.strides)
        x = jax.lax.conv_general_dilated(
            x.astype(self.dtype), depthwise, strides, self.padding, dimension_numbers=LAYOUT, feature_group_count=inputs
        )
        return jax.lax.conv_general_dilated(x, pointwise, (1, 1), "VALID", dimension_numbers=LAYOUT)
