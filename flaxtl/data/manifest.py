"""The manifest: which pictures a run uses, their classes, their splits and their content hashes."""

import csv
import hashlib
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flaxtl.data.decode import EXTENSIONS
from flaxtl.errors import UserError, unknown
from flaxtl.files import whole

SPLITS = ("train", "validation", "test")
"""The splits in their order everywhere."""

_ALIASES = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "test": "test"}
_COLUMNS = ("path", "label", "split", "sha256")
_JUNK = frozenset(("__macosx", "thumbs.db", "desktop.ini"))  # left behind by file managers, beside names with a dot


@dataclass(frozen=True)
class Example:
    """One picture: absolute path, class name, split name, and the SHA-256 of the file in lower-case hex."""

    path: str
    label: str
    split: str
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The pictures of a run. `classes` are sorted: class index i is `classes[i]`, everywhere and for good."""

    classes: tuple[str, ...]
    examples: tuple[Example, ...]

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """The splits that hold pictures, in the order train, validation, test."""
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

    def counts(self) -> dict[str, dict[str, int]]:
        """Pictures per split and class, zeros included."""
        table = {split: dict.fromkeys(self.classes, 0) for split in self.splits}
        for example in self.examples:
            table[example.split][example.label] += 1
        return table

    def write(self, path: Path) -> None:
        """Writes the manifest as CSV (path,label,split,sha256), whole or not at all."""
        # File names need not be Unicode: surrogateescape carries their bytes through.
        with whole(path, errors="surrogateescape", newline="") as stream:
            rows = csv.writer(stream, lineterminator="\n")
            rows.writerow(_COLUMNS)
            rows.writerows((e.path, e.label, e.split, e.sha256) for e in self.examples)

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """Reads what `write` wrote; the pictures themselves are not looked at.

        Raises:
          UserError: the file is missing or damaged; the sentence names the first bad line.
        """
        try:
            with path.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
                rows = list(csv.reader(stream, strict=True))
        except OSError as error:
            raise UserError(f"cannot read the manifest {path}: {error.strerror}") from error
        except csv.Error as error:
            raise UserError(f"the manifest {path} is damaged ({error}); make it again from the pictures") from error
        if not rows or tuple(rows[0]) != _COLUMNS:
            raise UserError(f"{path} is no manifest: its first line must be {','.join(_COLUMNS)}")
        examples = _examples_of(path, rows[1:])
        return cls(tuple(sorted({example.label for example in examples})), examples)


def _examples_of(path: Path, rows: Iterable[list[str]]) -> tuple[Example, ...]:
    examples: dict[str, Example] = {}
    for number, row in enumerate(rows, start=2):
        fault = _fault(row)
        if fault is None and row[0] in examples:
            fault = "its picture was listed before"
        if fault is not None:
            raise UserError(f"the manifest {path} is damaged in row {number}: {fault}; make it again from the pictures")
        examples[row[0]] = Example(*row)
    if not examples:
        raise UserError(f"the manifest {path} lists no pictures; make it again from the pictures")
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


def build(folder: Path, fractions: Mapping[str, float], seed: int) -> Manifest:
    """The manifest of a folder of pictures in one of two layouts, told apart by what is there.

    FOLDER/{train,validation[,test]}/CLASS/*: the splits are taken as given ('val' and 'valid' mean validation), and
    `fractions` and `seed` are not used.

    FOLDER/CLASS/*: split here, class by class. The files of a class, sorted by name, are permuted by numpy's
    default_rng seeded with `seed` and the bytes of the class name, then dealt out: round(n * fraction), half to even,
    to each split in turn, the rest to the last. So the split depends neither on where the folder lies nor on other
    classes. Identical files of a class stay together in one split wherever the counts allow it.

    Pictures are files with a suffix of `decode.EXTENSIONS`; other files, and whatever is hidden, count for nothing.
    A picture where none belongs (beside the classes, in a folder within a class) is an error: none is dropped unsaid.

    Args:
      folder: see above.
      fractions: parts of train, validation and test; the first two above 0, test may be 0 or absent; they sum to 1.
      seed: 0 or more.

    Returns:
      Classes in sorted order; examples sorted by split (train, validation, test), class and file name.

    Raises:
      UserError: the folder or the fractions will not do.
    """
    parts = _checked(fractions, seed)
    folder = _existing(folder.expanduser())
    given = _given_splits(folder)
    if given:
        found = {split: _files_by_class(place) for split, place in given.items()}
        _check_same_classes(given, found)
        dealt = [(p, label, split) for split, classes in found.items() for label, ps in classes.items() for p in ps]
        hashes = _hashes([path for path, _, _ in dealt])
    else:
        classes = _files_by_class(folder)
        hashes = _hashes([path for paths in classes.values() for path in paths])
        dealt = [
            (path, label, split)
            for label, paths in classes.items()
            for path, split in _deal(folder / label, paths, hashes, parts, seed)
        ]
    dealt.sort(key=lambda row: (SPLITS.index(row[2]), row[1], row[0].name))
    examples = tuple(Example(str(path), label, split, hashes[path]) for path, label, split in dealt)
    return Manifest(tuple(sorted({label for _, label, _ in dealt})), examples)


def gather(folder: Path, split: str) -> Manifest:
    """The pictures of one split, where `folder` holds splits, or of all its class folders, where it holds classes.

    Nothing is split: every picture found counts as one of `split`. Raises UserError as `build` does.
    """
    folder = _existing(folder.expanduser())
    given = {name: path for path in subfolders(folder) if (name := split_of(path.name)) and subfolders(path)}
    if given and split not in given:
        raise UserError(f"{folder} holds no {split} folder; it holds {', '.join(given)}")
    classes = _files_by_class(given.get(split, folder))
    hashes = _hashes([path for paths in classes.values() for path in paths])
    rows = [(path, label) for label, paths in classes.items() for path in paths]
    return Manifest(
        tuple(sorted(classes)), tuple(Example(str(path), label, split, hashes[path]) for path, label in rows)
    )


def subfolders(folder: Path) -> list[Path]:
    """The folders in `folder`, sorted by name, without hidden ones and those that file managers leave behind."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and _visible(path))


def split_of(folder_name: str) -> str | None:
    """The split that a folder of this name stands for ('Val' is validation), or None."""
    return _ALIASES.get(folder_name.lower())


def _visible(path: Path) -> bool:
    return not path.name.startswith(".") and path.name.lower() not in _JUNK


def _pictures(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS and _visible(p) and p.is_file())


def _checked(fractions: Mapping[str, float], seed: int) -> dict[str, float]:
    for name, part in fractions.items():
        if name not in SPLITS:
            raise unknown("split", name, SPLITS)
        if not 0 <= part <= 1:
            raise UserError(f"the fraction of {name} is {part}; fractions lie between 0 and 1")
    parts = {split: fractions[split] for split in SPLITS if fractions.get(split, 0) > 0}
    told = ", ".join(f"{split} {part}" for split, part in fractions.items())
    if not {"train", "validation"} <= parts.keys():
        raise UserError(f"the fractions ({told}) leave train or validation without pictures; give both more than 0")
    if not math.isclose(sum(parts.values()), 1, abs_tol=1e-6):
        raise UserError(f"the fractions ({told}) sum to {sum(parts.values()):.6g}; make them sum to 1")
    if seed < 0:
        raise UserError(f"the seed of the split is {seed}; give 0 or more")
    return parts


def _existing(folder: Path) -> Path:
    if not folder.exists():
        raise UserError(f"there is no folder {folder}; check the path")
    if not folder.is_dir():
        raise UserError(f"{folder} is a file, not a folder of pictures; for an archive write archive:{folder}")
    return folder.resolve()


def _given_splits(folder: Path) -> dict[str, Path]:
    """The folder of each split, in order; empty where `folder` holds classes, one of which may be named 'train'."""
    inside = subfolders(folder)
    if not any(split_of(path.name) and subfolders(path) for path in inside):
        return {}
    _check_no_loose_pictures(folder)
    given: dict[str, Path] = {}
    for path in inside:
        split = split_of(path.name)
        if split is None:
            raise UserError(
                f"{folder} holds splits and also {path.name!r}, which is none of {', '.join(SPLITS)}; move it"
            )
        if split in given:
            raise UserError(f"{folder} holds both {given[split].name!r} and {path.name!r} for {split}; join them")
        given[split] = path
    if missing := [split for split in SPLITS[:2] if split not in given]:
        raise UserError(
            f"{folder} holds {', '.join(given)} but no {missing[0]} folder; move a part of the pictures there, or put"
            " all classes directly into one folder and let flaxtl split them"
        )
    return {split: given[split] for split in SPLITS if split in given}


def _files_by_class(folder: Path) -> dict[str, list[Path]]:
    """The pictures of each class folder in `folder`, sorted by name."""
    _check_no_loose_pictures(folder)
    places = subfolders(folder)
    if not places:
        raise UserError(f"{folder} holds no class folders; put the pictures of each class into a folder of its name")
    if len(places) == 1:
        raise UserError(f"{folder} holds only one class, {places[0].name!r}; a classifier needs two or more")
    return {place.name: _class_pictures(place) for place in places}


def _check_no_loose_pictures(folder: Path) -> None:
    if loose := _pictures(folder):
        raise UserError(
            f"{folder} holds {len(loose)} picture(s) outside the class folders, such as {loose[0].name}; move them into"
            " one folder per class, or away"
        )


def _class_pictures(place: Path) -> list[Path]:
    if inner := subfolders(place):
        raise UserError(
            f"{inner[0]} is a folder within a class; put pictures directly into the class folders, and if"
            f" {place.name!r} is a split, name it train, validation or test"
        )
    pictures = _pictures(place)
    if not pictures:
        raise UserError(
            f"the class folder {place} holds no pictures ({', '.join(sorted(EXTENSIONS))}); fill or remove it"
        )
    return pictures


def _check_same_classes(given: Mapping[str, Path], found: Mapping[str, Mapping[str, object]]) -> None:
    everything = {label for classes in found.values() for label in classes}
    for split, classes in found.items():
        if missing := sorted(everything - classes.keys()):
            raise UserError(
                f"{given[split]} lacks the class folder(s) {', '.join(missing)} of the other splits; every split needs"
                " the same classes"
            )


def _deal(
    place: Path, paths: Sequence[Path], hashes: Mapping[Path, str], parts: Mapping[str, float], seed: int
) -> list[tuple[Path, str]]:
    """Gives every picture of one class, sorted by name, its split."""
    order = np.random.default_rng([seed, *place.name.encode(errors="surrogateescape")]).permutation(len(paths))
    copies: dict[str, list[Path]] = {}
    for i in order:
        copies.setdefault(hashes[paths[i]], []).append(paths[i])
    room = _sizes(len(paths), parts)
    if empty := [split for split, size in room.items() if size < 1]:
        raise UserError(
            f"the class {place} is too small: its {len(paths)} picture(s) leave {', '.join(empty)} empty; add pictures"
            " or change the fractions"
        )
    dealt: list[tuple[Path, str]] = []
    for group in copies.values():
        # A group too large for every split is dealt out picture by picture: the promised counts come first.
        together = next((split for split in room if room[split] >= len(group)), None)
        for path in group:
            split = together or next(split for split in room if room[split] > 0)
            room[split] -= 1
            dealt.append((path, split))
    return dealt


def _sizes(n: int, parts: Mapping[str, float]) -> dict[str, int]:
    """How many of n pictures each split gets: the fraction rounded half to even, the last split takes the rest."""
    *first, last = parts
    sizes = {split: round(n * parts[split]) for split in first}
    return {**sizes, last: n - sum(sizes.values())}


def _hashes(paths: Sequence[Path]) -> dict[Path, str]:
    with ThreadPoolExecutor(max_workers=min(32, 4 * (os.cpu_count() or 1))) as pool:  # more than cores: disks wait
        return dict(zip(paths, pool.map(_sha256, paths), strict=True))


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read the picture {path}: {error.strerror}") from error
