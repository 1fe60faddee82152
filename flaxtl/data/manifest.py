"""The manifest: which images a run uses, their classes, their splits and their content hashes."""

import csv
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flaxtl import fileio
from flaxtl.data import duplicates, splitting
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
    """The images of a run. `classes` are sorted: class index i is `classes[i]`, everywhere and for good."""

    classes: tuple[str, ...]
    examples: tuple[Example, ...]

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """The splits that hold images, in the order train, validation, test."""
        present = {example.split for example in self.examples}
        return tuple(split for split in SPLITS if split in present)

    def of_split(self, name: str) -> tuple[Example, ...]:
        """The examples of one split, in the manifest's order. Raises UserError where there is no such split."""
        if name not in self.splits:
            raise unknown("split", name, self.splits)
        return tuple(example for example in self.examples if example.split == name)

    def labels(self, examples: Sequence[Example]) -> NDArray[np.int32]:
        """The class indices of `examples`: int32 [len(examples)], values 0 to len(classes) - 1."""
        index = {label: i for i, label in enumerate(self.classes)}
        return np.array([index[example.label] for example in examples], dtype=np.int32)

    def without(self, paths: Collection[str]) -> "Manifest":
        """The manifest less the images at `paths`; raises UserError where a split would lose a whole class."""
        kept = tuple(example for example in self.examples if example.path not in paths)
        before, after = ({(e.split, e.label) for e in examples} for examples in (self.examples, kept))
        if lost := sorted(before - after):
            split, label = lost[0]
            raise UserError(
                f"all {split} images of the class {label!r} would be left out, as none of them can be read; mend or"
                " replace them"
            )
        return Manifest(self.classes, kept)

    def write(self, path: Path) -> None:
        """Writes the manifest as CSV (path,label,split,sha256), whole or not at all."""
        # File names need not be Unicode: surrogateescape carries their bytes through.
        with atomic_write(path, errors="surrogateescape", newline="") as stream:
            fileio.write_csv(stream, [_COLUMNS])
            fileio.write_csv(stream, ((e.path, e.label, e.split, e.sha256) for e in self.examples))

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """Reads what `write` wrote; the images themselves are not looked at.

        Raises:
          UserError: the file is missing or damaged; the sentence names the first bad line.
        """
        try:
            with path.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
                rows = list(csv.reader(stream, strict=True))
        except OSError as error:
            raise UserError(f"cannot read the manifest {path}: {error.strerror}") from error
        except csv.Error as error:
            raise UserError(f"the manifest {path} is damaged ({error}); make it again from the images") from error
        if not rows or tuple(rows[0]) != _COLUMNS:
            raise UserError(f"{path} is no manifest: its first line must be {','.join(_COLUMNS)}")
        examples = _examples_of(path, rows[1:])
        return cls(tuple(sorted({example.label for example in examples})), examples)


def _examples_of(path: Path, rows: Iterable[list[str]]) -> tuple[Example, ...]:
    examples: dict[str, Example] = {}
    for number, row in enumerate(rows, start=2):
        fault = _fault(row)
        if fault is None and row[0] in examples:
            fault = "its image was listed before"
        if fault is not None:
            raise UserError(f"the manifest {path} is damaged in row {number}: {fault}; make it again from the images")
        examples[row[0]] = Example(*row)
    if not examples:
        raise UserError(f"the manifest {path} lists no images; make it again from the images")
    return tuple(examples.values())


def _fault(row: list[str]) -> str | None:
    if len(row) != len(_COLUMNS):
        return f"{len(row)} columns instead of {len(_COLUMNS)}"
    path, label, split, sha256 = row
    if not Path(path).is_absolute():
        return f"{path!r} is no absolute path"
    if not label:
        return "it has no label"
    if split not in SPLITS:
        return f"{split!r} is no split"
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        return f"{sha256!r} is no SHA-256"
    return None


def make_manifest(
    listing: DatasetIndex,
    fractions: Mapping[str, float],
    seed: int,
    *,
    near_duplicates: int = 4,
    allow_leaks: bool = False,
    warn: Callable[[str], None] = lambda sentence: None,
    on_progress: Callable[[int], None] | None = None,
) -> Manifest:
    """The manifest of a run on `listing`.

    Given splits are taken as they are; where only validation is missing, it is dealt out of train, in the proportion of
    their fractions. Without given splits the images are dealt out by
    `splitting.deal`, each class in the order of file names, so that the split does not depend on where the images
    lie; equal files and near-duplicates stay together in one split.

    Args:
      listing: see `sources.find`.
      fractions: parts of train, validation and test; the first two above 0, test may be 0 or absent; they sum to 1.
      seed: 0 or more.
      near_duplicates: the threshold of `duplicates.pairs`; -1 looks for equal files only, and unpacks no image.
      allow_leaks: whether equal files in two given splits are told to `warn` instead of raised.
      warn: is told in sentences what is odd but stops nothing: near-duplicates in two given splits, equal files with
        two labels, and totals that had to give way to groups of like images.
      on_progress: called with the number of files that are fingerprinted.

    Returns:
      Classes in sorted order; examples sorted by split (train, validation, test), class and file name.

    Raises:
      UserError: the listing or the fractions will not do, or the given splits leak. A file that cannot be opened is no
        error: who decodes the images tells of it, with all others that cannot be read.
    """
    parts = _run_fractions(fractions, seed)
    for sentence in find_problems(listing):
        raise UserError(sentence)
    found, prints = fingerprint_images(listing, near_duplicates, on_progress, strict=False)
    pairs = duplicates.near_duplicate_pairs(prints, near_duplicates)
    groups = duplicates.duplicate_groups(len(found), pairs)
    duplicates.check_label_conflicts(listing.origin, found, pairs, warn)
    if listing.has_splits:
        duplicates.check_split_leakage(listing.origin, found, pairs, allow_leaks, warn)
        splits = _with_validation(listing, found, groups, parts, seed, warn)
    else:
        splits = splitting.stratified_split([image.label for image in found], groups, parts, seed, warn)
    rows = zip(found, splits, prints, strict=True)
    return _manifest(Example(str(image.path), image.label, split, p.sha256) for image, split, p in rows)


