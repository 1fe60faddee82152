"""Picture files to uint8 RGB arrays of one size, or one sentence that says what is wrong with which file."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from flaxtl.errors import UserError, unknown

EXTENSIONS = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
"""Suffixes, in lower case, of the files that are taken for pictures; what is inside decides how they are read."""

# Pillow's names of what those suffixes stand for, the usual first. Naming them keeps Pillow from trying everything else
# it knows on a stranger's file: for PostScript it would start an interpreter.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "AVIF")

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}

_POLICIES = ("squash", "crop")

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

_LISTED = 100  # bad files that an error names before it only counts

COVER = 1 / 0.875
"""How much larger than the crop a picture is made first: 256 to 224, as ImageNet networks are evaluated."""


@dataclass(frozen=True)
class Resize:
    """How a picture of any size becomes one of `height` x `width` pixels.

    policy 'squash': both sides are scaled on their own, the aspect is not kept. With filter 'nearest' this is, pixel
    for pixel, `keras.utils.load_img(path, target_size=(height, width))`, the lecture's setting.
    policy 'crop': the aspect is kept. The picture is scaled until it just covers COVER times the target, then the
    centre of `height` x `width` is cut out. For a square target that means: shorter side to round(COVER * side), the
    evaluation of ImageNet networks (256 -> 224).
    filter: nearest, bilinear, bicubic, lanczos, box or hamming; all but nearest average when they shrink.

    Raises UserError for an unknown policy or filter, or a side below one pixel.
    """

    height: int
    width: int
    policy: str = "squash"
    filter: str = "bilinear"

    def __post_init__(self) -> None:
        """Refuse what cannot be done, before the first of many files is read."""
        if self.policy not in _POLICIES:
            raise unknown("resize policy", self.policy, _POLICIES)
        if self.filter not in _FILTERS:
            raise unknown("resize filter", self.filter, _FILTERS)
        if self.height < 1 or self.width < 1:
            raise UserError(f"pictures of {self.height} x {self.width} pixels cannot be made; give sides of at least 1")


class Rows(Protocol):
    """What pictures can be put into, one by one and from many threads: an array, or a file."""

    def __setitem__(self, index: int, picture: np.ndarray, /) -> None:
        """Keep `picture`, uint8 [height, width, 3], as number `index`."""


class UnreadableError(Exception):
    """The reason, in plain words, why a file gives no picture.

    kind: the same in one word: 'unreadable' (it cannot be opened), 'empty', 'not-a-picture', 'oversized', 'truncated'
    (or damaged) or 'unconvertible' (to RGB).
    """

    def __init__(self, kind: str, reason: str) -> None:
        """Both as above."""
        super().__init__(reason)
        self.kind = kind


def decode(path: Path, resize: Resize) -> np.ndarray:
    """Read one picture: uint8 [height, width, 3], RGB, upright.

    EXIF orientation is applied (Keras ignores it). Transparency is composed over white. 16-bit greys are scaled to
    8 bits. Of an animation the first frame is taken. Every other mode goes through Pillow's conversion to RGB, as in
    Keras.

    Raises UserError that names the file and the reason if it is missing, unreadable, empty, not a picture, truncated,
    has pixels that cannot be shown as 8-bit RGB, or claims more pixels than Pillow's limit for decompression bombs.
    """
    try:
        return _read(path, resize).copy()
    except UnreadableError as reason:
        raise UserError(f"cannot read the picture {path}: {reason}; replace or remove it") from reason


def decode_all(
    paths: Sequence[Path],
    resize: Resize,
    on_progress: Callable[[int], None] | None = None,
    workers: int | None = None,
) -> np.ndarray:
    """Read many pictures with threads: uint8 [n, height, width, 3] in the order of `paths`; see `decode`.

    Raises one UserError for all the files that `decode` would refuse: see `refuse`.
    """
    pictures = np.empty((len(paths), resize.height, resize.width, 3), np.uint8)
    refuse(paths, decode_into(pictures, paths, resize, on_progress, workers))
    return pictures


def decode_into(
    pictures: Rows,
    paths: Sequence[Path],
    resize: Resize,
    on_progress: Callable[[int], None] | None = None,
    workers: int | None = None,
) -> dict[int, str]:
    """Read many pictures with threads; the picture of paths[i], uint8 [height, width, 3], is put to pictures[i].

    `on_progress` is called in the caller's thread after each picture with the number of pictures done.
    `workers` is the number of threads, one a core unless given: more only wait for each other.

    Returns the reason by index for every file that `decode` would refuse; nothing is put there.
    """

    def fill(index: int) -> str | None:
        try:
            pictures[index] = _read(paths[index], resize)
        except UnreadableError as reason:
            return str(reason)
        return None

    bad: dict[int, str] = {}
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        for index, reason in enumerate(pool.map(fill, range(len(paths)))):
            if reason is not None:
                bad[index] = reason
            if on_progress is not None:
                on_progress(index + 1)
    return bad


def refuse(paths: Sequence[Path], bad: Mapping[int, str]) -> None:
    """Raise one UserError if files are `bad` (index -> reason); it names the first hundred with reasons."""
    if bad:
        told = [f"{paths[index]} ({reason})" for index, reason in bad.items()]
        named = ", ".join(told[:_LISTED]) + (f" and {len(told) - _LISTED} more" if len(told) > _LISTED else "")
        raise UserError(f"cannot read {len(bad)} of {len(paths)} pictures: {named}; replace or remove them")


def _read(path: Path, resize: Resize) -> np.ndarray:
    """The file as `decode` returns it, but not to be written to; or UnreadableError."""
    return np.asarray(_resized(rgb(upright(unpack(path))), resize))


def unpack(path: Path, enough: int | None = None) -> Image.Image:
    """The unpacked picture in whatever mode the file has; raises UnreadableError.

    enough: a JPEG may be unpacked at 1/2, 1/4 or 1/8 of its size, many times quicker, as long as both of its sides keep
    that many pixels; None unpacks it whole.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UnreadableError("unreadable", (error.strerror or str(error)).lower()) from error
    if not content:
        raise UnreadableError("empty", "the file is empty")
    try:
        image = Image.open(BytesIO(content), formats=_FORMATS)
        if enough is not None:
            image.draft(None, (enough, enough))
        image.load()
    except UnidentifiedImageError as error:
        raise UnreadableError("not-a-picture", "not a picture of a known format") from error
    except Image.DecompressionBombError as error:
        raise UnreadableError("oversized", "it claims more pixels than is safe to unpack") from error
    except Exception as error:  # on broken bytes Pillow's readers raise almost anything: SyntaxError, struct.error, ...
        raise UnreadableError("truncated", f"truncated or damaged: {str(error) or type(error).__name__}") from error
    return image


