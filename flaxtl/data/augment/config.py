"""What augmentation does to an image: ranges, random draws, and one record of them that every applier reads.

Keras' ImageDataGenerator first (rotation, shifts, shear, zoom, flips, channel shift, brightness), then colour jitter,
random-resized crops, RandAugment and random erasing. Mixing of two images is in mix.py.

Rows and columns are meant as Keras documents them and as keras-preprocessing computed them up to release 1.1.2:
`height_shift` moves an image up and down. Since keras-preprocessing pull request 318 (October 2020) and in every Keras
after it the two axes are exchanged on the way (keras issue 17398: height_shift_range moves sideways) and images that
are not square turn about a point off their centre. For square images and equal shifts, the lecture's, both draw from
the same distribution.
"""

import math
from dataclasses import dataclass
from enum import IntEnum
from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxtl.data.augment import randaugment
from flaxtl.data.augment.affine import Affine, affine_matrix, compose
from flaxtl.errors import UserError, unknown

FILLS = ("nearest", "constant", "reflect", "wrap")
"""What lies outside an image, in the words of scipy's `affine_transform` and of Keras' fill_mode."""

_BELOW = {"rotation": 360.0, "height_shift": 1.0, "width_shift": 1.0, "shear": 90.0, "zoom": 1.0}
_UP_TO = {
    "cval": 255.0,
    "brightness": 1.0,
    "channel_shift": 255.0,
    "contrast": 1.0,
    "saturation": 1.0,
    "hue": 0.5,
    "crop": 1.0,
    "randaugment": 14,  # as many as it knows
    "magnitude": 10.0,
    "erasing": 1.0,
    "mixup": math.inf,
    "cutmix": math.inf,
}

CROP_ASPECT = 4 / 3
"""A crop's width to height, against the image's own, is from 1 / this to this (Szegedy et al. 2015, section 6)."""

ERASED_AREA = (0.02, 0.33)
"""Smallest and largest fraction that erasing covers (torchvision's RandomErasing; Zhong et al. 2017 go on to 0.4)."""

ERASED_ASPECT = 3.3
"""An erased box's height to width is from 1 / this to this (Zhong et al. 2017: 0.3 to 3.3)."""

_STREAM = 0x6175676D  # "augm": keeps these keys apart from others, a dropout's say, that are folded from the same seed


class RngStream(IntEnum):
    """Numbers folded into an image's key, so that switching one kind on or off moves no other's values.

    The seven draws of the affine family use the key itself and with it the counters 0 to 6, which these stay clear of.
    """

    VERTICAL_FLIP = 256
    COLOURS = 257
    CROP = 258
    RANDAUGMENT = 259
    ERASING = 260
    MIX = 261


