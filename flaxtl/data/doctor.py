"""`flaxtl doctor`: inspect every image of a source, compare all of them, and list the issues found."""

import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from flaxtl.console import ProgressFn
from flaxtl.data import duplicates
from flaxtl.data.bit_depth import describe_range, is_deep_color, narrow_bit_depth
from flaxtl.data.class_names import show_difference, similar_classes
from flaxtl.data.decode import EXTENSIONS
from flaxtl.data.duplicates import Fingerprint
from flaxtl.data.image_file import FORMAT_SUFFIXES, UnreadableError, apply_exif_orientation, open_image, to_rgb
from flaxtl.data.manifest import assign_splits
from flaxtl.data.sources.image_folder import DatasetIndex, IndexReport, SourceImage, absent_classes
from flaxtl.defaults import DEFAULTS
from flaxtl.errors import UserError, join_names

MIN_SIDE = 32
"""Images with a shorter side, in pixels, are reported as tiny: the smallest input of the VGG models."""

MIN_CLASS_SIZE = 10
"""Smaller classes are reported: with the default fractions, validation gets one or two of their images."""

MAX_IMBALANCE = 10
"""Largest ratio of the largest to the smallest class that is not reported."""


@dataclass(frozen=True)
class IssueType:
    """A type of issue: whether it prevents training, its title, and what to do about it."""

    blocking: bool
    title: str
    advice: str


_BAD_FILE = "replace or remove; or --config.data.on_error=skip"

ISSUE_TYPES: Mapping[str, IssueType] = {
    "layout": IssueType(True, "Layout", "arrange the images as described"),
    "too-small": IssueType(True, "Class too small to split", "add images; or another --config.data.fractions"),
    "unreadable": IssueType(True, "Unreadable", _BAD_FILE),
    "empty": IssueType(True, "Empty", _BAD_FILE),
    "not-an-image": IssueType(True, "Not an image", _BAD_FILE),
    "undecodable": IssueType(True, "Not decodable", "save it as an 8-bit JPEG or PNG; or --config.data.on_error=skip"),
    "truncated": IssueType(True, "Truncated or damaged", _BAD_FILE),
    "oversized": IssueType(True, "Oversized", _BAD_FILE),
    "unconvertible": IssueType(True, "Not convertible to RGB", _BAD_FILE),
    "changed": IssueType(True, "Changed since it was listed", "restore it, or remove the column sha256"),
    "leak": IssueType(True, "Leak between splits", "keep it in one split; or --config.data.allow_leaks=true"),
    "near-leak": IssueType(False, "Near-duplicate across splits", "keep it in one split"),
    "label-conflict": IssueType(False, "Label conflict", "keep the correct label only"),
    "duplicate": IssueType(False, "Duplicate", "keep one: copies give an image more weight"),
    "near-duplicate": IssueType(False, "Near-duplicate", "nothing, if it is a series"),
    "suffix": IssueType(False, "Wrong suffix", "nothing: the format is detected from the content"),
    "tiny": IssueType(False, "Tiny", "remove it if it is a stray thumbnail"),
    "single-color": IssueType(False, "Single color", "remove it if it is a placeholder"),
    "mode": IssueType(False, "Converted pixels", "nothing: transparency becomes white, 16 bits become 8"),
    "rotated": IssueType(False, "Rotated by EXIF", "nothing: it is read upright; Keras and tf.image ignore the tag"),
    "animated": IssueType(False, "Several frames", "nothing, if the first frame is representative: only it is used"),
    "passed-over": IssueType(False, "Skipped", "nothing, if it is not meant to be an image"),
    "note": IssueType(False, "How the source was read", "nothing, if this is correct"),
    "similar-classes": IssueType(False, "Classes that look alike", "rename them if they are the same class"),
    "bit-depth": IssueType(False, "Small part of 16 bits", "set data.bit_depth, and the same for all images"),
    "few": IssueType(False, "Small class", "add images: there are too few to train on and to evaluate with"),
    "imbalance": IssueType(False, "Class imbalance", "--config.class_weights=balanced, or data.sampling=balanced"),
}
"""All types of issues, the most severe first."""


@dataclass(frozen=True)
class Issue:
    """One issue: its type (a key of ISSUE_TYPES), the files it concerns (none for a class), and a message."""

    kind: str
    paths: tuple[Path, ...]
    message: str

    @property
    def severity(self) -> str:
        """'stops' if it prevents training, else 'warns'; values of the JSON output."""
        return "stops" if ISSUE_TYPES[self.kind].blocking else "warns"


