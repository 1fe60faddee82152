"""How flaxtl speaks on a terminal: tables and progress bars of one look."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
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

WIDE = 140
"""Columns of output that goes to a file or a pipe."""


def console(*, errors: bool = False) -> Console:
    """The console of a command; where the output is no terminal, lines are wide enough for every table."""
    made = Console(stderr=errors)
    return made if made.is_terminal else Console(stderr=errors, width=WIDE)


def table(title: str, columns: Sequence[str], cells: Sequence[Sequence[str]]) -> Table:
    """A plain table, numbers to the right; nothing is cut off where it is narrow."""
    made = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for number, column in enumerate(columns):
        numeric = bool(number and cells) and all(row[number][:1].isdigit() for row in cells)
        made.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        made.add_row(*(escape(cell) for cell in row))
    return made


@contextmanager
def advancing(console: Console, title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar with a time estimate; yields the function that advances it."""
    with bar(console) as progress:
        task: TaskID = progress.add_task(title, total=total)
        yield lambda done: progress.advance(task, done)


def bar(console: Console) -> Progress:
    """The one look of all progress bars; where the output is no terminal, a line at the end."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console)
