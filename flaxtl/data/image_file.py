"""Read image files completely, upright and in RGB, in a bounded amount of memory."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from io import BytesIO
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError, _imaging
from PIL.ImageFile import ImageFile

from flaxtl.data import heif, record_files
from flaxtl.data.bit_depth import low_bytes, mark_deep_color, merge_bytes, scale_to_8_bits, used_bit_depth
from flaxtl.data.png_chunks import without_metadata

MAX_PIXELS = 110_000_000
"""Pixels of the largest image that is decoded, and of all images that are decoded at the same time.

Phone photos of 108 megapixels are accepted. A pixel takes at most 12 bytes (as stored, upright, and in RGB), so images
never take more than 1.3 GB, whatever the number of threads.
"""

MAX_FILE_BYTES = 2**29
"""Bytes of the largest file that is read: MAX_PIXELS of 4 bytes, uncompressed."""

FORMAT_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jfif"),
    "PNG": (".png",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "PPM": (".ppm", ".pgm", ".pbm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2",),
}
"""Pillow's names of the formats that are read -> suffixes of their files, in lower case; the usual ones first."""

FORMATS = tuple(FORMAT_SUFFIXES)
"""Pillow's names of the formats that are read.

Naming them keeps Pillow from trying its other formats on an untrusted file: for PostScript it would start an
interpreter.
"""

RAW_SUFFIXES = frozenset(
    (".3fr", ".arw", ".cr2", ".cr3", ".dng", ".erf", ".iiq", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".srw")
)
"""Suffixes of camera RAW files, which look like TIFF, but what Pillow would read from them is the small preview."""

RAW_ADVICE = "a camera RAW image: convert it to JPEG or PNG"

SIGNATURE_BYTES = 32
"""Bytes at the start of a file that tell its format."""

_JXL_SIGNATURES = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")

# The transposition that turns the stored pixels upright, by EXIF Orientation (Exif 2.32, section 4.6.4).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow allocates blocks of 16 MiB, which malloc keeps for the thread that frees them. Blocks beyond its
# DEFAULT_MMAP_THRESHOLD_MAX of 32 MiB are returned to the system, not kept per thread.
_imaging.set_block_size(2**26)

_EXTRA_SAMPLES = 338  # TIFF 6.0: what the channels after the colors are

_STRIP = 2**22  # pixels that are converted at a time if the conversion makes copies
_LARGE_FILE = 2**24  # bytes; larger files are read one at a time


AnyImage = TypeVar("AnyImage", bound=Image.Image)


class UnreadableError(Exception):
    """Why a file cannot be used as an image; the message is the reason.

    Attributes:
      kind: 'unreadable' (cannot be opened), 'empty', 'not-an-image', 'undecodable' (a variant of a known format that
        Pillow cannot read), 'oversized', 'truncated' (or damaged) or 'unconvertible' (to RGB).
    """

    def __init__(self, kind: str, reason: str) -> None:
        """Create the error; see above."""
        super().__init__(reason)
        self.kind = kind


class _PixelBudget:
    """Limits the pixels that are decoded at the same time; a thread that needs more than are free waits."""

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
_lazy_image = threading.Lock()


@contextmanager
def open_image(path: Path, min_side: int | None = None, bit_depth: int = 0) -> Iterator[Image.Image]:
    """Yield the decoded image in the mode of the file. Within the block, the thread must not open another: deadlock.

    Args:
      path: the file.
      min_side: if given, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, many times faster, as long as both sides
        keep this many pixels.
      bit_depth: bits that the values of 16-bit colors use; 0: all 16. Gray images keep their values; see `to_rgb`.

    Raises:
      UnreadableError: the file cannot be used as an image.
    """
    if path.suffix.lower() in RAW_SUFFIXES:
        raise UnreadableError("undecodable", RAW_ADVICE)
    size = _check_size(path)
    with _large_file if size > _LARGE_FILE else nullcontext():
        content = _read_bytes(path)
        image = _ignoring_metadata(_open, content)
        with _pixel_budget.take(image.width * image.height):
            yield _ignoring_metadata(
                lambda file: _decode(image if file is content else _open(file), file, min_side, bit_depth), content
            )


