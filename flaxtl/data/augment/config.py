"""The config of augmentation, and the random parameters of each image that both implementations apply.

The operations of Keras' ImageDataGenerator (rotation, shifts, shear, zoom, flips, channel shift, brightness), and color
jitter, random-resized crops, RandAugment and random erasing. Mixing of two images is in mixup.py. Both ops.py (in the
train step) and data/tfdata.py (on the host) apply the `AugmentParams` that are drawn here.

Rows and columns are as Keras documents them and as keras-preprocessing computed them up to release 1.1.2:
`height_shift` moves an image up and down. Since keras-preprocessing pull request 318 (October 2020), and in every Keras
since, the two axes are exchanged (keras issue 17398: height_shift_range moves sideways), and non-square images rotate
around a point off their center. For square images and equal shifts, as in the lecture, both have the same distribution.
"""

import math
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxtl.data.augment import randaugment
from flaxtl.data.augment.affine import Affine, affine_matrix, compose
from flaxtl.errors import UserError, unknown

FILLS = ("nearest", "constant", "reflect", "wrap")
"""How points outside an image are filled: the modes of scipy's `affine_transform` and of Keras' fill_mode."""

_BELOW = {"rotation": 360.0, "height_shift": 1.0, "width_shift": 1.0, "shear": 90.0, "zoom": 1.0}
_UP_TO = {
    "cval": 255.0,
    "brightness": 1.0,
    "channel_shift": 255.0,
    "contrast": 1.0,
    "saturation": 1.0,
    "hue": 0.5,
    "crop": 1.0,
    "randaugment": 14,  # number of its operations
    "magnitude": 10.0,
    "erasing": 1.0,
    "mixup": math.inf,
    "cutmix": math.inf,
}

CROP_ASPECT = 4 / 3
"""The aspect ratio of a crop relative to the image is in [1 / this, this] (Szegedy et al. 2015, section 6)."""

CROP_TRIES = 10
"""How often the box of a crop is drawn until it fits (torchvision's RandomResizedCrop.get_params)."""

ERASED_AREA = (0.02, 0.33)
"""Range of the erased fraction of the area (torchvision's RandomErasing; Zhong et al. 2017 use up to 0.4)."""

ERASED_ASPECT = 3.3
"""Height to width of an erased box is in [1 / this, this] (Zhong et al. 2017: 0.3 to 3.3)."""

_STREAM = 0x6175676D  # "augm": separates these keys from others of the same seed, such as those of dropout


class RngStream(IntEnum):
    """Numbers folded into the key of an image, so that enabling one operation does not change the draws of others.

    The seven affine draws use the key itself and thereby the counters 0 to 6, which these numbers avoid.
    """

    VERTICAL_FLIP = 256
    COLORS = 257
    CROP = 258
    RANDAUGMENT = 259
    ERASING = 260
    MIX = 261


