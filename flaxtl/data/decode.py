"""Decode image files to uint8 RGB arrays of one size; one error names all files that cannot be read, and why."""

import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from numbers import Real
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from flaxtl.data.bit_depth import check_bit_depth, largest_value
from flaxtl.data.image_file import (
    FORMAT_SUFFIXES,
    UnreadableError,
    apply_exif_orientation,
    has_deep_header,
    load_upright,
    open_image,
    to_rgb,
)
from flaxtl.errors import UserError, unknown
from flaxtl.fileio import user_path

EXTENSIONS = frozenset(chain.from_iterable(FORMAT_SUFFIXES.values()))
"""Suffixes of image files, in lower case; the format is detected from the content."""

_INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}

_POLICIES = ("squash", "crop")

REMEDY = "Replace or remove them."
"""What an error for several unreadable images advises."""

_MAX_NAMED = 100  # maximum number of bad files listed in an error

_MAX_GROUP = 16
"""Files that a thread decodes before it takes the next ones. One by one, small photos took a third longer."""

CROP_PCT = 0.875
"""Size of the crop relative to the resized image: 224 of 256, as ImageNet networks are evaluated (timm's crop_pct)."""


@dataclass(frozen=True)
class Resize:
    """How to resize images to `height` x `width` pixels.

    Attributes:
      height: pixels, at least 1.
      width: pixels, at least 1.
      policy: 'squash' scales both sides independently and does not keep the aspect ratio. With interpolation 'nearest'
        it is identical to `keras.utils.load_img(path, target_size=(height, width))`, the setting of the lecture.
        'crop' keeps the aspect ratio: the image is scaled until it just covers the target / `crop_pct`, then the center
        of `height` x `width` is cropped. For a square target the sizes are those of torchvision's Resize to
        floor(side / crop_pct), as in timm, and CenterCrop: 224 of 256, 200 of 228.
      interpolation: 'nearest', 'bilinear', 'bicubic', 'lanczos', 'box' or 'hamming'; all but 'nearest' antialias.
      crop_pct: size of the crop relative to the resized image, in (0, 1]; used by 'crop' only. 1.0 shows as much of the
        image as fits, as Keras' `crop_to_aspect_ratio`.
      bit_depth: bits that the values of 16-bit images use, 8 to 16; 0: all 16. 8-bit images are not changed.
      border: rows and columns of the target that surround the center crop, for views of it; used by 'crop' only.

    Raises:
      UserError: an unknown policy or interpolation, a side below one pixel, or an impossible bit depth or `crop_pct`.
    """

    height: int
    width: int
    policy: str = "squash"
    interpolation: str = "bilinear"
    crop_pct: float = CROP_PCT
    bit_depth: int = 0
    border: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        """Validate the values before the first file is read."""
        if self.policy not in _POLICIES:
            raise unknown("resize policy", self.policy, _POLICIES)
        if self.interpolation not in _INTERPOLATIONS:
            raise unknown("interpolation", self.interpolation, _INTERPOLATIONS)
        check_bit_depth(self.bit_depth)
        if not (isinstance(self.crop_pct, Real) and 0 < self.crop_pct <= 1):
            raise UserError(f"crop_pct is {self.crop_pct!r}. It must be a number above 0 and at most 1, such as 0.875.")
        if self.height < 1 or self.width < 1:
            raise UserError(
                f"Cannot resize images to {self.height} x {self.width} pixels. Both sides must be at least 1."
            )


def covering_side(side: int, crop_pct: float) -> int:
    """Return the side, in pixels, of an image from which `side` pixels are cropped: rounded down, as in timm."""
    return int(side / crop_pct)


def center_offset(size: int, crop: int) -> int:
    """Return where a center crop begins: halves are rounded to even, as in torchvision's CenterCrop."""
    return round((size - crop) / 2)


class ImageSink(Protocol):
    """Destination of decoded images, which are stored one by one and from many threads: an array or a file."""

    def __setitem__(self, index: int, image: np.ndarray, /) -> None:
        """Store `image`, uint8 [height, width, 3], as number `index`."""


