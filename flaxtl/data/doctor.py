"""What is true of image files, each unpacked fully as a run would unpack it."""

import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from flaxtl.config import DEFAULTS
from flaxtl.data import duplicates, splitting
from flaxtl.data.duplicates import Fingerprint
from flaxtl.data.image_file import UnreadableError, apply_exif_orientation, open_image, to_rgb
from flaxtl.data.sources.image_folder import DatasetIndex, IndexReport, SourceImage
from flaxtl.errors import UserError, join_names


@dataclass(frozen=True)
class ImageInfo:
    """An image that can be used.

    Attributes:
      format: Pillow's name of the format, by content: 'JPEG', 'PNG', ...; the many-part JPEGs of cameras are 'MPO'.
      mode: Pillow's name of the kind of pixels: 'RGB', 'L', 'CMYK', 'I;16', ...
      width: pixels of the image seen upright.
      height: pixels of the image seen upright.
      orientation: its EXIF tag Orientation, 1 (upright, or no tag) to 8; a TIFF's is applied unseen and counts as 1.
      frames: how many images the file holds: 1, or more where it is animated or has pages.
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
class ImageError:
    """A file that gives no image; `kind` and `reason` are those of `unpack.UnreadableError`."""

    kind: str
    reason: str


def inspect_images(
    paths: Sequence[Path], on_progress: Callable[[int], None] | None = None
) -> list[ImageInfo | ImageError]:
    """Examine many files with threads (Pillow unpacks outside Python's lock), in the order of `paths`.

    `on_progress` is called in the caller's thread after each file with the number of files done. Damage that leaves a
    lawful file is not seen: the pixels of JPEG, WebP and TIFF carry no checksum.
    """
    found: list[ImageInfo | ImageError] = []
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")  # Pillow's, on large images and damaged metadata: neither stops a run
        for facts in pool.map(inspect_image, paths):
            found.append(facts)
            if on_progress is not None:
                on_progress(len(found))
    return found


def inspect_image(path: Path) -> ImageInfo | ImageError:
    """Unpack one file and see what it is."""
    try:
        with open_image(path) as image:
            return _facts(image)
    except UnreadableError as error:
        return ImageError(error.kind, str(error))


def _facts(image: Image.Image) -> ImageInfo:
    seen = to_rgb(apply_exif_orientation(image))
    return ImageInfo(
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


ProgressFn = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""A progress bar of a title and a total, as a context; it gives the function that advances it."""

SMALL = 32
"""Pixels of a side below which an image is called tiny: the smallest input that the catalog's VGG networks take."""

FEW = 10
"""A class of fewer images is named: of those, validation gets one or two, a fifth by default."""

UNEVEN = 10
"""A largest class of more than so many times the smallest is named."""


@dataclass(frozen=True)
class IssueType:
    """What findings of one kind have in common: whether they stop a run, a title, and what to do about them."""

    blocking: bool
    title: str
    advice: str


_BROKEN = "replace or remove; or --config.data.on_error=skip"

ISSUE_TYPES: Mapping[str, IssueType] = {
    "layout": IssueType(True, "Layout", "arrange the images as the sentence says"),
    "too-small": IssueType(True, "Class too small to split", "add images; or another --config.data.fractions"),
    "unreadable": IssueType(True, "Unreadable", _BROKEN),
    "empty": IssueType(True, "Empty", _BROKEN),
    "not-an-image": IssueType(True, "Not an image", _BROKEN),
    "truncated": IssueType(True, "Truncated or damaged", _BROKEN),
    "oversized": IssueType(True, "Oversized", _BROKEN),
    "unconvertible": IssueType(True, "Not convertible to RGB", _BROKEN),
    "changed": IssueType(True, "Changed since it was listed", "restore it, or remove the column sha256"),
    "leak": IssueType(True, "Leak between splits", "keep it in one split; or --config.data.allow_leaks=true"),
    "near-leak": IssueType(False, "Near-duplicate across splits", "keep it in one split"),
    "label-conflict": IssueType(False, "Label conflict", "keep the right label only"),
    "duplicate": IssueType(False, "Duplicate", "keep one: copies weigh an image more"),
    "near-duplicate": IssueType(False, "Near-duplicate", "nothing, if it is a series"),
    "suffix": IssueType(False, "Misnamed", "nothing: the content counts"),
    "tiny": IssueType(False, "Tiny", "remove it if it is a stray thumbnail"),
    "single-color": IssueType(False, "Single colour", "remove it if it is a placeholder"),
    "mode": IssueType(False, "Converted pixels", "nothing: transparency becomes white, 16 bits become 8"),
    "rotated": IssueType(False, "Rotated by EXIF", "nothing: it is read upright; Keras and tf.image would not"),
    "animated": IssueType(False, "Several frames", "nothing, if the first tells enough: only that is used"),
    "passed-over": IssueType(False, "Passed over", "nothing, if it is not meant to be an image"),
    "few": IssueType(False, "Small class", "add images: so few teach and measure little"),
    "imbalance": IssueType(False, "Class imbalance", "--config.class_weights=balanced, or data.sampling=balanced"),
}
"""Every kind of finding, the gravest first."""

_FORMATS = {
    ".avif": "AVIF",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".jfif": "JPEG",
    ".jpeg": "JPEG",
    ".jpg": "JPEG",
    ".pbm": "PPM",
    ".pgm": "PPM",
    ".png": "PNG",
    ".ppm": "PPM",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
}
"""What each suffix of `decode.EXTENSIONS` promises."""


@dataclass(frozen=True)
class Issue:
    """One thing found: its kind (a key of KINDS), the files it is about (none for a class), and a plain sentence."""

    kind: str
    paths: tuple[Path, ...]
    message: str

    @property
    def severity(self) -> str:
        """'stops' where a run would stop, 'warns' where it would go on."""
        return "stops" if ISSUE_TYPES[self.kind].blocking else "warns"


@dataclass(frozen=True)
class DatasetReport:
    """What a data set holds, and what was found in it, the gravest first."""

    index: DatasetIndex
    issues: tuple[Issue, ...]

    @cached_property
    def counts(self) -> Counter[tuple[str, str]]:
        """Images by class and split; the split is '' where none is given."""
        return Counter((one.label, one.split or "") for one in self.index.images)

    @property
    def classes(self) -> dict[str, int]:
        """Images of each class, sorted by name."""
        return dict(sorted(Counter(one.label for one in self.index.images).items()))

    @property
    def splits(self) -> dict[str, int]:
        """Images of each given split, in the order train, validation, test."""
        return {split: sum(one.split == split for one in self.index.images) for split in self.index.splits}

    @property
    def num_blocking(self) -> int:
        """How many of the findings would stop a run."""
        return sum(finding.severity == "stops" for finding in self.issues)

    @property
    def by_kind(self) -> dict[str, list[Issue]]:
        """The findings of each kind that was found."""
        kinds: dict[str, list[Issue]] = {}
        for finding in self.issues:
            kinds.setdefault(finding.kind, []).append(finding)
        return kinds

    def as_json(self, source: str) -> dict[str, Any]:
        """All of it as JSON values; `source` as the user wrote it."""
        return {
            "source": source,
            "images": len(self.index.images),
            "classes": self.classes,
            "splits": self.splits,
            "findings": [
                {
                    "kind": finding.kind,
                    "severity": finding.severity,
                    "paths": [str(path) for path in finding.paths],
                    "message": finding.message,
                }
                for finding in self.issues
            ],
            "stops": self.num_blocking > 0,
        }


def check_dataset(survey: IndexReport, bar: ProgressFn, near_duplicates: int = 4) -> DatasetReport:
    """Unpack every image, compare all of them, and tell what is wrong.

    Args:
      survey: what the source holds, in whatever state it is.
      bar: shows the progress of the two passes over the files.
      near_duplicates: perceptual hashes that differ in at most so many of their 64 bits count as the same image;
        -1 compares bytes only.

    Raises:
      UserError: `near_duplicates` is out of the range of `duplicates.pairs`. Nothing in the files raises.
    """
    duplicates.check_threshold(near_duplicates)
    found = survey.index.images
    paths = [one.path for one in found]
    with bar("examining images", len(paths)) as advance:
        facts = inspect_images(paths, lambda done: advance(1))
    sound = [one for one, fact in zip(found, facts, strict=True) if isinstance(fact, ImageInfo)]
    with bar("comparing images", len(sound)) as advance:
        prints = duplicates.fingerprint_files([one.path for one in sound], lambda done: advance(1))
    groups = duplicates.duplicate_groups(prints, near_duplicates)
    findings = [
        *(Issue("layout", (), complaint) for complaint in survey.problems),
        *(finding for path, fact in zip(paths, facts, strict=True) for finding in _of_file(path, fact)),
        *_of_bytes(sound, prints),
        *_of_looks(sound, prints, groups),
        *(Issue("passed-over", (path,), "no image by its suffix") for path in survey.skipped_files),
        *_of_classes(survey.index),
        *_of_split(sound, groups),
    ]
    order = list(ISSUE_TYPES)
    return DatasetReport(survey.index, tuple(sorted(findings, key=lambda finding: order.index(finding.kind))))


def _of_file(path: Path, fact: ImageInfo | ImageError) -> Iterator[Issue]:
    """What one file alone tells."""
    if isinstance(fact, ImageError):
        yield Issue(fact.kind, (path,), fact.reason)
        return
    claimed = _FORMATS.get(path.suffix.lower())
    actual = "JPEG" if fact.format == "MPO" else fact.format
    if claimed not in (None, actual):
        yield Issue("suffix", (path,), f"{path.suffix} by name, {actual} by content")
    if min(fact.width, fact.height) < SMALL:
        yield Issue("tiny", (path,), f"{fact.width} × {fact.height} pixels")
    if fact.flat:
        yield Issue("single-color", (path,), "every pixel has the same colour")
    if fact.mode not in ("RGB", "L"):
        yield Issue("mode", (path,), f"stored as {fact.mode}, read as RGB")
    if fact.orientation != 1:
        yield Issue("rotated", (path,), f"turned or mirrored by its EXIF orientation {fact.orientation}")
    if fact.frames > 1:
        yield Issue("animated", (path,), f"{fact.frames} frames, of which the first is used")


def _of_bytes(found: Sequence[SourceImage], prints: Sequence[Fingerprint]) -> Iterator[Issue]:
    """What the contents of the files tell: which are another one's, and which are not what a list says."""
    identical: dict[str, list[SourceImage]] = defaultdict(list)
    for one, own in zip(found, prints, strict=True):
        identical[own.sha256].append(one)
        if one.sha256 not in (None, own.sha256):
            yield Issue("changed", (one.path,), "its SHA-256 is not the one that is listed")
    for members in identical.values():
        if len(members) > 1:
            yield from _of_group(members, "the same bytes", "leak", "duplicate")


def _of_looks(
    found: Sequence[SourceImage], prints: Sequence[Fingerprint], groups: Sequence[Sequence[int]]
) -> Iterator[Issue]:
    """What images that look the same tell, beyond what `_of_bytes` does."""
    for group in groups:
        if len({prints[i].sha256 for i in group}) > 1:
            yield from _of_group([found[i] for i in group], "almost the same image", "near-leak", "near-duplicate")


def _of_group(members: Sequence[SourceImage], what: str, leak: str, copies: str) -> Iterator[Issue]:
    """What a group of images that are one image means: a leak, a label conflict or both, else mere copies."""
    paths = tuple(one.path for one in members)
    labels = sorted({one.label for one in members})
    splits = list(dict.fromkeys(one.split for one in members if one.split))
    if len(splits) > 1:
        yield Issue(leak, paths, f"{what} in {join_names(splits)}")
    if len(labels) > 1:
        yield Issue("label-conflict", paths, f"{what} under {join_names(labels)}")
    if len(splits) < 2 and len(labels) < 2:
        yield Issue(copies, paths, f"{what} in {len(members)} files of {labels[0]}")


def _of_classes(listing: DatasetIndex) -> Iterator[Issue]:
    """What the numbers of images tell."""
    counts = Counter(one.label for one in listing.images)
    for label, n in sorted(counts.items()):
        if n < FEW:
            yield Issue("few", (), f"{label} holds {n} image{'s' if n > 1 else ''}")
    if counts:
        (large, most), (small, least) = counts.most_common()[0], counts.most_common()[-1]
        if most > UNEVEN * least:
            yield Issue("imbalance", (), f"{large} holds {most:,} images, {small} {least:,}")


def _of_split(found: Sequence[SourceImage], groups: Sequence[Sequence[int]]) -> Iterator[Issue]:
    """Whether images without given splits can be split as a config does that says nothing about it."""
    if found and not any(one.split for one in found):
        try:
            splitting.stratified_split(
                [one.label for one in found], groups, DEFAULTS.data.fractions.to_dict(), 0, lambda told: None
            )
        except UserError as error:
            yield Issue("too-small", (), str(error))