@dataclass(frozen=True)
class DatasetReport:
    """The contents of a dataset and its issues, the most severe first.

    `bit_depth`: the bits that 16-bit images use, if these are a small part of them; else 0. To show the images.
    """

    index: DatasetIndex
    issues: tuple[Issue, ...]
    bit_depth: int = 0

    @cached_property
    def counts(self) -> Counter[tuple[str, str]]:
        """Images by (class, split); the split is '' if the source defines none."""
        return Counter((image.label, image.split or "") for image in self.index.images)

    @property
    def classes(self) -> dict[str, int]:
        """Images per class, sorted by name."""
        return dict(sorted(Counter(image.label for image in self.index.images).items()))

    @property
    def splits(self) -> dict[str, int]:
        """Images per defined split, in the order train, validation, test."""
        return {split: sum(image.split == split for image in self.index.images) for split in self.index.splits}

    @property
    def num_blocking(self) -> int:
        """The number of issues that prevent training."""
        return sum(ISSUE_TYPES[issue.kind].blocking for issue in self.issues)

    @property
    def by_kind(self) -> dict[str, list[Issue]]:
        """The issues of each type that was found."""
        kinds: dict[str, list[Issue]] = {}
        for issue in self.issues:
            kinds.setdefault(issue.kind, []).append(issue)
        return kinds

    def as_json(self, source: str) -> dict[str, Any]:
        """Return the report as JSON values; `source` is as the user wrote it."""
        return {
            "source": source,
            "images": len(self.index.images),
            "classes": self.classes,
            "splits": self.splits,
            "findings": [
                {
                    "kind": issue.kind,
                    "severity": issue.severity,
                    "paths": [str(path) for path in issue.paths],
                    "message": issue.message,
                }
                for issue in self.issues
            ],
            "stops": self.num_blocking > 0,
        }


def check_dataset(source_report: IndexReport, progress: ProgressFn, near_duplicates: int = 4) -> DatasetReport:
    """Decode every image, compare all of them, and report the issues.

    Args:
      source_report: the contents of the source, with the problems of its layout.
      progress: shows the progress of the two rounds over the files.
      near_duplicates: perceptual hashes that differ in at most this many of their 64 bits count as the same image; -1
        compares files only.

    Raises:
      UserError: `near_duplicates` is out of range. Nothing in the files raises.
    """
    duplicates.check_threshold(near_duplicates)
    images = source_report.index.images
    paths = [image.path for image in images]
    with progress("Inspecting images", len(paths)) as advance:
        results = inspect_images(paths, lambda done: advance(1))
    readable = [image for image, result in zip(images, results, strict=True) if isinstance(result, ImageInfo)]
    with progress("Comparing images", len(readable)) as advance:
        fingerprints = duplicates.fingerprint_files([image.path for image in readable], lambda done: advance(1))
    groups = duplicates.duplicate_groups(fingerprints, near_duplicates)
    issues = [
        *(Issue("layout", (), problem) for problem in source_report.problems),
        *(issue for path, result in zip(paths, results, strict=True) for issue in _file_issues(path, result)),
        *_equal_file_issues(readable, fingerprints),
        *_near_duplicate_issues(readable, fingerprints, groups),
        *(Issue("passed-over", (path,), reason) for path, reason in source_report.index.skipped),
        *(Issue("note", (), note) for note in (*source_report.index.notes, *absent_classes(source_report.index))),
        *_range_issues(fingerprints),
        *_class_issues(source_report.index),
        *_split_issues(source_report.index.origin, readable, groups),
    ]
    order = list(ISSUE_TYPES)
    return DatasetReport(
        source_report.index,
        tuple(sorted(issues, key=lambda issue: order.index(issue.kind))),
        narrow_bit_depth(fingerprint.largest_value for fingerprint in fingerprints),
    )


