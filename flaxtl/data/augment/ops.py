"""Augmentation inside jit: a `Change` done to its image, in this order.

With x a grey level as float32, L = 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601) and clip to 0..255:

1. operations     whole numbers in, whole numbers out (see operations.py)
2. matrix         bilinear, scipy's `affine_transform(order=1)` (see `warp`); the image is float32 from here on
3. channel_shift  x + shift, clipped to the smallest and largest value of this image after the warp (Keras)
4. brightness     clip(factor x)
5. contrast       clip(m + factor (x - m)), m the mean of L over the image
6. saturation     clip(L + factor (x - L))
7. hue            hexcone (HSV) hue turned by so many turns, saturation and value kept
8. box            every pixel of rows top..bottom - 1 and columns left..right - 1 is `colour`

Keras flips between 3 and 4; flips are part of the matrix here, which comes to the same. Keras cuts to whole numbers
before and after its brightness; here values stay as they are.
"""

import jax
import jax.numpy as jnp

from flaxtl.data.augment.config import AugmentConfig, AugmentParams, sample_params
from flaxtl.data.augment.randaugment import apply_color_op

_BITS = 16  # of the fraction in a fixed-point coordinate; the integer part then reaches 32,767 pixels either way
_ONE = 1 << _BITS

_LUMA = (0.299, 0.587, 0.114)


def augment(keys: jax.Array, images: jax.Array, augmentation: AugmentConfig) -> jax.Array:
    """Every image changed at random by its own key: float32 [batch, height, width, 3], 0..255.

    `keys` [batch] (see `augment.keys`), `images` uint8 or float32 [batch, height, width, 3], 0..255: before any
    preprocessing, as in Keras. `augmentation` is static under jit.
    """
    _, height, width, _ = images.shape
    return apply_params(images, sample_params(keys, augmentation, height, width), augmentation)


def apply_params(images: jax.Array, change: AugmentParams, augmentation: AugmentConfig) -> jax.Array:
    """Every image changed as `change` [batch, ...] says: float32 [batch, height, width, 3], 0..255.

    `images` are uint8 or float32 [batch, height, width, 3], 0..255 (whole numbers if RandAugment is on);
    `augmentation` is static under jit: what it leaves off is not even looked at.
    """
    return jax.vmap(lambda image, one: _apply(image, one, augmentation))(images, change)


def _apply(image: jax.Array, change: AugmentParams, augmentation: AugmentConfig) -> jax.Array:
    for i in range(augmentation.randaugment):
        image = apply_color_op(image.astype(jnp.int32), change.operations[i], change.strengths[i])
    if augmentation.is_geometric:
        image = warp(image, change.matrix, augmentation.fill, augmentation.cval)
    image = image.astype(jnp.float32)
    if augmentation.channel_shift:
        image = jnp.clip(image + change.channel_shift, image.min(), image.max())
    if augmentation.brightness:
        image = _clip(change.brightness * image)
    if augmentation.contrast:
        image = _blend(_luma(image.mean((0, 1))), image, change.contrast)
    if augmentation.saturation:
        image = _blend(_luma(image), image, change.saturation)
    if augmentation.hue:
        image = shift_hue(image, change.hue)
    if augmentation.erasing:
        image = _erase(image, change.box, change.colour)
    return image


def warp(image: jax.Array, matrix: jax.Array, fill: str = "nearest", cval: float = 0) -> jax.Array:
    """float32 [height, width, channels]: `image` (any real dtype, same shape) seen through `matrix` [2, 3].

    Bilinear, scipy's `affine_transform(..., order=1, mode=fill, cval=cval)`. With p a coordinate along an axis of n
    pixels, what is read instead of p outside 0..n - 1 is

    nearest     0 below, n - 1 above                                   a a a | a b c d | d d d
    reflect     q = p mod 2n, then min(q, 2n - 1 - q), then nearest    c b a | a b c d | d c b
    wrap        a period of n - 1, not n: p mod (n - 1) above,         b c d | a b c d | b c d
                and below n - 1 - (-p mod (n - 1)); 0 if n is 1
    constant    nothing: the value is `cval`, even half a pixel outside

    A matrix of whole-pixel moves copies values bit for bit.
    """
    height, width, channels = image.shape
    pixels = image.reshape(-1, channels)  # one index a pixel is gathered faster than two
    rows, columns = jnp.arange(height, dtype=jnp.float32)[:, None], jnp.arange(width, dtype=jnp.float32)
    row, column = _coordinate(matrix[0], rows, columns), _coordinate(matrix[1], rows, columns)
    top, down = _read(row, height, fill)
    left, right = _read(column, width, fill)
    bottom, beside = jnp.minimum(top + 1, height - 1), jnp.minimum(left + 1, width - 1)

    def corner(row: jax.Array, column: jax.Array) -> jax.Array:
        return pixels.at[row * width + column].get(mode="promise_in_bounds").astype(jnp.float32)

    above = corner(top, left) * (1 - right) + corner(top, beside) * right
    below = corner(bottom, left) * (1 - right) + corner(bottom, beside) * right
    seen = above * (1 - down) + below * down
    if fill == "constant":
        return jnp.where((_inside(row, height) & _inside(column, width))[..., None], seen, cval)
    return seen


