"""CSV files as sources: labels come from a table and not from the names of folders."""

import csv
import re
import stat
from collections.abc import Mapping, Sequence
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
"""The columns that a CSV file may have; the first two are required."""


def scan_csv(file: Path) -> DatasetIndex:
    """List the images of a CSV file in the order of its rows.

    The first row names the columns, in any order: path and label, and optionally split and sha256. Relative paths are
    relative to the folder of the file. A split is train, validation ('val', 'valid') or test, for every image or for
    none. The text is UTF-8, with or without a byte-order mark; empty rows are skipped.

    Raises:
      UserError: the file cannot be read or is not such a table, or a row is invalid (the header is row 1).
    """
    index, problems = _read(file)
    if problems:
        raise UserError(problems[0])
    return index


def inspect_csv(file: Path) -> IndexReport:
    """List the images of a CSV file with all problems. Raises UserError only if the file is not such a table."""
    index, problems = _read(file)
    return IndexReport(index, (*problems, *find_problems(index)))


def _read(file: Path) -> tuple[DatasetIndex, list[str]]:
    file = file.expanduser()
    header, *rows = _read_rows(file)
    columns = _parse_header(file, header)
    folder = file.resolve().parent
    images: dict[Path, SourceImage] = {}
    problems: list[str] = []
    for number, row in enumerate(rows, start=2):
        if not row:
            continue
        cells = dict.fromkeys(columns, "") | dict(zip(columns, row, strict=False))
        image = _parse_row(cells, folder)
        problem = _row_problem(cells, image)
        if len(row) != len(columns):
            problem = f"it has {len(row)} columns instead of {len(columns)}"
        elif image.path in images:
            problem = f"{image.path} is listed twice"
        if problem:
            problems.append(f"{file}, row {number}: {problem}. Correct or remove the row.")
        else:
            images[image.path] = image
    if not images and not problems:
        problems.append(f"{file} lists no images. Add one row per image.")
    return DatasetIndex(tuple(images.values()), str(file)), problems


def _read_rows(file: Path) -> list[list[str]]:
    """Return all rows; the first one is the header."""
    try:
        # File names need not be Unicode: surrogateescape preserves their bytes.
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            rows = list(csv.reader(stream, strict=True))
    except OSError as error:
        raise UserError(f"Cannot read the CSV file {file}: {error.strerror}. Check the path.") from error
    except csv.Error as error:
        raise UserError(f"{file} is not a table of comma-separated values ({error}). Correct it.") from error
    return rows or [[]]


def _parse_header(file: Path, header: Sequence[str]) -> list[str]:
    names = [name.strip().lower() for name in header]
    unexpected = set(names) - set(COLUMNS)
    if unexpected or not {"path", "label"} <= set(names) or len(set(names)) < len(names):
        raise UserError(
            f"The first row of {file} is {','.join(header)!r}. It must name the columns path and label, optionally "
            "split and sha256, separated by commas."
        )
    return names


def _parse_row(cells: Mapping[str, str], folder: Path) -> SourceImage:
    return SourceImage(
        path=folder / cells["path"],
        label=cells["label"],
        split=parse_split_name(cells.get("split", "")),
        sha256=cells.get("sha256", "").lower() or None,
    )


def _row_problem(cells: Mapping[str, str], image: SourceImage) -> str | None:
    """Return what is wrong with a row, or None."""
    if not cells["path"]:
        return "it has no path"
    if not image.label:
        return "it has no label"
    if image.label != image.label.strip():
        return f"its label {image.label!r} begins or ends with a space"
    if "split" in cells and image.split is None:
        return f"unknown split {cells['split']!r}; available: {', '.join(SPLITS)}"
    if image.sha256 is not None and not re.fullmatch("[0-9a-f]{64}", image.sha256):
        return f"{image.sha256!r} is not a SHA-256"
    return _file_problem(image.path)


def _file_problem(path: Path) -> str | None:
    """Return why `path` cannot be read as a file, or None."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return f"there is no file {path}"
    except (OSError, ValueError) as error:  # name too long, folder without permission, null byte
        return f"cannot access {path} ({getattr(error, 'strerror', error)})"
    if stat.S_ISDIR(mode):
        return f"{path} is a folder"
    # Reading from a named pipe would never return.
    return None if stat.S_ISREG(mode) else f"{path} is not a regular file"
