"""The manifest: the images of a run with their classes, splits and content hashes."""

import csv
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flaxtl import fileio
from flaxtl.data import duplicates, splitting
from flaxtl.data.bit_depth import describe_range
from flaxtl.data.decode import largest_values
from flaxtl.data.duplicates import Fingerprint
from flaxtl.data.sources.image_folder import SPLITS, DatasetIndex, SourceImage, find_problems
from flaxtl.errors import UserError, unknown
from flaxtl.fileio import atomic_write

_COLUMNS = ("path", "label", "split", "sha256")


@dataclass(frozen=True)
class Example:
    """One image: absolute path, class name, split name, and the SHA-256 of the file in lower-case hex."""

    path: str
    label: str
    split: str
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The images of a run.

    Attributes:
      classes: sorted; class index i means `classes[i]` everywhere.
      examples: the images.
      root: the folder of the source, which the file names its images relative to; None: by their absolute paths.
      skipped_files: number of other files in the folders of the source; 0 if the manifest was read from its file.
    """

    classes: tuple[str, ...]
    examples: tuple[Example, ...]
    root: Path | None = field(default=None, compare=False)
    skipped_files: int = field(default=0, compare=False)

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """The splits that have images, in the order train, validation, test."""
        present = {example.split for example in self.examples}
        return tuple(split for split in SPLITS if split in present)

    def of_split(self, name: str) -> tuple[Example, ...]:
        """Return the examples of one split in the manifest's order. Raises UserError for an unknown split."""
        if name not in self.splits:
            raise unknown("split", name, self.splits)
        return tuple(example for example in self.examples if example.split == name)

    def labels(self, examples: Sequence[Example]) -> NDArray[np.int32]:
        """Return the class indices of `examples`: int32 [len(examples)], values 0 to len(classes) - 1."""
        index = {label: i for i, label in enumerate(self.classes)}
        return np.array([index[example.label] for example in examples], dtype=np.int32)

    def without(self, paths: Collection[str]) -> "Manifest":
        """Return the manifest without the images at `paths`. Raises UserError if a split would lose a class."""
        kept = tuple(example for example in self.examples if example.path not in paths)
        before, after = ({(e.split, e.label) for e in examples} for examples in (self.examples, kept))
        if lost := sorted(before - after):
            split, label = lost[0]
            raise UserError(f"None of the {split} images of the class {label!r} can be read. Repair or replace them.")
        return replace(self, examples=kept)

    def write(self, path: Path) -> None:
        """Write the manifest as CSV (path,label,split,sha256), atomically; images outside `root` by absolute paths."""
        # File names need not be Unicode: surrogateescape preserves their bytes.
        with atomic_write(path, errors="surrogateescape", newline="") as stream:
            fileio.write_csv(stream, [_COLUMNS])
            fileio.write_csv(stream, ((self._stored_path(e), e.label, e.split, e.sha256) for e in self.examples))

    def _stored_path(self, example: Example) -> str:
        path = Path(example.path)
        return str(path.relative_to(self.root)) if self.root and path.is_relative_to(self.root) else example.path

    @classmethod
    def read(cls, path: Path, root: Path | None = None) -> "Manifest":
        """Read the file that `write` wrote; the images themselves are not accessed.

        Args:
          path: the file.
          root: the manifest's `root`; relative paths are joined to it here and nowhere else.

        Raises:
          UserError: the file is missing or damaged; names the first bad row.
        """
        try:
            with path.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
                rows = list(csv.reader(stream, strict=True))
        except OSError as error:
            raise UserError(f"Cannot read the manifest {path}: {error.strerror}") from error
        except csv.Error as error:
            raise UserError(f"The manifest {path} is damaged ({error}). Create it again from the images.") from error
        if not rows or tuple(rows[0]) != _COLUMNS:
            raise UserError(f"{path} is not a manifest: its first line must be {','.join(_COLUMNS)}")
        examples = _parse_rows(path, rows[1:], root)
        return cls(tuple(sorted({example.label for example in examples})), examples, root)


def _parse_rows(path: Path, rows: Iterable[list[str]], root: Path | None) -> tuple[Example, ...]:
    examples: dict[str, Example] = {}
    for number, row in enumerate(rows, start=2):
        if root and row and row[0]:
            row[0] = str(root / row[0])
        problem = _row_problem(row)
        if problem is None and row[0] in examples:
            problem = "its image is listed twice"
        if problem is not None:
            raise UserError(f"The manifest {path} is damaged in row {number}: {problem}. Create it again.")
        examples[row[0]] = Example(*row)
    if not examples:
        raise UserError(f"The manifest {path} lists no images. Create it again from the images.")
    return tuple(examples.values())