def upright(image: Image.Image) -> Image.Image:
    """The picture as the camera was held. A loaded TIFF is upright already and has lost its tag."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # as above: damaged metadata must not hide a good picture
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def rgb(image: Image.Image) -> Image.Image:
    """Any mode of Pillow to RGB, over white where it is transparent."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_16_bits(np.asarray(image)).convert("RGB")
    if image.mode in ("F", "LAB"):
        reason = f"its pixels are of a kind ({image.mode}) that is not converted to RGB"
        raise UnreadableError("unconvertible", reason)
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
    return image.convert("RGB")


def _from_16_bits(grey: np.ndarray) -> Image.Image:
    """Greys 0..65535 to 0..255, rounded to nearest: 65535 / 255 is 257."""
    if grey.min() < 0 or grey.max() > 65535:
        raise UnreadableError("unconvertible", "its grey values do not fit into 16 bits")
    return Image.fromarray(((grey.astype(np.int32) + 128) // 257).astype(np.uint8))


def _resized(image: Image.Image, resize: Resize) -> Image.Image:
    """`image` under the policy of `resize`."""
    box = _crop_box(image, resize) if resize.policy == "crop" else None
    return image.resize((resize.width, resize.height), _FILTERS[resize.filter], box)


def _crop_box(image: Image.Image, resize: Resize) -> tuple[float, float, float, float]:
    """The part of `image` (left, top, right, bottom) that is in the centre crop once it is scaled.

    Scaling only that part is scaling everything and cropping then, to Pillow's rounding, but a picture of 1 x 10,000
    never becomes one of 256 x 2,560,000.
    """
    target = (resize.width, resize.height)
    covered = [round(COVER * side) for side in target]
    scale = max(cover / side for cover, side in zip(covered, image.size, strict=True))
    box = []
    for side, cover, crop in zip(image.size, covered, target, strict=True):
        scaled = max(cover, round(side * scale))
        start = (scaled - crop) // 2
        box.append((start * side / scaled, (start + crop) * side / scaled))
    (left, right), (top, bottom) = box
    return left, top, right, bottom