def _check_size(path: Path) -> int:
    """Return the size of the file in bytes."""
    record_image = record_files.parse_path(path)
    size = _file_size(path) if record_image is None else record_image.length
    if size > MAX_FILE_BYTES:
        raise UnreadableError("oversized", f"the file of {size:,} bytes is too large to read safely")
    return size


def _file_size(path: Path) -> int:
    try:
        status = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise _unreadable(error) from error
    if not (S_ISREG(status.st_mode) or S_ISDIR(status.st_mode)):
        raise UnreadableError("unreadable", "not a regular file")  # reading a named pipe would wait forever
    return status.st_size


def _read_bytes(path: Path) -> bytes:
    try:
        with record_files.open_binary(path) as file:
            content = file.read()
    except OSError as error:
        raise _unreadable(error) from error
    if not content:
        raise UnreadableError("empty", "the file is empty")
    return content


def _ignoring_metadata(read: Callable[[bytes], ImageFile], content: bytes) -> ImageFile:
    """Return `read(content)`; if that fails, try a PNG again without the metadata, which must not decide."""
    try:
        return read(content)
    except UnreadableError as error:
        pixels_only = without_metadata(content) if error.kind != "oversized" else None
        if pixels_only is None or pixels_only == content:
            raise
        return read(pixels_only)


def _open(content: bytes) -> ImageFile:
    """Return the image with its header read and checked."""
    try:
        image = Image.open(BytesIO(content), formats=possible_formats(content[:SIGNATURE_BYTES]))
    except UnidentifiedImageError as error:
        raise _unidentified(content) from error
    except Image.DecompressionBombError as error:
        raise _oversized() from error
    except Exception as error:
        raise _damaged(error) from error
    if image.width * image.height > MAX_PIXELS:
        raise _oversized()
    if not image.width * image.height:
        raise UnreadableError("truncated", "truncated or damaged: the header claims no pixels")
    return image


def has_deep_header(path: Path) -> bool:
    """Return whether a file is an image with 16 bits a channel, by its header."""
    try:
        with record_files.open_binary(path) as file, Image.open(file, formats=FORMATS) as image:
            return image.mode.startswith("I") or bool(mark_deep_color(image))
    except Exception:  # whatever else the file is
        return False


def possible_formats(start: bytes) -> tuple[str, ...]:
    """Return Pillow's names of the formats to try on a file with these first SIGNATURE_BYTES: FORMATS, or HEIC's."""
    return (heif.FORMAT,) if heif.is_heic(start) and heif.register_reader() else FORMATS


def matching_formats(start: bytes) -> list[str]:
    """Return the possible formats of which the first SIGNATURE_BYTES of a file may be; [] for most other files."""
    Image.init()
    return [
        name
        for name in possible_formats(start)
        if (accept := Image.OPEN[name][1]) is not None and accept(start) is True
    ]


def foreign_format(start: bytes) -> str | None:
    """Return the name of an image format that cannot be read, with advice, from the first bytes of a file, or None."""
    if heif.is_heic(start) and not heif.register_reader():
        return heif.MISSING_READER
    if start.startswith(_JXL_SIGNATURES):
        return "a JPEG XL image: convert it to JPEG or PNG, for example with the package pillow-jxl-plugin"
    return None


def _unidentified(content: bytes) -> UnreadableError:
    """Return the error for a file without a valid header, with the reason of the decoder if its format is known."""
    start = content[:SIGNATURE_BYTES]
    if foreign := foreign_format(start):
        return UnreadableError("not-an-image", foreign)
    for name in matching_formats(start):
        try:
            Image.OPEN[name][0](BytesIO(content), "")
        except Exception as error:
            return UnreadableError("undecodable", f"a {name} file that cannot be decoded: {_reason(error)}")
    return UnreadableError("not-an-image", "not an image of a known format")


