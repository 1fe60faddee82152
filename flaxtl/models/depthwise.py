"""Convolution of every channel on its own."""

import jax
import jax.numpy as jnp
from jax import lax

LAYOUT = ("NHWC", "HWIO", "NHWC")


def depthwise(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: str) -> jax.Array:
    """[batch, height, width, channels] with a kernel [rows, columns, 1, channels], padding 'SAME' or 'VALID'.

    XLA has a kernel for such convolutions on accelerators, but none on CPU, where a sum over the kernel's places is 14
    to 54 times as fast, and its gradients 3 to 30 times (2 cores, 7 to 100 pixels, 32 to 960 channels).
    """

    def library(x: jax.Array, kernel: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        return lax.conv_general_dilated(
            x, kernel, strides, padding, dimension_numbers=LAYOUT, feature_group_count=channels
        )

    def places(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return _sum_over_places(x, kernel, strides, padding)

    found: jax.Array = lax.platform_dependent(x, kernel, cpu=places, default=library)
    return found


def _sum_over_places(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: str) -> jax.Array:
    """Each place of the kernel times the picture moved by it; added up in float32, as the library does."""
    rows, columns = kernel.shape[:2]
    down, across = strides
    pads = lax.padtype_to_pads(x.shape[1:3], (rows, columns), strides, padding)
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0))).astype(jnp.float32)
    height = (padded.shape[1] - rows) // down + 1
    width = (padded.shape[2] - columns) // across + 1
    total = jnp.zeros((), jnp.float32)
    for i in range(rows):
        for j in range(columns):
            seen = padded[:, i : i + down * (height - 1) + 1 : down, j : j + across * (width - 1) + 1 : across]
            total += seen * kernel[i, j, 0].astype(jnp.float32)
    return total.astype(x.dtype)
