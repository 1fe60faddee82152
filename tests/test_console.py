"""What is printed: names do nothing but to be read, and tables end."""

import io
import re

import pytest
from rich.progress import Progress

from flaxtl import console
from flaxtl.console import SCREENFUL, Screen, printable, screenful, table


def printed(*things, **options) -> str:
    screen = Screen(file=io.StringIO(), width=100, emoji=False)
    screen.print(*things, **options)
    return screen.file.getvalue()


@pytest.mark.parametrize("letter", ["\x1b", "\x07", "\r", "\n", "\x9b", "\udcff", "\u2028", "\u202e", "\0"])
def test_what_is_not_printable_is_replaced(letter):
    assert printable(f"a{letter}b") == "a\N{REPLACEMENT CHARACTER}b"


@pytest.mark.parametrize(
    "name", ["cafe\u0301", "\U0001f469\u200d\U0001f52c", "\u05d0\u05d1", "\u7261\u4e39", "a\u00a0b", "<&>"]
)
def test_every_script_is_printable(name):
    assert printable(name) == name


def test_sentences_are_printed_as_they_are():
    told = printed("flaxtl: no a[/bold].png :cat: \x1b[2J\nnext", markup=False, highlight=False)
    assert told == "flaxtl: no a[/bold].png :cat: \N{REPLACEMENT CHARACTER}[2J\nnext\n"


def test_tables_hold_names_as_they_are():
    told = printed(table("a[/x]", ("b[/y]", "n"), [("c[/z] :cat: \x1b[2J", "1"), ("\udcff", "2")]))
    assert all(name in told for name in ("a[/x]", "b[/y]", "c[/z] :cat: \N{REPLACEMENT CHARACTER}[2J"))
    assert "\x1b" not in told


def test_bars_hold_names_as_they_are():
    screen = Screen(file=io.StringIO(), width=100)
    progress: Progress
    with console.make_progress(screen) as progress:
        progress.add_task("phase [/bold]", total=1, completed=1)
    assert "phase [/bold]" in screen.file.getvalue()


def test_long_tables_end_with_a_count():
    rows = [(f"class{number}", "1") for number in range(SCREENFUL + 1000)]
    assert screenful(rows[:SCREENFUL], "") == rows[:SCREENFUL]
    shown = screenful(rows, " classes, all in --json=FILE")
    assert shown[:-1] == rows[:SCREENFUL]
    last, empty = shown[-1]
    assert re.search(r"\b1,000\b.* classes, all in --json=FILE$", last)
    assert empty == ""
    assert len(printed(table("Images", ("class", "all"), shown)).splitlines()) < SCREENFUL + 8
