"""Image folders as sources, and the index of a source: image files with labels and, if given, splits."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from flaxtl.data.class_names import describe_similar, explain_missing
from flaxtl.data.decode import EXTENSIONS
from flaxtl.data.file_listing import SkippedFile, describe_skipped, is_visible, skip_reason, unpack_advice, walk_images
from flaxtl.errors import UserError, join_names
from flaxtl.fileio import suggest_path, user_path

SPLITS = ("train", "validation", "test")
"""The splits, in the order used everywhere."""

MANIFEST_NAME = "manifest.csv"
"""List of the images in a folder that `flaxtl split` has written, beside its splits."""

_SPLIT_NAMES = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
    "training": "train",
    "testing": "test",
}


@dataclass(frozen=True)
class SourceImage:
    """One image file of a source.

    Attributes:
      path: absolute path.
      label: class name.
      split: 'train', 'validation' or 'test'; None if the source does not define splits.
      sha256: lower-case hex if the source lists it.
    """

    path: Path
    label: str
    split: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class DatasetIndex:
    """The images of a source.

    Attributes:
      images: in the order of the source.
      origin: the folder or file that they were listed from, as messages name it.
      skipped: visible files of the folder that are not images, sorted.
      root: the folder of the classes or splits, or a parent folder of all images of a CSV file; None: unknown.
      notes: one message for each thing that a user should know about how the source was read; see `messages`.
    """

    images: tuple[SourceImage, ...]
    origin: str
    skipped: tuple[SkippedFile, ...] = field(default=(), compare=False)
    root: Path | None = field(default=None, compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The class names, sorted."""
        return tuple(sorted({image.label for image in self.images}))

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """The splits that the source defines, in the order of SPLITS; empty if it defines none."""
        present = {image.split for image in self.images}
        return tuple(split for split in SPLITS if split in present)

    @property
    def has_splits(self) -> bool:
        """Whether the source defines the splits."""
        return bool(self.splits)

    @property
    def skipped_inside(self) -> tuple[SkippedFile, ...]:
        """The skipped files without those beside the class folders, such as a license or a manifest."""
        return tuple(file for file in self.skipped if file.path.parent != self.root)

    @property
    def messages(self) -> tuple[str, ...]:
        """What every command that uses the images reports: notes, absent classes, skipped files, similar classes."""
        skipped = describe_skipped(self.skipped_inside) if self.skipped_inside else None
        return (*self.notes, *absent_classes(self), *filter(None, (skipped, describe_similar(self.classes))))


@dataclass(frozen=True)
class IndexReport:
    """The index of a source with all problems of its layout.

    Attributes:
      index: the images that could be listed in spite of the problems.
      problems: one message for each problem that prevents training on the source.
    """

    index: DatasetIndex
    problems: tuple[str, ...]


def scan_folder(folder: Path) -> DatasetIndex:
    """List the images of a folder that has one of two layouts.

    FOLDER/{train,validation,test}/CLASS/*: with splits (also training, val, valid or testing, in upper or lower case).
    FOLDER/CLASS/*: without splits; a class may be called 'train' if it contains no folders.

    Images in folders inside a class belong to the class; a note says how many there are. `file_listing.skip_reason`
    decides which files are images; hidden files are ignored. An image beside the class folders is an error: no image
    is dropped silently.

    Returns:
      Images sorted by split (train, validation, test), class and path.

    Raises:
      UserError: the folder does not exist, or its layout is invalid (the first problem).
    """
    scan = _FolderScan(_check_folder(folder))
    if scan.problems:
        raise UserError(scan.problems[0])
    return scan.index()


def inspect_folder(folder: Path) -> IndexReport:
    """List the images of a folder with all problems. Raises UserError only if the folder does not exist."""
    scan = _FolderScan(_check_folder(folder))
    index = scan.index()
    return IndexReport(index, (*scan.problems, *find_problems(index)))


