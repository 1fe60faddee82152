"""RandAugment's colour operations on whole grey levels, value for value as Pillow computes them.

All are integer sums, or float32 products that are exact (see `randaugment.Drawn`): each is one function of the image
on every machine and in every library.
"""

from enum import IntEnum
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxtl.data.augment.affine import about_center

_LEVELS = 256


def apply_color_op(image: jax.Array, operation: jax.Array, strength: jax.Array) -> jax.Array:
    """int32 [height, width, 3], 0..255: one `randaugment.Operation` of 0..8 done to such an image.

    nothing         x
    autocontrast    floor(255 (x - lo) / (hi - lo)), lo and hi the channel's own extremes; x where they are equal
    equalize        with n[v] the count of value v in the channel, n_last that of its largest value, n the sum of all
                    and step = floor((n - n_last) / 255): floor((floor(step / 2) + sum of n[v], v < x) / step), at most
                    255; x where step is 0
    solarize        x if x < strength, else 255 - x
    posterize       the `strength` highest bits of x
    colour          blend of x with its grey level L
    contrast        blend of x with the mean of L, rounded (half up)
    brightness      blend of x with 0
    sharpness       blend of x with the sum over the 3 x 3 around x, x itself counted five times, divided by 13 and
                    rounded; x along the edge

    where L = floor((19595 R + 38470 G + 7471 B + 32768) / 65536), Pillow's ITU-R 601 grey, and blend with d is
    truncation of d + strength (x - d) to a whole number, clipped to 0..255.
    """
    # vmap turns a choice into all of its branches: they are tables of 256 values, and one blend of whole images
    grey = _grey(image)
    toned = _look_up(image, _tables(operation, strength, _counts(image), _mean(grey)))
    degenerate = jnp.where(operation == Operation.COLOUR, grey, _smooth(image))
    blends = (operation == Operation.COLOUR) | (operation == Operation.SHARPNESS)
    return jnp.where(blends, _blend_images(degenerate, image, strength), toned)


def _tables(operation: jax.Array, strength: jax.Array, counts: jax.Array, mean: jax.Array) -> jax.Array:
    """int32 [channels, 256]: what becomes of each grey level in an operation that knows no neighbours."""
    level = jnp.arange(_LEVELS)
    lost = jnp.where(operation == Operation.POSTERIZE, 8 - strength.astype(jnp.int32), 0)

    def of_channel(counts: jax.Array) -> jax.Array:
        tables = {
            Operation.AUTOCONTRAST: _autocontrast(level, counts),
            Operation.EQUALIZE: _equalize(level, counts),
            Operation.SOLARIZE: jnp.where(level < strength, level, _LEVELS - 1 - level),
            Operation.POSTERIZE: (level >> lost) << lost,
            Operation.CONTRAST: _blend_images(mean, level, strength),
            Operation.BRIGHTNESS: _blend_images(jnp.int32(0), level, strength),
        }
        return jnp.select([operation == kind for kind in tables], list(tables.values()), level)

    # a loop, as XLA does not look into it: without, it computes all six anew for every pixel that is looked up
    drawn_up: jax.Array = jax.lax.map(of_channel, counts)
    return drawn_up


def _autocontrast(level: jax.Array, counts: jax.Array) -> jax.Array:
    low = jnp.argmax(counts > 0)
    high = _LEVELS - 1 - jnp.argmax(counts[::-1] > 0)
    stretched = (_LEVELS - 1) * (level - low) // jnp.maximum(high - low, 1)
    return jnp.where(high > low, stretched, level)