@dataclass(frozen=True)
class AugmentConfig:
    """Ranges of random augmentation; the defaults disable all of it. Hashable, so it can be static under jit.

    Attributes:
      rotation: largest angle in degrees, in both directions.
      height_shift: largest shift up and down, as a fraction of the height.
      width_shift: largest shift left and right, as a fraction of the width.
      shear: largest angle in DEGREES, in both directions, as in Keras; the lecture's 0.2 is almost nothing.
      zoom: rows and columns are scaled independently by factors in [1 - zoom, 1 + zoom]; above 1 zooms out.
      horizontal_flip: mirror left and right with probability 0.5.
      vertical_flip: mirror top and bottom with probability 0.5.
      fill: how points outside the image are filled; see FILLS.
      cval: gray level 0..255 for fill 'constant'.
      brightness: factor in [1 - brightness, 1 + brightness]; at most 1. Also contrast and saturation.
      channel_shift: largest shift in gray levels, the same for all channels.
      contrast: see brightness.
      saturation: see brightness.
      hue: largest rotation of the hue as a fraction of the color circle, at most 0.5.
      crop: smallest area of random-resized crops as a fraction of the image; 0 disables.
      randaugment: number of RandAugment operations; 0 disables.
      magnitude: strength of the RandAugment operations, 0..10.
      erasing: probability that a box of random color covers a part of the image.
      mixup: alpha of the Beta(alpha, alpha) distribution of mixup; 0 disables.
      cutmix: alpha of the Beta(alpha, alpha) distribution of CutMix; 0 disables.

    Raises:
      UserError: a value is out of range, such as 360 degrees of rotation, or the fill is unknown.
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
    magnitude: float = 9  # as in the paper for ResNet-50
    erasing: float = 0
    mixup: float = 0
    cutmix: float = 0

    def __post_init__(self) -> None:
        """Validate the ranges."""
        for name, limit in _BELOW.items():
            value = getattr(self, name)
            if not 0 <= value < limit:
                raise UserError(f"augmentation.{name} is {value}. It must be at least 0 and below {limit:g}.")
        for name, most in _UP_TO.items():
            value = getattr(self, name)
            if not (0 <= value <= most and value < math.inf):
                upper = f" and at most {most:g}" if most < math.inf else " and finite"
                raise UserError(f"augmentation.{name} is {value}. It must be at least 0{upper}.")
        if self.fill not in FILLS:
            raise unknown("augmentation fill", self.fill, FILLS)

    @property
    def is_geometric(self) -> bool:
        """Whether images are warped."""
        affine = self.rotation or self.height_shift or self.width_shift or self.shear or self.zoom
        return bool(affine or self.horizontal_flip or self.vertical_flip or self.crop or self.randaugment)

    @property
    def is_active(self) -> bool:
        """Whether single images are changed."""
        colors = self.channel_shift or self.brightness or self.contrast or self.saturation or self.hue
        return bool(self.is_geometric or colors or self.erasing)

    @property
    def uses_mixing(self) -> bool:
        """Whether images are mixed with others of the batch."""
        return self.mixup > 0 or self.cutmix > 0

    def without_mixing(self) -> "AugmentConfig":
        """Return the augmentation of single images."""
        # 0.0 as in defaults.py, not 0: the `repr` is part of the key of cached views.
        return replace(self, mixup=0.0, cutmix=0.0)


class AugmentParams(NamedTuple):
    """The random parameters of one image, in the order of application; [batch, ...] from `sample_params`.

    Neutral if an operation is disabled. ops.py has the formulas.
    """

    color_ops: jax.Array
    """int32 [randaugment]: RandAugment's color operations in their order (`randaugment.Operation`, 0..8)."""
    color_strengths: jax.Array
    """float32 [randaugment]: their thresholds, bits or factors (see `randaugment.RandAugmentParams`)."""
    matrix: jax.Array
    """float32 [2, 3]: maps (row, column, 1) of the output to coordinates of the input."""
    channel_shift: jax.Array
    """float32 []: gray levels added to every channel."""
    brightness: jax.Array
    """float32 []: factor."""
    contrast: jax.Array
    """float32 []: factor."""
    saturation: jax.Array
    """float32 []: factor."""
    hue: jax.Array
    """float32 []: turns of the color circle, -0.5..0.5."""
    erase_box: jax.Array
    """float32 [4], whole pixels: top, left (inclusive), bottom, right (exclusive) of the erased box; empty if all 0."""
    erase_color: jax.Array
    """float32 [3], 0..255: the color of the erased box."""


def example_keys(seed: int, epochs: jax.Array, indices: jax.Array) -> jax.Array:
    """Return one random key per example, [batch]: a pure function of (seed, epoch, index of the image).

    `epochs` and `indices` are int32 [batch]. The generator is explicit, so the draws are the same on every machine and
    under all settings of JAX.
    """
    stream = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), _STREAM)
    return jax.vmap(lambda epoch, index: jax.random.fold_in(jax.random.fold_in(stream, epoch), index))(epochs, indices)


def sample_params(keys: jax.Array, augmentation: AugmentConfig, height: int, width: int) -> AugmentParams:
    """Sample the parameters of a batch of `height` x `width` images, each with its own key (see `example_keys`).

    All arguments but `keys` are static under jit. Enabling one operation does not change the draws of the others. One
    matrix combines the crop, RandAugment's geometric operations, Keras' affine map and the flips, in this order.
    """
    return jax.vmap(lambda key: _sample_one(key, augmentation, height, width))(keys)


