"""Rows of comma-separated values that read back as they were, whatever file and class names they hold."""

import csv
from collections.abc import Iterable, Sequence
from typing import IO, Any


def write(stream: IO[Any], rows: Iterable[Sequence[object]]) -> None:
    """Write `rows` to `stream`, which was opened with newline=''.

    Rows with a carriage return are quoted throughout: before Python 3.13 the csv module leaves one bare that ends no
    line of its own, and its reader then takes it for the end of the row.
    """
    plain = csv.writer(stream, lineterminator="\n")
    quoted = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:
        (quoted if any(isinstance(cell, str) and "\r" in cell for cell in row) else plain).writerow(row)
