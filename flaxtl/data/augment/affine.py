"""Affine maps of image coordinates: float32 [2, 3] matrices from (row, column, 1) of the output to the input.

Products are written out, because accelerators may round matrix products to bfloat16.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

Line = tuple[jax.Array, jax.Array, jax.Array]
"""One coordinate of the input: factor of the output row, factor of the output column, shift in pixels."""


class Affine(NamedTuple):
    """Keras' affine parameters of one image, float32 scalars (or arrays of them under vmap)."""

    theta: jax.Array
    """Rotation, degrees."""
    tx: jax.Array
    """Shift along the rows' axis, pixels."""
    ty: jax.Array
    """Shift along the columns' axis, pixels."""
    shear: jax.Array
    """Degrees."""
    zx: jax.Array
    """Factor on output rows."""
    zy: jax.Array
    """Factor on output columns."""
    flip_horizontal: jax.Array
    """Boolean: mirror left and right, after everything else."""
    flip_vertical: jax.Array
    """Boolean: mirror top and bottom, after everything else."""


def affine_matrix(affine: Affine, height: int, width: int) -> jax.Array:
    """Return Keras' product Rotation @ Shift @ Shear @ Zoom around the center, then the flips: float32 [2, 3]."""
    theta, shear = jnp.deg2rad(affine.theta), jnp.deg2rad(affine.shear)
    cos, sin = jnp.cos(theta), jnp.sin(theta)
    mirror_rows = jnp.where(affine.flip_vertical, -1.0, 1.0)
    mirror_columns = jnp.where(affine.flip_horizontal, -1.0, 1.0)
    return about_center(
        (
            affine.zx * cos * mirror_rows,
            -affine.zy * jnp.sin(theta + shear) * mirror_columns,
            cos * affine.tx - sin * affine.ty,
        ),
        (
            affine.zx * sin * mirror_rows,
            affine.zy * jnp.cos(theta + shear) * mirror_columns,
            sin * affine.tx + cos * affine.ty,
        ),
        height,
        width,
    )


def about_center(row: Line, column: Line, height: int, width: int) -> jax.Array:
    """Return a linear map around the center (height / 2 - 0.5, width / 2 - 0.5) plus a shift: float32 [2, 3]."""
    middle = height / 2 - 0.5, width / 2 - 0.5

    def line(by_row: jax.Array, by_column: jax.Array, shift: jax.Array, center: float) -> jax.Array:
        return jnp.stack([by_row, by_column, shift + (center - by_row * middle[0] - by_column * middle[1])])

    return jnp.stack([line(*row, middle[0]), line(*column, middle[1])])


def compose(outer: jax.Array, inner: jax.Array) -> jax.Array:
    """Return the map that applies `inner`, then `outer`: float32 [2, 3]."""
    product: jax.Array = outer[:, :1] * inner[0] + outer[:, 1:2] * inner[1]
    return product.at[:, 2].add(outer[:, 2])
