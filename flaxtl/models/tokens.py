"""The parts of a transformer that Flax has in another form: class token, position embeddings and attention."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from flax import linen as nn
from jax import lax

EMBEDDING_STD = 0.02
"""Standard deviation of new position embeddings (vit_jax/models_vit.py)."""

Grid = tuple[int, int]
"""(rows, columns) of patches."""


class ClassToken(nn.Module):
    """Put a learned token before those of the patches (Dosovitskiy et al. 2020, arXiv:2010.11929, section 3.1).

    Parameter, float32: token [1, 1, channels].
    """

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Patches [batch, rows, columns, channels] -> tokens [batch, 1 + rows * columns, channels], row by row."""
        batch, rows, columns, channels = x.shape
        token = self.param("token", nn.initializers.zeros_init(), (1, 1, channels), jnp.float32).astype(self.dtype)
        patches = x.astype(self.dtype).reshape(batch, rows * columns, channels)
        # A sum and not a concatenation: an ONNX model cannot repeat a constant as often as there are images.
        return jnp.pad(patches, ((0, 0), (1, 0), (0, 0))) + jnp.pad(token, ((0, 0), (0, rows * columns), (0, 0)))


class PositionEmbedding(nn.Module):
    """Add a learned embedding to each token; for another grid than `grid` it is resampled, see `resample_embedding`.

    Parameter, float32: pos_embedding [1, 1 + rows * columns, channels], that of the class token first.
    """

    grid: Grid
    dtype: Any

    @nn.compact
    def __call__(self, tokens: jax.Array, grid: Grid) -> jax.Array:
        """Tokens [batch, 1 + rows * columns, channels] of the patches of `grid` -> the same shape."""
        shape = (1, 1 + math.prod(self.grid), tokens.shape[-1])
        embedding = self.param("pos_embedding", nn.initializers.normal(EMBEDDING_STD), shape, jnp.float32)
        if grid != self.grid:
            embedding = resample_embedding(embedding, self.grid, grid)
        return tokens.astype(self.dtype) + embedding.astype(self.dtype)


def resample_embedding(embedding: jax.typing.ArrayLike, old: Grid, new: Grid) -> jax.Array:
    """Resample position embeddings [1, 1 + rows * columns, channels] for another grid; the first one stays.

    Bilinear, with the corners of both grids at the same places: scipy.ndimage.zoom with order=1, as in the authors'
    vit_jax/checkpoint.py. timm's is bicubic.
    """
    embedding = jnp.asarray(embedding)
    channels = embedding.shape[-1]
    first, patches = embedding[:, :1], embedding[0, 1:].reshape(*old, channels)
    rows, columns = (linear_weights(before, after) for before, after in zip(old, new, strict=True))
    patches = jnp.einsum("ih,hwc,jw->ijc", rows, patches, columns, precision=lax.Precision.HIGHEST)
    return jnp.concatenate([first, patches.reshape(1, -1, channels)], axis=1)


def linear_weights(old: int, new: int) -> npt.NDArray[np.float32]:
    """Return the weights [new, old] of linear interpolation at `new` positions from the first to the last of `old`."""
    distances = np.abs(np.linspace(0, old - 1, new)[:, None] - np.arange(old))
    weights: npt.NDArray[np.float32] = np.maximum(1 - distances, 0).astype(np.float32)
    return weights


def attention(query: jax.Array, key: jax.Array, value: jax.Array, num_heads: int) -> jax.Array:
    """Return softmax(query @ key / sqrt(size)) @ value, for each head separately; the softmax is in float32.

    Args:
      query: [batch, tokens, num_heads * size], head after head; so are `key`, `value` and the result.
      key: what the query is compared with.
      value: what is averaged.
      num_heads: number of heads.
    """
    batch, tokens, channels = query.shape
    size = channels // num_heads
    query, key, value = (x.reshape(batch, tokens, num_heads, size) for x in (query, key, value))
    scores = jnp.einsum("bqhc,bkhc->bhqk", query / math.sqrt(size), key)
    weights = nn.softmax(scores.astype(jnp.float32)).astype(value.dtype)
    return jnp.einsum("bhqk,bkhc->bqhc", weights, value).reshape(batch, tokens, channels)
