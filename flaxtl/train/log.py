"""What a run says while it goes: console, progress bars, metrics.jsonl and TensorBoard events."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import TaskID
from tensorboardX import SummaryWriter

from flaxtl.files import write_text
from flaxtl.terminal import advancing, bar
from flaxtl.train import hosts

_NEEDED = {"phase": str, "epoch": int, "step": int, "seconds": float}
"""What a run that goes on reads of its rows."""


class Log:
    """One run's voice. Rows go to metrics.jsonl at once; a resumed run first drops rows after its checkpoint."""

    def __init__(self, workdir: Path, console: Console) -> None:
        """Continue the files in `workdir`."""
        self._console = console
        self._workdir = workdir
        self._rows = rows(workdir)
        hosts.barrier("all have read metrics.jsonl, before it is written anew")
        self._board: SummaryWriter | None = None

    def __enter__(self) -> "Log":
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Flush the event file."""
        if self._board is not None:
            self._board.close()

    def say(self, sentence: str) -> None:
        """A line on the console."""
        self._console.print(sentence, highlight=False, markup=False)

    def continue_after(self, step: int) -> None:
        """Drop the rows of metrics.jsonl, and the events, after global step `step`: they will be written again."""
        self._rows = [row for row in self._rows if row["step"] <= step]
        if not hosts.writes():
            return
        write_text(self._workdir / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in self._rows))
        if self._board is None:
            self._board = SummaryWriter(str(self._workdir / "tensorboard"), purge_step=step + 1)

    def advancing(self, title: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """A progress bar; see `advancing`."""
        return advancing(self._console, title, total)

    def rows_of(self, phase: str) -> list[dict[str, Any]]:
        """The rows of one phase, an epoch each."""
        return [row for row in self._rows if row["phase"] == phase]

    @contextmanager
    def phase(self, name: str, epochs: int, done: int) -> Iterator[Callable[[Mapping[str, Any]], None]]:
        """A progress bar over a phase's epochs; yields the function that takes each epoch's row."""
        every = max(1, epochs // 10)

        def report(row: Mapping[str, Any]) -> None:
            self._record(row)
            progress.update(task, advance=1, description=f"{name}: {_measures(row)}")
            if not self._console.is_terminal and (row["epoch"] % every == 0 or row["epoch"] == 1):
                self.say(f"{name} {row['epoch']}/{epochs}: {_measures(row)}")

        with bar(self._console) as progress:
            task: TaskID = progress.add_task(name, total=epochs, completed=done)
            yield report

    def _record(self, row: Mapping[str, Any]) -> None:
        """One row an epoch: metrics.jsonl, on the disk before the checkpoint that follows it, and TensorBoard."""
        self._rows.append(dict(row))
        if not hosts.writes():
            return
        with (self._workdir / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        assert self._board is not None, "continue_after comes first"
        for key, value in row.items():
            if isinstance(value, float):
                self._board.add_scalar(key, value, row["step"])
        for group, rate in row["rates"].items():
            self._board.add_scalar(f"rate/{group}", rate, row["step"])


def _measures(row: Mapping[str, Any]) -> str:
    return (
        f"loss {row['train_loss']:.3f} accuracy {row['train_accuracy']:.1%}, "
        f"validation {row['validation_loss']:.3f} {row['validation_accuracy']:.1%}"
    )


def rows(workdir: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl up to the first that is none: an unfinished last line, left by a crash, is dropped."""
    found: list[dict[str, Any]] = []
    file = workdir / "metrics.jsonl"
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else ():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(row, dict) or not _NEEDED.items() <= {name: type(row.get(name)) for name in _NEEDED}.items():
            break
        found.append(row)
    return found