@dataclass(frozen=True)
class ImageInfo:
    """Properties of a readable image.

    Attributes:
      format: Pillow's name of the format, by content: 'JPEG', 'PNG', ...; multi-picture JPEGs of cameras are 'MPO'.
      mode: Pillow's name of the pixel format: 'RGB', 'L', 'CMYK', 'I;16', ...; 16-bit colors are 'RGB;16'.
      width: pixels of the upright image.
      height: pixels of the upright image.
      orientation: EXIF Orientation, 1 (upright, or no tag) to 8; that of a TIFF is applied by Pillow and counts as 1.
      frames: number of images in the file: 1, or more if it is animated or has pages.
      flat: all pixels have the same color.
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
    """A file that cannot be used as an image; `kind` and `reason` are those of `image_file.UnreadableError`."""

    kind: str
    reason: str


def inspect_images(
    paths: Sequence[Path], on_progress: Callable[[int], None] | None = None
) -> list[ImageInfo | ImageError]:
    """Inspect many files with threads (Pillow decodes without Python's lock), in the order of `paths`.

    `on_progress` is called in the caller's thread after each file with the number of files done. Damage that leaves a
    valid file is not detected: the pixels of JPEG, WebP and TIFF have no checksum.
    """
    results: list[ImageInfo | ImageError] = []
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")  # Pillow's, about large images and damaged metadata: neither is an error
        for result in pool.map(inspect_image, paths):
            results.append(result)
            if on_progress is not None:
                on_progress(len(results))
    return results


def inspect_image(path: Path) -> ImageInfo | ImageError:
    """Decode one file and return its properties, or why it cannot be used."""
    try:
        with open_image(path) as image:
            rgb = to_rgb(apply_exif_orientation(image))
            return ImageInfo(
                format=image.format or "",
                mode=f"{image.mode};16" if is_deep_color(image) else image.mode,
                width=rgb.width,
                height=rgb.height,
                orientation=_orientation(image),
                frames=_count_frames(image),
                flat=rgb.getcolors(maxcolors=1) is not None,
            )
    except UnreadableError as error:
        return ImageError(error.kind, str(error))


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged metadata can raise anything, and rotates nothing
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _count_frames(image: Image.Image) -> int:
    if image.format == "MPO":  # cameras append previews and depth maps to a photograph: not an animation
        return 1
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # a damaged later frame: only the first one is used
        return 1


def _file_issues(path: Path, result: ImageInfo | ImageError) -> Iterator[Issue]:
    """Yield the issues of one file."""
    if isinstance(result, ImageError):
        yield Issue(result.kind, (path,), result.reason)
        return
    suffix, actual = path.suffix.lower(), "JPEG" if result.format == "MPO" else result.format
    if suffix in EXTENSIONS and suffix not in FORMAT_SUFFIXES.get(actual, ()):
        yield Issue("suffix", (path,), f"{path.suffix} by name, {actual} by content")
    if min(result.width, result.height) < MIN_SIDE:
        yield Issue("tiny", (path,), f"{result.width} × {result.height} pixels")
    if result.flat:
        yield Issue("single-color", (path,), "all pixels have the same color")
    if result.mode not in ("RGB", "L"):
        yield Issue("mode", (path,), f"stored as {result.mode}, read as RGB")
    if result.orientation != 1:
        yield Issue("rotated", (path,), f"rotated or mirrored by EXIF orientation {result.orientation}")
    if result.frames > 1:
        yield Issue("animated", (path,), f"{result.frames} frames; the first is used")


def _equal_file_issues(images: Sequence[SourceImage], fingerprints: Sequence[Fingerprint]) -> Iterator[Issue]:
    """Yield files that are equal to others, and files that are not the listed ones."""
    equal: dict[str, list[SourceImage]] = defaultdict(list)
    for image, fingerprint in zip(images, fingerprints, strict=True):
        equal[fingerprint.sha256].append(image)
        if image.sha256 not in (None, fingerprint.sha256):
            yield Issue("changed", (image.path,), "its SHA-256 is not the listed one")
    for members in equal.values():
        if len(members) > 1:
            yield from _group_issues(members, "byte-identical files", "leak", "duplicate")


def _near_duplicate_issues(
    images: Sequence[SourceImage], fingerprints: Sequence[Fingerprint], groups: Sequence[Sequence[int]]
) -> Iterator[Issue]:
    """Yield the groups of near-duplicates that are not all equal files."""
    for group in groups:
        if len({fingerprints[i].sha256 for i in group}) > 1:
            yield from _group_issues([images[i] for i in group], "near-duplicates", "near-leak", "near-duplicate")


def _group_issues(members: Sequence[SourceImage], what: str, leak: str, duplicate: str) -> Iterator[Issue]:
    """Yield the issues of a group of duplicates: a leak, a label conflict or both, or else only duplicates."""
    paths = tuple(image.path for image in members)
    labels = sorted({image.label for image in members})
    names = show_difference(labels) if similar_classes(labels) else join_names(labels)
    splits = list(dict.fromkeys(image.split for image in members if image.split))
    if len(splits) > 1:
        yield Issue(leak, paths, f"{what} in {join_names(splits)}")
    if len(labels) > 1:
        yield Issue("label-conflict", paths, f"{what} with the labels {names}")
    if len(splits) < 2 and len(labels) < 2:
        yield Issue(duplicate, paths, f"{len(members)} {what} of {labels[0]}")


def _range_issues(fingerprints: Sequence[Fingerprint]) -> Iterator[Issue]:
    """Yield an issue if the 16-bit images use a small part of their range."""
    if message := describe_range([fingerprint.largest_value for fingerprint in fingerprints]):
        yield Issue("bit-depth", (), message)


def _class_issues(index: DatasetIndex) -> Iterator[Issue]:
    """Yield classes that look alike, small classes and class imbalance."""
    for names in similar_classes(index.classes):
        yield Issue("similar-classes", (), f"separate classes: {show_difference(names)}")
    counts = Counter(image.label for image in index.images)
    for label, n in sorted(counts.items()):
        if n < MIN_CLASS_SIZE:
            yield Issue("few", (), f"{label} has {n} image{'s' if n > 1 else ''}")
    if counts:
        (largest, most), (smallest, least) = counts.most_common()[0], counts.most_common()[-1]
        if most > MAX_IMBALANCE * least:
            yield Issue("imbalance", (), f"{largest} has {most:,} images, {smallest} {least:,}")


def _split_issues(origin: str, images: Sequence[SourceImage], groups: duplicates.Groups) -> Iterator[Issue]:
    """Yield an issue if the splits that are not defined cannot be made with the default fractions."""
    if images:
        try:
            assign_splits(origin, images, groups, DEFAULTS.data.fractions.to_dict(), 0, lambda message: None)
        except UserError as error:
            yield Issue("too-small", (), str(error))
