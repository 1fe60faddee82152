"""What a source holds, before anything is decided: image files with their labels and, where given, their splits."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from flaxtl.data.decode import EXTENSIONS
from flaxtl.errors import UserError, join_names

SPLITS = ("train", "validation", "test")
"""The splits in their order everywhere."""

_ALIASES = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "test": "test"}
_JUNK = frozenset(("__macosx", "thumbs.db", "desktop.ini"))  # left behind by file managers, beside names with a dot


@dataclass(frozen=True)
class SourceImage:
    """One image file: absolute path, class name, split (None: to be decided), SHA-256 in lower-case hex if listed."""

    path: Path
    label: str
    split: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class DatasetIndex:
    """The images of a source, and the folder or file that they were listed from."""

    images: tuple[SourceImage, ...]
    origin: str

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The class names, sorted."""
        return tuple(sorted({found.label for found in self.images}))

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """The given splits that hold images, in the order train, validation, test; empty where none are given."""
        present = {found.split for found in self.images}
        return tuple(split for split in SPLITS if split in present)

    @property
    def has_splits(self) -> bool:
        """Whether the source itself says which image is in which split."""
        return bool(self.splits)


@dataclass(frozen=True)
class IndexReport:
    """A listing with all that is wrong about it.

    `complaints` are sentences, each of which keeps a run from training on the source; `listing` holds what could be
    listed in spite of them. `passed_over` are files that are no images by their suffix; hidden ones are not told.
    """

    index: DatasetIndex
    problems: tuple[str, ...]
    skipped_files: tuple[Path, ...]


def scan_folder(folder: Path) -> DatasetIndex:
    """The images of a folder in one of two layouts, told apart by what is there.

    FOLDER/{train,validation,test}/CLASS/*: with splits ('val' and 'valid' mean validation, in upper or lower case).
    FOLDER/CLASS/*: without splits; a class may be called 'train' as long as that holds no folders.

    Images are files with a suffix of `decode.EXTENSIONS`; other files, and whatever is hidden, count for nothing.
    An image where none belongs (beside the classes, in a folder within a class) is an error: none is dropped unsaid.

    Returns:
      Images sorted by split (train, validation, test), class and file name.

    Raises:
      UserError: there is no such folder, or the first fault of its layout.
    """
    scan = _Scan(_existing(folder))
    if scan.problems:
        raise UserError(scan.problems[0])
    return scan.index()


def inspect_folder(folder: Path) -> IndexReport:
    """What `of_folder` lists and all that keeps it from being trained on; raises only where there is no such folder."""
    scan = _Scan(_existing(folder))
    listing = scan.index()
    return IndexReport(listing, (*scan.problems, *find_problems(listing)), tuple(sorted(scan.skipped_files)))


def find_problems(listing: DatasetIndex) -> tuple[str, ...]:
    """What a listing lacks to be trained on, as sentences: two classes, training images, a class in some split."""
    if listing.images and len(listing.classes) < 2:
        return (f"{listing.origin} holds only one class, {listing.classes[0]!r}; a classifier needs two or more",)
    if not listing.has_splits:
        return ()
    if "train" not in listing.splits:
        told = ", ".join(listing.splits)
        absent = f"{listing.origin} holds {told} but no train images; move a part of the images there, or deal"
        return (f"{absent} out all of them anew by flaxtl split", *_missing_classes(listing))
    return tuple(_missing_classes(listing))


def _missing_classes(listing: DatasetIndex) -> list[str]:
    classes: dict[str, set[str]] = {split: set() for split in listing.splits}
    for found in listing.images:
        if found.split:
            classes[found.split].add(found.label)
    return [
        f"the {split} images of {listing.origin} lack the class(es) {join_names(missing)} of the other splits; every"
        " split needs the same classes"
        for split, present in classes.items()
        if (missing := sorted(set(listing.classes) - present))
    ]