def _coordinate(line: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """int32 [h, w]: where one axis of the input is read, in pixels times 2**16.

    In fixed point because the index and the weight must never disagree. XLA computes a shared sum twice where that
    saves memory, once for each use, and may contract one copy to a fused multiply-add: in floating point one says
    9.9999995 and the other 10.0, and a pixel is off by one. Integer sums have one value. Each term is rounded before
    they are added, so there is nothing to contract.
    """
    terms = (line[0] * rows, line[1] * columns, line[2])
    return sum((jnp.round(term * _ONE).astype(jnp.int32) for term in terms), start=jnp.int32(0))


def _inside(position: jax.Array, size: int) -> jax.Array:
    return (position >= 0) & (position <= (size - 1) * _ONE)


def _read(position: jax.Array, size: int, fill: str) -> tuple[jax.Array, jax.Array]:
    """The pixel to read at a coordinate, int32 [h, w], and the share of the one after it, float32 [h, w, 1]."""
    edge = (size - 1) * _ONE
    if fill == "reflect":
        period = 2 * size * _ONE
        folded = position % period
        position = jnp.minimum(folded, period - _ONE - folded)
    elif fill == "wrap" and size > 1:
        back = edge - -position % edge
        position = jnp.where(position < 0, back, jnp.where(position > edge, position % edge, position))
    position = jnp.clip(position, 0, edge)
    fraction = (position & (_ONE - 1)).astype(jnp.float32) / _ONE
    return position >> _BITS, fraction[..., None]


def _clip(image: jax.Array) -> jax.Array:
    return jnp.clip(image, 0, 255)


def _luma(image: jax.Array) -> jax.Array:
    """float32 [h, w, 1]. A sum, not a matrix product, which accelerators may round to bfloat16."""
    return sum((weight * image[..., i : i + 1] for i, weight in enumerate(_LUMA)), start=jnp.float32(0))


def _blend(degenerate: jax.Array, image: jax.Array, factor: jax.Array) -> jax.Array:
    return _clip(degenerate + factor * (image - degenerate))


def shift_hue(image: jax.Array, turns: jax.Array) -> jax.Array:
    """float32 [..., 3], 0..255: the hexcone hue (Smith 1978) of every pixel moved by so many turns of the circle.

    With V the largest of the three, C its distance to the smallest and h in 0..6 the hue in sixths of the circle, a
    channel is V - C max(0, min(k, 4 - k, 1)), k = (n + h) mod 6, n = 5, 3, 1 for red, green, blue.
    """
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    value = image.max(-1)
    chroma = value - image.min(-1)
    step = 1 / jnp.where(chroma > 0, chroma, 1)  # a grey pixel has no hue: any will do
    hue = jnp.where(
        value == red,
        (green - blue) * step,
        jnp.where(value == green, 2 + (blue - red) * step, 4 + (red - green) * step),
    )
    k = jnp.array([5.0, 3.0, 1.0]) + (hue + 6 * turns)[..., None]
    k -= 6 * jnp.floor(k / 6)
    return value[..., None] - chroma[..., None] * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)


def _erase(image: jax.Array, box: jax.Array, colour: jax.Array) -> jax.Array:
    height, width, _ = image.shape
    rows, columns = jnp.arange(height)[:, None, None], jnp.arange(width)[:, None]
    top, left, bottom, right = box
    covered = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    return jnp.where(covered, colour, image)
