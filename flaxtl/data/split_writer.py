"""`flaxtl split`: write a split of a source as folders of images, or its folds as CSV files for cross-validation."""

import os
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from flaxtl import fileio
from flaxtl.data import duplicates, manifest, record_files, splitting
from flaxtl.data.duplicates import Fingerprint
from flaxtl.data.file_listing import is_visible
from flaxtl.data.sources.class_folders import MAX_NAME
from flaxtl.data.sources.csv_file import COLUMNS
from flaxtl.data.sources.image_folder import MANIFEST_NAME, SPLITS, DatasetIndex, SourceImage, parse_split_name
from flaxtl.errors import UserError
from flaxtl.fileio import atomic_folder

_MAX_SUFFIX = 16  # characters; what follows the last dot of a long name, such as that of a sentence, is no suffix

Progress = Callable[[int], None]
Notify = Callable[[str], None]


class SplitRow(NamedTuple):
    """One row of a written CSV file."""

    path: str
    label: str
    split: str
    sha256: str


def parse_fractions(text: str) -> dict[str, float]:
    """Parse '0.5,0.2,0.3' as fractions of train, validation and test, or 'train=0.6,holdout=0.4' as named fractions.

    Names consist of letters, digits, '-' and '_'; 'val' and 'valid' mean validation. Raises UserError otherwise.
    """
    parts = [part.strip() for part in text.split(",")]
    named = ["=" in part for part in parts]
    if not all(named) and (any(named) or len(parts) > len(SPLITS)):
        raise UserError(
            f"The fractions {text!r} are ambiguous. Name each, as in train=0.5,validation=0.2,test=0.3, or give up to "
            f"{len(SPLITS)} without names, for {', '.join(SPLITS)}."
        )
    pairs = [part.split("=", 1) for part in parts] if all(named) else list(zip(SPLITS, parts, strict=False))
    fractions: dict[str, float] = {}
    for name, number in pairs:
        split = parse_split_name(name) or name
        if split in fractions or not re.fullmatch(r"\w[\w-]*", split):
            raise UserError(f"In the fractions {text!r}, {name!r} is given twice or is not a valid name of a split.")
        try:
            fractions[split] = float(number)
        except ValueError as error:
            raise UserError(f"In the fractions {text!r}, {number!r} is not a number.") from error
    return fractions


def write_folders(
    index: DatasetIndex,
    output: Path,
    fractions: Mapping[str, float],
    seed: int,
    *,
    near_duplicates: int,
    link: bool,
    notify: Notify,
    on_progress: Progress | None = None,
) -> Counter[tuple[str, str]]:
    """Split the images into OUTPUT/SPLIT/CLASS/NAME and list them in OUTPUT/manifest.csv.

    manifest.csv has the columns path (relative to OUTPUT), label, split and sha256, is sorted by path, and can be used
    as a csv: source. If the paths of two images differ at most in upper case or in the form of Unicode characters, the
    first 8 digits of the SHA-256 are appended to the name of each; a hidden name gets '_' in front. Splits that the
    source defines are not kept; `notify` is called with a message.

    Args:
      index: the images of the source.
      output: a folder that does not exist or is empty; it is filled completely or not at all.
      fractions: of each split, with sum 1.
      seed: 0 or more; the split depends on it, but not on where the images are stored.
      near_duplicates: the threshold of `duplicates.duplicate_groups`.
      link: create hard links instead of copies: they use no space, but a change to one changes both.
      notify: called with messages for the user.
      on_progress: called with the number of completed steps, two per image: fingerprinted, then written.

    Returns:
      The number of images by (class, split).

    Raises:
      UserError: `output` is not empty or is inside the source, a label is not a valid folder name, or as
        `splitting.stratified_split`.
    """
    used_fractions = splitting.check_fractions(fractions, seed)
    output = _check_output(index, output)
    _check_labels(index)
    _check_folder_names(index)
    images, fingerprints, groups = _prepare(index, near_duplicates, notify, on_progress)
    splits = splitting.stratified_split([image.label for image in images], groups, used_fractions, seed, notify)
    rows = [
        SplitRow(f"{split}/{image.label}/{name}", image.label, split, fingerprint.sha256)
        for image, split, name, fingerprint in zip(
            images, splits, _unique_names(images, fingerprints), fingerprints, strict=True
        )
    ]
    with atomic_folder(output) as folder:
        for number, (image, row) in enumerate(zip(images, rows, strict=True), start=1):
            target = folder / row.path
            target.parent.mkdir(parents=True, exist_ok=True)
            _copy(image.path, target, link)
            if on_progress is not None:
                on_progress(len(images) + number)
        _write_csv(folder / MANIFEST_NAME, sorted(rows))
        _remove_empty(output)
    return Counter((row.label, row.split) for row in rows)


