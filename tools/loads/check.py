"""What a load comes to: rows of a table, each fine or not."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from loads.command import Done


@dataclass(frozen=True)
class Row:
    """One thing that was tried: wall seconds, peak memory in MiB (nan where not measured), what came of it."""

    what: str
    seconds: float
    mebibytes: float
    found: str
    fine: bool


def ended(done: Done, *, codes: Iterable[int] = (0,), lines: int = 120, most: float = 2048, found: str = "") -> Row:
    """A command: it must end with one of `codes`, without a traceback or a warning of Python's, on a screen or two.

    `lines` bounds what it may print, `most` its memory in MiB; `found` is told where all is well.
    """
    faults = [
        told
        for told, wrong in (
            (f"exit code {done.code}", done.code not in set(codes)),
            ("a fault of its own", "a fault in flaxtl itself" in done.said),
            ("a traceback", "Traceback (most recent call last)" in done.said),
            ("a warning of Python's", "Warning:" in done.said),
            (f"{done.lines:,} lines on the console", done.lines > lines),
            (f"more than {most:,.0f} MiB", done.mebibytes > most),
        )
        if wrong
    ]
    told = ", ".join(faults) + f": {done.last[:200]}" if faults else found or f"{done.lines} lines"
    return Row(done.what, done.seconds, done.mebibytes, told, not faults)


def line(row: Row) -> str:
    """A row as one line of text, marked where it is not fine."""
    memory = "" if math.isnan(row.mebibytes) else f"{row.mebibytes:.0f}"
    return f"{'ok' if row.fine else 'BAD':4}{row.what:44}{row.seconds:9.1f}{memory:>8}  {row.found}"


def table(rows: Iterable[Row]) -> str:
    """All rows under a header."""
    return "\n".join([f"{'':4}{'what':44}{'seconds':>9}{'MiB':>8}  found", *map(line, rows)])
