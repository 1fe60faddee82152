"""mixup and CutMix: every image of a batch mixed with the next one, and its label in the same shares.

The order of a batch is random already, so the next image is as random a partner as any.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxtl.data.augment.config import AugmentConfig, RngStream


class Mixed(NamedTuple):
    """A batch whose loss is share * loss(label) + (1 - share) * loss(partner)."""

    images: jax.Array
    """float32 [batch, height, width, channels], 0..255."""
    labels: jax.Array
    """int32 [batch]: the labels as they were."""
    labels_b: jax.Array
    """int32 [batch]: the labels of the images that were mixed in."""
    lam: jax.Array
    """float32 [batch], 0..1: how much of each is still its own."""


def mix(keys: jax.Array, images: jax.Array, labels: jax.Array, augmentation: AugmentConfig) -> Mixed:
    """The batch mixed as `augmentation.mixup` and `.cutmix` say; with both, the first key tosses a coin for all.

    `keys` [batch] (see `augment.keys`), `images` uint8 or float32 [batch, height, width, channels], 0..255, `labels`
    int32 [batch]. `augmentation` is static under jit; without a kind in it all shares are 1.
    """
    own = jax.vmap(lambda key: jax.random.fold_in(key, RngStream.MIX))(keys)
    images = images.astype(jnp.float32)
    others = jnp.roll(images, -1, axis=0)
    if augmentation.mixup and augmentation.cutmix:
        toss = jax.random.bernoulli(jax.random.fold_in(own[0], 0))
        blended, shares = jax.lax.cond(
            toss,
            lambda: _mixup(own, images, others, augmentation.mixup),
            lambda: _cutmix(own, images, others, augmentation.cutmix),
        )
    elif augmentation.mixup:
        blended, shares = _mixup(own, images, others, augmentation.mixup)
    elif augmentation.cutmix:
        blended, shares = _cutmix(own, images, others, augmentation.cutmix)
    else:
        blended, shares = images, jnp.ones(len(images))
    return Mixed(blended, labels, jnp.roll(labels, -1), shares)


def _mixup(keys: jax.Array, images: jax.Array, others: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """Zhang et al. 2017: share x + (1 - share) other, the share from Beta(alpha, alpha), one an image."""
    shares = _beta(keys, alpha)
    return others + shares[:, None, None, None] * (images - others), shares


def _cutmix(keys: jax.Array, images: jax.Array, others: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """Yun et al. 2019: a box of the other image, of the image's own aspect, its centre anywhere, cut at the edges.

    The box covers 1 - Beta(alpha, alpha) of the area before it is cut; the share is what is left of the image.
    """
    _, height, width, _ = images.shape
    centres = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1), (2,)))(keys)
    half = jnp.sqrt(1 - _beta(keys, alpha)) / 2

    def span(centre: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
        """bool [batch, size]: the whole pixels of the box along one axis."""
        first = jnp.round(jnp.clip(centre - half, 0, 1) * size)[:, None]
        end = jnp.round(jnp.clip(centre + half, 0, 1) * size)[:, None]
        places = jnp.arange(size)
        return (places >= first) & (places < end), (end - first)[:, 0]

    in_rows, tall = span(centres[:, 0], height)
    in_columns, wide = span(centres[:, 1], width)
    inside = (in_rows[:, :, None] & in_columns[:, None, :])[..., None]
    return jnp.where(inside, others, images), 1 - tall * wide / (height * width)


def _beta(keys: jax.Array, alpha: float) -> jax.Array:
    return jax.vmap(lambda key: jax.random.beta(jax.random.fold_in(key, 2), alpha, alpha))(keys)
