"""The learning-rate finder: run a range test and suggest learning rates by the rules of fastai's lr_find."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from markupsafe import Markup
from rich.console import Console
from rich.table import Table

from flaxtl.console import make_table, progress_bar
from flaxtl.defaults import LAST_BLOCK
from flaxtl.errors import join_names
from flaxtl.fileio import atomic_write, write_csv
from flaxtl.parallel import devices
from flaxtl.report.plots import plot_lr_curve
from flaxtl.report.templating import format_lr, load_template, round_lr
from flaxtl.train import run_dir
from flaxtl.train.datasets import remove_intermediate_files
from flaxtl.train.lr_range_test import LrCurve, LrPoint, LrRange, PhaseStart, load_phase_start, range_test
from flaxtl.train.signals import StopSignal

FOLDER_NAME = "learning_rate"
"""Folder of the results in a run directory: PHASE.html and PHASE.csv."""

MIN_POINTS = 5
"""Minimum number of points for a suggestion."""

NUM_RECENT, LEARNED_LOSS = 10, 0.01
"""If the last batches all have a smaller loss, they are learned: only the moving average still falls."""


class Suggestion(NamedTuple):
    """A learning rate, rounded to two digits, the rule that suggests it, and what the rule looks for."""

    rule: str
    lr: float
    reason: str


class LrFinderResult(NamedTuple):
    """The range test of a phase and the learning rates that it suggests.

    Attributes:
      phase: name of the phase.
      lr_range: the learning rates of the test, which are those of the group with the highest rate.
      curve: the loss at each of them.
      lr_ratios: config name of each trainable parameter group -> its rate, divided by the highest of all groups.
      suggestions: the best one first; empty if the loss never fell.
    """

    phase: str
    lr_range: LrRange
    curve: LrCurve
    lr_ratios: Mapping[str, float]
    suggestions: tuple[Suggestion, ...]

    @property
    def suggested_lr(self) -> float | None:
        """The learning rate to start with, for the group with the highest rate; None if the loss never fell."""
        return self.suggestions[0].lr if self.suggestions else None

    @property
    def overrides(self) -> str:
        """The command-line options that set the suggested learning rate for all groups."""
        assert self.suggested_lr is not None, "the loss never fell"
        lrs = {group: round_lr(self.suggested_lr * ratio) for group, ratio in self.lr_ratios.items()}
        return " ".join(f"--config.{self.phase}.lr.{group}={format_lr(lr)}" for group, lr in lrs.items())

    @property
    def warning(self) -> str:
        """What the curve does not show, and which option of the test may show it; '' if nothing is missing."""
        if self.suggested_lr is None and self.curve.diverged:
            return "The loss diverged before it fell. Try a lower --min-lr."
        if self.suggested_lr is None:
            return "The loss never fell. Try a higher --max-lr."
        if min(self.curve.usable_points, key=_smoothed_loss) is not self.curve.points[-1]:
            return ""
        if max(point.loss for point in self.curve.points[-NUM_RECENT:]) < LEARNED_LOSS:
            return (
                "All batches are learned before the highest learning rate, so the curve does not show where it fails."
            )
        return "The loss is still falling at the highest learning rate. Try a higher --max-lr."


def find_learning_rate(
    config: Any, workdir: Path, phase: str | None, lr_range: LrRange, console: Console
) -> tuple[LrFinderResult, Path]:
    """Run a learning-rate range test and write its results to `workdir`.

    Nothing else in `workdir` changes: the weights after the test are discarded.

    Args:
      config: a complete config.
      workdir: run directory; if it holds a run, the phase starts from the weights of the phase before it.
      phase: name of the phase to test; None for the first.
      lr_range: the learning rates to test.
      console: shows progress.

    Returns:
      The result, and the HTML page that shows it.

    Raises:
      UserError: `lr_range` is invalid, the phase cannot start in `workdir`, or another process uses `workdir`.
    """
    lr_range.validate()
    devices.enable_compilation_cache()
    if config.deterministic:
        devices.make_deterministic()
    with run_dir.run_dir_lock(workdir), StopSignal().listening():
        start = load_phase_start(config, workdir, phase, console)
        result = _run_range_test(start, lr_range, console)
        page = _write_results(result, workdir / FOLDER_NAME, start)
        if run_dir.read_summary(workdir).complete:  # cached features are no longer needed
            remove_intermediate_files(start.setup)
    return result, page


def suggestions_table(result: LrFinderResult) -> Table:
    """Return a table of the suggested learning rates for the console."""
    rows = [(suggestion.rule, format_lr(suggestion.lr), suggestion.reason) for suggestion in result.suggestions]
    return make_table(f"Learning rates for {result.phase}", ("rule", "learning rate", "explanation"), rows)


def _run_range_test(start: PhaseStart, lr_range: LrRange, console: Console) -> LrFinderResult:
    config, phase = start.setup.config, start.phase
    with progress_bar(console, f"{phase.name}: steps", lr_range.steps) as advance:
        curve = range_test(start, lr_range, partial(progress_bar, console), advance)
    lrs, named = phase.param_groups.lrs, config[phase.name].lr
    max_lr = max(lrs.values())
    lr_ratios = {group if group in named else LAST_BLOCK: lr / max_lr for group, lr in lrs.items() if lr}
    return LrFinderResult(phase.name, lr_range, curve, lr_ratios, suggest_lrs(curve))


def _write_results(result: LrFinderResult, folder: Path, start: PhaseStart) -> Path:
    folder.mkdir(exist_ok=True)
    name = quote(result.phase, safe=" ")
    with atomic_write(folder / f"{name}.csv", newline="") as stream:
        write_csv(stream, [LrPoint._fields, *result.curve.points])
    page = folder / f"{name}.html"
    with atomic_write(page) as stream:
        stream.write(render_lr_page(result, start.setup.config))
    return page


def render_lr_page(result: LrFinderResult, config: Any) -> str:
    """Return the HTML page: the curve, the suggestions and the options that set the first of them."""
    curve = result.curve
    plot = plot_lr_curve(curve.points, curve.num_skipped, result.suggested_lr)
    facts = {
        "trained groups": join_names(result.lr_ratios),
        "optimizer": config.optimizer.name,
        "batch size": f"{config.batch_size:,}",
        "steps": f"{len(curve.points):,} of {result.lr_range.steps:,}",
        "first learning rate": format_lr(result.lr_range.min_lr),
        "last": format_lr(round_lr(curve.points[-1].lr)),
    }
    return load_template("learning_rate.html.jinja").render(result=result, plot=Markup(plot), facts=facts)


def suggest_lrs(curve: LrCurve) -> tuple[Suggestion, ...]:
    """Return the learning rate of each rule, the best first; none if the loss never fell."""
    points = curve.usable_points
    if curve.diverged:
        points = points[:-1]  # its loss may be NaN
    if len(points) < MIN_POINTS or min(points, key=_smoothed_loss) is points[0]:
        return ()
    losses = [point.smoothed_loss for point in points]
    rules = (
        ("valley", points[_valley(losses)].lr, "middle of the longest descent of the loss"),
        ("steepest", points[_steepest(losses)].lr, "the loss falls fastest"),
        ("minimum / 10", min(points, key=_smoothed_loss).lr / 10, "a tenth of the rate with the lowest loss"),
    )
    return tuple(Suggestion(rule, round_lr(lr), reason) for rule, lr, reason in rules)


def _smoothed_loss(point: LrPoint) -> float:
    return point.smoothed_loss


def _steepest(losses: Sequence[float]) -> int:
    """Return the index before the largest drop; the rates are evenly spaced on a logarithmic axis."""
    return int(np.argmin(np.diff(losses)))


def _valley(losses: Sequence[float]) -> int:
    """Return the middle of the longest descent, which noise disturbs less than a run of falling values."""
    end, length = _longest_descent(losses)
    return end - length // 2


def _longest_descent(values: Sequence[float]) -> tuple[int, int]:
    """Return the index of the last value, and the length, of the longest strictly falling subsequence.

    If several have this length, the one that ends first counts.
    """
    last_values: list[float] = []  # negated: the highest value with which a descent of each length can end
    end = 0
    for index, value in enumerate(values):
        length = bisect_left(last_values, -value)
        if length == len(last_values):
            end = index
        last_values[length : length + 1] = [-value]
    return end, len(last_values)