def _sample_one(key: jax.Array, augmentation: AugmentConfig, height: int, width: int) -> AugmentParams:
    maps = [_crop(key, augmentation.crop, height, width)] if augmentation.crop else []
    drawn = randaugment.sample_randaugment(
        jax.random.fold_in(key, RngStream.RANDAUGMENT), augmentation.randaugment, augmentation.magnitude, height, width
    )
    maps += [*drawn.maps, affine_matrix(sample_affine(key, augmentation, height, width), height, width)]
    colors = jax.random.uniform(jax.random.fold_in(key, RngStream.COLORS), (5,), minval=-1, maxval=1)
    box, color = _erasing(key, augmentation.erasing, height, width)
    return AugmentParams(
        color_ops=drawn.operations,
        color_strengths=drawn.strengths,
        matrix=reduce(compose, maps),
        channel_shift=augmentation.channel_shift * colors[0],
        brightness=1 + augmentation.brightness * colors[1],
        contrast=1 + augmentation.contrast * colors[2],
        saturation=1 + augmentation.saturation * colors[3],
        hue=augmentation.hue * colors[4],
        erase_box=box,
        erase_color=color,
    )


def sample_affine(key: jax.Array, augmentation: AugmentConfig, height: int, width: int) -> Affine:
    """Sample the affine parameters of one image of `height` x `width` pixels, each uniform in its range.

    The order of the first seven draws is that of Keras: theta, tx, ty, shear, zx, zy, flip. All are always drawn, so
    disabling one does not change the others.
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
    """Sample the matrix, float32 [2, 3], of a random-resized crop as in Szegedy et al. 2015.

    As torchvision's RandomResizedCrop: the area is uniform in [smallest, 1] of the image, the logarithm of the aspect
    ratio is uniform, and a box that does not fit into the image is drawn again, CROP_TRIES times in all. If none fits,
    the crop is the largest central box of an allowed aspect ratio, which is the whole image, since the ratio is
    relative to the image's. The outermost pixels of the crop are never read from outside the image.
    """
    uniform = jax.random.uniform(jax.random.fold_in(key, RngStream.CROP), (CROP_TRIES, 4))
    area, aspect, row, column = uniform.T
    root = jnp.sqrt(smallest + (1 - smallest) * area)
    stretch = jnp.exp((aspect - 0.5) * math.log(CROP_ASPECT))  # the square root of the aspect
    fits = jnp.maximum(root / stretch, root * stretch) <= 1
    first = jnp.argmax(fits)  # 0 if none fits
    tall, wide = (jnp.where(fits[first], side[first], 1) for side in (root / stretch, root * stretch))
    row, column = row[first], column[first]
    none = jnp.zeros_like(tall)
    return jnp.stack(
        [
            jnp.stack([tall, none, (height - 1) * (1 - tall) * row]),
            jnp.stack([none, wide, (width - 1) * (1 - wide) * column]),
        ]
    )


def _erasing(key: jax.Array, probability: float, height: int, width: int) -> tuple[jax.Array, jax.Array]:
    """Sample random erasing (Zhong et al. 2017): a box, float32 [4] in whole pixels, and its color, float32 [3]."""
    if not probability:
        return jnp.zeros(4), jnp.zeros(3)
    chance, area, aspect, row, column, *color = jax.random.uniform(jax.random.fold_in(key, RngStream.ERASING), (8,))
    least, most = ERASED_AREA
    root = jnp.sqrt((least + (most - least) * area) * height * width)
    stretch = jnp.exp((aspect - 0.5) * math.log(ERASED_ASPECT))  # the square root of the aspect
    tall = jnp.clip(jnp.round(root * stretch), 1, height)
    wide = jnp.clip(jnp.round(root / stretch), 1, width)
    top, left = jnp.round((height - tall) * row), jnp.round((width - wide) * column)
    box = jnp.where(chance < probability, jnp.stack([top, left, top + tall, left + wide]), 0)
    return box, 255 * jnp.stack(color)