@dataclass(frozen=True)
class AugmentConfig:
    """How far images are changed at random; the defaults leave them as they are. Hashable, so static under jit.

    rotation: at most so many degrees either way.
    height_shift, width_shift: up and down, left and right, at most this fraction of the height, of the width.
    shear: at most so many DEGREES either way, as in Keras; the lecture's 0.2 is next to nothing.
    zoom: rows and columns are scaled on their own by a factor from 1 - zoom to 1 + zoom; above 1 shows more, smaller.
    horizontal_flip, vertical_flip: mirror left and right, top and bottom, every second image.
    fill: what lies outside the image: its nearest edge, a constant, its reflection, or itself again (wrap).
    cval: that constant, a grey level 0..255.
    brightness, contrast, saturation: a factor from 1 - value to 1 + value, value at most 1.
    channel_shift: at most so many grey levels either way, the same for all channels.
    hue: at most this fraction of the colour circle either way, 0.5 at most.
    crop: random-resized crops of at least this fraction of the area; 0 is off.
    randaugment: how many of RandAugment's operations; 0 is off. magnitude: how strong they are, 0..10.
    erasing: the probability that a box of one random colour covers a part.
    mixup, cutmix: alpha of the Beta(alpha, alpha) distribution that shares are drawn from; 0 is off (see mix.py).

    Raises UserError for values without meaning, such as 360 degrees of rotation or an unknown fill.
    """

    rotation: float = 0
    height_shift: float = 0
    width_shift: float = 0
    shear: float = 0
    zoom: float = 0
    horizontal_flip: bool = False
    vertical_flip: bool = False
    fill: str = "nearest"
    cval: float = 0
    brightness: float = 0
    channel_shift: float = 0
    contrast: float = 0
    saturation: float = 0
    hue: float = 0
    crop: float = 0
    randaugment: int = 0
    magnitude: float = 9  # the paper's choice for ResNet-50
    erasing: float = 0
    mixup: float = 0
    cutmix: float = 0

    def __post_init__(self) -> None:
        """Refuse values without meaning."""
        for name, limit in _BELOW.items():
            value = getattr(self, name)
            if not 0 <= value < limit:
                raise UserError(f"augmentation {name} is {value}; give a number from 0 to below {limit:g}")
        for name, most in _UP_TO.items():
            value = getattr(self, name)
            if not (0 <= value <= most and value < math.inf):
                upwards = f"to {most:g}" if most < math.inf else "upwards"
                raise UserError(f"augmentation {name} is {value}; give a number from 0 {upwards}")
        if self.fill not in FILLS:
            raise unknown("augmentation fill", self.fill, FILLS)

    @property
    def is_geometric(self) -> bool:
        """Whether pixels change place, so that images have to be warped."""
        affine = self.rotation or self.height_shift or self.width_shift or self.shear or self.zoom
        return bool(affine or self.horizontal_flip or self.vertical_flip or self.crop or self.randaugment)

    @property
    def is_active(self) -> bool:
        """Whether an image on its own is changed at all."""
        colours = self.channel_shift or self.brightness or self.contrast or self.saturation or self.hue
        return bool(self.is_geometric or colours or self.erasing)

    @property
    def uses_mixing(self) -> bool:
        """Whether images are mixed with others of their batch."""
        return self.mixup > 0 or self.cutmix > 0


class AugmentParams(NamedTuple):
    """Everything that happens to one image, in this order; [batch, ...] from `changes`.

    Neutral where a kind is off. apply.py has the formulas.
    """

    operations: jax.Array
    """int32 [randaugment]: colour operations on whole grey levels, in turn (`randaugment.Operation`, 0..8)."""
    strengths: jax.Array
    """float32 [randaugment]: their thresholds, bits or factors (`randaugment.Drawn`)."""
    matrix: jax.Array
    """float32 [2, 3]: takes (row, column, 1) of the output to where in the input its value lies."""
    channel_shift: jax.Array
    """float32 []: grey levels added to every channel."""
    brightness: jax.Array
    """float32 []: factor."""
    contrast: jax.Array
    """float32 []: factor."""
    saturation: jax.Array
    """float32 []: factor."""
    hue: jax.Array
    """float32 []: turns of the colour circle, -0.5..0.5."""
    box: jax.Array
    """float32 [4], whole pixels: top, left, bottom, right of what is erased; top and left belong to it, bottom and
    right no more. Nothing is erased where bottom is not below top."""
    colour: jax.Array
    """float32 [3], 0..255: what the box is filled with."""


def example_keys(seed: int, passes: jax.Array, indices: jax.Array) -> jax.Array:
    """One random key an example, a pure function of (seed, pass over the data, index of the image).

    `passes` and `indices` are int32 [batch]; the result is a key array [batch]. The generator is named, so that the
    same three numbers give the same draws on every machine and under every setting of JAX.
    """
    stream = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), _STREAM)
    return jax.vmap(lambda turn, index: jax.random.fold_in(jax.random.fold_in(stream, turn), index))(passes, indices)


def sample_params(keys: jax.Array, augmentation: AugmentConfig, height: int, width: int) -> AugmentParams:
    """What happens to each of a batch of `height` x `width` images, drawn by its own key (see `keys`).

    All but `keys` is static under jit. Switching a kind on or off leaves the draws of the others as they were. One
    matrix does the crop, RandAugment's geometry, Keras' affine map and the flips, in this order.
    """
    return jax.vmap(lambda key: _change(key, augmentation, height, width))(keys)


