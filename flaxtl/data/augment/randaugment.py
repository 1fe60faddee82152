"""RandAugment (Cubuk et al. 2019): random operations, and the color operations exactly as Pillow computes them.

The color operations are integer sums, or float32 products that are exact (see `RandAugmentParams`), so the result
is the same on every machine and in every library. data/tfdata.py computes them in TensorFlow; `xp` is as in ops.py.
"""

from enum import IntEnum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flaxtl.data.augment.affine import about_center

_LEVELS = 256


class Operation(IntEnum):
    """The fourteen operations of the paper: identity, eight color operations, five geometric operations."""

    NOTHING = 0
    AUTOCONTRAST = 1
    EQUALIZE = 2
    SOLARIZE = 3
    POSTERIZE = 4
    COLOR = 5
    CONTRAST = 6
    BRIGHTNESS = 7
    SHARPNESS = 8
    ROTATE = 9
    SHEAR_X = 10
    SHEAR_Y = 11
    TRANSLATE_X = 12
    TRANSLATE_Y = 13


# Magnitude 10: the ends of the ranges in AutoAugment's table 6 (Cubuk et al. 2018), for images of 331 pixels per side.
_ROTATE = 30.0  # degrees
_SHEAR = 0.3  # pixels along one axis per pixel of the other
_TRANSLATE = 150 / 331  # of the side
_ENHANCE = 0.9  # factors from 1 - 0.9 to 1 + 0.9
_POSTERIZE = 4  # of the 8 bits are dropped
_SOLARIZE = 256  # gray levels by which the threshold decreases


class RandAugmentParams(NamedTuple):
    """The n operations of one image, in their order."""

    operations: jax.Array
    """int32 [n]: color operations, 0..8; NOTHING for geometric ones."""
    strengths: jax.Array
    """float32 [n]: Solarize's threshold 0..256, Posterize's bits 4..8, the factor 0.1..1.9 of COLOR and above; else 1.

    Factors are multiples of 1 / 256: products with gray levels are then exact in float32, and every implementation
    truncates to the same integers. (An error of one level before Solarize could be the full range after it.)
    """
    maps: list[jax.Array]
    """n matrices, float32 [2, 3] (see affine.py): geometric operations around the center; the identity for others."""


def apply_color_op(image: jax.Array, operation: jax.Array, strength: jax.Array) -> jax.Array:
    """Apply one color `Operation`, 0..8, to an image: int32 [height, width, 3], 0..255.

    nothing         x, unchanged
    autocontrast    floor(255 (x - lo) / (hi - lo)), lo and hi the channel's own extremes; x where they are equal
    equalize        with n[v] the count of value v in the channel, n_last the count of its largest value, n the sum of
                    all and step = floor((n - n_last) / 255): floor((floor(step / 2) + sum of n[v], v < x) / step), at
                    most 255; x where step is 0
    solarize        x if x < strength, else 255 - x
    posterize       the `strength` highest bits of x
    color           blend of x with its gray level L
    contrast        blend of x with the mean of L, rounded (half up)
    brightness      blend of x with 0
    sharpness       blend of x with the sum over the 3 x 3 around x, x itself counted five times, divided by 13 and
                    rounded; x along the edge

    where L = floor((19595 R + 38470 G + 7471 B + 32768) / 65536), Pillow's ITU-R 601 gray, and blend with d is
    d + strength (x - d) truncated to an integer, clipped to 0..255.
    """
    # Under vmap every branch of a choice is computed, so branches are tables of 256 values, and one blend of images.
    gray = to_gray(jnp, image)
    mean = rounded_mean(gray.sum(), gray.size)
    mapped = _look_up(image, _lookup_tables(operation, strength, _counts(image), mean))
    degenerate = jnp.where(operation == Operation.COLOR, gray, _smooth(image))
    blends = (operation == Operation.COLOR) | (operation == Operation.SHARPNESS)
    return jnp.where(blends, _blend_images(degenerate, image, strength), mapped)


def _lookup_tables(operation: jax.Array, strength: jax.Array, counts: jax.Array, mean: jax.Array) -> jax.Array:
    """Return the result of a pointwise operation for each gray level: int32 [channels, 256]."""
    level = jnp.arange(_LEVELS)
    dropped_bits = jnp.where(operation == Operation.POSTERIZE, 8 - strength.astype(jnp.int32), 0)

    def of_channel(counts: jax.Array) -> jax.Array:
        tables = {
            Operation.AUTOCONTRAST: _autocontrast(level, counts),
            Operation.EQUALIZE: _equalize(level, counts),
            Operation.SOLARIZE: jnp.where(level < strength, level, _LEVELS - 1 - level),
            Operation.POSTERIZE: (level >> dropped_bits) << dropped_bits,
            Operation.CONTRAST: _blend_images(mean, level, strength),
            Operation.BRIGHTNESS: _blend_images(jnp.int32(0), level, strength),
        }
        return jnp.select([operation == kind for kind in tables], list(tables.values()), level)

    # in a loop, because XLA would otherwise recompute all six tables for every pixel
    tables: jax.Array = jax.lax.map(of_channel, counts)
    return tables


