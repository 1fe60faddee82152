"""Image files to uint8 RGB arrays of one size, or one sentence that says what is wrong with which file."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from flaxtl.data.image_file import UnreadableError, apply_exif_orientation, open_image, to_rgb
from flaxtl.errors import UserError, unknown

EXTENSIONS = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
"""Suffixes, in lower case, of the files that are taken for images; what is inside decides how they are read."""

_INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}

_POLICIES = ("squash", "crop")

_LISTED = 100  # bad files that an error names before it only counts

CROP_PCT = 0.875
"""How much larger than the crop an image is made first: 256 to 224, as ImageNet networks are evaluated."""


@dataclass(frozen=True)
class Resize:
    """How an image of any size becomes one of `height` x `width` pixels.

    policy 'squash': both sides are scaled on their own, the aspect is not kept. With filter 'nearest' this is, pixel
    for pixel, `keras.utils.load_img(path, target_size=(height, width))`, the lecture's setting.
    policy 'crop': the aspect is kept. The image is scaled until it just covers `cover` times the target, then the
    centre of `height` x `width` is cut out. For a square target that means: shorter side to round(cover * side), the
    evaluation of ImageNet networks (256 -> 224).
    filter: nearest, bilinear, bicubic, lanczos, box or hamming; all but nearest average when they shrink.

    Raises UserError for an unknown policy or filter, or a side below one pixel.
    """

    height: int
    width: int
    policy: str = "squash"
    interpolation: str = "bilinear"
    crop_pct: float = CROP_PCT

    def __post_init__(self) -> None:
        """Refuse what cannot be done, before the first of many files is read."""
        if self.policy not in _POLICIES:
            raise unknown("resize policy", self.policy, _POLICIES)
        if self.interpolation not in _INTERPOLATIONS:
            raise unknown("interpolation", self.interpolation, _INTERPOLATIONS)
        if self.height < 1 or self.width < 1:
            raise UserError(f"images of {self.height} x {self.width} pixels cannot be made; give sides of at least 1")


class ImageSink(Protocol):
    """What images can be put into, one by one and from many threads: an array, or a file."""

    def __setitem__(self, index: int, image: np.ndarray, /) -> None:
        """Keep `image`, uint8 [height, width, 3], as number `index`."""


def decode(path: Path, resize: Resize) -> np.ndarray:
    """Read one image: uint8 [height, width, 3], RGB, upright.

    EXIF orientation is applied (Keras ignores it). Transparency is composed over white. 16-bit greys are scaled to
    8 bits. Of an animation the first frame is taken. Every other mode goes through Pillow's conversion to RGB, as in
    Keras.

    Raises UserError that names the file and the reason if it is missing, unreadable, empty, not an image, truncated,
    has pixels that cannot be shown as 8-bit RGB, or is larger than `unpack.LARGEST` or `unpack.LARGEST_FILE`.
    """
    try:
        return _read(path, resize).copy()
    except UnreadableError as reason:
        raise UserError(f"cannot read the image {path}: {reason}; replace or remove it") from reason


def decode_all(
    paths: Sequence[Path],
    resize: Resize,
    on_progress: Callable[[int], None] | None = None,
    workers: int | None = None,
) -> np.ndarray:
    """Read many images with threads: uint8 [n, height, width, 3] in the order of `paths`; see `decode`.

    Raises one UserError for all the files that `decode` would refuse: see `refuse`.
    """
    images = np.empty((len(paths), resize.height, resize.width, 3), np.uint8)
    raise_unreadable(paths, decode_into(images, paths, resize, on_progress, workers))
    return images


def decode_into(
    images: ImageSink,
    paths: Sequence[Path],
    resize: Resize,
    on_progress: Callable[[int], None] | None = None,
    workers: int | None = None,
) -> dict[int, str]:
    """Read many images with threads; the image of paths[i], uint8 [height, width, 3], is put to images[i].

    `on_progress` is called in the caller's thread after each image with the number of images done.
    `workers` is the number of threads, one a core unless given: more only wait for each other.

    Returns the reason by index for every file that `decode` would refuse; nothing is put there.
    """

    def fill(index: int) -> str | None:
        try:
            images[index] = _read(paths[index], resize)
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


def raise_unreadable(paths: Sequence[Path], bad: Mapping[int, str]) -> None:
    """Raise one UserError if files are `bad` (index -> reason); it names the first hundred with reasons."""
    if bad:
        told = [f"{paths[index]} ({reason})" for index, reason in bad.items()]
        named = ", ".join(told[:_LISTED]) + (f" and {len(told) - _LISTED} more" if len(told) > _LISTED else "")
        raise UserError(f"cannot read {len(bad)} of {len(paths)} images: {named}; replace or remove them")


def visible_region(image: Image.Image, resize: Resize) -> Image.Image:
    """What is left of an upright image where `resize` crops it, in its own aspect and resolution."""
    if resize.policy != "crop":
        return image
    left, top, right, bottom = _crop_box(image, resize)
    return image.crop((round(left), round(top), max(round(right), round(left) + 1), max(round(bottom), round(top) + 1)))


def _read(path: Path, resize: Resize) -> np.ndarray:
    """The file as `decode` returns it, but not to be written to; or UnreadableError."""
    with open_image(path) as image:
        return np.asarray(_resized(to_rgb(apply_exif_orientation(image)), resize))


def _resized(image: Image.Image, resize: Resize) -> Image.Image:
    """`image` under the policy of `resize`."""
    box = _crop_box(image, resize) if resize.policy == "crop" else None
    return image.resize((resize.width, resize.height), _INTERPOLATIONS[resize.interpolation], box)


def _crop_box(image: Image.Image, resize: Resize) -> tuple[float, float, float, float]:
    """The part of `image` (left, top, right, bottom) that is in the centre crop once it is scaled.

    Scaling only that part is scaling everything and cropping then, to Pillow's rounding, but an image of 1 x 10,000
    never becomes one of 256 x 2,560,000.
    """
    target = (resize.width, resize.height)
    covered = [round(side / resize.crop_pct) for side in target]
    scale = max(cover / side for cover, side in zip(covered, image.size, strict=True))
    box = []
    for side, cover, crop in zip(image.size, covered, target, strict=True):
        scaled = max(cover, round(side * scale))
        start = (scaled - crop) // 2
        box.append((start * side / scaled, (start + crop) * side / scaled))
    (left, right), (top, bottom) = box
    return left, top, right, bottom
