"""mixup and CutMix: every image of a batch is mixed with the next one, and its label in the same proportion.

The order of a batch is random already, so the next image is a random partner. Cached features are mixed like images,
which is manifold mixup (Verma et al. 2019) at the cut layer.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxtl.data.augment.config import AugmentConfig, RngStream


class Mixed(NamedTuple):
    """A batch with the loss lam * loss(labels) + (1 - lam) * loss(labels_b)."""

    images: jax.Array
    """float32 [batch, ...]: images or features."""
    labels: jax.Array
    """int32 [batch]: the original labels."""
    labels_b: jax.Array
    """int32 [batch]: the labels of the partners."""
    lam: jax.Array
    """float32 [batch], 0..1: the weight of the original image."""


def mix(keys: jax.Array, images: jax.Array, labels: jax.Array, augmentation: AugmentConfig) -> Mixed:
    """Apply mixup or CutMix to a batch; if both are enabled, the first key selects one for the whole batch.

    Args:
      keys: [batch], see `config.example_keys`.
      images: uint8 or float32 [batch, height, width, channels], 0..255; or features [batch, ...] of any float dtype.
        CutMix needs features with rows and columns: [batch, height, width, channels].
      labels: int32 [batch].
      augmentation: static under jit; if neither is enabled, lam is 1.
    """
    own = jax.vmap(lambda key: jax.random.fold_in(key, RngStream.MIX))(keys)
    images = images.astype(jnp.float32)
    others = jnp.roll(images, -1, axis=0)
    if augmentation.mixup and augmentation.cutmix:
        use_mixup = jax.random.bernoulli(jax.random.fold_in(own[0], 0))
        blended, lam = jax.lax.cond(
            use_mixup,
            lambda: _mixup(own, images, others, augmentation.mixup),
            lambda: _cutmix(own, images, others, augmentation.cutmix),
        )
    elif augmentation.mixup:
        blended, lam = _mixup(own, images, others, augmentation.mixup)
    elif augmentation.cutmix:
        blended, lam = _cutmix(own, images, others, augmentation.cutmix)
    else:
        blended, lam = images, jnp.ones(len(images))
    return Mixed(blended, labels, jnp.roll(labels, -1), lam)


def _mixup(keys: jax.Array, images: jax.Array, others: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """Zhang et al. 2017: lam x + (1 - lam) other, lam from Beta(alpha, alpha), one per image."""
    lam = _beta(keys, alpha)
    weight = lam.reshape(-1, *(1,) * (images.ndim - 1))
    return others + weight * (images - others), lam


def _cutmix(keys: jax.Array, images: jax.Array, others: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """Yun et al. 2019: a box of the other image with the aspect ratio of the image, centered anywhere, clipped.

    The box covers 1 - Beta(alpha, alpha) of the area before it is clipped; lam is the remaining fraction of the image.
    """
    _, height, width, _ = images.shape
    centers = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1), (2,)))(keys)
    half = jnp.sqrt(1 - _beta(keys, alpha)) / 2

    def span(center: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
        """Return the whole pixels of the box along one axis, bool [batch, size], and their number."""
        first = jnp.round(jnp.clip(center - half, 0, 1) * size)[:, None]
        end = jnp.round(jnp.clip(center + half, 0, 1) * size)[:, None]
        places = jnp.arange(size)
        return (places >= first) & (places < end), (end - first)[:, 0]

    in_rows, tall = span(centers[:, 0], height)
    in_columns, wide = span(centers[:, 1], width)
    inside = (in_rows[:, :, None] & in_columns[:, None, :])[..., None]
    return jnp.where(inside, others, images), 1 - tall * wide / (height * width)


def _beta(keys: jax.Array, alpha: float) -> jax.Array:
    return jax.vmap(lambda key: jax.random.beta(jax.random.fold_in(key, 2), alpha, alpha))(keys)
