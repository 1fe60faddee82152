"""How flaxtl speaks on a terminal: tables and progress bars of one look."""

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

WIDE = 140
"""Columns of output that goes to a file or a pipe."""

SCREENFUL = 50
"""Rows of a table after which only their number is told, and classes after which a list of them is left to a file."""

_UNSEEN = frozenset(("Cc", "Cs", "Zl", "Zp"))  # Unicode's categories of controls, surrogates and separators of lines
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # text before them reads backwards


def printable(text: str, keep: str = "") -> str:
    """`text` without what a file name may hold and a terminal or a page may not.

    Control characters but those in `keep`, broken UTF-8 and what turns the direction of writing are replaced.
    """
    return "".join(letter if letter in keep or not _harmful(letter) else "\N{REPLACEMENT CHARACTER}" for letter in text)


def _harmful(letter: str) -> bool:
    return letter in _TURNING or unicodedata.category(letter) in _UNSEEN


class Screen(Console):
    """A console on which no text, whatever file names it quotes, does more than to be read."""

    def render_str(self, text: str, **options: Any) -> Text:
        """As a Console does, with every line made printable."""
        return super().render_str(printable(text, keep="\n"), **options)


def console(*, errors: bool = False) -> Console:
    """The console of a command; where the output is no terminal, lines are wide enough for every table."""
    made = Screen(stderr=errors, emoji=False)
    return made if made.is_terminal else Screen(stderr=errors, emoji=False, width=WIDE)


def table(title: str, columns: Sequence[str], cells: Sequence[Sequence[str]]) -> Table:
    """A plain table, numbers to the right; nothing is cut off where it is narrow."""
    made = Table(title=Text(printable(title, keep="\n"), style="table.title"), title_justify="left", box=SIMPLE_HEAD)
    for number, column in enumerate(columns):
        numeric = bool(number and cells) and all(row[number][:1].isdigit() for row in cells if row[number])
        made.add_column(Text(printable(column, keep="\n")), justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        made.add_row(*(Text(printable(cell, keep="\n")) for cell in row))
    return made


def screenful(cells: Sequence[Sequence[str]], rest: str) -> list[Sequence[str]]:
    """The first SCREENFUL rows and one that counts the others: 'and 950 more', followed by `rest`."""
    if len(cells) <= SCREENFUL:
        return list(cells)
    told = f"and {len(cells) - SCREENFUL:,} more{rest}"
    return [*cells[:SCREENFUL], (told, *[""] * (len(cells[0]) - 1))]


@contextmanager
def progress_bar(console: Console, title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar with a time estimate; yields the function that advances it."""
    with make_progress(console) as progress:
        task: TaskID = progress.add_task(title, total=total)
        yield lambda done: progress.advance(task, done)


def make_progress(console: Console) -> Progress:
    """The one look of all progress bars; where the output is no terminal, a line at the end."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console)
