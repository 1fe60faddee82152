"""`flaxtl split`: a source dealt out once and for all, as folders of images or as the lists of a cross-validation."""

import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from flaxtl import fileio
from flaxtl.data import duplicates, manifest, splitting
from flaxtl.data.duplicates import Fingerprint
from flaxtl.data.sources.archive import atomic_folder
from flaxtl.data.sources.csv_file import COLUMNS
from flaxtl.data.sources.image_folder import SPLITS, DatasetIndex, SourceImage, parse_split_name
from flaxtl.errors import UserError

_LONGEST = 255  # bytes of a name on the file systems of Linux; no other allows more

SplitProgress = Callable[[int], None]
Say = Callable[[str], None]


class SplitRow(NamedTuple):
    """One line of a written list."""

    path: str
    label: str
    split: str
    sha256: str


def parse_fractions(text: str) -> dict[str, float]:
    """'0.5,0.2,0.3' as parts of train, validation and test, or 'train=0.6,holdout=0.4' as parts of named splits.

    Names are letters, digits, '-' and '_'; 'val' and 'valid' mean validation. Raises UserError for anything else.
    """
    parts = [part.strip() for part in text.split(",")]
    named = ["=" in part for part in parts]
    if not all(named) and (any(named) or len(parts) > len(SPLITS)):
        raise UserError(
            f"the fractions {text!r} need a name each, such as train=0.5,validation=0.2,test=0.3; without names give up"
            f" to {len(SPLITS)} of them, for {', '.join(SPLITS)}"
        )
    pairs = [part.split("=", 1) for part in parts] if all(named) else list(zip(SPLITS, parts, strict=False))
    fractions: dict[str, float] = {}
    for name, number in pairs:
        split = parse_split_name(name) or name
        if split in fractions or not re.fullmatch(r"\w[\w-]*", split):
            raise UserError(f"the fractions {text!r} name {name!r}, which is no split's name or is given twice")
        try:
            fractions[split] = float(number)
        except ValueError as error:
            raise UserError(f"the fractions {text!r} hold {number!r}, which is no number") from error
    return fractions


def write_folders(
    listing: DatasetIndex,
    output: Path,
    fractions: Mapping[str, float],
    seed: int,
    *,
    near_duplicates: int,
    link: bool,
    notify: Say,
    on_progress: SplitProgress | None = None,
) -> Counter[tuple[str, str]]:
    """Deals the images out to OUTPUT/SPLIT/CLASS/NAME and lists them in OUTPUT/manifest.csv.

    manifest.csv has the columns path (relative to OUTPUT), label, split and sha256, and is sorted by path; it can be
    used as a csv: source. Images of a class whose names differ at most in case get the first 8 digits of their
    SHA-256 appended. Splits that the source gives are not kept, which `notify` is told.

    Args:
      listing: the source.
      output: a folder that does not exist or is empty; it is filled whole or not at all.
      fractions: the part of each split; they sum to 1.
      seed: 0 or more; with it the split is the same wherever the images lie.
      near_duplicates: the threshold of `duplicates.pairs`.
      link: makes hard links instead of copies: no room is taken, but a change to one is a change to both.
      notify: is told what the user should know, in sentences.
      on_progress: called with the number of steps done, of two an image: fingerprinted, then written.

    Returns:
      The number of images by (class, split).

    Raises:
      UserError: `output` is not empty or lies in the source, a label cannot be a folder's name, or as `splitting.deal`.
    """
    parts = splitting.check_fractions(fractions, seed)
    output = _checked_output(listing, output)
    _check_labels(listing)
    _check_folders(listing)
    found, prints, groups = _identified(listing, near_duplicates, notify, on_progress)
    splits = splitting.stratified_split([image.label for image in found], groups, parts, seed, notify)
    names = _names(found, prints)
    rows = [
        SplitRow(f"{split}/{image.label}/{name}", image.label, split, fingerprint.sha256)
        for image, split, name, fingerprint in zip(found, splits, names, prints, strict=True)
    ]
    with atomic_folder(output) as folder:
        for number, (image, row) in enumerate(zip(found, rows, strict=True), start=1):
            target = folder / row.path
            target.parent.mkdir(parents=True, exist_ok=True)
            _put(image.path, target, link)
            if on_progress is not None:
                on_progress(len(found) + number)
        _write(folder / "manifest.csv", sorted(rows))
        _clear_way(output)
    return Counter((row.label, row.split) for row in rows)


