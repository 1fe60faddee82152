"""What is true of picture files, each unpacked fully as a run would unpack it."""

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import ExifTags, Image

from flaxtl.data.unpack import UnreadableError, rgb, unpacked, upright


@dataclass(frozen=True)
class Facts:
    """A picture that can be used.

    Attributes:
      format: Pillow's name of the format, by content: 'JPEG', 'PNG', ...; the many-part JPEGs of cameras are 'MPO'.
      mode: Pillow's name of the kind of pixels: 'RGB', 'L', 'CMYK', 'I;16', ...
      width: pixels of the picture seen upright.
      height: pixels of the picture seen upright.
      orientation: its EXIF tag Orientation, 1 (upright, or no tag) to 8; a TIFF's is applied unseen and counts as 1.
      frames: how many pictures the file holds: 1, or more where it is animated or has pages.
      flat: every pixel has the same colour.
    """

    format: str
    mode: str
    width: int
    height: int
    orientation: int
    frames: int
    flat: bool


@dataclass(frozen=True)
class Fault:
    """A file that gives no picture; `kind` and `reason` are those of `unpack.UnreadableError`."""

    kind: str
    reason: str


def all_of(paths: Sequence[Path], on_progress: Callable[[int], None] | None = None) -> list[Facts | Fault]:
    """Examine many files with threads (Pillow unpacks outside Python's lock), in the order of `paths`.

    `on_progress` is called in the caller's thread after each file with the number of files done. Damage that leaves a
    lawful file is not seen: the pixels of JPEG, WebP and TIFF carry no checksum.
    """
    found: list[Facts | Fault] = []
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")  # Pillow's, on large pictures and damaged metadata: neither stops a run
        for facts in pool.map(examine, paths):
            found.append(facts)
            if on_progress is not None:
                on_progress(len(found))
    return found


def examine(path: Path) -> Facts | Fault:
    """Unpack one file and see what it is."""
    try:
        with unpacked(path) as image:
            return _facts(image)
    except UnreadableError as error:
        return Fault(error.kind, str(error))


def _facts(image: Image.Image) -> Facts:
    seen = rgb(upright(image))
    return Facts(
        format=image.format or "",
        mode=image.mode,
        width=seen.width,
        height=seen.height,
        orientation=_orientation(image),
        frames=_frames(image),
        flat=seen.getcolors(maxcolors=1) is not None,
    )


def _orientation(image: Image.Image) -> int:
    try:
        stored = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged metadata raise almost anything, and turn nothing
        return 1
    return stored if isinstance(stored, int) and 1 <= stored <= 8 else 1


def _frames(image: Image.Image) -> int:
    if image.format == "MPO":  # behind a photograph cameras keep previews and depth maps: no animation
        return 1
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # a damaged later frame: only the first is ever used
        return 1
