import io
import os
import re
import sys
from types import SimpleNamespace

import pytest

from flaxtl import console
from flaxtl.console import MAX_ROWS, SafeConsole, make_table, printable, truncate_rows


def printed(*objects) -> str:
    safe_console = SafeConsole(file=io.StringIO(), width=100, emoji=False)
    safe_console.print(*objects)
    return safe_console.file.getvalue()


@pytest.mark.parametrize("char", ["\x1b", "\x07", "\r", "\n", "\x9b", "\udcff", "\u2028", "\u202e", "\0"])
def test_printable_replaces_control_characters(char):
    assert printable(f"a{char}b") == "a\N{REPLACEMENT CHARACTER}b"


@pytest.mark.parametrize(
    "name", ["cafe\u0301", "\U0001f469\u200d\U0001f52c", "\u05d0\u05d1", "\u7261\u4e39", "a\u00a0b", "<&>"]
)
def test_printable_keeps_every_script(name):
    assert printable(name) == name


def test_message_prints_text_unchanged_and_unwrapped():
    safe_console = SafeConsole(file=io.StringIO(), width=20, emoji=False)
    console.message(safe_console, "flaxtl: no a[/bold].png :cat: \x1b[2J\nnext")
    text = safe_console.file.getvalue()
    assert text == "flaxtl: no a[/bold].png :cat: \N{REPLACEMENT CHARACTER}[2J\nnext\n"


def test_make_table_keeps_names_as_they_are():
    text = printed(make_table("a[/x]", ("b[/y]", "n"), [("c[/z] :cat: \x1b[2J", "1"), ("\udcff", "2")]))
    assert all(name in text for name in ("a[/x]", "b[/y]", "c[/z] :cat: \N{REPLACEMENT CHARACTER}[2J"))
    assert "\x1b" not in text


def test_console_goes_on_without_the_reader_of_its_pipe():
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as pipe:
        output = console.SafeConsole(file=pipe)
        for text in ("first", "second"):
            console.message(output, text)
    assert output.quiet


def test_progress_bar_on_a_pipe_prints_one_line_at_the_end():
    safe_console = SafeConsole(file=io.StringIO(), width=100)
    with console.progress_bar(safe_console, "phase [/bold]", total=1_200) as advance:
        advance(1_000)
        advance(200)
        assert safe_console.file.getvalue() == ""
    assert re.fullmatch(r"phase \[/bold\]: 1,200 in \d\S* m?s\n", safe_console.file.getvalue())


def test_progress_bar_on_a_pipe_prints_a_line_a_minute(monkeypatch):
    clock = iter(range(0, 1000, 40)).__next__
    monkeypatch.setattr(console.time, "monotonic", clock)
    monkeypatch.setattr(console, "LINE_SECONDS", 60)
    safe_console = SafeConsole(file=io.StringIO(), width=100)
    with console.ProgressBar(safe_console, "decoding", total=10) as bar:
        for done in (1, 2, 3, 4, 5, 10):  # the end of a task has its own line, without the time left
            bar.update(done)
    assert [line.partition(", ")[0] for line in safe_console.file.getvalue().splitlines()] == [
        "decoding: 2/10",
        "decoding: 4/10",
    ]


def test_progress_bar_on_terminal_shows_title_and_disappears():
    terminal = SafeConsole(file=io.StringIO(), width=100, force_terminal=True)
    with console.ProgressBar(terminal, "phase [/bold]", 6, describe=lambda done: f"step {done}") as bar:
        bar.update(4)
    assert re.search(r"phase \[/bold\].*step 4", terminal.file.getvalue())
    assert terminal.file.getvalue().endswith("\x1b[2K")


def test_progress_bar_without_updates_has_no_speed():
    bar = console.ProgressBar(SafeConsole(file=io.StringIO()), "decoding", total=10, completed=5)
    assert bar.speed is None
    bar.update(6)
    assert bar.speed is None
    bar.update(7)
    assert bar.speed > 0


def test_progress_bar_in_a_notebook_changes_one_output(monkeypatch):
    shown = []
    output = SimpleNamespace(update=lambda data, raw: shown.append(data["text/plain"]))

    def display(data, raw, display_id):
        output.update(data, raw)
        return output

    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    monkeypatch.setattr(console, "in_notebook", lambda: True)
    monkeypatch.setattr(console, "NOTEBOOK_SECONDS", 0.0)
    with console.ProgressBar(console.make_console(), "decoding <b>", total=10) as bar:
        bar.update(4)
        assert bar._html()["text/html"].startswith("<pre>decoding &lt;b&gt; <progress")
    assert shown == ["decoding <b>: 0/10", "decoding <b>: 4/10", ""]


def test_make_console_in_a_notebook_prints_plain_text(monkeypatch, capsys):
    monkeypatch.setattr(console, "in_notebook", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    console.message(console.make_console(), "2/4 Training", style="bold")
    assert capsys.readouterr().out == "2/4 Training\n"


def test_truncate_rows_ends_a_long_table_with_a_count():
    rows = [(f"class{number}", "1") for number in range(MAX_ROWS + 1000)]
    assert truncate_rows(rows[:MAX_ROWS], "") == rows[:MAX_ROWS]
    truncated = truncate_rows(rows, " classes, all in --json=FILE")
    assert truncated[:-1] == rows[:MAX_ROWS]
    last, empty = truncated[-1]
    assert re.search(r"\b1,000\b.* classes, all in --json=FILE$", last)
    assert empty == ""
    assert len(printed(make_table("Images", ("class", "all"), truncated)).splitlines()) < MAX_ROWS + 8


def test_print_box_on_a_pipe_prints_plain_lines():
    safe_console = SafeConsole(file=io.StringIO(), width=20, emoji=False)
    console.print_box(safe_console, ["a line that is longer than the console", "b"])
    assert safe_console.file.getvalue() == "a line that is longer than the console\nb\n"
    terminal = SafeConsole(file=io.StringIO(), width=20, force_terminal=True)
    console.print_box(terminal, ["a[/x]"])
    assert "│ a[/x] │" in terminal.file.getvalue()


def test_print_box_of_long_lines_has_rules_so_that_commands_can_be_copied():
    terminal = SafeConsole(file=io.StringIO(), width=20, force_terminal=True, color_system=None)
    console.print_box(terminal, ["flaxtl predict --workdir=a"])
    assert terminal.file.getvalue() == f"{'─' * 20}\nflaxtl predict --workdir=a\n{'─' * 20}\n"