def _row_problem(row: list[str]) -> str | None:
    """Return what is wrong with a row of the file, or None."""
    if len(row) != len(_COLUMNS):
        return f"{len(row)} columns instead of {len(_COLUMNS)}"
    path, label, split, sha256 = row
    if not Path(path).is_absolute():
        return f"{path!r} is not an absolute path"
    if not label:
        return "it has no label"
    if split not in SPLITS:
        return f"{split!r} is not a split"
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        return f"{sha256!r} is not a SHA-256"
    return None


def make_manifest(
    index: DatasetIndex,
    fractions: Mapping[str, float],
    seed: int,
    *,
    near_duplicates: int = 4,
    allow_leaks: bool = False,
    bit_depth: int = 0,
    warn: Callable[[str], None] = lambda message: None,
    on_progress: Callable[[int], None] | None = None,
) -> Manifest:
    """Create the manifest of a run.

    Splits that the source defines are kept; if only validation is missing, it is taken from train in the proportion of
    their fractions. Otherwise the images are split by `splitting.stratified_split`, each class in the order of file
    names, so that the split does not depend on where the images are stored; equal files and near-duplicates are kept in
    the same split.

    Args:
      index: the images; see `sources.base.open_source`.
      fractions: of train, validation and test, with sum 1; train and validation above 0, test may be 0 or absent.
      seed: 0 or more.
      near_duplicates: the threshold of `duplicates.duplicate_groups`; -1 compares files only and decodes no image.
      allow_leaks: whether equal files in two defined splits only cause a warning.
      bit_depth: the setting `data.bit_depth`; if it is 0, 16-bit images with small values cause a warning.
      warn: called with each warning: the messages of the index, near-duplicates in two defined splits, equal files with
        two labels, and totals that had to change because of groups of duplicates or small classes.
      on_progress: called with the number of files that are fingerprinted.

    Returns:
      Classes in sorted order; examples sorted by split (train, validation, test), class and file name.

    Raises:
      UserError: the index or the fractions are invalid, or the defined splits leak. A file that cannot be opened is not
        an error here: the decoder reports all files that cannot be read.
    """
    run_fractions = _check_run_fractions(fractions, seed)
    for message in index.messages:
        warn(message)
    for problem in find_problems(index):
        raise UserError(problem)
    images, fingerprints = fingerprint_images(index, near_duplicates, on_progress, bit_depth=bit_depth, strict=False)
    if not bit_depth:
        _warn_of_dark_images(images, fingerprints, near_duplicates, warn)
    equal = duplicates.duplicate_groups(fingerprints, -1)
    similar = duplicates.duplicate_groups(fingerprints, near_duplicates)
    shown = _relative_to_root(index, images)
    duplicates.check_label_conflicts(index.origin, shown, equal, warn)
    if index.has_splits:
        duplicates.check_split_leakage(index.origin, shown, equal, similar, allow_leaks, warn)
    splits = assign_splits(index.origin, images, similar, run_fractions, seed, warn)
    skipped_files = len(index.skipped_inside)
    return replace(_sorted_manifest(images, splits, fingerprints), root=index.root, skipped_files=skipped_files)


def _warn_of_dark_images(
    images: Sequence[SourceImage],
    fingerprints: Sequence[Fingerprint],
    near_duplicates: int,
    warn: Callable[[str], None],
) -> None:
    """Warn if 16-bit images use a small part of their range; without perceptual hashes only these are decoded."""
    if near_duplicates < 0:
        largest = largest_values([image.path for image in images])
    else:
        largest = [fingerprint.largest_value for fingerprint in fingerprints]
    if text := describe_range(largest):
        warn(text)


def _relative_to_root(index: DatasetIndex, images: Sequence[SourceImage]) -> list[SourceImage]:
    """Return the images with their paths in the source, for messages: the folder of an archive is hidden in a cache."""
    return [
        replace(image, path=image.path.relative_to(index.root))
        if index.root and image.path.is_relative_to(index.root)
        else image
        for image in images
    ]


def assign_splits(
    origin: str,
    images: Sequence[SourceImage],
    groups: duplicates.Groups,
    fractions: Mapping[str, float],
    seed: int,
    warn: Callable[[str], None],
) -> list[str]:
    """Return the split of every image: the defined one, or that of `splitting.stratified_split`.

    If only validation is missing, it is taken from the training images, in the proportion of their fractions.

    Args:
      origin: the source, for messages.
      images: all with a split or all without, in the order of `fingerprint_images`.
      groups: images that stay together; see `splitting.stratified_split`.
      fractions: of train, validation and, optionally, test, above 0, with sum 1.
      seed: 0 or more.
      warn: called with each warning.

    Raises:
      UserError: a class is too small to be split.
    """
    defined = [image.split for image in images if image.split]
    if not defined:
        return splitting.stratified_split([image.label for image in images], groups, fractions, seed, warn)
    train = [number for number, split in enumerate(defined) if split == "train"]
    if not train or "validation" in defined:
        return defined
    position = {number: i for i, number in enumerate(train)}
    train_groups = [[position[number] for number in group if number in position] for group in groups]
    total = fractions["train"] + fractions["validation"]
    new_splits = splitting.stratified_split(
        [images[number].label for number in train],
        [group for group in train_groups if len(group) > 1],
        {split: fractions[split] / total for split in ("train", "validation")},
        seed,
        warn,
    )
    for number, split in zip(train, new_splits, strict=True):
        defined[number] = split
    warn(
        f"{origin} has no validation images: {new_splits.count('validation')} of its {len(train)} training "
        "images are used for validation."
    )
    return defined


