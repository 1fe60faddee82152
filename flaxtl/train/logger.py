"""What a run reports: a table of param groups, messages, progress, metrics.jsonl and TensorBoard events."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.table import Table
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from flaxtl.console import LINE_SECONDS, ProgressBar, make_table, message, task_progress
from flaxtl.fileio import atomic_write_text, errors_naming
from flaxtl.parallel import processes
from flaxtl.train.device_calls import MAX_PENDING_RESULTS
from flaxtl.train.optimizers import has_weight_decay, weight_decay
from flaxtl.train.param_groups import layer_of, layers_in_train_mode
from flaxtl.train.phases import Phase
from flaxtl.train.run_records import EpochMetrics, read_metrics
from flaxtl.train.setup import ModelInfo

MAX_EPOCH_LINES = 10
"""Epochs of a phase that are printed; slow ones are all printed, and metrics.jsonl has all of any phase."""

FORECAST_SECONDS = 10.0
"""Time from the first step of a phase, which is compiled by then, to a forecast, if no epoch ends before."""

FORECAST_CALLS = 4 * MAX_PENDING_RESULTS
"""Calls of the step before such a forecast: fewer may be dispatched, but not computed."""

Forecast = Callable[[int, float, float | None], str | None]
"""(steps done, steps per second, images per second of the feature cache) -> how long the run takes, if it is known."""


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
        self._event_file: EventFile | None = None
        self._feature_speed: float | None = None
        self._has_forecast = False

    def __enter__(self) -> "MetricLogger":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._event_file is not None:
            self._event_file.close()

    def info(self, text: str) -> None:
        """Print a message."""
        message(self._console, text)

    @contextmanager
    def progress_bar(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show the progress of the feature cache, as `console.progress_bar` does, and note its speed."""
        with task_progress(self._console, title, total) as bar:
            yield lambda items: bar.update(bar.completed + items)
        self._feature_speed = bar.speed or self._feature_speed

    def phase_epochs(self, phase: str) -> list[EpochMetrics]:
        """Return the metrics of a phase's epochs."""
        return [epoch for epoch in self._epochs if epoch.phase == phase]

    def truncate_after(self, step: int) -> None:
        """Remove the epochs and events after a global step; a resumed run logs them again."""
        self._epochs = [epoch for epoch in self._epochs if epoch.step <= step]
        if not processes.is_main_process():
            return
        atomic_write_text(self._workdir / "metrics.jsonl", "".join(map(_json_line, self._epochs)))
        if self._event_file is None:
            self._event_file = EventFile(self._workdir / "tensorboard", step + 1)

    @contextmanager
    def log_phase(
        self, name: str, num_epochs: int, steps_per_epoch: int, steps_done: int = 0, forecast: Forecast | None = None
    ) -> Iterator["PhaseLog"]:
        """Show the progress of a phase.

        Args:
          name: of the phase.
          num_epochs: epochs if it does not stop early.
          steps_per_epoch: train steps of an epoch.
          steps_done: steps that were done earlier.
          forecast: printed once in a run, as soon as it is known.
        """

        def describe(steps: int) -> str:
            epoch = max(math.ceil(steps / steps_per_epoch), 1)
            step = steps - (epoch - 1) * steps_per_epoch
            doing = "compiling" if steps == steps_done else f"step {step}/{steps_per_epoch}"
            return f"epoch {epoch}/{num_epochs}, {doing}"

        with ProgressBar(self._console, name, num_epochs * steps_per_epoch, steps_done, describe) as bar:
            yield PhaseLog(self, bar, num_epochs, forecast)

    def print_forecast(self, bar: ProgressBar, forecast: Forecast) -> None:
        """Print how long the run will take, unless it was printed or is not known yet."""
        if not self._has_forecast and bar.speed:
            text = forecast(bar.completed, bar.speed, self._feature_speed)
            if text is not None:
                self.info(text)
                self._has_forecast = True

    def record(self, metrics: EpochMetrics) -> None:
        """Write an epoch to TensorBoard and metrics.jsonl, which is on disk before the checkpoint that follows it."""
        self._epochs.append(metrics)
        if not processes.is_main_process():
            return
        path = self._workdir / "metrics.jsonl"
        with errors_naming(path), path.open("a", encoding="utf-8") as file:
            file.write(_json_line(metrics))
            file.flush()
            os.fsync(file.fileno())
        assert self._event_file is not None, "truncate_after was called"
        scalars = {name: value for name, value in metrics.to_json().items() if isinstance(value, float)}
        self._event_file.write(metrics.step, scalars | {f"lr/{group}": lr for group, lr in metrics.lrs.items()})