def _change(key: jax.Array, augmentation: AugmentConfig, height: int, width: int) -> AugmentParams:
    maps = [_crop(key, augmentation.crop, height, width)] if augmentation.crop else []
    drawn = randaugment.sample_randaugment(
        jax.random.fold_in(key, RngStream.RANDAUGMENT), augmentation.randaugment, augmentation.magnitude, height, width
    )
    maps += [*drawn.maps, affine_matrix(sample_affine(key, augmentation, height, width), height, width)]
    colours = jax.random.uniform(jax.random.fold_in(key, RngStream.COLOURS), (5,), minval=-1, maxval=1)
    box, colour = _erasing(key, augmentation.erasing, height, width)
    return AugmentParams(
        operations=drawn.operations,
        strengths=drawn.strengths,
        matrix=reduce(compose, maps),
        channel_shift=augmentation.channel_shift * colours[0],
        brightness=1 + augmentation.brightness * colours[1],
        contrast=1 + augmentation.contrast * colours[2],
        saturation=1 + augmentation.saturation * colours[3],
        hue=augmentation.hue * colours[4],
        box=box,
        colour=colour,
    )


def sample_affine(key: jax.Array, augmentation: AugmentConfig, height: int, width: int) -> Affine:
    """Random affine parameters for one image of `height` x `width` pixels, each uniform in its range.

    The order of the first seven draws is Keras': theta, tx, ty, shear, zx, zy, flip. All are always drawn, so
    switching one kind off leaves the others as they were.
    """
    theta, tx, ty, shear, zx, zy, flip = jax.random.uniform(key, (7,), minval=-1, maxval=1)
    return Affine(
        theta=augmentation.rotation * theta,
        tx=augmentation.height_shift * height * tx,
        ty=augmentation.width_shift * width * ty,
        shear=augmentation.shear * shear,
        zx=1 + augmentation.zoom * zx,
        zy=1 + augmentation.zoom * zy,
        flip_horizontal=(flip < 0) & augmentation.horizontal_flip,
        flip_vertical=jax.random.bernoulli(jax.random.fold_in(key, RngStream.VERTICAL_FLIP))
        & augmentation.vertical_flip,
    )


def _crop(key: jax.Array, smallest: float, height: int, width: int) -> jax.Array:
    """float32 [2, 3] of a random-resized crop, as in Szegedy et al. 2015.

    The area is uniform in smallest..1 of the image, the logarithm of the aspect uniform, both sides at most the
    image's own. The outermost pixels of the crop are never read from outside the image.
    """
    area, aspect, row, column = jax.random.uniform(jax.random.fold_in(key, RngStream.CROP), (4,))
    root = jnp.sqrt(smallest + (1 - smallest) * area)
    stretch = jnp.exp((aspect - 0.5) * math.log(CROP_ASPECT))  # the square root of the aspect
    tall, wide = jnp.minimum(root / stretch, 1), jnp.minimum(root * stretch, 1)
    none = jnp.zeros_like(tall)
    return jnp.stack(
        [
            jnp.stack([tall, none, (height - 1) * (1 - tall) * row]),
            jnp.stack([none, wide, (width - 1) * (1 - wide) * column]),
        ]
    )


def _erasing(key: jax.Array, probability: float, height: int, width: int) -> tuple[jax.Array, jax.Array]:
    """Random erasing (Zhong et al. 2017): a box float32 [4] in whole pixels and its colour float32 [3]."""
    if not probability:
        return jnp.zeros(4), jnp.zeros(3)
    chance, area, aspect, row, column, *colour = jax.random.uniform(jax.random.fold_in(key, RngStream.ERASING), (8,))
    least, most = ERASED_AREA
    root = jnp.sqrt((least + (most - least) * area) * height * width)
    stretch = jnp.exp((aspect - 0.5) * math.log(ERASED_ASPECT))  # the square root of the aspect
    tall = jnp.clip(jnp.round(root * stretch), 1, height)
    wide = jnp.clip(jnp.round(root / stretch), 1, width)
    top, left = jnp.round((height - tall) * row), jnp.round((width - wide) * column)
    box = jnp.where(chance < probability, jnp.stack([top, left, top + tall, left + wide]), 0)
    return box, 255 * jnp.stack(colour)
