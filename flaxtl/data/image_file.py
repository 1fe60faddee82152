"""An image file, unpacked whole, upright and in RGB, in a bounded amount of memory."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from io import BytesIO
from pathlib import Path
from stat import S_ISDIR, S_ISREG

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError, _imaging

MAX_PIXELS = 110_000_000
"""Pixels of the largest image that is unpacked, and of all that are at any one time.

The 108-megapixel photographs of telephones pass. A pixel takes at most 12 bytes on its way, as stored, upright and in
RGB, so that images never take more than 1.3 GB, whatever the number of threads.
"""

MAX_FILE_BYTES = 2**29
"""Bytes of the largest file that is read: LARGEST pixels of 4 bytes, not compressed."""

# Pillow's names of what `decode.EXTENSIONS` stand for, the usual first. Naming them keeps Pillow from trying everything
# else it knows on a stranger's file: for PostScript it would start an interpreter.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "AVIF")

# How to turn the stored pixels upright, by the value of the EXIF tag Orientation (Exif 2.32, section 4.6.4).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow takes memory in blocks of 16 MiB, which malloc keeps for the thread that frees them; larger ones, beyond its
# DEFAULT_MMAP_THRESHOLD_MAX of 32 MiB, are given back, so that each of many threads does not keep the largest image.
_imaging.set_block_size(2**26)

_STRIP = 2**22  # pixels that are converted at a time where that takes copies
_LARGE_FILE = 2**24  # bytes; such files are read one at a time


class UnreadableError(Exception):
    """The reason, in plain words, why a file gives no image.

    kind: the same in one word: 'unreadable' (it cannot be opened), 'empty', 'not-an-image', 'oversized', 'truncated'
    (or damaged) or 'unconvertible' (to RGB).
    """

    def __init__(self, kind: str, reason: str) -> None:
        """Both as above."""
        super().__init__(reason)
        self.kind = kind


class _PixelBudget:
    """Pixels that may be unpacked at one time; who needs more than are free waits."""

    def __init__(self, pixels: int) -> None:
        self._free = pixels
        self._changed = threading.Condition()

    @contextmanager
    def take(self, pixels: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: pixels <= self._free)
            self._free -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._free += pixels
                self._changed.notify_all()


_pixel_budget = _PixelBudget(MAX_PIXELS)
_large_file = threading.Lock()


@contextmanager
def open_image(path: Path, enough: int | None = None) -> Iterator[Image.Image]:
    """The image in whatever mode the file has, while the block runs; raises UnreadableError.

    Within the block the thread must not unpack another: it would wait for itself.

    enough: a JPEG may be unpacked at 1/2, 1/4 or 1/8 of its size, many times quicker, as long as both of its sides keep
    that many pixels; None unpacks it whole.
    """
    size = _size(path)
    with _large_file if size > _LARGE_FILE else nullcontext():
        image = _opened(path)
        with _pixel_budget.take(image.width * image.height):
            _load(image, enough)
            yield image


def _size(path: Path) -> int:
    """Bytes of the file."""
    try:
        found = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a null byte in its name
        raise _unreadable(error) from error
    if not (S_ISREG(found.st_mode) or S_ISDIR(found.st_mode)):
        raise UnreadableError("unreadable", "it is no ordinary file")  # a named pipe would keep its reader waiting
    size = found.st_size
    if size > MAX_FILE_BYTES:
        raise UnreadableError("oversized", f"the file of {size:,} bytes is larger than is safe to read")
    return size


def _opened(path: Path) -> Image.Image:
    """The image with its header read and checked."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(error) from error
    if not content:
        raise UnreadableError("empty", "the file is empty")
    try:
        image = Image.open(BytesIO(content), formats=_FORMATS)
    except UnidentifiedImageError as error:
        raise UnreadableError("not-an-image", "not an image of a known format") from error
    except Image.DecompressionBombError as error:
        raise _oversized() from error
    except Exception as error:
        raise _damaged(error) from error
    if image.width * image.height > MAX_PIXELS:
        raise _oversized()
    if not image.width * image.height:
        raise UnreadableError("truncated", "truncated or damaged: it claims to have no pixels")
    return image


def _load(image: Image.Image, enough: int | None) -> None:
    try:
        if enough is not None:
            image.draft(None, (enough, enough))
        image.load()
    except Exception as error:
        raise _damaged(error) from error


def _unreadable(error: OSError | ValueError) -> UnreadableError:
    return UnreadableError("unreadable", (getattr(error, "strerror", None) or str(error)).lower())


def _oversized() -> UnreadableError:
    return UnreadableError("oversized", f"it claims more pixels than is safe to unpack, which is {MAX_PIXELS:,}")


def _damaged(error: Exception) -> UnreadableError:
    # On broken bytes Pillow's readers raise almost anything: SyntaxError, struct.error, ...
    return UnreadableError("truncated", f"truncated or damaged: {str(error) or type(error).__name__}")


def apply_exif_orientation(image: Image.Image) -> Image.Image:
    """The image as the camera was held. A loaded TIFF is upright already and has lost its tag."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # as above: damaged metadata must not hide a good image
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode of Pillow to RGB, over white where it is transparent; raises UnreadableError."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _by_strips(image, _from_16_bits)
    if image.mode in ("F", "LAB"):
        reason = f"its pixels are of a kind ({image.mode}) that is not converted to RGB"
        raise UnreadableError("unconvertible", reason)
    if image.has_transparency_data:
        return _by_strips(image, _over_white)
    return image.convert("RGB")


def _by_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """`image` converted to RGB, some rows at a time."""
    seen = Image.new("RGB", image.size)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        seen.paste(convert(strip), (0, top))
    return seen


def _over_white(image: Image.Image) -> Image.Image:
    seen = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Greys 0..65535 to 0..255, rounded to nearest: 65535 / 255 is 257."""
    grey = np.asarray(image)
    if grey.min() < 0 or grey.max() > 65535:
        raise UnreadableError("unconvertible", "its grey values do not fit into 16 bits")
    return Image.fromarray(((grey.astype(np.int32) + 128) // 257).astype(np.uint8)).convert("RGB")
