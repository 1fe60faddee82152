"""The views of test-time augmentation: an image that is looked at more than once, each time otherwise.

All are made on the device, within the step: a view is a number there, so that one program serves them all.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxtl.data.augment.config import AugmentConfig, example_keys
from flaxtl.data.augment.ops import augment
from flaxtl.data.decode import CROP_PCT, Resize

ViewFn = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(images uint8 [batch, rows, columns, 3], their indices int32 [batch], number of the view int32 [] from 0) ->
images [batch, height, width, 3], 0..255, uint8 or float32."""


class TtaTransform(NamedTuple):
    """Ways to look at an image.

    name: what --tta asks for.
    n: how many `look` makes.
    plain: whether the image as it is, which `look` does not make, is one more.
    resize: how the images are decoded that `look` is given.
    """

    name: str
    num_generated: int
    include_original: bool
    resize: Resize
    view_fn: ViewFn

    @property
    def num_views(self) -> int:
        """All of them."""
        return self.num_generated + self.include_original


def flip_views(own: Resize) -> TtaTransform:
    """The image, and its mirror image, left and right exchanged; `own` is how the run decodes images."""
    return TtaTransform("flip", 1, True, own, lambda images, indices, view: _mirrored(images))


def crop_views(own: Resize) -> TtaTransform:
    """Ten crops, as Krizhevsky et al. 2012: four corners and the centre, and then their mirror images in this order.

    They have the run's height and width and are cut out of an image of COVER times that, so a crop shows 1 / COVER,
    87.5 %, of each side, and no pixel is scaled twice. Under the policy 'squash' the larger image is all of the file:
    the crops show things COVER times as large as the run's own images do. Under 'crop' it is the centre that the run
    scales and then cuts its own images from: the crops show things as large, the one in the centre is, to a pixel,
    the run's own image, and the corners are what that leaves out. Sides are rounded to whole pixels.
    """
    larger = replace(own, height=round(own.height / CROP_PCT), width=round(own.width / CROP_PCT), crop_pct=1.0)
    return TtaTransform("crops", 10, False, larger, partial(_cropped, own.height, own.width))


def random_views(own: Resize, n: int, seed: int, augmentation: AugmentConfig) -> TtaTransform:
    """The image, and n - 1 views: view v of image i is what a training step with that seed makes of it in pass v.

    So the views of a larger n begin with those of a smaller one. What mixes images is left out.
    """

    def look(images: jax.Array, indices: jax.Array, view: jax.Array) -> jax.Array:
        return augment(example_keys(seed, jnp.full_like(indices, view), indices), images, augmentation)

    return TtaTransform(str(n), n - 1, True, own, look)


def _mirrored(images: jax.Array) -> jax.Array:
    return images[:, :, ::-1]


def _cropped(height: int, width: int, images: jax.Array, indices: jax.Array, view: jax.Array) -> jax.Array:
    batch, rows, columns, channels = images.shape
    down, right = rows - height, columns - width
    corners = jnp.array([(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)])
    top, left = corners[view % len(corners)]
    cut = jax.lax.dynamic_slice(images, (0, top, left, 0), (batch, height, width, channels))
    return jnp.where(view < len(corners), cut, _mirrored(cut))
