"""RandAugment (Cubuk et al. 2019): which operations befall a picture, and how strongly."""

from enum import IntEnum
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxtl.data.affine import about_centre


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


# What magnitude 10 means: the ends of the ranges in AutoAugment's table 6 (Cubuk et al. 2018), whose pictures have 331
# pixels a side.
_ROTATE = 30.0  # degrees
_SHEAR = 0.3  # pixels along one axis a pixel of the other
_TRANSLATE = 150 / 331  # of the side
_ENHANCE = 0.9  # factors from 1 - 0.9 to 1 + 0.9
_POSTERIZE = 4  # of the 8 bits are lost
_SOLARIZE = 256  # grey levels that the threshold sinks by


class Drawn(NamedTuple):
    """What befalls one picture, one operation after another."""

    operations: jax.Array
    """int32 [n]: those of colour, 0..8; the others are NOTHING here."""
    strengths: jax.Array
    """float32 [n]: Solarize's threshold 0..256, Posterize's bits 4..8, the factor 0.1..1.9 of COLOUR and above; else 1.

    Factors are whole multiples of 1 / 256: products with grey levels are then exact in float32, and every applier
    truncates to the same whole numbers. (One level off before Solarize could be the whole range off after it.)
    """
    maps: list[jax.Array]
    """n of float32 [2, 3] (see affine.py): those of geometry, about the centre; the others are the identity here."""


def draw(key: jax.Array, n: int, magnitude: float, height: int, width: int) -> Drawn:
    """Each of n operations is one of the fourteen, with equal chance, at this magnitude, either way where two are."""
    choice, sign = jax.random.split(key)
    operation = jax.random.randint(choice, (n,), 0, len(Operation))
    level = jnp.where(jax.random.bernoulli(sign, shape=(n,)), 1.0, -1.0) * (magnitude / 10)
    colours = jnp.where(operation <= Operation.SHARPNESS, operation, Operation.NOTHING)
    maps = [_map(operation[i], level[i], height, width) for i in range(n)]
    return Drawn(colours, _strength(colours, level), maps)


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
    return about_centre(
        (cos, of(Operation.SHEAR_Y, _SHEAR) - sin, of(Operation.TRANSLATE_Y, _TRANSLATE * height)),
        (of(Operation.SHEAR_X, _SHEAR) + sin, cos, of(Operation.TRANSLATE_X, _TRANSLATE * width)),
        height,
        width,
    )
