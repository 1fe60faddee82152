"""The affine family of Keras' ImageDataGenerator: random parameters, one matrix, one warp, all inside jit.

Rows and columns are meant as Keras documents them and as keras-preprocessing computed them up to release 1.1.2:
`height_shift` moves a picture up and down. Since keras-preprocessing pull request 318 (October 2020) and in every Keras
after it the two axes are exchanged on the way (keras issue 17398: height_shift_range moves sideways) and pictures that
are not square turn about a point off their centre. For square pictures and equal shifts, the lecture's, both draw from
the same distribution.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxtl.errors import UserError

_BELOW = {"rotation": 360.0, "height_shift": 1.0, "width_shift": 1.0, "shear": 90.0, "zoom": 1.0}

_STREAM = 0x6175676D  # "augm": keeps these keys apart from others, a dropout's say, that are folded from the same seed

_BITS = 16  # of the fraction in a fixed-point coordinate; the integer part then reaches 32,767 pixels either way
_ONE = 1 << _BITS


@dataclass(frozen=True)
class Augmentation:
    """How far pictures are moved at random; all zeros leaves them as they are. Hashable, so static under jit.

    rotation: at most so many degrees either way.
    height_shift, width_shift: up and down, left and right, at most this fraction of the height, of the width.
    shear: at most so many DEGREES either way, as in Keras; the lecture's 0.2 is next to nothing.
    zoom: rows and columns are scaled on their own by a factor from 1 - zoom to 1 + zoom; above 1 shows more, smaller.
    horizontal_flip: mirror left and right, every second picture.

    Raises UserError for a range below 0 or too wide to leave a picture: 360 degrees of rotation, 90 of shear, 1
    otherwise.
    """

    rotation: float = 0
    height_shift: float = 0
    width_shift: float = 0
    shear: float = 0
    zoom: float = 0
    horizontal_flip: bool = False

    def __post_init__(self) -> None:
        """Refuse ranges without meaning."""
        for name, limit in _BELOW.items():
            value = getattr(self, name)
            if not 0 <= value < limit:
                raise UserError(f"augmentation {name} is {value}; give a number from 0 to below {limit:g}")


class Affine(NamedTuple):
    """What happens to one picture, float32 scalars (or arrays of them under vmap)."""

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
    flip: jax.Array
    """Boolean: mirror left and right, after everything else."""


def keys(seed: int, passes: jax.Array, indices: jax.Array) -> jax.Array:
    """One random key an example, a pure function of (seed, pass over the data, index of the picture).

    `passes` and `indices` are int32 [batch]; the result is a key array [batch]. The generator is named, so that the
    same three numbers give the same draws on every machine and under every setting of JAX.
    """
    stream = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), _STREAM)
    return jax.vmap(lambda turn, index: jax.random.fold_in(jax.random.fold_in(stream, turn), index))(passes, indices)


def draw(key: jax.Array, augmentation: Augmentation, height: int, width: int) -> Affine:
    """Random parameters for one picture of `height` x `width` pixels, each uniform in its range.

    The order of the draws is Keras': theta, tx, ty, shear, zx, zy, flip. All are always drawn, so switching one kind
    off leaves the others as they were.
    """
    theta, tx, ty, shear, zx, zy, flip = jax.random.uniform(key, (7,), minval=-1, maxval=1)
    return Affine(
        theta=augmentation.rotation * theta,
        tx=augmentation.height_shift * height * tx,
        ty=augmentation.width_shift * width * ty,
        shear=augmentation.shear * shear,
        zx=1 + augmentation.zoom * zx,
        zy=1 + augmentation.zoom * zy,
        flip=(flip < 0) & augmentation.horizontal_flip,
    )


def matrix(affine: Affine, height: int, width: int) -> jax.Array:
    """float32 [3, 3] that takes (row, column, 1) of the output to where in the input its value lies.

    Keras' product Rotation @ Shift @ Shear @ Zoom about the centre (height / 2 - 0.5, width / 2 - 0.5), multiplied
    out, and on its right the flip of output columns. Without matrix products there is nothing that an accelerator
    would round to bfloat16.
    """
    theta, shear = jnp.deg2rad(affine.theta), jnp.deg2rad(affine.shear)
    cos, sin = jnp.cos(theta), jnp.sin(theta)
    centre_row, centre_column = height / 2 - 0.5, width / 2 - 0.5
    mirror = jnp.where(affine.flip, -1.0, 1.0)  # about the centre, which it leaves in place

    def line(of_row: jax.Array, of_column: jax.Array, shift: jax.Array, centre: float) -> jax.Array:
        constant = shift + (centre - of_row * centre_row - of_column * centre_column)
        return jnp.stack([of_row, of_column, constant])

    return jnp.stack(
        [
            line(
                affine.zx * cos,
                -affine.zy * jnp.sin(theta + shear) * mirror,
                cos * affine.tx - sin * affine.ty,
                centre_row,
            ),
            line(
                affine.zx * sin,
                affine.zy * jnp.cos(theta + shear) * mirror,
                sin * affine.tx + cos * affine.ty,
                centre_column,
            ),
            jnp.array([0.0, 0.0, 1.0]),
        ]
    )


def warp(picture: jax.Array, matrix: jax.Array) -> jax.Array:
    """float32 [height, width, channels]: `picture` (uint8 or float32, same shape) seen through `matrix`.

    Bilinear; outside, the nearest edge goes on (scipy's `affine_transform(..., order=1, mode='nearest')`). A matrix
    of whole-pixel moves copies values bit for bit.
    """
    height, width, _ = picture.shape
    rows, columns = jnp.arange(height, dtype=jnp.float32)[:, None], jnp.arange(width, dtype=jnp.float32)
    top, down = _coordinate(matrix[0], rows, columns, height)
    left, right = _coordinate(matrix[1], rows, columns, width)
    bottom, beside = jnp.minimum(top + 1, height - 1), jnp.minimum(left + 1, width - 1)

    def corner(row: jax.Array, column: jax.Array) -> jax.Array:
        return picture.at[row, column].get(mode="promise_in_bounds").astype(jnp.float32)

    above = corner(top, left) * (1 - right) + corner(top, beside) * right
    below = corner(bottom, left) * (1 - right) + corner(bottom, beside) * right
    return above * (1 - down) + below * down


def _coordinate(line: jax.Array, rows: jax.Array, columns: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Where one axis of the input is read, clamped to the picture: int32 [h, w] and the fraction float32 [h, w, 1].

    In fixed point because the index and the weight must never disagree. XLA computes a shared sum twice where that
    saves memory, once for each use, and may contract one copy to a fused multiply-add: in floating point one says
    9.9999995 and the other 10.0, and a pixel is off by one. Integer sums have one value. Each term is rounded before
    they are added, so there is nothing to contract.
    """
    terms = (line[0] * rows, line[1] * columns, line[2])
    position = sum((jnp.round(term * _ONE).astype(jnp.int32) for term in terms), start=jnp.int32(0))
    position = jnp.clip(position, 0, (size - 1) * _ONE)
    fraction = (position & (_ONE - 1)).astype(jnp.float32) / _ONE
    return position >> _BITS, fraction[..., None]


def augment(keys: jax.Array, pictures: jax.Array, augmentation: Augmentation) -> jax.Array:
    """Every picture moved at random by its own key: float32 [batch, height, width, channels], 0..255.

    `keys` [batch] (see `keys`), `pictures` uint8 or float32 [batch, height, width, channels], 0..255: before any
    preprocessing, as in Keras. `augmentation` is static under jit.
    """
    _, height, width, _ = pictures.shape

    def one(key: jax.Array, picture: jax.Array) -> jax.Array:
        return warp(picture, matrix(draw(key, augmentation, height, width), height, width))

    return jax.vmap(one)(keys, pictures)