@dataclass(frozen=True)
class EncodedImages:
    """Image files that are decoded each time they are read, in the place of an `ArrayStore` of decoded images.

    Attributes:
      paths: the files.
      resize: the size of the images.
    """

    paths: tuple[Path, ...]
    resize: Resize

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of all images, [n, height, width, 3]."""
        return len(self.paths), self.resize.height, self.resize.width, 3

    def read(self, rows: Sequence[int] | npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.uint8]:
        """Decode some images with threads, uint8 [len(rows), height, width, 3]. Raises UserError as `decode_all`."""
        return decode_all([self.paths[row] for row in rows], self.resize)

    def decode(self, row: int) -> npt.NDArray[np.uint8]:
        """Decode one image, uint8 [height, width, 3]. Raises UserError as the function `decode`."""
        return decode(self.paths[row], self.resize)

    def part(self, first: int, last: int) -> "EncodedImages":
        """Return images `first` to `last` (exclusive)."""
        return replace(self, paths=self.paths[first:last])


@dataclass(frozen=True, eq=False)
class MemoryImage:
    """An image in memory, in the place of the path of a file.

    Attributes:
      name: the name in results and messages, such as 'image 0'.
      pixels: a PIL image, or uint8 RGB [height, width, 3].

    Raises:
      UserError: another type or shape, or no pixels.
    """

    name: str
    pixels: Image.Image | npt.NDArray[np.uint8]

    def __post_init__(self) -> None:
        """Validate the pixels before the first image is decoded."""
        pixels: Any = self.pixels
        if isinstance(pixels, np.ndarray):
            is_valid = pixels.dtype == np.uint8 and pixels.shape[2:] == (3,) and bool(pixels.size)
            given = f"{pixels.dtype} [{', '.join(map(str, pixels.shape))}]"
        else:
            is_valid = isinstance(pixels, Image.Image) and all(pixels.size)
            given = "empty" if isinstance(pixels, Image.Image) else f"of type {type(pixels).__name__}"
        if not is_valid:
            raise UserError(
                f"Cannot read {self.name}, which is {given}. Give image files, folders or glob patterns, PIL images or "
                "uint8 RGB arrays [height, width, 3]."
            )

    def __str__(self) -> str:
        """Return the name."""
        return self.name

    def open(self) -> Image.Image:
        """Return the image, loaded and upright. Raises UnreadableError if the file of a PIL image is damaged."""
        return Image.fromarray(self.pixels) if isinstance(self.pixels, np.ndarray) else load_upright(self.pixels)


ImageSource: TypeAlias = Path | MemoryImage
"""A file, or an image in memory."""


def decode(source: ImageSource, resize: Resize) -> np.ndarray:
    """Read one image: uint8 [height, width, 3], RGB, upright.

    EXIF orientation is applied (Keras ignores it). Transparent images are composed over white. 16-bit images are scaled
    to 8 bits. The first frame of an animation is used. All other modes are converted to RGB by Pillow, as in Keras.

    Raises:
      UserError: the file is missing, unreadable, empty, not an image, truncated, cannot be converted to 8-bit RGB, or
        larger than `image_file.MAX_PIXELS` or `image_file.MAX_FILE_BYTES`; names the file and the reason.
    """
    try:
        return _read(source, resize).copy()
    except UnreadableError as reason:
        name = source if isinstance(source, MemoryImage) else f"the image {source}"
        raise UserError(f"Cannot read {name}: {reason}. Replace or remove it.") from reason


def decode_all(
    paths: Sequence[Path],
    resize: Resize,
    on_progress: Callable[[int], None] | None = None,
    workers: int | None = None,
) -> np.ndarray:
    """Decode many images with threads: uint8 [n, height, width, 3] in the order of `paths`; see `decode_into`.

    Raises one UserError for all files that cannot be read; see `raise_unreadable`.
    """
    images = np.empty((len(paths), resize.height, resize.width, 3), np.uint8)
    raise_unreadable(paths, decode_into(images, paths, resize, on_progress, workers))
    return images


def load_images(
    paths: Iterable[str | Path],
    size: int | tuple[int, int] = 224,
    *,
    resize: str = "crop",
    interpolation: str = "bilinear",
    crop_pct: float = CROP_PCT,
) -> np.ndarray:
    """Read image files as the input of a model: uint8 RGB [n, height, width, 3], in the order of `paths`.

        images = flaxtl.load_images(["a.jpg", "b.jpg"], model.input_size)

    Args:
      paths: image files.
      size: height and width in pixels, one number if they are equal.
      resize: 'crop' keeps the aspect ratio: it scales the shorter side to the size / `crop_pct` and crops the center.
        'squash' scales both sides independently.
      interpolation: 'nearest', 'bilinear', 'bicubic', 'lanczos', 'box' or 'hamming'.
      crop_pct: size of the crop relative to the resized image, in (0, 1].

    Raises:
      UserError: no paths, files that cannot be read (all are named), or an invalid `size`, `resize`, `interpolation`
        or `crop_pct`.
    """
    files = list_image_files(paths)
    height, width = height_and_width("size", size)
    return decode_all([user_path(file) for file in files], Resize(height, width, resize, interpolation, crop_pct))


def height_and_width(argument: str, size: Any) -> tuple[int, int]:
    """Return the height and width of images. Raises UserError if `size` is not an integer or a pair of integers."""
    try:
        height, width = map(operator.index, size if np.iterable(size) else (size, size))
    except (TypeError, ValueError) as error:
        raise UserError(f"{argument} is {size!r}. Give an integer or (height, width), in pixels.") from error
    return height, width


def list_image_files(paths: object) -> list[str | Path]:
    """Return paths as a list. Raises UserError unless `paths` is a list, or another iterable, of one or more paths."""
    files = list(paths) if isinstance(paths, Iterable) and not isinstance(paths, str) else None
    others = [file for file in files or () if not isinstance(file, str | Path)]
    if others or not files:
        given = f"{type(others[0]).__name__} objects" if others else repr(paths if files is None else files)
        raise UserError(f"Give a list of image files, such as sorted(Path(FOLDER).glob('*/*.jpg')), not {given}.")
    return files


def decode_into(
    images: ImageSink,
    paths: Sequence[Path],
    resize: Resize,
    on_progress: Callable[[int], None] | None = None,
    workers: int | None = None,
) -> dict[int, str]:
    """Decode many images with threads; the image of paths[i], uint8 [height, width, 3], is stored as images[i].

    Args:
      images: where the images are stored.
      paths: the files.
      resize: the size of the images.
      on_progress: called in the caller's thread after each image with the number of images done.
      workers: number of threads; default: one per core.

    Returns:
      The reason by index for every file that cannot be read; nothing is stored for it.
    """

    def fill(group: range) -> dict[int, str]:
        bad = {}
        for index in group:
            try:
                images[index] = _read(paths[index], resize)
            except UnreadableError as reason:
                bad[index] = str(reason)
        return bad

    workers = workers or os.cpu_count() or 1
    size = max(1, min(_MAX_GROUP, len(paths) // (4 * workers)))
    groups = [range(first, min(first + size, len(paths))) for first in range(0, len(paths), size)]
    bad: dict[int, str] = {}
    with ThreadPoolExecutor(workers) as pool:
        for group, found in zip(groups, pool.map(fill, groups), strict=True):
            bad |= found
            if on_progress is not None:
                for index in group:
                    on_progress(index + 1)
    return bad


def find_unreadable(
    paths: Sequence[Path], resize: Resize, on_progress: Callable[[int], None] | None = None
) -> dict[int, str]:
    """Decode all images and keep none; return the reason by index for every file that cannot be read."""
    return decode_into(_NullSink(), paths, resize, on_progress)


class _NullSink:
    """An `ImageSink` that keeps nothing."""

    def __setitem__(self, index: int, image: np.ndarray, /) -> None:
        pass


def raise_unreadable(paths: Sequence[Path], bad: Mapping[int, str], remedy: str = REMEDY) -> None:
    """Raise one UserError if any files are `bad` (index -> reason): the first hundred with reasons, and the remedy."""
    if bad:
        files = [f"{paths[index]} ({reason})" for index, reason in bad.items()]
        more = f" and {len(files) - _MAX_NAMED} more" if len(files) > _MAX_NAMED else ""
        raise UserError(
            f"Cannot read {len(bad)} of {len(paths)} images: {', '.join(files[:_MAX_NAMED])}{more}. {remedy}"
        )


def largest_values(paths: Sequence[Path]) -> list[int]:
    """Return `bit_depth.largest_value` of each file. Only images with 16 bits a channel are decoded, with threads."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(_largest_value, paths))


