"""What a run reports: a table of param groups, messages, progress, metrics.jsonl and TensorBoard events."""

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.table import Table
from tensorboardX import SummaryWriter

from flaxtl.console import make_progress, make_table, message, progress_bar
from flaxtl.errors import UserError
from flaxtl.fileio import atomic_write_text
from flaxtl.parallel import processes
from flaxtl.train.param_groups import layer_of
from flaxtl.train.phases import Phase
from flaxtl.train.run_records import EpochMetrics
from flaxtl.train.setup import ModelInfo


class MetricLogger:
    """Logs one run: to the console, to metrics.jsonl and to TensorBoard event files.

    A context manager that closes the event file. `truncate_after` is called before the first `log_phase`.

    Args:
      workdir: the run directory; its metrics.jsonl is continued.
      console: for messages and progress bars.
    """

    def __init__(self, workdir: Path, console: Console) -> None:
        self._console = console
        self._workdir = workdir
        self._epochs = read_metrics(workdir)
        processes.barrier("all processes have read metrics.jsonl")  # before it is rewritten
        self._event_writer: SummaryWriter | None = None

    def __enter__(self) -> "MetricLogger":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._event_writer is not None:
            self._event_writer.close()

    def info(self, text: str) -> None:
        """Print a message."""
        message(self._console, text)

    def progress_bar(self, title: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """Show a progress bar; see `console.progress_bar`."""
        return progress_bar(self._console, title, total)

    def phase_epochs(self, phase: str) -> list[EpochMetrics]:
        """Return the metrics of a phase's epochs."""
        return [epoch for epoch in self._epochs if epoch.phase == phase]

    def truncate_after(self, step: int) -> None:
        """Remove the epochs and events after a global step; a resumed run logs them again."""
        self._epochs = [epoch for epoch in self._epochs if epoch.step <= step]
        if not processes.is_main_process():
            return
        atomic_write_text(self._workdir / "metrics.jsonl", "".join(map(_json_line, self._epochs)))
        if self._event_writer is None:
            self._event_writer = SummaryWriter(str(self._workdir / "tensorboard"), purge_step=step + 1)

    @contextmanager
    def log_phase(self, name: str, num_epochs: int, epochs_done: int) -> Iterator[Callable[[EpochMetrics], None]]:
        """Show a progress bar over a phase's epochs; yields the function that logs an epoch."""
        print_every = max(1, num_epochs // 10)

        def log_epoch(metrics: EpochMetrics) -> None:
            self._record(metrics)
            progress.update(task, advance=1, description=f"{name}: {_format_metrics(metrics)}")
            if not self._console.is_terminal and (metrics.epoch % print_every == 0 or metrics.epoch == 1):
                self.info(f"{name} {metrics.epoch}/{num_epochs}: {_format_metrics(metrics)}")

        with make_progress(self._console) as progress:
            task = progress.add_task(name, total=num_epochs, completed=epochs_done)
            yield log_epoch

    def _record(self, metrics: EpochMetrics) -> None:
        """Write an epoch to TensorBoard and metrics.jsonl, which is on disk before the checkpoint that follows it."""
        self._epochs.append(metrics)
        if not processes.is_main_process():
            return
        with (self._workdir / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(_json_line(metrics))
            file.flush()
            os.fsync(file.fileno())
        assert self._event_writer is not None, "truncate_after was called"
        add_scalar = partial(self._event_writer.add_scalar, global_step=metrics.step)
        for name, value in metrics.to_json().items():
            if isinstance(value, float):
                add_scalar(name, value)
        for group, lr in metrics.lrs.items():
            add_scalar(f"lr/{group}", lr)


def read_metrics(workdir: Path) -> list[EpochMetrics]:
    """Return the epochs of metrics.jsonl up to the first invalid line, which a crash may leave at the end."""
    epochs: list[EpochMetrics] = []
    file = workdir / "metrics.jsonl"
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else ():
        try:
            epochs.append(EpochMetrics.from_json(json.loads(line), file))
        except (UserError, ValueError, RecursionError):
            break
    return epochs


def param_group_table(model_info: ModelInfo, phases: Sequence[Phase], weights_source: str) -> Table:
    """Return a table with a row per param group: its size, its learning rate in each phase, and its initial values.

    With layer decay the learning rate is a range, of the group's last and first layer. The last row has the schedules.
    """
    columns = ("group", "layers", "parameters", *(phase.name for phase in phases), "initial values")
    rows = []
    for group in dict.fromkeys(model_info.groups.values()):
        paths = [path for path, name in model_info.groups.items() if name == group]
        num_params = sum(math.prod(model_info.shapes[path]) for path in paths)
        num_layers = len(set(map(layer_of, paths)))
        source = weights_source if any(path.startswith("backbone/") for path in paths) else "random (Glorot)"
        lrs = (_format_lrs(phase, group) for phase in phases)
        rows.append((group, str(num_layers), f"{num_params:,}", *lrs, source))
    rows.append(("schedule", "", "", *(_format_schedule(phase) for phase in phases), ""))
    return make_table("Learning rates", columns, rows)


def _json_line(metrics: EpochMetrics) -> str:
    return json.dumps(metrics.to_json()) + "\n"


def _format_metrics(metrics: EpochMetrics) -> str:
    return (
        f"loss {metrics.train_loss:.3f} accuracy {metrics.train_accuracy:.1%}, "
        f"validation {metrics.validation_loss:.3f} {metrics.validation_accuracy:.1%}"
    )


def _format_lrs(phase: Phase, group: str) -> str:
    highest, lowest = phase.param_groups.lr_range(group)
    return "frozen" if not highest else f"{highest:.3g}" if highest == lowest else f"{highest:.3g} - {lowest:.3g}"


def _format_schedule(phase: Phase) -> str:
    parts = [phase.schedule]
    if phase.schedule == "plateau":
        parts[0] += f" ({phase.plateau_factor:g} after {phase.plateau_patience} epochs)"
    if phase.warmup_steps:
        parts.append(f"{phase.warmup_steps} warm-up steps")
    if phase.ema:
        parts.append(f"EMA {phase.ema:g}")
    return ", ".join(parts)
