"""Terminal output: messages, tables and progress bars in one style."""

import importlib
import os
import re
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from html import escape
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

PIPE_WIDTH = 140
"""Width, in columns, of output to a file or a pipe."""

MAX_ROWS = 50
"""Maximum number of rows of a console table; a longer table ends with the number of omitted rows."""

LINE_SECONDS = 60.0
"""Time between two lines about a task that is still running, in a file or a pipe."""

NOTEBOOK_SECONDS = 0.5
"""Time between two updates of a notebook's output, which is sent to the browser."""

SPEED_SECONDS = 3600.0
"""Time over which the speed of a task is averaged: long enough for several steps of a large network on a CPU."""

ProgressFn = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""(title, total) -> a context that shows a progress bar and yields the function that advances it: `progress_bar`."""

_NUMBER = re.compile(r"\d\S*( \S{1,4})*")
"""A number with short words, as in '2 min 05 s', '24 of 24' or '7 % - 9 %'; not a sentence that starts with one."""

_INVISIBLE = frozenset(("Cc", "Cs", "Zl", "Zp"))  # Unicode categories: controls, surrogates, line separators
_BIDI_CONTROLS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # they reverse the text after them


def make_console(*, stderr: bool = False) -> Console:
    """Return the console of a command; output to a file or pipe is PIPE_WIDTH wide, enough for every table.

    A notebook gets the text of a pipe, one output for all lines: rich would make an output of every line, and the
    standard output of a kernel claims to be a terminal.
    """
    is_terminal = Console(stderr=stderr).is_terminal and not in_notebook()
    width = None if is_terminal else PIPE_WIDTH
    return SafeConsole(stderr=stderr, emoji=False, width=width, force_terminal=is_terminal, force_jupyter=False)


class SafeConsole(Console):
    """A rich Console for long work: it replaces unprintable characters, as in file names, and outlives its reader."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Convert to rich Text, as Console does, after making every line printable."""
        return super().render_str(printable(text, keep="\n"), **options)

    def on_broken_pipe(self) -> None:
        """Go on without output when the reader of a pipe, such as `head`, has ended; Console would end the process."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


def message(console: Console, text: str, *, style: str | None = None) -> None:
    """Print `text` as it is: no markup, no highlighting, no line wrapping (so that paths can be copied)."""
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def print_box(console: Console, lines: Sequence[str]) -> None:
    """Print lines in a box; between two rules if one is too long for it, so that commands and paths can be copied.

    To a file or a pipe they are plain lines.
    """
    if console.is_terminal and max(map(len, lines)) <= console.width - 4:
        console.print(Panel.fit(_text("\n".join(lines))))
        return
    text = "\n".join(lines)
    if not console.is_terminal:
        message(console, text)
        return
    console.print(Rule(style="none"))
    message(console, text)
    console.print(Rule(style="none"))


def make_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a plain table. Columns of numbers, also with units, are right-aligned; long cells are folded, not cut."""
    table = Table(title=_text(title, "table.title"), title_justify="left", box=SIMPLE_HEAD)
    for number, column in enumerate(columns):
        numeric = bool(number and rows) and all(_NUMBER.fullmatch(row[number]) for row in rows if row[number])
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
    """Show the progress of a task, and one line at its end; yields the function that advances it by a number of items.

    See `ProgressBar`.
    """
    with task_progress(console, title, total) as bar:
        yield lambda items: bar.update(bar.completed + items)


@contextmanager
def task_progress(console: Console, title: str, total: int) -> Iterator["ProgressBar"]:
    """Show the progress of a task, and one line at its end; yields the bar."""
    with ProgressBar(console, title, total) as bar:
        yield bar
    message(console, f"{title}: {total:,} in {format_duration(bar.elapsed)}")


class ProgressBar:
    """The progress of one task while it runs, with the time that is left; a context manager.

    A terminal and a notebook show a bar, which disappears at the end; other outputs get a line every LINE_SECONDS.

    Args:
      console: where it is shown.
      title: what is done.
      total: number of items.
      completed: number of items that were done earlier; they do not count for the speed.
      describe: returns the text for a number of completed items.
    """

    def __init__(
        self,
        console: Console,
        title: str,
        total: int,
        completed: int = 0,
        describe: Callable[[int], str] | None = None,
    ) -> None:
        self._console, self._title = console, title
        self._describe = describe or (lambda done: f"{done:,}/{total:,}")
        self._rich = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            speed_estimate_period=SPEED_SECONDS,
        )
        text = self._describe(completed)
        self._id = self._rich.add_task(printable(title), total=total, completed=completed, text=text)
        self._task = self._rich.tasks[0]
        self._shown_at = time.monotonic()
        self._notebook: Any = None  # the output that changes

    def __enter__(self) -> "ProgressBar":
        if self._console.is_terminal:
            self._rich.start()
        elif in_notebook() and not self._console.quiet:
            display = importlib.import_module("IPython.display").display  # in every notebook, so no requirement
            self._notebook = display(self._html(), raw=True, display_id=True)
        return self

    def __exit__(self, *error: object) -> None:
        if self._console.is_terminal:
            self._rich.stop()
        if self._notebook is not None:
            self._notebook.update({"text/plain": "", "text/html": ""}, raw=True)

    @property
    def completed(self) -> int:
        """Number of completed items."""
        return int(self._task.completed)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._task.elapsed or 0.0

    @property
    def speed(self) -> float | None:
        """Items per second since the first update, which is often slow, as programs are compiled; None before it."""
        return self._task.speed or self._task.finished_speed

    def update(self, completed: int) -> None:
        """Set the number of completed items."""
        self._rich.update(self._id, completed=completed, text=self._describe(completed))
        if self._console.is_terminal:
            return  # rich shows it at regular intervals
        seconds = time.monotonic() - self._shown_at
        if self._notebook is not None and seconds > NOTEBOOK_SECONDS:
            self._shown_at += seconds
            self._notebook.update(self._html(), raw=True)
        elif self._notebook is None and seconds > LINE_SECONDS and not self._task.finished:
            self._shown_at += seconds
            message(self._console, f"{self._title}: {self._describe(completed)}{self._time_left()}")

    def _time_left(self) -> str:
        seconds = self._task.time_remaining
        return f", {format_duration(seconds)} left" if seconds else ""

    def _html(self) -> dict[str, str]:
        """Return the state as the data of a notebook's output."""
        title, text = escape(printable(self._title)), f"{self._describe(self.completed)}{self._time_left()}"
        bar = f'<progress value="{self.completed}" max="{self._task.total:.0f}"></progress>'
        return {"text/plain": f"{self._title}: {text}", "text/html": f"<pre>{title} {bar} {escape(text)}</pre>"}


def in_notebook() -> bool:
    """Whether this process is the kernel of a Jupyter notebook."""
    return Console().is_jupyter


def format_duration(seconds: float) -> str:
    """Return 850 ms, 12.3 s, 2 min 05 s or 1 h 02 min."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


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
