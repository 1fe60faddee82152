"""CSV files as sources: labels come from a table and not from the names of folders."""

import os
import re
import stat
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

from flaxtl.data import record_files
from flaxtl.data.sources import csv_text
from flaxtl.data.sources.csv_text import Table
from flaxtl.data.sources.image_folder import (
    SPLITS,
    DatasetIndex,
    IndexReport,
    SourceImage,
    find_problems,
    has_lone_bytes,
    parse_split_name,
)
from flaxtl.errors import UserError
from flaxtl.fileio import user_path

COLUMNS = ("path", "label", "split", "sha256")
"""The columns that are read from a CSV file; the first two are required."""


def scan_csv(file: Path) -> DatasetIndex:
    """List the images of a CSV file in the order of its rows.

    The first row names the columns, in any order: path and label, and optionally split and sha256; others are ignored.
    Relative paths are relative to the folder of the file. A split is train, validation ('val', 'valid') or test, for
    every image or for none. The delimiter is a comma, a semicolon or a tab. The text is UTF-8, UTF-16 with a byte-order
    mark, or Windows-1252. Empty rows are skipped, and rows that begin with '#', unless there is such a file.

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
    file = user_path(file)
    folder = file.resolve().parent
    content = csv_text.read_bytes(file)
    notes = []
    text = csv_text.decode_text(file, content)
    table = _read_table(file, text)
    if has_lone_bytes(text) and _is_another_encoding(table, folder):
        table = _read_table(file, csv_text.decode_text(file, content, csv_text.WINDOWS_ENCODING))
        notes.append(f"{file} is not UTF-8. It was read as Windows-1252, the encoding of Excel; check the class names.")
    if ignored := sorted(set(table.header) - {*COLUMNS, ""}):
        notes.append(f"{file}: ignored the columns {', '.join(ignored)}. Only {', '.join(COLUMNS)} are used.")
    images, problems = _parse_rows(file, table, folder)
    return DatasetIndex(tuple(images), str(file), root=_common_root(images, folder), notes=tuple(notes)), problems


def _common_root(images: Sequence[SourceImage], folder: Path) -> Path:
    """Return the folder of the CSV file if all images are in it, otherwise the deepest folder that they share."""
    parents = {str(image.path.parent) for image in images}
    if all(Path(parent).is_relative_to(folder) for parent in parents):
        return folder
    return Path(os.path.commonpath(parents))


def _read_table(file: Path, text: str) -> Table:
    """Return the table; it has a path and a label, and each of COLUMNS at most once."""
    table = csv_text.parse_table(file, text, {"path", "label"})
    known = [name for name in table.header if name in COLUMNS]
    if not {"path", "label"} <= set(known) or len(set(known)) < len(known):
        raise UserError(
            f"The first row of {file} is {','.join(table.header)!r}. It must name the columns path and label, "
            "optionally split and sha256, once each, separated by commas, semicolons or tabs."
        )
    return table


def _is_another_encoding(table: Table, folder: Path) -> bool:
    """Return whether bytes that are not UTF-8 are text: in a label, or in a path that does not exist."""
    return any(
        has_lone_bytes(cells["label"])
        or (has_lone_bytes(cells["path"]) and _file_problem(folder / cells["path"]) is not None)
        for cells in (_name_cells(table.header, row) for _, row in table.rows)
    )


def _name_cells(header: Sequence[str], row: Sequence[str]) -> dict[str, str]:
    """Return the cells of the known columns by name; missing ones are empty."""
    return {name: cell for name, cell in zip_longest(header, row, fillvalue="") if name in COLUMNS}


def _parse_rows(file: Path, table: Table, folder: Path) -> tuple[list[SourceImage], list[str]]:
    """Return the images of the valid rows and the problems of the others."""
    images: dict[Path, SourceImage] = {}
    problems: list[str] = []
    for number, row in table.rows:
        cells = _name_cells(table.header, row)
        image = _parse_row(cells, folder)
        if row[0].startswith("#") and _file_problem(image.path):
            continue
        problem = _row_problem(cells, image)
        if len(row) < len(table.header) or any(row[len(table.header) :]):
            problem = f"it has {len(row)} columns instead of {len(table.header)}"
        elif image.path in images:
            problem = f"{image.path} is listed twice"
        if problem:
            problems.append(f"{file}, row {number}: {problem}. Correct or remove the row.")
        else:
            images[image.path] = image
    if not images and not problems:
        problems.append(f"{file} lists no images. Add one row per image.")
    return list(images.values()), problems


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
    problem = _file_problem(image.path)
    return f"{problem} (write / instead of \\)" if problem and "\\" in cells["path"] else problem


def _file_problem(path: Path) -> str | None:
    """Return why `path` cannot be read as a file, or None."""
    if record_files.parse_path(path):
        return None if record_files.image_exists(path) else f"there is no image {path}"
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