def _equalize(level: jax.Array, counts: jax.Array) -> jax.Array:
    upto = jnp.cumsum(counts)
    last = counts[_LEVELS - 1 - jnp.argmax(counts[::-1] > 0)]
    step = (upto[-1] - last) // (_LEVELS - 1)
    spread = (step // 2 + upto - counts) // jnp.maximum(step, 1)
    return jnp.where(step > 0, jnp.minimum(spread, _LEVELS - 1), level)


def _places(image: jax.Array) -> jax.Array:
    """int32: every channel has 256 places of its own."""
    return image + _LEVELS * jnp.arange(image.shape[-1])


def _counts(image: jax.Array) -> jax.Array:
    """int32 [channels, 256]: how often each channel has each grey level."""
    none = jnp.zeros(image.shape[-1] * _LEVELS, jnp.int32)
    return none.at[_places(image)].add(1, mode="promise_in_bounds").reshape(-1, _LEVELS)


def _look_up(image: jax.Array, tables: jax.Array) -> jax.Array:
    return tables.ravel().at[_places(image)].get(mode="promise_in_bounds")


def _grey(image: jax.Array) -> jax.Array:
    red, green, blue = image[..., :1], image[..., 1:2], image[..., 2:]
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


def _mean(grey: jax.Array) -> jax.Array:
    return (2 * grey.sum() + grey.size) // (2 * grey.size)


def _smooth(image: jax.Array) -> jax.Array:
    height, width, _ = image.shape
    padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)))
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    around = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * image
    row, column = jnp.arange(height)[:, None, None], jnp.arange(width)[:, None]
    edge = (row == 0) | (row == height - 1) | (column == 0) | (column == width - 1)
    return jnp.where(edge, image, (2 * around + 13) // 26)


def _blend_images(degenerate: jax.Array, image: jax.Array, factor: jax.Array) -> jax.Array:
    mixed = degenerate + factor * (image - degenerate)
    return jnp.clip(mixed, 0, _LEVELS - 1).astype(jnp.int32)


class Operation(IntEnum):
    """The paper's fourteen: nothing, eight of colour (see operations.py), five of geometry."""

    NOTHING = 0
    AUTOCONTRAST = 1
    EQUALIZE = 2
    SOLARIZE = 3
    POSTERIZE = 4
    COLOUR = 5
    CONTRAST = 6
    BRIGHTNESS = 7
    SHARPNESS = 8
    ROTATE = 9
    SHEAR_X = 10
    SHEAR_Y = 11
    TRANSLATE_X = 12
    TRANSLATE_Y = 13


# What magnitude 10 means: the ends of the ranges in AutoAugment's table 6 (Cubuk et al. 2018), whose images have 331
# pixels a side.
_ROTATE = 30.0  # degrees
_SHEAR = 0.3  # pixels along one axis a pixel of the other
_TRANSLATE = 150 / 331  # of the side
_ENHANCE = 0.9  # factors from 1 - 0.9 to 1 + 0.9
_POSTERIZE = 4  # of the 8 bits are lost
_SOLARIZE = 256  # grey levels that the threshold sinks by


class RandAugmentParams(NamedTuple):
    """What befalls one image, one operation after another."""

    operations: jax.Array
    """int32 [n]: those of colour, 0..8; the others are NOTHING here."""
    strengths: jax.Array
    """float32 [n]: Solarize's threshold 0..256, Posterize's bits 4..8, the factor 0.1..1.9 of COLOUR and above; else 1.

    Factors are whole multiples of 1 / 256: products with grey levels are then exact in float32, and every applier
    truncates to the same whole numbers. (One level off before Solarize could be the whole range off after it.)
    """
    maps: list[jax.Array]
    """n of float32 [2, 3] (see affine.py): those of geometry, about the centre; the others are the identity here."""


def sample_randaugment(key: jax.Array, n: int, magnitude: float, height: int, width: int) -> RandAugmentParams:
    """Each of n operations is one of the fourteen, with equal chance, at this magnitude, either way where two are."""
    choice, sign = jax.random.split(key)
    operation = jax.random.randint(choice, (n,), 0, len(Operation))
    level = jnp.where(jax.random.bernoulli(sign, shape=(n,)), 1.0, -1.0) * (magnitude / 10)
    colours = jnp.where(operation <= Operation.SHARPNESS, operation, Operation.NOTHING)
    maps = [_map(operation[i], level[i], height, width) for i in range(n)]
    return RandAugmentParams(colours, _strength(colours, level), maps)


def _strength(operation: jax.Array, level: jax.Array) -> jax.Array:
    amount = jnp.abs(level)
    threshold = _SOLARIZE - jnp.round(_SOLARIZE * amount)
    bits = 8 - jnp.round(_POSTERIZE * amount)
    factor = 1 + jnp.round(256 * _ENHANCE * level) / 256
    return jnp.select(
        [operation >= Operation.COLOUR, operation == Operation.POSTERIZE, operation == Operation.SOLARIZE],
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