def write_folds(
    listing: DatasetIndex,
    output: Path,
    k: int,
    seed: int,
    *,
    near_duplicates: int,
    notify: Say,
    on_progress: SplitProgress | None = None,
) -> Counter[tuple[str, str]]:
    """Deals the images out to k folds and writes OUTPUT/fold-1.csv to fold-K.csv; no image is copied.

    Each file lists every image by its absolute path, sorted: fold i of fold-i.csv is its validation split, the others
    are its training split. Arguments and errors as for `write_folders`, but `on_progress` is called once an image;
    returns the number of images by (class, fold).
    """
    splitting.check_fractions({"train": 1.0}, seed)
    output = _checked_output(listing, output)
    _check_labels(listing)
    found, prints, groups = _identified(listing, near_duplicates, notify, on_progress)
    folds = splitting.stratified_kfold([image.label for image in found], groups, k, seed, notify)
    with atomic_folder(output) as folder:
        for fold in range(k):
            rows = [
                SplitRow(str(image.path), image.label, "validation" if own == fold else "train", fingerprint.sha256)
                for image, own, fingerprint in zip(found, folds, prints, strict=True)
            ]
            _write(folder / f"fold-{fold + 1}.csv", sorted(rows))
        _clear_way(output)
    return Counter((image.label, f"fold {fold + 1}") for image, fold in zip(found, folds, strict=True))


def _identified(
    listing: DatasetIndex, near_duplicates: int, notify: Say, on_progress: SplitProgress | None
) -> tuple[list[SourceImage], list[Fingerprint], list[list[int]]]:
    """The images in their order, their fingerprints, and the groups that stay together."""
    if listing.has_splits:
        notify(f"the splits that {listing.origin} gives ({', '.join(listing.splits)}) are pooled and dealt out anew")
    found, prints = manifest.fingerprint_images(listing, near_duplicates, on_progress)
    groups = duplicates.duplicate_groups(len(found), duplicates.near_duplicate_pairs(prints, near_duplicates))
    if groups:
        notify(f"{sum(map(len, groups))} images are like others and stay with them, in {len(groups)} group(s)")
    return found, prints, groups


def _checked_output(listing: DatasetIndex, output: Path) -> Path:
    output = output.expanduser().resolve()
    try:
        filled = output.exists() and any(output.iterdir())
    except OSError as error:
        raise UserError(f"cannot use {output} ({error.strerror}); give a new folder as --output") from error
    if filled:
        raise UserError(f"{output} is not empty; give a new folder as --output, or empty this one")
    if Path(listing.origin).is_dir() and output.is_relative_to(listing.origin):
        raise UserError(f"{output} lies within the source {listing.origin} and would become a part of it; move it out")
    return output


def _clear_way(output: Path) -> None:
    """A new folder cannot take the name of an old one everywhere, not even where that is empty."""
    if output.exists():
        output.rmdir()


def _check_labels(listing: DatasetIndex) -> None:
    """A list is read back with labels as they are but for those that `listing_csv` takes for a slip of the pen."""
    for label in listing.classes:
        if label != label.strip():
            raise UserError(f"the class {label!r} of {listing.origin} begins or ends with a space; rename it there")


def _check_folders(listing: DatasetIndex) -> None:
    for label in listing.classes:
        if label.startswith(".") or re.search(r"[/\\\x00]", label) or len(os.fsencode(label)) > _LONGEST:
            raise UserError(f"the class {label!r} of {listing.origin} cannot be a folder's name; rename it there")


def _names(found: Sequence[SourceImage], prints: Sequence[Fingerprint]) -> list[str]:
    """A name for each image that no other of its class has, on any file system."""
    shared = Counter((image.label, image.path.name.casefold()) for image in found)
    taken: set[tuple[str, str]] = set()
    names = []
    for image, fingerprint in zip(found, prints, strict=True):
        stem, suffix = image.path.stem, image.path.suffix
        name, copy = image.path.name, 1
        if shared[image.label, name.casefold()] > 1:
            stem = _shortened(stem, f"-{fingerprint.sha256[:8]}", suffix)
            name = stem + suffix
        while (image.label, name.casefold()) in taken:  # an equal file of an equal name, out of another folder
            copy += 1
            name = _shortened(stem, f"-{copy}", suffix) + suffix
        taken.add((image.label, name.casefold()))
        names.append(name)
    return names


def _shortened(stem: str, addition: str, suffix: str) -> str:
    """The stem of a name with something added to it, cut where the name would be longer than a file's can be."""
    while len(os.fsencode(stem + addition + suffix)) > _LONGEST:
        stem = stem[:-1]
    return stem + addition


def _put(source: Path, target: Path, link: bool) -> None:
    if not link:
        shutil.copy2(source, target)
        return
    try:
        os.link(source.resolve(), target)
    except OSError as error:
        raise UserError(f"cannot make a hard link to {source} ({error.strerror}); leave out --link") from error


def _write(file: Path, rows: Sequence[SplitRow]) -> None:
    # File names need not be Unicode: surrogateescape carries their bytes through.
    with file.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
        fileio.write_csv(stream, [COLUMNS, *rows])
