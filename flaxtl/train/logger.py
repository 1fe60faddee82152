"""What learns, as tables: groups at the start of a run, layers for `flaxtl summary` and the report."""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import TaskID
from rich.table import Table
from tensorboardX import SummaryWriter

from flaxtl import console as console_module
from flaxtl.console import make_progress, make_table
from flaxtl.fileio import atomic_write_text
from flaxtl.parallel import processes
from flaxtl.train.phases import Phase
from flaxtl.train.setup import ModelInfo


def group_table(network: ModelInfo, phases: Sequence[Phase], origin: str) -> Table:
    """A row a group: its parameters, its learning rate in every phase, and where its values come from.

    Layer decay makes a rate two, of the group's highest and its lowest layer. The last row tells how rates change.
    """
    columns = ("group", "layers", "parameters", *(phase.name for phase in phases), "values from")
    cells = []
    for group in dict.fromkeys(network.groups.values()):
        paths = [path for path, name in network.groups.items() if name == group]
        count = sum(math.prod(network.shapes[path]) for path in paths)
        sections = {path.split("/")[0] for path in paths}
        rates = (_lrs_text(phase, group) for phase in phases)
        source = origin if "backbone" in sections else "fresh (Glorot)"
        cells.append((group, str(len({path.split("/")[1] for path in paths})), f"{count:,}", *rates, source))
    cells.append(("schedule", "", "", *(_schedule(phase) for phase in phases), ""))
    return make_table("What learns, and how fast", columns, cells)


def _lrs_text(phase: Phase, group: str) -> str:
    highest, lowest = phase.param_groups.lr_range(group)
    return "frozen" if not highest else f"{highest:.3g}" if highest == lowest else f"{highest:.3g} - {lowest:.3g}"


def _schedule(phase: Phase) -> str:
    plateau = f" ({phase.plateau_factor:g} after {phase.plateau_patience} epochs)"
    warm_up = f", {phase.warmup_steps} steps of warm-up" if phase.warmup_steps else ""
    ema = f", ema {phase.ema:g}" if phase.ema else ""
    return phase.schedule + (plateau if phase.schedule == "plateau" else "") + warm_up + ema


def layer_rows(network: ModelInfo, phases: Sequence[Phase], origin: str) -> list[dict[str, Any]]:
    """A row a layer, as layers.json has it: layer, kind, shape, parameters, group, learns (phases) and origin."""
    rows = []
    for layer in network.layers:
        prefix = f"{layer.section}/{layer.name}/"
        paths = [path for path in network.shapes if path.startswith(prefix)]
        source = "" if not paths else origin if layer.section == "backbone" else "fresh"
        rows.append(
            {
                "layer": layer.name,
                "kind": layer.kind,
                "shape": list(layer.shape),
                "parameters": network.count(prefix),
                "group": network.groups[paths[0]] if paths else "",
                "learns": [
                    phase.name for phase in phases if any(phase.param_groups.is_trainable(path) for path in paths)
                ],
                "origin": source,
            }
        )
    return rows


_NEEDED = {"phase": str, "epoch": int, "step": int, "seconds": float}
"""What a run that goes on reads of its rows."""


class MetricLogger:
    """One run's voice. Rows go to metrics.jsonl at once; a resumed run first drops rows after its checkpoint."""

    def __init__(self, workdir: Path, console: Console) -> None:
        """Continue the files in `workdir`."""
        self._console = console
        self._workdir = workdir
        self._rows = read_metrics(workdir)
        processes.barrier("all have read metrics.jsonl, before it is written anew")
        self._board: SummaryWriter | None = None

    def __enter__(self) -> "MetricLogger":
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Flush the event file."""
        if self._board is not None:
            self._board.close()

    def info(self, sentence: str) -> None:
        """A line on the console."""
        self._console.print(sentence, highlight=False, markup=False)

    def truncate_after(self, step: int) -> None:
        """Drop the rows of metrics.jsonl, and the events, after global step `step`: they will be written again."""
        self._rows = [row for row in self._rows if row["step"] <= step]
        if not processes.is_main_process():
            return
        atomic_write_text(self._workdir / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in self._rows))
        if self._board is None:
            self._board = SummaryWriter(str(self._workdir / "tensorboard"), purge_step=step + 1)

    def progress_bar(self, title: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """A progress bar; see console.progress_bar."""
        return console_module.progress_bar(self._console, title, total)

    def phase_rows(self, phase: str) -> list[dict[str, Any]]:
        """The rows of one phase, an epoch each."""
        return [row for row in self._rows if row["phase"] == phase]

    @contextmanager
    def phase(self, name: str, epochs: int, done: int) -> Iterator[Callable[[Mapping[str, Any]], None]]:
        """A progress bar over a phase's epochs; yields the function that takes each epoch's row."""
        every = max(1, epochs // 10)

        def report(row: Mapping[str, Any]) -> None:
            self._record(row)
            progress.update(task, advance=1, description=f"{name}: {_metric_columns(row)}")
            if not self._console.is_terminal and (row["epoch"] % every == 0 or row["epoch"] == 1):
                self.info(f"{name} {row['epoch']}/{epochs}: {_metric_columns(row)}")

        with make_progress(self._console) as progress:
            task: TaskID = progress.add_task(name, total=epochs, completed=done)
            yield report

    def _record(self, row: Mapping[str, Any]) -> None:
        """One row an epoch: metrics.jsonl, on the disk before the checkpoint that follows it, and TensorBoard."""
        self._rows.append(dict(row))
        if not processes.is_main_process():
            return
        with (self._workdir / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        assert self._board is not None, "truncate_after comes first"
        for key, value in row.items():
            if isinstance(value, float):
                self._board.add_scalar(key, value, row["step"])
        for group, rate in row["rates"].items():
            self._board.add_scalar(f"rate/{group}", rate, row["step"])


def _metric_columns(row: Mapping[str, Any]) -> str:
    return (
        f"loss {row['train_loss']:.3f} accuracy {row['train_accuracy']:.1%}, "
        f"validation {row['validation_loss']:.3f} {row['validation_accuracy']:.1%}"
    )


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
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