class EventFile:
    """A TensorBoard event file, in which TensorBoard ignores what other files of the folder have from a step on.

    tensorboardX's SummaryWriter writes in a thread, and waits forever for one that has failed to write to a full disk.

    Args:
      folder: created if needed; its parent exists.
      first_step: global step from which on the events of other files are ignored.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._writer = EventsWriter(str(folder / "events"))
        self._write(first_step, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write the values of a global step, by tag; they can be read when it returns. Raises OSError."""
        with errors_naming(self._folder):
            for tag, value in scalars.items():
                self._write(step, summary=scalar(tag, value))
            self._writer.flush()

    def close(self) -> None:
        """Close the file. Raises OSError."""
        with errors_naming(self._folder):
            self._writer.close()

    def _write(self, step: int, **content: Any) -> None:
        self._writer.write_event(Event(wall_time=time.time(), step=step, **content))


class PhaseLog:
    """Logs the steps and epochs of one phase; see `MetricLogger.log_phase`."""

    def __init__(self, logger: MetricLogger, bar: ProgressBar, num_epochs: int, forecast: Forecast | None) -> None:
        self._logger, self._bar, self._num_epochs, self._forecast = logger, bar, num_epochs, forecast
        self._printed_at = time.monotonic()
        self._calls, self._first_call_at = 0, 0.0

    def steps(self, steps_done: int) -> None:
        """Show that steps of the phase were dispatched; this does not wait for the device."""
        self._bar.update(steps_done)
        self._calls += 1
        if self._calls == 1:
            self._first_call_at = time.monotonic()
        measured = self._calls > FORECAST_CALLS and time.monotonic() - self._first_call_at > FORECAST_SECONDS
        if self._forecast is not None and measured:
            self._logger.print_forecast(self._bar, self._forecast)

    def epoch(self, metrics: EpochMetrics) -> None:
        """Record an epoch that has ended, and print it if it is the first one, one of few, or slow."""
        self._logger.record(metrics)
        print_every = max(1, self._num_epochs // MAX_EPOCH_LINES)
        is_slow = time.monotonic() - self._printed_at > LINE_SECONDS
        if metrics.epoch == 1 or metrics.epoch % print_every == 0 or is_slow:
            self._printed_at = time.monotonic()
            self._logger.info(f"{metrics.phase} {metrics.epoch}/{self._num_epochs}: {_format_metrics(metrics)}")
        if self._forecast is not None:
            self._logger.print_forecast(self._bar, self._forecast)


def param_group_table(
    model_info: ModelInfo, phases: Sequence[Phase], optimizer: Mapping[str, Any], weights_source: str
) -> Table:
    """Return a table with a row per param group: its size, its learning rate in each phase, and its initial values.

    With layer decay the learning rate is a range, of the group's last and first layer. Then follow how many batch norms
    a phase trains, if there are any (the others use their stored statistics), the schedules, and how many of the
    trained arrays have weight decay, if the optimizer has it.

    Args:
      model_info: the layers, and the group of each parameter.
      phases: a column each.
      optimizer: the config's `optimizer`.
      weights_source: where the values of the backbone come from.
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
    if norms := {layer.name for layer in model_info.layers if layer.kind == "batch norm"}:
        modes = (_format_batch_norms(phase, norms) for phase in phases)
        rows.append(("batch norm", str(len(norms)), "", *modes, ""))
    rows.append(("schedule", "", "", *(_format_schedule(phase) for phase in phases), ""))
    if decay := weight_decay(optimizer):
        rows.append(("weight decay", "", "", *(_format_weight_decay(phase, decay) for phase in phases), ""))
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


def _format_batch_norms(phase: Phase, norms: Set[str]) -> str:
    parts = phase.param_groups.partition(phase.param_groups.groups)
    trained = norms & layers_in_train_mode([*parts.params, *parts.batch_stats], parts.frozen)
    return f"{len(trained)} trained" if trained else "frozen"


def _format_weight_decay(phase: Phase, decay: float) -> str:
    trained = phase.param_groups.partition(phase.param_groups.groups).params
    return f"{decay:g} on {sum(map(has_weight_decay, trained))} of {len(trained)} arrays"


def _format_schedule(phase: Phase) -> str:
    parts = [phase.schedule]
    if phase.schedule == "plateau":
        parts[0] += f" ({phase.plateau_factor:g} after {phase.plateau_patience} epochs)"
    if phase.warmup_steps:
        parts.append(f"{phase.warmup_steps} warm-up steps")
    if phase.ema:
        parts.append(f"EMA {phase.ema:g}")
    return ", ".join(parts)
