"""The views of test-time augmentation: flips, crops, or random augmentations of an image.

They are computed on the device within the step, from the number of the view, so that one program serves all views.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxtl.data.augment.config import AugmentConfig, example_keys
from flaxtl.data.augment.ops import augment
from flaxtl.data.decode import CROP_PCT, Resize, center_offset, covering_side

ViewFn = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(images uint8 [batch, rows, columns, 3], indices int32 [batch], number of the view int32 [] from 0) ->
images [batch, height, width, 3], 0..255, uint8 or float32."""


class TtaTransform(NamedTuple):
    """A set of views of each image.

    Attributes:
      name: the value of --tta.
      num_generated: number of views that `view_fn` computes.
      include_original: whether the original image is one more view.
      resize: how the images for `view_fn` are decoded.
      view_fn: computes one view of a batch.
    """

    name: str
    num_generated: int
    include_original: bool
    resize: Resize
    view_fn: ViewFn

    @property
    def num_views(self) -> int:
        """The number of views, including the original image."""
        return self.num_generated + self.include_original


def flip_views(resize: Resize) -> TtaTransform:
    """Return the original image and its horizontal flip; `resize` is how the run decodes images."""
    return TtaTransform("flip", 1, True, resize, lambda images, indices, view: _flip(images))


def crop_views(resize: Resize) -> TtaTransform:
    """Return ten crops as in Krizhevsky et al. 2012: four corners and the center, then their flips in this order.

    They have the height and width of the run and are cropped from a larger image; no pixel is scaled twice. With the
    policy 'crop' and a `crop_pct` below 1, it is the image that the run crops its own images from: objects have the
    same size, and the center crop shows the same pixels as the image of the run. Otherwise it is what the run sees,
    larger by 1 / CROP_PCT, so objects are larger than in the images of the run.
    """
    is_cropped = resize.policy == "crop" and resize.crop_pct < 1
    crop_pct = resize.crop_pct if is_cropped else CROP_PCT
    height, width = (covering_side(side, crop_pct) for side in (resize.height, resize.width))
    larger = replace(resize, height=height, width=width)
    if is_cropped:
        larger = replace(larger, border=(height - resize.height, width - resize.width))
    return TtaTransform("crops", 10, False, larger, partial(_crop, resize.height, resize.width))


def random_views(resize: Resize, n: int, seed: int, augmentation: AugmentConfig) -> TtaTransform:
    """Return the original image and n - 1 views: view v of an image is its training augmentation in epoch v.

    So the views of a larger n begin with those of a smaller one. mixup and CutMix are not applied.
    """

    def view_fn(images: jax.Array, indices: jax.Array, view: jax.Array) -> jax.Array:
        return augment(example_keys(seed, jnp.full_like(indices, view), indices), images, augmentation)

    return TtaTransform(str(n), n - 1, True, resize, view_fn)


def _flip(images: jax.Array) -> jax.Array:
    return images[:, :, ::-1]


def _crop(height: int, width: int, images: jax.Array, indices: jax.Array, view: jax.Array) -> jax.Array:
    batch, rows, columns, channels = images.shape
    down, right = rows - height, columns - width
    center = center_offset(rows, height), center_offset(columns, width)
    corners = jnp.array([(0, 0), (0, right), (down, 0), (down, right), center])
    top, left = corners[view % len(corners)]
    cut = jax.lax.dynamic_slice(images, (0, top, left, 0), (batch, height, width, channels))
    return jnp.where(view < len(corners), cut, _flip(cut))