def _largest_value(path: Path) -> int:
    try:
        if not has_deep_header(path):
            return 0
        with open_image(path) as image:
            return largest_value(image)
    except UnreadableError:
        return 0


def visible_region(image: Image.Image, resize: Resize) -> Image.Image:
    """Return the part of an upright image that `resize` keeps, in the image's own aspect ratio and resolution."""
    if resize.policy != "crop":
        return image
    left, top, right, bottom = _crop_box(image, resize)
    return image.crop((round(left), round(top), max(round(right), round(left) + 1), max(round(bottom), round(top) + 1)))


def _read(source: ImageSource, resize: Resize) -> np.ndarray:
    """Return the decoded image as a read-only array, or raise UnreadableError."""
    if isinstance(source, MemoryImage):
        return _to_array(source.open(), resize)
    with open_image(source, bit_depth=resize.bit_depth) as image:
        return _to_array(apply_exif_orientation(image), resize)


def _to_array(image: Image.Image, resize: Resize) -> np.ndarray:
    return np.asarray(_resize(to_rgb(image, resize.bit_depth), resize))


def _resize(image: Image.Image, resize: Resize) -> Image.Image:
    """Resize `image` under the policy of `resize`."""
    box = _crop_box(image, resize) if resize.policy == "crop" else None
    return image.resize((resize.width, resize.height), _INTERPOLATIONS[resize.interpolation], box)


def _crop_box(image: Image.Image, resize: Resize) -> tuple[float, float, float, float]:
    """Return the part of `image` (left, top, right, bottom) that is in the center crop once it is scaled.

    Scaling only this part equals scaling everything and cropping then, up to Pillow's rounding, but an image of
    1 x 10,000 never becomes one of 256 x 2,560,000.
    """
    target = (resize.width, resize.height)
    crops = [side - border for side, border in zip(target, reversed(resize.border), strict=True)]
    covered = [covering_side(crop, resize.crop_pct) for crop in crops]
    most, least = max(zip(covered, image.size, strict=True), key=lambda pair: pair[0] / pair[1])
    box = []
    for side, cover, crop, shown in zip(image.size, covered, crops, target, strict=True):
        scaled = max(cover, side * most // least)
        start = center_offset(scaled, crop) - center_offset(shown, crop)
        box.append((start * side / scaled, (start + shown) * side / scaled))
    (left, right), (top, bottom) = box
    return left, top, right, bottom
