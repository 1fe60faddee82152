"""Images with 16 bits a channel: scale them to 8 bits, by the bits that their values use.

Pillow keeps all bits of gray images (mode I;16), but only the high byte of colors. With the other byte order, it
returns the low byte, so colors that use 10 or 12 of the 16 bits are read in two passes.
"""

import sys
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile

from flaxtl.errors import UserError

DEPTHS = range(8, 17)
"""Values of `data.bit_depth` besides 0, which takes 16 bits a channel for 16 bits."""

_IS_DEEP = "flaxtl_16_bits"  # key of Image.info

_OTHER_BYTE = {
    f"{mode};16{order}": f"{mode};16{'L' if order == 'B' or (order == 'N' and sys.byteorder == 'big') else 'B'}"
    for mode in ("RGB", "RGBX", "RGBA")
    for order in "LBN"
}
"""Pillow's raw mode of a file -> that which reads the low byte of each channel."""

_SCALED_FORMATS = ("PPM", "JPEG2000")  # Pillow scales these to 16 bits: the files say how many bits they use

_ROWS_OF_PIXELS = 2**20  # pixels that are scaled at a time


def check_bit_depth(bit_depth: int) -> None:
    """Raise UserError for a value that `data.bit_depth` cannot have."""
    if bit_depth and bit_depth not in DEPTHS:
        raise UserError(f"data.bit_depth is {bit_depth}. Give 8 to 16, or 0 for the bit depth of the file.")


def mark_deep_color(image: ImageFile) -> str:
    """Return Pillow's raw mode of an image that is not loaded yet, if it has 16 bits a color; else ''."""
    args = image.tile[0].args if image.tile else ()
    raw_mode = args if isinstance(args, str) else str(args[0]) if args else ""
    if ";16" not in raw_mode or image.mode.startswith("I"):
        return ""
    image.info[_IS_DEEP] = True
    return raw_mode


def is_deep_color(image: Image.Image) -> bool:
    """Return whether a color image has 16 bits a channel in its file."""
    return _IS_DEEP in image.info


def low_bytes(image: ImageFile, raw_mode: str) -> ImageFile | None:
    """Let an image that is not loaded yet read the low bytes of its colors; None if Pillow cannot."""
    if raw_mode not in _OTHER_BYTE:
        return None
    other = _OTHER_BYTE[raw_mode]
    image.tile = [
        tile._replace(args=other if isinstance(tile.args, str) else (other, *(tile.args or ())[1:]))
        for tile in image.tile
    ]
    return image


def merge_bytes(high: Image.Image, low: Image.Image, bit_depth: int) -> None:
    """Replace the high bytes of an image by its values of `bit_depth` bits, scaled to 8 bits, some rows at a time."""
    rows = max(1, _ROWS_OF_PIXELS // high.width)
    for top in range(0, high.height, rows):
        box = (0, top, high.width, min(top + rows, high.height))
        values = np.asarray(high.crop(box)).astype(np.int32) * 256 + np.asarray(low.crop(box))
        high.paste(Image.fromarray(scale_to_8_bits(values, bit_depth)), box[:2])


def scale_to_8_bits(values: NDArray[np.int32], bit_depth: int) -> NDArray[np.uint8]:
    """Scale values 0 to 2**bit_depth - 1 to 0 to 255, rounded to nearest; larger values become 255."""
    largest = 2**bit_depth - 1
    scaled: NDArray[np.int64] = (values.astype(np.int64) * 255 + largest // 2) // largest
    return np.minimum(scaled, 255).astype(np.uint8)


def used_bit_depth(image: Image.Image, bit_depth: int) -> int:
    """Return the bits of a gray image's values under the setting `bit_depth`."""
    return 16 if image.format in _SCALED_FORMATS else bit_depth or 16


def largest_value(image: Image.Image) -> int:
    """Return the largest value of a loaded image with 16 bits a channel (of colors, with low byte 255); else 0."""
    if image.mode.startswith("I"):
        return max(0, int(np.asarray(image).max()))
    if is_deep_color(image):
        return 256 * int(np.asarray(image)[..., :3].max()) + 255
    return 0


def narrow_bit_depth(largest: Iterable[int]) -> int:
    """Return the bits that images with 16 bits a channel use if that is a small part of them, at least 8; else 0.

    `largest` are their values of `largest_value`.
    """
    value = max(largest, default=0)
    bits = max(8, value.bit_length())
    return bits if value and bits <= 14 else 0  # a quarter of the range is dark, not black


def describe_range(largest: Sequence[int]) -> str | None:
    """Return a warning if images use a small part of 16 bits; `largest` are their values of `largest_value`."""
    bits, value = narrow_bit_depth(largest), max(largest, default=0)
    if not bits:
        return None
    return (
        f"16-bit images with values up to {value} use {bits} of 16 bits and are read as nearly black. "
        f"Set --config.data.bit_depth={bits}."
    )