def _autocontrast(level: jax.Array, counts: jax.Array) -> jax.Array:
    low = jnp.argmax(counts > 0)
    high = _LEVELS - 1 - jnp.argmax(counts[::-1] > 0)
    stretched: jax.Array = stretch(jnp, level, low, high)
    return stretched


def stretch(xp: Any, x: Any, low: Any, high: Any) -> Any:
    """Return gray levels x such that `low` becomes 0 and `high` becomes 255; x where both are equal."""
    return xp.where(high > low, (_LEVELS - 1) * (x - low) // xp.maximum(high - low, 1), x)


def _equalize(level: jax.Array, counts: jax.Array) -> jax.Array:
    upto = jnp.cumsum(counts)
    last = counts[_LEVELS - 1 - jnp.argmax(counts[::-1] > 0)]
    step = (upto[-1] - last) // (_LEVELS - 1)
    spread = (step // 2 + upto - counts) // jnp.maximum(step, 1)
    return jnp.where(step > 0, jnp.minimum(spread, _LEVELS - 1), level)


def _histogram_index(image: jax.Array) -> jax.Array:
    """Return an index, int32, with 256 values per channel."""
    return image + _LEVELS * jnp.arange(image.shape[-1])


def _counts(image: jax.Array) -> jax.Array:
    """Return the histogram of each channel, int32 [channels, 256]."""
    none = jnp.zeros(image.shape[-1] * _LEVELS, jnp.int32)
    return none.at[_histogram_index(image)].add(1, mode="promise_in_bounds").reshape(-1, _LEVELS)


def _look_up(image: jax.Array, tables: jax.Array) -> jax.Array:
    return tables.ravel().at[_histogram_index(image)].get(mode="promise_in_bounds")


def to_gray(xp: Any, image: Any) -> Any:
    """Return the gray level L of every pixel, int32 [height, width, 1]."""
    red, green, blue = image[..., :1], image[..., 1:2], image[..., 2:]
    return xp.right_shift(19595 * red + 38470 * green + 7471 * blue + 32768, 16)


def rounded_mean(total: Any, count: int) -> Any:
    """Return total / count, rounded half up, int32."""
    return (2 * total + count) // (2 * count)


def _smooth(image: jax.Array) -> jax.Array:
    height, width, _ = image.shape
    smooth = smooth_inside(jnp.pad(image, ((1, 1), (1, 1), (0, 0))))
    row, column = jnp.arange(height)[:, None, None], jnp.arange(width)[:, None]
    edge = (row == 0) | (row == height - 1) | (column == 0) | (column == width - 1)
    return jnp.where(edge, image, smooth)


def smooth_inside(image: Any) -> Any:
    """Return Pillow's SMOOTH filter without the edge: int32 [height - 2, width - 2, 3]."""
    rows = image[:-2] + image[1:-1] + image[2:]
    around = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * image[1:-1, 1:-1]
    return rounded_mean(around, 13)


def _blend_images(degenerate: jax.Array, image: jax.Array, factor: jax.Array) -> jax.Array:
    mixed = degenerate + factor * (image - degenerate)
    return jnp.clip(mixed, 0, _LEVELS - 1).astype(jnp.int32)


def sample_randaugment(key: jax.Array, n: int, magnitude: float, height: int, width: int) -> RandAugmentParams:
    """Sample n of the fourteen operations with equal probability, at this magnitude, with a random direction."""
    choice, sign = jax.random.split(key)
    operation = jax.random.randint(choice, (n,), 0, len(Operation))
    level = jnp.where(jax.random.bernoulli(sign, shape=(n,)), 1.0, -1.0) * (magnitude / 10)
    colors = jnp.where(operation <= Operation.SHARPNESS, operation, Operation.NOTHING)
    maps = [_map(operation[i], level[i], height, width) for i in range(n)]
    return RandAugmentParams(colors, _strength(colors, level), maps)


def _strength(operation: jax.Array, level: jax.Array) -> jax.Array:
    amount = jnp.abs(level)
    threshold = _SOLARIZE - jnp.round(_SOLARIZE * amount)
    bits = 8 - jnp.round(_POSTERIZE * amount)
    factor = 1 + jnp.round(256 * _ENHANCE * level) / 256
    return jnp.select(
        [operation >= Operation.COLOR, operation == Operation.POSTERIZE, operation == Operation.SOLARIZE],
        [factor, bits, threshold],
        1.0,
    )


def _map(operation: jax.Array, level: jax.Array, height: int, width: int) -> jax.Array:
    def of(kind: Operation, most: float) -> jax.Array:
        return jnp.where(operation == kind, most * level, 0.0)

    angle = jnp.deg2rad(of(Operation.ROTATE, _ROTATE))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return about_center(
        (cos, of(Operation.SHEAR_Y, _SHEAR) - sin, of(Operation.TRANSLATE_Y, _TRANSLATE * height)),
        (of(Operation.SHEAR_X, _SHEAR) + sin, cos, of(Operation.TRANSLATE_X, _TRANSLATE * width)),
        height,
        width,
    )