def write_folds(
    index: DatasetIndex,
    output: Path,
    k: int,
    seed: int,
    *,
    near_duplicates: int,
    notify: Notify,
    on_progress: Progress | None = None,
) -> Counter[tuple[str, str]]:
    """Split the images into k folds and write OUTPUT/fold-1.csv to fold-K.csv; no image is copied.

    Each file lists every image by its absolute path, sorted: in fold-i.csv, fold i is the validation split and the
    others are the training split. Arguments and errors as for `write_folders`, but `on_progress` is called once per
    image.

    Returns:
      The number of images by (class, fold).
    """
    splitting.check_fractions({"train": 1.0}, seed)
    output = _check_output(index, output)
    _check_labels(index)
    images, fingerprints, groups = _prepare(index, near_duplicates, notify, on_progress)
    folds = splitting.stratified_kfold([image.label for image in images], groups, k, seed, notify)
    with atomic_folder(output) as folder:
        for fold in range(k):
            rows = [
                SplitRow(str(image.path), image.label, "validation" if own == fold else "train", fingerprint.sha256)
                for image, own, fingerprint in zip(images, folds, fingerprints, strict=True)
            ]
            _write_csv(folder / f"fold-{fold + 1}.csv", sorted(rows))
        _remove_empty(output)
    return Counter((image.label, f"fold {fold + 1}") for image, fold in zip(images, folds, strict=True))


def _prepare(
    index: DatasetIndex, near_duplicates: int, notify: Notify, on_progress: Progress | None
) -> tuple[list[SourceImage], list[Fingerprint], list[list[int]]]:
    """Return the images in a fixed order, their fingerprints, and the groups that stay together."""
    for message in index.messages:
        notify(message)
    if index.has_splits:
        notify(f"Splitting all images again: the splits of {index.origin} ({', '.join(index.splits)}) are not kept.")
    images, fingerprints = manifest.fingerprint_images(index, near_duplicates, on_progress)
    groups = duplicates.duplicate_groups(fingerprints, near_duplicates)
    if groups:
        n = len(groups)
        notify(f"{sum(map(len, groups))} near-duplicates ({n} group{'s' if n > 1 else ''}) kept in the same split")
    return images, fingerprints, groups


def _check_output(index: DatasetIndex, output: Path) -> Path:
    output = output.resolve()
    try:
        filled = output.exists() and any(output.iterdir())
    except OSError as error:
        raise UserError(f"Cannot use {output} ({error.strerror}). Use a new folder as --output.") from error
    if filled:
        raise UserError(f"{output} is not empty. Use a new folder as --output, or empty this one.")
    if Path(index.origin).is_dir() and output.is_relative_to(index.origin):
        raise UserError(f"{output} is inside the source {index.origin} and would become part of it. Use another.")
    return output


def _remove_empty(output: Path) -> None:
    """Remove the empty output folder: on some systems a folder cannot be renamed to an existing one."""
    if output.exists():
        output.rmdir()


def _check_labels(index: DatasetIndex) -> None:
    """Reject labels that the written CSV file could not be read back with."""
    for label in index.classes:
        if label != label.strip():
            raise UserError(f"The class {label!r} of {index.origin} begins or ends with a space. Rename it there.")


def _check_folder_names(index: DatasetIndex) -> None:
    for label in index.classes:
        if label.startswith(".") or re.search(r"[/\\\x00]", label) or len(os.fsencode(label)) > MAX_NAME:
            raise UserError(f"The class {label!r} of {index.origin} is not a valid folder name. Rename it there.")


def _unique_names(images: Sequence[SourceImage], fingerprints: Sequence[Fingerprint]) -> list[str]:
    """Return a file name for each image that is unique within its class on any file system."""
    own_names = [_visible_name(image.path) for image in images]
    occurrences = Counter(_folded(image.label, name) for image, name in zip(images, own_names, strict=True))
    taken: set[str] = set()
    names = []
    for image, name, fingerprint in zip(images, own_names, fingerprints, strict=True):
        if occurrences[_folded(image.label, name)] > 1:
            name = _append_to_stem(name, f"-{fingerprint.sha256[:8]}")
        first, copy = name, 1
        while _folded(image.label, name) in taken:  # an equal file with the same name, from another folder
            copy += 1
            name = _append_to_stem(first, f"-{copy}")
        taken.add(_folded(image.label, name))
        names.append(name)
    return names


def _folded(label: str, name: str) -> str:
    """Return what the path of an image has in common with all that macOS takes for the same, also the class folder."""
    return unicodedata.normalize("NFC", f"{label}/{name}").casefold()


def _visible_name(path: Path) -> str:
    """Return the name of a file, after '_' if it is hidden: a CSV file may list it, but a folder would not."""
    return path.name if is_visible(path) else _append_to_stem(f"_{path.name}", "")


def _append_to_stem(name: str, addition: str) -> str:
    """Append to the stem of a file name, truncating it if the name would be too long."""
    stem, suffix = Path(name).stem, Path(name).suffix
    if len(suffix) > _MAX_SUFFIX:
        stem, suffix = name, ""
    while len(os.fsencode(stem + addition + suffix)) > MAX_NAME:
        stem = stem[:-1]
    return stem + addition + suffix


def _copy(source: Path, target: Path, link: bool) -> None:
    if not link:
        if record_image := record_files.parse_path(source):
            target.write_bytes(record_image.read())
        else:
            shutil.copy2(source, target)
        return
    try:
        os.link(source.resolve(), target)
    except OSError as error:
        raise UserError(f"Cannot create a hard link to {source} ({error.strerror}). Remove --link.") from error


def _write_csv(file: Path, rows: Sequence[SplitRow]) -> None:
    # File names need not be Unicode: surrogateescape preserves their bytes.
    with file.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
        fileio.write_csv(stream, [COLUMNS, *rows])