def subfolders(folder: Path) -> list[Path]:
    """The folders in `folder`, sorted by name, without hidden ones and those that file managers leave behind."""
    return sorted(path for path in folder.iterdir() if _visible(path) and path.is_dir())


def parse_split_name(name: str) -> str | None:
    """The split that a name stands for ('Val' is validation), or None."""
    return _ALIASES.get(name.lower())


def _visible(path: Path) -> bool:
    return not path.name.startswith(".") and path.name.lower() not in _JUNK


def _existing(folder: Path) -> Path:
    folder = folder.expanduser()
    if not folder.exists():
        raise UserError(f"there is no folder {folder}; check the path that stands behind folder:")
    if not folder.is_dir():
        raise UserError(f"{folder} is a file, not a folder of images; write csv:{folder} or archive:{folder}")
    return folder.resolve()


class _Inside(NamedTuple):
    """What lies in a folder, each sorted by name."""

    folders: list[Path]
    images: list[Path]


class _Scan:
    """One look through a folder, never deeper than its layouts go, so that links in circles do no harm."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images: list[SourceImage] = []
        self.problems: list[str] = []
        self.skipped_files: list[Path] = []
        top = self._read(root)
        inner = {folder: self._read(folder) for folder in top.folders}
        if any(parse_split_name(folder.name) and inside.folders for folder, inside in inner.items()):
            self._loose(root, top)
            for split, place in self._places(inner).items():
                classes = {folder: self._read(folder) for folder in inner[place].folders}
                self._classes(place, inner[place], classes, split)
        else:
            self._classes(root, top, inner, None)

    def index(self) -> DatasetIndex:
        return DatasetIndex(tuple(self.images), str(self.root))

    def _read(self, folder: Path) -> _Inside:
        found = _Inside([], [])
        try:
            for path in sorted(path for path in folder.iterdir() if _visible(path)):
                kind = found.folders if path.is_dir() else found.images if _is_image(path) else self.skipped_files
                kind.append(path)
        except OSError as error:  # a folder that may be listed but not entered tells its names and nothing else
            self.problems.append(f"cannot read the folder {folder}: {error.strerror}; correct its permissions")
            return _Inside([], [])
        return found

    def _places(self, inner: Mapping[Path, _Inside]) -> dict[str, Path]:
        """The folder of each split, in order."""
        places: dict[str, Path] = {}
        for folder in inner:
            split = parse_split_name(folder.name)
            if split is None:
                told = f"{folder.name!r}, which is none of {', '.join(SPLITS)}; move it"
                self.problems.append(f"{self.root} holds splits and also {told}")
            elif split in places:
                told = f"both {places[split].name!r} and {folder.name!r} for {split}; join them"
                self.problems.append(f"{self.root} holds {told}")
            else:
                places[split] = folder
        return {split: places[split] for split in SPLITS if split in places}

    def _classes(self, place: Path, inside: _Inside, classes: Mapping[Path, _Inside], split: str | None) -> None:
        self._loose(place, inside)
        if not classes:
            self.problems.append(
                f"{place} holds no class folders; put the images of each class into a folder of its name"
            )
        for folder, (folders, images) in classes.items():
            if folders:
                self.problems.append(
                    f"{folders[0]} is a folder within a class; put images directly into the class folders, and if"
                    f" {folder.name!r} is a split, name it train, validation or test"
                )
            elif not images:
                kinds = ", ".join(sorted(EXTENSIONS))
                self.problems.append(f"the class folder {folder} holds no images ({kinds}); fill or remove it")
            self.images += [SourceImage(path, folder.name, split) for path in images]

    def _loose(self, place: Path, inside: _Inside) -> None:
        if loose := inside.images:
            self.problems.append(
                f"{place} holds {len(loose)} image(s) outside the class folders, such as {loose[0].name}; move them"
                " into one folder per class, or away"
            )


def _is_image(path: Path) -> bool:
    """By its suffix. A link to nowhere counts, so that it is reported as missing; a pipe or a device does not."""
    return path.suffix.lower() in EXTENSIONS and (path.is_file() or not path.exists())
