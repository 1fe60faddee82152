"""The results of a sweep: points ordered by validation accuracy, in memory and as CSV.

The test images have no influence on the order. Only the best point is evaluated on them.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from flaxtl.errors import UserError
from flaxtl.evaluation import verdicts
from flaxtl.evaluation.evaluate import EvaluationResult
from flaxtl.evaluation.predictions import read_predictions
from flaxtl.fileio import atomic_write, write_csv
from flaxtl.train import run_dir
from flaxtl.tuning.sweep_grid import SweepPlan, SweepRun, format_value

RUNS, LOGS, TESTS = "runs", "logs", "test"
"""Folders of a sweep: run directories, output of the runs, and metrics on the test images."""


class MeanStd(NamedTuple):
    """Mean and sample standard deviation of `n` values; `std` is None if there is only one.

    `num_images` is the number of different images that an accuracy was measured on, over all folds.
    """

    mean: float
    std: float | None
    n: int
    num_images: int = 0


class RunOutcome(NamedTuple):
    """Validation metrics of a complete run after its last phase, and the number of weights that this phase trains.

    Runs of one `fold` have the same validation images, `num_images`.
    """

    fold: int
    accuracy: float
    loss: float
    num_images: int
    trainable_params: int
    seconds: float


@dataclass(frozen=True)
class SweepPoint:
    """One combination of the settings of the grids: runs that differ only in seed and fold.

    Attributes:
      values: setting of a grid -> JSON value.
      runs: all runs of the point.
      outcomes: those of the complete runs.
      failures: run name -> why it failed.
      test: accuracy on the test images; None for all points but the best.
    """

    values: Mapping[str, Any]
    runs: Sequence[SweepRun]
    outcomes: Sequence[RunOutcome]
    failures: Mapping[str, str]
    test: MeanStd | None = None

    @property
    def name(self) -> str:
        """The values in one line."""
        return ", ".join(f"{key}={format_value(value)}" for key, value in self.values.items()) or "the config"

    @property
    def complete(self) -> bool:
        """Whether all runs are complete, so that the point can be compared with others."""
        return len(self.outcomes) == len(self.runs)

    @property
    def accuracy(self) -> MeanStd | None:
        """Validation accuracy; None if no run is complete."""
        images_of_fold = {outcome.fold: outcome.num_images for outcome in self.outcomes}
        return mean_std([outcome.accuracy for outcome in self.outcomes], sum(images_of_fold.values()))

    @property
    def loss(self) -> MeanStd | None:
        """Validation loss; None if no run is complete."""
        return mean_std([outcome.loss for outcome in self.outcomes])

    @property
    def trainable_params(self) -> int | None:
        """Number of weights that the last phase trains; None if no run is complete."""
        return self.outcomes[0].trainable_params if self.outcomes else None

    @property
    def seconds(self) -> float | None:
        """Mean duration of a run; None if no run is complete."""
        return statistics.fmean(outcome.seconds for outcome in self.outcomes) if self.outcomes else None


@dataclass(frozen=True)
class SweepResults:
    """All points: first the complete ones, the best on top, then the others in the order of the grid.

    Attributes:
      plan: the sweep.
      points: its points.
      ties: which points are not significantly worse than the best on the validation images, as a sentence; "" if all
        are, or if this cannot be tested: runs are not complete, or several seeds predict the same image.
    """

    plan: SweepPlan
    points: Sequence[SweepPoint]
    ties: str = ""

    @property
    def best(self) -> SweepPoint | None:
        """The best point; None until every run is complete or has failed."""
        return self.points[0] if self.points and self.points[0].complete and not self.num_missing else None

    @property
    def num_missing(self) -> int:
        """Number of runs that are neither complete nor failed."""
        return sum(len(point.runs) - len(point.outcomes) - len(point.failures) for point in self.points)

    @property
    def failures(self) -> dict[str, str]:
        """Run name -> why it failed."""
        return {name: reason for point in self.points for name, reason in point.failures.items()}


def mean_std(values: Sequence[float], num_images: int = 0) -> MeanStd | None:
    """Return mean and standard deviation; None if there are no values."""
    if not values:
        return None
    std = statistics.stdev(values) if len(values) > 1 else None
    return MeanStd(statistics.fmean(values), std, len(values), num_images)


def read_results(workdir: Path, plan: SweepPlan) -> SweepResults:
    """Read the results of the runs of a plan, as far as there are any. Raises UserError for damaged files."""
    runs_of_point: dict[str, list[SweepRun]] = {}
    for run in plan.runs:
        runs_of_point.setdefault(json.dumps(run.point), []).append(run)
    points = [_read_point(workdir, runs) for runs in runs_of_point.values()]
    ranked = sorted((point for point in points if point.complete), key=_rank)
    results = SweepResults(plan, [*ranked, *(point for point in points if not point.complete)])
    if results.best is None:
        return results
    points = [_with_test_accuracy(workdir, results.best), *results.points[1:]]
    return SweepResults(plan, points, _describe_ties(workdir, [point for point in points if point.complete]))


def read_outcome(workdir: Path, run: SweepRun) -> RunOutcome | None:
    """Read the outcome of a run; None unless it is complete."""
    summary = run_dir.read_summary(workdir / RUNS / run.name)
    if not summary.complete:
        return None
    last = next(reversed(summary.phases.values()), None)
    metrics = last.validation if last else None
    if last is None or metrics is None or metrics.accuracy is None or metrics.loss is None:
        file = workdir / RUNS / run.name / "summary.json"
        raise UserError(f"{file} has no validation metrics. Remove {file.parent} to train the run again.")
    return RunOutcome(run.fold, metrics.accuracy, metrics.loss, metrics.n, last.trainable_params, summary.wall_seconds)


def test_file(workdir: Path, run: SweepRun) -> Path:
    """Return the file of a run's metrics on the test images."""
    return workdir / TESTS / f"{run.name}.json"


