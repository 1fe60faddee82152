"""Augmentation inside jit: apply `AugmentParams` to images, in this order.

With x a gray level as float32, L = 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601) and clip to 0..255:

1. color_ops      integers in, integers out (see randaugment.py)
2. matrix         bilinear, scipy's `affine_transform(order=1)` (see `warp`); the image is float32 from here on
3. channel_shift  x + shift, clipped to the smallest and largest value of this image after the warp (Keras)
4. brightness     clip(factor x)
5. contrast       clip(m + factor (x - m)), m the mean of L over the image
6. saturation     clip(L + factor (x - L))
7. hue            hexcone (HSV) hue rotated by a number of turns, saturation and value unchanged
8. erase_box      every pixel of rows top..bottom - 1 and columns left..right - 1 is `erase_color`

Keras flips between 3 and 4; here flips are part of the matrix, with the same result. Keras truncates to integers before
and after brightness; here values are not truncated.

data/tfdata.py implements the same operations in TensorFlow, with the constants of this module. What both compute in the
same way takes `xp`: jax.numpy, or TensorFlow's functions by the names that they have there.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from flaxtl.data.augment.config import AugmentConfig, AugmentParams, sample_params
from flaxtl.data.augment.randaugment import apply_color_op

FRACTION_BITS = 16
"""Fraction bits of a fixed-point coordinate; the integer part reaches +-32,767 pixels."""

ONE = 1 << FRACTION_BITS
"""One pixel as a fixed-point coordinate."""

HUE_OFFSETS = (5.0, 3.0, 1.0)
"""n in `shift_hue` for red, green, blue."""


def augment(keys: jax.Array, images: jax.Array, augmentation: AugmentConfig) -> jax.Array:
    """Augment every image with its own key: float32 [batch, height, width, 3], 0..255.

    Args:
      keys: [batch], see `config.example_keys`.
      images: uint8 or float32 [batch, height, width, 3], 0..255, before preprocessing, as in Keras.
      augmentation: static under jit.
    """
    _, height, width, _ = images.shape
    return apply_params(images, sample_params(keys, augmentation, height, width), augmentation)


def apply_params(images: jax.Array, params: AugmentParams, augmentation: AugmentConfig) -> jax.Array:
    """Apply `params` [batch, ...] to every image: float32 [batch, height, width, 3], 0..255.

    `images` are uint8 or float32 [batch, height, width, 3], 0..255 (integers if RandAugment is enabled);
    `augmentation` is static under jit: disabled operations are not compiled.
    """
    return jax.vmap(lambda image, own_params: _apply(image, own_params, augmentation))(images, params)


def _apply(image: jax.Array, params: AugmentParams, augmentation: AugmentConfig) -> jax.Array:
    for i in range(augmentation.randaugment):
        image = apply_color_op(image.astype(jnp.int32), params.color_ops[i], params.color_strengths[i])
    if augmentation.is_geometric:
        image = warp(image, params.matrix, augmentation.fill, augmentation.cval)
    image = image.astype(jnp.float32)
    if augmentation.channel_shift:
        image = jnp.clip(image + params.channel_shift, image.min(), image.max())
    if augmentation.brightness:
        image = _clip(params.brightness * image)
    if augmentation.contrast:
        image = _blend(luma(image.mean((0, 1))), image, params.contrast)
    if augmentation.saturation:
        image = _blend(luma(image), image, params.saturation)
    if augmentation.hue:
        image = shift_hue(image, params.hue)
    if augmentation.erasing:
        image = _erase(image, params.erase_box, params.erase_color)
    return image


def warp(image: jax.Array, matrix: jax.Array, fill: str = "nearest", cval: float = 0) -> jax.Array:
    """Transform `image` (any real dtype) by `matrix` [2, 3]: float32 [height, width, channels].

    Bilinear, as scipy's `affine_transform(..., order=1, mode=fill, cval=cval)`. With p a coordinate along an axis of n
    pixels, a point outside 0..n - 1 reads

    nearest     0 below, n - 1 above                                   a a a | a b c d | d d d
    reflect     q = p mod 2n, then min(q, 2n - 1 - q), then nearest    c b a | a b c d | d c b
    wrap        a period of n - 1, not n: p mod (n - 1) above,         b c d | a b c d | b c d
                and below n - 1 - (-p mod (n - 1)); 0 if n is 1
    constant    `cval`, even half a pixel outside

    A shift by whole pixels copies values bit for bit.
    """
    height, width, channels = image.shape

    def gather_pixels(image: jax.Array, matrix: jax.Array) -> jax.Array:
        pixels = image.reshape(-1, channels)  # gathering with one index per pixel is faster than with two

        def pixel_at(row: jax.Array, column: jax.Array) -> jax.Array:
            return pixels.at[row * width + column].get(mode="promise_in_bounds").astype(jnp.float32)

        warped: jax.Array = interpolate(jnp, pixel_at, matrix, height, width, fill, cval)
        return warped

    warp_packed = partial(warp_on_tpu, fill=fill, cval=cval)
    warped: jax.Array = jax.lax.platform_dependent(image, matrix, tpu=warp_packed, default=gather_pixels)
    return warped


def warp_on_tpu(image: jax.Array, matrix: jax.Array, fill: str = "nearest", cval: float = 0) -> jax.Array:
    """Return what `warp` returns, with one gather of uint32 words.

    A TPU pads three channels to 128 lanes, and gathers, converts and copies the padding, too. A row of words holds a
    pixel, its right, lower and diagonal neighbor; a uint8 pixel is one word, a float32 pixel one word a channel.
    """
    height, width, channels = image.shape
    words = _pack(image)
    beside = jnp.concatenate([words[:, 1:], words[:, -1:]], axis=1)
    squares = jnp.concatenate([words, beside, _move_up(words), _move_up(beside)], axis=-1)
    squares = squares.reshape(height * width, -1)

    def square_at(row: jax.Array, column: jax.Array) -> tuple[jax.Array, ...]:
        gathered = squares.at[row * width + column].get(mode="promise_in_bounds")
        return tuple(_unpack(corner, image.dtype, channels) for corner in jnp.split(gathered, 4, axis=-1))

    warped: jax.Array = interpolate_squares(jnp, square_at, matrix, height, width, fill, cval)
    return warped


def _pack(image: jax.Array) -> jax.Array:
    """Return uint32 [height, width, 1] of a uint8 image, or the bits of a float32 one, [height, width, channels]."""
    if image.dtype != jnp.uint8:
        return jax.lax.bitcast_convert_type(image.astype(jnp.float32), jnp.uint32)
    words = image.astype(jnp.uint32)
    return sum((words[..., i : i + 1] << 8 * i for i in range(image.shape[-1])), jnp.zeros((), jnp.uint32))


def _unpack(words: jax.Array, dtype: Any, channels: int) -> jax.Array:
    """Return the pixels that `_pack` packed, float32 [..., channels]."""
    if dtype != jnp.uint8:
        return jax.lax.bitcast_convert_type(words, jnp.float32)
    return jnp.concatenate([words >> 8 * i & 255 for i in range(channels)], axis=-1).astype(jnp.float32)


def _move_up(words: jax.Array) -> jax.Array:
    return jnp.concatenate([words[1:], words[-1:]])


def interpolate(
    xp: Any, pixel_at: Callable[[Any, Any], Any], matrix: Any, height: int, width: int, fill: str, cval: float
) -> Any:
    """Return what `warp` returns: float32 [..., height, width, channels].

    Args:
      xp: see above.
      pixel_at: (row, column), int32 [..., height, width] -> the pixels there, float32 [..., height, width, channels].
      matrix: float32 [..., 2, 3].
      height: of the images.
      width: of the images.
      fill: see `warp`.
      cval: see `warp`.
    """

    def square_at(row: Any, column: Any) -> tuple[Any, ...]:
        bottom, beside = xp.minimum(row + 1, height - 1), xp.minimum(column + 1, width - 1)
        return pixel_at(row, column), pixel_at(row, beside), pixel_at(bottom, column), pixel_at(bottom, beside)

    return interpolate_squares(xp, square_at, matrix, height, width, fill, cval)


def interpolate_squares(
    xp: Any, square_at: Callable[[Any, Any], Any], matrix: Any, height: int, width: int, fill: str, cval: float
) -> Any:
    """Do the same with `square_at`: the pixels at (row, column), right of it, below it, and right of that."""
    row, column = (_coordinate(xp, matrix[..., axis, :], height, width) for axis in (0, 1))
    top, down = _pixel_and_weight(xp, row, height, fill)
    left, right = _pixel_and_weight(xp, column, width, fill)
    top_left, top_right, bottom_left, bottom_right = square_at(top, left)
    above = top_left * (1 - right) + top_right * right
    below = bottom_left * (1 - right) + bottom_right * right
    pixels_out = above * (1 - down) + below * down
    if fill == "constant":
        return xp.where((_inside(row, height) & _inside(column, width))[..., None], pixels_out, cval)
    return pixels_out


def _coordinate(xp: Any, line: Any, height: int, width: int) -> Any:
    """Return the input coordinates along one axis, int32 [..., h, w], in pixels times ONE; `line` is float32 [..., 3].

    Fixed point, because the index and the weight must be consistent. XLA may compute a shared sum twice to save memory,
    once for each use, and contract one copy to a fused multiply-add: in floating point one is then 9.9999995 and the
    other 10.0, and a pixel is off by one. Integer sums have one value. Each term is rounded before the sum, so there is
    nothing to contract.
    """
    rows, columns = xp.arange(height, dtype=xp.float32)[:, None], xp.arange(width, dtype=xp.float32)
    by_row, by_column, constant = (line[..., i, None, None] for i in range(3))
    return sum(xp.astype(xp.round(term * ONE), xp.int32) for term in (by_row * rows, by_column * columns, constant))


def _inside(position: Any, size: int) -> Any:
    return (position >= 0) & (position <= (size - 1) * ONE)


def _pixel_and_weight(xp: Any, position: Any, size: int, fill: str) -> tuple[Any, Any]:
    """Return the pixel to read, int32 [..., h, w], and the weight of the next one, float32 [..., h, w, 1]."""
    edge = (size - 1) * ONE
    if fill == "reflect":
        period = 2 * size * ONE
        folded = position % period
        position = xp.minimum(folded, period - ONE - folded)
    elif fill == "wrap" and size > 1:
        back = edge - -position % edge
        position = xp.where(position < 0, back, xp.where(position > edge, position % edge, position))
    position = xp.clip(position, 0, edge)
    fraction = xp.astype(xp.bitwise_and(position, ONE - 1), xp.float32) / ONE
    return xp.right_shift(position, FRACTION_BITS), fraction[..., None]


def _clip(image: jax.Array) -> jax.Array:
    return jnp.clip(image, 0, 255)


def luma(images: Any) -> Any:
    """Return the luma L, float32 [..., 1]. A sum, because accelerators may round matrix products to bfloat16."""
    return 0.299 * images[..., :1] + 0.587 * images[..., 1:2] + 0.114 * images[..., 2:]


def _blend(degenerate: jax.Array, image: jax.Array, factor: jax.Array) -> jax.Array:
    return _clip(degenerate + factor * (image - degenerate))


def shift_hue(image: jax.Array, turns: jax.Array) -> jax.Array:
    """Rotate the hexcone hue (Smith 1978) of every pixel by a number of turns: float32 [..., 3], 0..255.

    With V the maximum of the channels, C its distance to the minimum and h in 0..6 the hue in sixths of the circle, a
    channel is V - C max(0, min(k, 4 - k, 1)), k = (n + h) mod 6, n = 5, 3, 1 for red, green, blue.

    Channels are compared with each other, where h is continuous, and not with V: a compiler may compute a channel
    twice, in two fusions that round differently.
    """
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    value = image.max(-1)
    chroma = value - image.min(-1)
    step = 1 / jnp.where(chroma > 0, chroma, 1)  # a gray pixel has no hue: any value works
    hue = jnp.where(
        (red >= green) & (red >= blue),
        (green - blue) * step,
        jnp.where(green >= blue, 2 + (blue - red) * step, 4 + (red - green) * step),
    )
    k = jnp.array(HUE_OFFSETS) + (hue + 6 * turns)[..., None]
    k -= 6 * jnp.floor(k / 6)
    return value[..., None] - chroma[..., None] * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)


def _erase(image: jax.Array, box: jax.Array, color: jax.Array) -> jax.Array:
    height, width, _ = image.shape
    rows, columns = jnp.arange(height)[:, None, None], jnp.arange(width)[:, None]
    top, left, bottom, right = box
    covered = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    return jnp.where(covered, color, image)