def _decode(image: ImageFile, content: bytes, min_side: int | None, bit_depth: int) -> ImageFile:
    """Load the pixels of the image that was opened from `content`; return it."""
    raw_mode = mark_deep_color(image)
    _load(image, min_side)
    if raw_mode and bit_depth:
        low = low_bytes(_open(content), raw_mode)
        if low is None:
            raise UnreadableError("unconvertible", f"16-bit pixels of mode {raw_mode} cannot be scaled: save it as RGB")
        merge_bytes(image, _load(low, None), bit_depth)
    return image


def _load(image: AnyImage, min_side: int | None) -> AnyImage:
    try:
        if min_side is not None:
            image.draft(None, (min_side, min_side))
        image.load()
    except Exception as error:
        image.close()  # frees its pixels before it is read again
        raise _damaged(error) from error
    return image


def load_upright(image: Image.Image) -> Image.Image:
    """Return an image in memory upright, with its pixels.

    Pillow reads pixels and EXIF data when they are first used, but not in two threads, which may have the same image.
    """
    with _lazy_image:
        if isinstance(image, ImageFile) and image.tile and image.fp is None:
            raise UnreadableError("unreadable", "its file was closed before its pixels were read")
        return apply_exif_orientation(_load(image, None))


def _unreadable(error: OSError | ValueError) -> UnreadableError:
    return UnreadableError("unreadable", (getattr(error, "strerror", None) or str(error)).lower())


def _oversized() -> UnreadableError:
    return UnreadableError("oversized", f"the header claims more pixels than can be decoded safely, {MAX_PIXELS:,}")


def _damaged(error: Exception) -> UnreadableError:
    # Pillow's readers raise almost any exception on damaged bytes: SyntaxError, struct.error, ...
    return UnreadableError("truncated", f"truncated or damaged: {_reason(error)}")


def _reason(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return "invalid header" if text == "not identified by this driver" else text


def apply_exif_orientation(image: Image.Image) -> Image.Image:
    """Return the image upright. A loaded TIFF is already upright and has lost its tag."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged metadata must not make a good image unreadable
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def to_rgb(image: Image.Image, bit_depth: int = 0) -> Image.Image:
    """Convert an image of any mode to RGB, over white where it is transparent.

    The colors of an image that is transparent everywhere are used as they are, and so are those of a TIFF with a fourth
    channel that is not declared to be transparency: it may be infrared.

    Args:
      image: loaded.
      bit_depth: bits that the values of 16-bit gray use; 0: all 16.

    Raises:
      UnreadableError: the mode cannot be converted.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _convert_strips(image, partial(_gray16_to_rgb, bit_depth=used_bit_depth(image, bit_depth)))
    if image.mode == "F":
        advice = "float values have no fixed range. Scale them to 8 or 16 bits"
        raise UnreadableError("unconvertible", f"pixels of mode F cannot be converted to RGB: {advice}")
    if image.mode == "LAB":
        raise UnreadableError("unconvertible", "pixels of mode LAB cannot be converted to RGB")
    if image.has_transparency_data and not _has_unused_alpha(image):
        return _convert_strips(image, _over_white)
    return image.convert("RGB")


def _has_unused_alpha(image: Image.Image) -> bool:
    """Return whether the channel that Pillow takes for transparency is 0 everywhere, or not declared in a TIFF."""
    if image.mode not in ("RGBA", "LA"):
        return False
    tags = getattr(image, "tag_v2", {})
    return (image.format == "TIFF" and _EXTRA_SAMPLES not in tags) or image.getchannel("A").getextrema()[1] == 0


def _convert_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Convert an image to RGB, some rows at a time."""
    rgb = Image.new("RGB", image.size)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        rgb.paste(convert(strip), (0, top))
    return rgb


def _over_white(image: Image.Image) -> Image.Image:
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")  # Pillow has no direct conversion
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _gray16_to_rgb(image: Image.Image, bit_depth: int) -> Image.Image:
    """Scale gray levels of `bit_depth` bits to 0..255, rounded to nearest."""
    gray = np.asarray(image)
    if gray.min() < 0 or gray.max() > 65535:
        raise UnreadableError("unconvertible", "gray values do not fit into 16 bits")
    return Image.fromarray(scale_to_8_bits(gray.astype(np.int32), bit_depth)).convert("RGB")