def failure_file(workdir: Path, run: SweepRun) -> Path:
    """Return the file with the reason why a run failed; it exists until the run is trained again."""
    return workdir / LOGS / f"{run.name}.failed"


def write_results_csv(results: SweepResults, file: Path) -> None:
    """Write one row per point, in order. Accuracies are in [0, 1]; unknown values are empty."""
    metrics = ("validation_accuracy", "validation_loss", "test_accuracy")
    columns = [column for name in metrics for column in (name, f"{name}_std")]
    header = [*results.plan.keys, *columns, "n", "runs", "trainable_params", "seconds", "failed"]
    with atomic_write(file, newline="") as stream:
        write_csv(stream, [header, *(_csv_row(results.plan.keys, point) for point in results.points)])


def _csv_row(keys: Sequence[str], point: SweepPoint) -> list[object]:
    settings = [format_value(point.values[key]) for key in keys]
    metrics = [
        value
        for metric in (point.accuracy, point.loss, point.test)
        for value in ((metric.mean, metric.std) if metric else (None, None))
    ]
    seconds = None if point.seconds is None else round(point.seconds, 1)
    reasons = "; ".join(dict.fromkeys(point.failures.values()))
    return [*settings, *metrics, len(point.outcomes), len(point.runs), point.trainable_params, seconds, reasons]


def _read_point(workdir: Path, runs: Sequence[SweepRun]) -> SweepPoint:
    outcomes, failures = [], {}
    for run in runs:
        if (outcome := read_outcome(workdir, run)) is not None:
            outcomes.append(outcome)
        elif (file := failure_file(workdir, run)).is_file():
            failures[run.name] = file.read_text(encoding="utf-8")
    return SweepPoint(runs[0].point, runs, outcomes, failures)


def _describe_ties(workdir: Path, points: Sequence[SweepPoint]) -> str:
    """Return which of the complete points are not significantly worse than the first, by McNemar's test; "" if all."""
    best, *others = (_correct_predictions(workdir, point) for point in points)
    if not best:
        return ""
    discordant = {
        point.name: (
            sum(best[path] and not correct[path] for path in best),
            sum(correct[path] and not best[path] for path in best),
        )
        for point, correct in zip(points[1:], others, strict=True)
        if correct.keys() == best.keys()
    }
    return verdicts.describe_ties(len(best), discordant)


def _correct_predictions(workdir: Path, point: SweepPoint) -> dict[str, bool]:
    """Return path -> whether it is classified correctly, of the validation images; {} if one is predicted twice."""
    files = [workdir / RUNS / run.name / "predictions.csv" for run in point.runs]
    if not all(file.is_file() for file in files):
        return {}
    splits = [read_predictions(file).of_split("validation") for file in files]
    correct = {
        path: bool(is_correct)
        for predictions in splits
        for path, is_correct in zip(predictions.paths, predictions.correct, strict=True)
    }
    return correct if len(correct) == sum(map(len, splits)) else {}


def _rank(point: SweepPoint) -> tuple[float, float]:
    """Sort by accuracy, the highest first, then by loss; a loss of NaN comes last."""
    assert point.accuracy is not None, "only complete points are ranked"
    assert point.loss is not None, "only complete points are ranked"
    return -point.accuracy.mean, math.inf if math.isnan(point.loss.mean) else point.loss.mean


def _with_test_accuracy(workdir: Path, point: SweepPoint) -> SweepPoint:
    """Return the point with its accuracy on the test images, if all its runs were evaluated on them."""
    files = [test_file(workdir, run) for run in point.runs]
    if not all(file.is_file() for file in files):
        return point
    evaluations = [EvaluationResult.read(file) for file in files]  # each of the same test images
    return replace(point, test=mean_std([result.accuracy for result in evaluations], evaluations[0].n))
