"""The text of a CSV file as people save it: encodings, delimiters, a line `sep=;`, and comments."""

import codecs
import csv
import re
from io import StringIO
from pathlib import Path
from typing import NamedTuple

from flaxtl.errors import UserError
from flaxtl.fileio import suggest_path

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}

WINDOWS_ENCODING = "cp1252"
"""What Excel saves 'CSV' in, in Western languages."""

# The mark of UTF-32 begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class Table(NamedTuple):
    """The rows of a file.

    Attributes:
      header: names of the columns, stripped and in lower case.
      rows: (number of the row in the file, from 1; cells), without comments before the header and empty rows.
    """

    header: list[str]
    rows: list[tuple[int, list[str]]]


def read_bytes(file: Path) -> bytes:
    """Return the content of the file. Raises UserError if it cannot be read."""
    try:
        return file.read_bytes()
    except OSError as error:
        advice = "Check the path." if file.exists() else suggest_path(file)
        raise UserError(f"Cannot read the CSV file {file}: {error.strerror}. {advice}") from error


def decode_text(file: Path, content: bytes, encoding: str = "") -> str:
    """Return the text of a file.

    Args:
      file: named in errors.
      content: its bytes.
      encoding: if not given, that of the byte-order mark, else UTF-8; then other bytes are kept as lone surrogates,
        because file names need not be Unicode.

    Raises:
      UserError: the bytes are not text of this encoding.
    """
    marked = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "")
    try:
        if encoding or marked:
            return content.decode(encoding or marked)
        return content.decode("utf-8", errors="surrogateescape")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not text in UTF-8, UTF-16 or Windows-1252 ({error.reason} at byte {error.start}). Save it as "
            "'CSV UTF-8'."
        ) from error


def parse_table(file: Path, text: str, required: set[str]) -> Table:
    """Split the text into rows at the delimiter that a line `sep=` names, or that makes a header with `required`.

    Raises:
      UserError: the quotes are damaged. A header without `required` is returned as it is.
    """
    declared = re.match(r'"?sep=([,;\t])"?\r?\n', text, re.IGNORECASE)
    start = declared.end() if declared else 0
    delimiter = declared[1] if declared else _guess_delimiter(text, required)
    rows: list[tuple[int, list[str]]] = []
    try:
        lines = csv.reader(StringIO(text[start:], newline=""), delimiter=delimiter, strict=True)
        for number, row in enumerate(lines, start=2 if declared else 1):
            if any(cell.strip() for cell in row) and (rows or not row[0].startswith("#")):
                rows.append((number, row))
    except csv.Error as error:
        raise UserError(
            f"{file} is not a table of values separated by {DELIMITERS[delimiter]} ({error}). Correct it."
        ) from error
    header = [name.strip().lower() for name in rows[0][1]] if rows else []
    return Table(header, rows[1:])


def _guess_delimiter(text: str, required: set[str]) -> str:
    """Return the delimiter that makes the first line a header with the required names; a comma if none does."""
    lines = (line for line in StringIO(text, newline=None) if line.strip(" ,;\t\n") and not line.startswith("#"))
    header = next(lines, "")
    for delimiter in DELIMITERS:
        try:
            names = next(csv.reader([header], delimiter=delimiter), [])
        except csv.Error:  # a cell beyond the limit of the module
            continue
        if required <= {name.strip().lower() for name in names}:
            return delimiter
    return ","