def collect_examples(index: DatasetIndex, split: str) -> Manifest:
    """Return the images of one defined split, or all images as `split` if the source defines no splits.

    Raises UserError if the source defines other splits only.
    """
    if index.has_splits and split not in index.splits:
        raise UserError(f"{index.origin} has no {split} images. Its splits: {', '.join(index.splits)}")
    selected = DatasetIndex(tuple(image for image in index.images if image.split in (split, None)), index.origin)
    images, fingerprints = fingerprint_images(selected, near_duplicates=-1, strict=False)
    return _sorted_manifest(images, [split] * len(images), fingerprints)


def relocate(manifest: Manifest, index: DatasetIndex) -> tuple[Manifest, list[Example]]:
    """Return the manifest with the paths of its images in another source, by SHA-256, and the images without one.

    Order, labels and splits stay; images that are not found keep their path. Of several equal files, each image gets
    its own, that with its file name if there is one.
    """
    candidates: dict[str, list[Path]] = {}
    images, fingerprints = fingerprint_images(index, near_duplicates=-1, strict=False)
    for image, fingerprint in zip(images, fingerprints, strict=True):
        candidates.setdefault(fingerprint.sha256, []).append(image.path)
    examples, missing = [], []
    for example in manifest.examples:
        paths = candidates.get(example.sha256, [])
        if paths:
            name = Path(example.path).name
            path = min(paths, key=lambda path: path.name != name)
            paths.remove(path)
            examples.append(replace(example, path=str(path)))
        else:
            missing.append(example)
            examples.append(example)
    return replace(manifest, examples=tuple(examples), root=index.root), missing


def fingerprint_images(
    index: DatasetIndex,
    near_duplicates: int,
    on_progress: Callable[[int], None] | None = None,
    *,
    bit_depth: int = 0,
    strict: bool = True,
) -> tuple[list[SourceImage], list[Fingerprint]]:
    """Return the images with their fingerprints, in the order of class, file name and SHA-256.

    So the order does not depend on where the images are stored. If `near_duplicates` is below 0, no perceptual hashes
    are computed; for `bit_depth` and `strict` see `duplicates.fingerprint_files`.

    Raises:
      UserError: the threshold is out of range, a file cannot be opened, or its SHA-256 is not the listed one.
    """
    duplicates.check_threshold(near_duplicates)
    paths = [image.path for image in index.images]
    fingerprints = duplicates.fingerprint_files(
        paths, on_progress, perceptual=near_duplicates >= 0, bit_depth=bit_depth, strict=strict
    )
    rows = sorted(
        zip(index.images, fingerprints, strict=True), key=lambda row: (row[0].label, row[0].path.name, row[1].sha256)
    )
    changed = [image.path for image, fingerprint in rows if image.sha256 not in (None, fingerprint.sha256)]
    if changed:
        raise UserError(
            f"The SHA-256 of {len(changed)} image(s), such as {changed[0]}, is not the one listed in {index.origin}. "
            "Restore them, or remove the column sha256."
        )
    return [image for image, _ in rows], [fingerprint for _, fingerprint in rows]


def _sorted_manifest(
    images: Sequence[SourceImage], splits: Sequence[str], fingerprints: Sequence[Fingerprint]
) -> Manifest:
    rows = zip(images, splits, fingerprints, strict=True)
    examples = [Example(str(image.path), image.label, split, own.sha256) for image, split, own in rows]
    examples.sort(key=lambda e: (SPLITS.index(e.split), e.label, Path(e.path).name, e.path))
    return Manifest(tuple(sorted({example.label for example in examples})), tuple(examples))


def _check_run_fractions(fractions: Mapping[str, float], seed: int) -> dict[str, float]:
    for name in fractions:
        if name not in SPLITS:
            raise unknown("split", name, SPLITS)
    used = splitting.check_fractions(fractions, seed)
    if not {"train", "validation"} <= used.keys():
        raise UserError(
            f"The fractions ({splitting.format_fractions(fractions)}) leave train or validation without images. Both "
            "must be above 0."
        )
    return {split: used[split] for split in SPLITS if split in used}