def find_problems(index: DatasetIndex) -> tuple[str, ...]:
    """Return what prevents training on these images.

    Class names that are not text, one class only, no training images, or classes without training images.
    """
    if garbled := [label for label in index.classes if has_lone_bytes(label)]:
        return (f"{index.origin} has the class {garbled[0]!r}, which is not text in UTF-8. Rename its folder.",)
    if index.images and len(index.classes) < 2:
        return (f"{index.origin} has only one class, {index.classes[0]!r}. A classifier needs at least two.",)
    if not index.has_splits:
        return ()
    problems = _untrained_classes(index)
    if "train" not in index.splits:
        problems.insert(
            0,
            f"{index.origin} has {', '.join(index.splits)} images but no train images. Move some of the images there, "
            "or split all of them again with flaxtl split.",
        )
    return tuple(problems)


def has_lone_bytes(name: str) -> bool:
    """Return whether a text has bytes that are not UTF-8: files with such class names would not be, either."""
    return any("\udc80" <= char <= "\udcff" for char in name)


def _untrained_classes(index: DatasetIndex) -> list[str]:
    """Return an error for classes of other splits that have no training images."""
    present = {image.label for image in index.images if image.split == "train"}
    missing = sorted(set(index.classes) - present)
    if not missing or not present:
        return []
    return [
        f"The train images of {index.origin} lack the class(es) {join_names(missing)} of the other splits"
        f"{explain_missing(missing, present)}. Move some of their images to train, or all of them out of the dataset."
    ]