def _with_validation(
    listing: DatasetIndex,
    found: Sequence[SourceImage],
    groups: Sequence[Sequence[int]],
    parts: Mapping[str, float],
    seed: int,
    warn: Callable[[str], None],
) -> list[str]:
    """The given split of every image; where none are given for validation, a part of the training images is."""
    splits = [image.split or "" for image in found]
    if "validation" in listing.splits:
        return splits
    train = [number for number, split in enumerate(splits) if split == "train"]
    place = {number: position for position, number in enumerate(train)}
    inside = [[place[number] for number in group if number in place] for group in groups]
    shares = {split: parts[split] / (parts["train"] + parts["validation"]) for split in ("train", "validation")}
    labels = [found[number].label for number in train]
    dealt = splitting.stratified_split(labels, [group for group in inside if len(group) > 1], shares, seed, warn)
    for number, split in zip(train, dealt, strict=True):
        splits[number] = split
    warn(
        f"{listing.origin} holds no validation images: {dealt.count('validation')} of its {len(train)} training"
        " images are set aside for validation"
    )
    return splits


def collect_examples(listing: DatasetIndex, split: str) -> Manifest:
    """The images of one given split, or, where no splits are given, all of them as images of `split`.

    Raises UserError where the split is not among those given.
    """
    if listing.has_splits and split not in listing.splits:
        raise UserError(f"{listing.origin} holds no {split} images; it holds {', '.join(listing.splits)}")
    chosen = DatasetIndex(tuple(found for found in listing.images if found.split in (split, None)), listing.origin)
    found, prints = fingerprint_images(chosen, near_duplicates=-1, strict=False)
    pairs = zip(found, prints, strict=True)
    return _manifest(Example(str(image.path), image.label, split, p.sha256) for image, p in pairs)


def fingerprint_images(
    listing: DatasetIndex,
    near_duplicates: int,
    on_progress: Callable[[int], None] | None = None,
    *,
    strict: bool = True,
) -> tuple[list[SourceImage], list[Fingerprint]]:
    """The images in an order that does not depend on where they lie, with their fingerprints.

    That is the order of class, file name and SHA-256. Below 0, `near_duplicates` leaves out the perceptual hashes; for
    `strict` see `fingerprint.of`.

    Raises:
      UserError: the threshold is out of its range, a file cannot be opened, or it is not the one whose SHA-256 was
        listed.
    """
    duplicates.check_threshold(near_duplicates)
    paths = [found.path for found in listing.images]
    prints = duplicates.fingerprint_files(paths, on_progress, perceptual=near_duplicates >= 0, strict=strict)
    rows = sorted(
        zip(listing.images, prints, strict=True), key=lambda row: (row[0].label, row[0].path.name, row[1].sha256)
    )
    changed = [found.path for found, p in rows if found.sha256 not in (None, p.sha256)]
    if changed:
        raise UserError(
            f"{len(changed)} image(s), such as {changed[0]}, have another SHA-256 than {listing.origin} says; restore"
            " them, or remove the column sha256"
        )
    return [found for found, _ in rows], [p for _, p in rows]


def _manifest(examples: Iterable[Example]) -> Manifest:
    ordered = sorted(examples, key=lambda e: (SPLITS.index(e.split), e.label, Path(e.path).name, e.path))
    return Manifest(tuple(sorted({example.label for example in ordered})), tuple(ordered))


def _run_fractions(fractions: Mapping[str, float], seed: int) -> dict[str, float]:
    for name in fractions:
        if name not in SPLITS:
            raise unknown("split", name, SPLITS)
    parts = splitting.check_fractions(fractions, seed)
    if not {"train", "validation"} <= parts.keys():
        told = ", ".join(f"{split} {part}" for split, part in fractions.items())
        raise UserError(f"the fractions ({told}) leave train or validation without images; give both more than 0")
    return {split: parts[split] for split in SPLITS if split in parts}
