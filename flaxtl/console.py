"""Terminal output: messages, tables and progress bars in one style."""

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

PIPE_WIDTH = 140
"""Width, in columns, of output to a file or a pipe."""

MAX_ROWS = 50
"""Maximum number of rows of a console table; a longer table ends with the number of omitted rows."""

_INVISIBLE = frozenset(("Cc", "Cs", "Zl", "Zp"))  # Unicode categories: controls, surrogates, line separators
_BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # they reverse the text after them


def make_console(*, stderr: bool = False) -> Console:
    """Return the console of a command; output to a file or pipe is PIPE_WIDTH wide, enough for every table."""
    console = SafeConsole(stderr=stderr, emoji=False)
    return console if console.is_terminal else SafeConsole(stderr=stderr, emoji=False, width=PIPE_WIDTH)


class SafeConsole(Console):
    """A rich Console that replaces unprintable characters, which file names and labels may contain."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Convert to rich Text, as Console does, after making every line printable."""
        return super().render_str(printable(text, keep="\n"), **options)


def message(console: Console, text: str, *, style: str | None = None) -> None:
    """Print `text` as it is: no markup, no highlighting, no line wrapping (so that paths can be copied)."""
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def print_box(console: Console, lines: Sequence[str]) -> None:
    """Print lines in a box; to a file or a pipe, as plain lines."""
    if not console.is_terminal:
        message(console, "\n".join(lines))
    else:
        console.print(Panel.fit(_text("\n".join(lines))))


def make_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a plain table. Columns of numbers are right-aligned; long cells are folded, not cut off."""
    table = Table(title=_text(title, "table.title"), title_justify="left", box=SIMPLE_HEAD)
    for number, column in enumerate(columns):
        numeric = bool(number and rows) and all(row[number][:1].isdigit() for row in rows if row[number])
        table.add_column(_text(column), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(_text, row))
    return table


def truncate_rows(rows: Sequence[Sequence[str]], where: str) -> list[Sequence[str]]:
    """Return the first MAX_ROWS rows, and a last one that counts the rest: 'and 950 more' followed by `where`."""
    if len(rows) <= MAX_ROWS:
        return list(rows)
    more = f"and {len(rows) - MAX_ROWS:,} more{where}"
    return [*rows[:MAX_ROWS], (more, *[""] * (len(rows[0]) - 1))]


@contextmanager
def progress_bar(console: Console, title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar with a time estimate; yields the function that advances it by a number of items."""
    with make_progress(console) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.advance(task, done)


def make_progress(console: Console) -> Progress:
    """Return an empty set of progress bars; if the output is not a terminal, each prints one line at its end."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console)


def printable(text: str, keep: str = "") -> str:
    """Replace characters that corrupt a terminal or a web page: controls, broken UTF-8, changes of text direction.

    Args:
      text: such as a file name or a label.
      keep: characters to leave as they are.
    """
    return "".join(char if char in keep or not _is_unprintable(char) else "\N{REPLACEMENT CHARACTER}" for char in text)


def _is_unprintable(char: str) -> bool:
    return char in _BIDI_CONTROLS or unicodedata.category(char) in _INVISIBLE


def _text(text: str, style: str = "") -> Text:
    return Text(printable(text, keep="\n"), style=style)
