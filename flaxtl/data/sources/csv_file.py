"""What a CSV file lists: the images of a source whose labels are in a table and not in the names of folders."""

import csv
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from flaxtl.data.sources.image_folder import (
    SPLITS,
    DatasetIndex,
    IndexReport,
    SourceImage,
    find_problems,
    parse_split_name,
)
from flaxtl.errors import UserError

COLUMNS = ("path", "label", "split", "sha256")
"""What a CSV file may tell of an image; the first two it must."""


def scan_csv(file: Path) -> DatasetIndex:
    """The images that a CSV file lists, in the order of its rows.

    The first row names the columns, in any order: path and label, and if wanted split and sha256. A path that is not
    absolute counts from the folder of the file. A split is train, validation ('val', 'valid') or test, for every
    image or for none. The text is UTF-8, with or without a byte-order mark; empty rows are skipped.

    Raises:
      UserError: the file cannot be read, is no such table, or its first faulty row, by its number (the first row is 1).
    """
    listing, complaints = _read(file)
    if complaints:
        raise UserError(complaints[0])
    return listing


def inspect_csv(file: Path) -> IndexReport:
    """What `of_csv` lists and all that keeps it from being trained on; raises only where the file is no such table."""
    listing, complaints = _read(file)
    return IndexReport(listing, (*complaints, *find_problems(listing)), ())


def _read(file: Path) -> tuple[DatasetIndex, list[str]]:
    file = file.expanduser()
    header, *rows = _rows(file)
    columns = _columns(file, header)
    nothing = dict.fromkeys(columns, "")
    folder = file.resolve().parent
    found: dict[Path, SourceImage] = {}
    complaints: list[str] = []
    for number, row in enumerate(rows, start=2):
        if not row:
            continue
        image, fault = _image(nothing | dict(zip(columns, row, strict=False)), folder)
        if len(row) != len(columns):
            fault = f"it has {len(row)} columns instead of {len(columns)}"
        elif image.path in found:
            fault = f"{image.path} was listed before"
        if fault:
            complaints.append(f"{file} has a fault in row {number}: {fault}; correct the row or remove it")
        else:
            found[image.path] = image
    if not found and not complaints:
        complaints.append(f"{file} lists no images; give it one row per image")
    return DatasetIndex(tuple(found.values()), str(file)), complaints


def _rows(file: Path) -> list[list[str]]:
    """The rows, the first of which is the header."""
    try:
        # File names need not be Unicode: surrogateescape carries their bytes through.
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            rows = list(csv.reader(stream, strict=True))
    except OSError as error:
        raise UserError(f"cannot read the CSV file {file}: {error.strerror}; check the path") from error
    except csv.Error as error:
        raise UserError(f"{file} is no table of comma-separated values ({error}); correct it") from error
    return rows or [[]]


def _columns(file: Path, header: Sequence[str]) -> list[str]:
    names = [name.strip().lower() for name in header]
    strange = [name for name in names if name not in COLUMNS]
    if strange or not {"path", "label"} <= set(names) or len(set(names)) < len(names):
        raise UserError(
            f"the first row of {file} is {','.join(header)!r}; it must name the columns path and label, may name split"
            " and sha256, and nothing else, with commas between them"
        )
    return names


def _image(row: dict[str, str], folder: Path) -> tuple[SourceImage, str | None]:
    """The image of a row, and what is wrong with it."""
    label, split, sha256 = row.get("label", ""), row.get("split"), row.get("sha256", "").lower() or None
    found = SourceImage(folder / row["path"], label, parse_split_name(split) if split is not None else None, sha256)
    fault = None
    if not row["path"]:
        fault = "it has no path"
    elif not label:
        fault = "it has no label"
    elif label != label.strip():
        fault = f"its label {label!r} begins or ends with a space"
    elif split is not None and found.split is None:
        fault = f"{split!r} is no split, which is one of {', '.join(SPLITS)}"
    elif sha256 is not None and not re.fullmatch("[0-9a-f]{64}", sha256):
        fault = f"{sha256!r} is no SHA-256"
    else:
        fault = _unlike_a_file(found.path)
    return found, fault


def _unlike_a_file(path: Path) -> str | None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return f"there is no file {path}"
    except (OSError, ValueError) as error:  # too long a name, a folder that may not be entered, a zero byte
        return f"cannot reach {path} ({getattr(error, 'strerror', error)})"
    if stat.S_ISDIR(mode):
        return f"{path} is a folder"
    # Reading from a named pipe would wait for ever.
    return None if stat.S_ISREG(mode) else f"{path} is no ordinary file"