def absent_classes(index: DatasetIndex) -> list[str]:
    """Return a message for each split to evaluate on that lacks classes, which is allowed: a class may be rare."""
    present: dict[str, set[str]] = {split: set() for split in index.splits if split != "train"}
    for image in index.images:
        if image.split in present:
            present[image.split].add(image.label)
    return [
        f"The {split} images of {index.origin} have none of the class(es) {join_names(missing)}, which the {split} "
        f"metrics leave out{explain_missing(missing, labels)}."
        for split, labels in present.items()
        if (missing := sorted(set(index.classes) - labels))
    ]


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in `folder`, sorted by name, without hidden ones and those that file managers create."""
    return sorted(path for path in folder.iterdir() if is_visible(path) and path.is_dir())


def parse_split_name(name: str) -> str | None:
    """Return the split that a name means ('Val' is validation), or None."""
    return _SPLIT_NAMES.get(name.lower())


def _check_folder(folder: Path) -> Path:
    folder = user_path(folder)
    if not folder.exists():
        raise UserError(f"There is no folder {folder}. {suggest_path(folder)}")
    if not folder.is_dir():
        forms = " or ".join(shlex.quote(f"{scheme}:{folder}") for scheme in ("csv", "archive"))
        raise UserError(f"{folder} is a file, not a folder of images. Write {forms}")
    return folder.resolve()


class _Entries(NamedTuple):
    """The contents of one folder, sorted by name."""

    folders: list[Path]
    images: list[Path]


class _FolderScan:
    """One scan of a folder. A link to a folder that contains it is not followed, so circular links are harmless."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images: list[SourceImage] = []
        self.problems: list[str] = []
        self.skipped: list[SkippedFile] = []
        self.nested: dict[Path, int] = {}  # folder inside a class -> its images
        self.notes: list[str] = []
        top = self._list(root)
        inner = {folder: self._list(folder) for folder in top.folders}
        if any(parse_split_name(folder.name) and entries.folders for folder, entries in inner.items()):
            self._check_no_images(root, top)
            for split, folder in self._split_folders(inner).items():
                classes = {path: self._list(path) for path in inner[folder].folders}
                self._add_classes(folder, inner[folder], classes, split)
        else:
            self._add_classes(root, top, inner, None)
        self._note_nested()

    def index(self) -> DatasetIndex:
        return DatasetIndex(
            tuple(self.images), str(self.root), tuple(sorted(self.skipped)), self.root, tuple(self.notes)
        )

    def _list(self, folder: Path) -> _Entries:
        entries = _Entries([], [])
        try:
            for path in sorted(path for path in folder.iterdir() if is_visible(path)):
                if path.is_dir():
                    entries.folders.append(path)
                elif path == self.root / MANIFEST_NAME:  # of flaxtl split
                    continue
                elif (reason := skip_reason(path)) is None:
                    entries.images.append(path)
                else:
                    self.skipped.append(SkippedFile(path, reason))
        except OSError as error:  # also if the folder may be listed but not entered
            self.problems.append(f"Cannot read the folder {folder}: {error.strerror}. Correct its permissions.")
            return _Entries([], [])
        return entries

    def _split_folders(self, inner: Mapping[Path, _Entries]) -> dict[str, Path]:
        """Return the folder of each split, in the order of SPLITS."""
        folders: dict[str, Path] = {}
        for folder in inner:
            split = parse_split_name(folder.name)
            if split is None:
                self.problems.append(
                    f"{self.root} contains splits and also {folder.name!r}, which is not one of {', '.join(SPLITS)}. "
                    "Rename or move it."
                )
            elif split in folders:
                self.problems.append(
                    f"{self.root} contains both {folders[split].name!r} and {folder.name!r} for {split}. Merge them."
                )
            else:
                folders[split] = folder
        return {split: folders[split] for split in SPLITS if split in folders}

    def _add_classes(
        self, parent: Path, entries: _Entries, classes: Mapping[Path, _Entries], split: str | None
    ) -> None:
        self._check_no_images(parent, entries)
        if not classes:
            beside = [file.path for file in self.skipped if file.path.parent == parent]
            advice = unpack_advice(beside) or "Put the images of each class into a folder named after the class."
            self.problems.append(f"{parent} contains no class folders. {advice}")
        for folder, (folders, direct) in classes.items():
            images = sorted([*direct, *self._nested_images((self.root, parent, folder), folders)])
            if len(classes) == 1 and folders and not direct:
                advice = f"Write {shlex.quote(f'folder:{folder}')}" if split is None else f"Move them to {parent}"
                self.problems.append(
                    f"{parent} contains only one folder, {folder.name!r}. {advice} if the folders in it are classes."
                )
            elif len(folders) > 1 and all(parse_split_name(inside.name) for inside in folders):
                self.problems.append(
                    f"{folder} contains the splits {join_names(inside.name for inside in folders)}. Splits contain "
                    f"classes: move its images to {self.root / folders[0].name / folder.name} and so on."
                )
            elif not images:
                suffixes = ", ".join(sorted(EXTENSIONS))
                others = [file for file in self.skipped if file.path.is_relative_to(folder)]
                found = f" {describe_skipped(others)}." if others else ""
                self.problems.append(
                    f"The class folder {folder} contains no images ({suffixes}).{found} Fill or remove it."
                )
            self.images += [SourceImage(path, folder.name, split) for path in images]
        if split is None:
            self._note_possible_splits(classes)

    def _nested_images(self, outer: Sequence[Path], folders: Sequence[Path]) -> list[Path]:
        """Return the images in the folders inside a class, at any depth; `outer` are the folders around them."""
        images = []
        for folder in folders:
            try:
                listing = walk_images(folder, outer)
            except UserError as error:
                self.problems.append(str(error))
                continue
            self.nested[folder] = len(listing.images)
            images += listing.images
            self.skipped += listing.skipped
        return images

    def _note_nested(self) -> None:
        """Note that images in folders inside a class are used."""
        filled = {folder: n for folder, n in self.nested.items() if n}
        if filled:
            folders = "1 folder" if len(filled) == 1 else f"{len(filled):,} folders"
            example = next(iter(filled)).relative_to(self.root)
            self.notes.append(
                f"{sum(filled.values()):,} images in {folders} inside classes, such as {example}, belong to the class."
            )

    def _note_possible_splits(self, classes: Mapping[Path, _Entries]) -> None:
        """Note that the folders taken for classes may be splits, if they contain the same folders and no images.

        A split may lack a class, so some of the folders may be absent from all but one.
        """
        inside = [[folder.name for folder in entries.folders] for entries in classes.values()]
        names = max(inside, key=len, default=[])
        is_alike = all(set(names).issuperset(others) for others in inside)
        if len(classes) > 1 and is_alike and len(names) > 1 and not any(entries.images for entries in classes.values()):
            self.notes.append(
                f"The classes are {join_names(folder.name for folder in classes)}. If the classes should be "
                f"{join_names(names)}, rename the folders around them to train, validation and test."
            )

    def _check_no_images(self, folder: Path, entries: _Entries) -> None:
        if images := entries.images:
            self.problems.append(
                f"{folder} contains {len(images)} image(s) outside the class folders, such as {images[0].name}. Move "
                f"them into a class folder, or away; if {folder.name!r} is a class, give the folder above it."
            )
