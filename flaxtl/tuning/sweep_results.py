"""What the runs of a sweep came to: points in the order of their validation accuracy, in memory and as CSV.

The order asks nothing of the test images. Of the point that comes first, and of no other, their accuracy is told.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from flaxtl import fileio
from flaxtl.errors import UserError
from flaxtl.fileio import atomic_write
from flaxtl.train import run_dir
from flaxtl.tuning.sweep_grid import SweepPlan, SweepRun, text_of

RUNS, LOGS, TESTS = "runs", "logs", "test"
"""Folders of a sweep's directory: run directories, what runs said, and answers of `flaxtl evaluate`."""


class MeanStd(NamedTuple):
    """Mean and sample standard deviation of `n` values; None with fewer than two of them."""

    mean: float
    deviation: float | None
    n: int


class RunOutcome(NamedTuple):
    """Of a complete run: measures on validation after its last phase, in which `learning` parameters learned."""

    accuracy: float
    loss: float
    learning: int
    seconds: float


@dataclass(frozen=True)
class SweepPoint:
    """The runs that differ in nothing but seed and fold.

    Attributes:
        values: its JSON value of every setting of the grids.
        runs: all of them.
        results: of those that are complete.
        failures: run name -> why it failed.
        test: accuracy on the test images, of the chosen point once it was measured.
    """

    values: Mapping[str, Any]
    runs: Sequence[SweepRun]
    results: Sequence[RunOutcome]
    failures: Mapping[str, str]
    test: MeanStd | None = None

    @property
    def complete(self) -> bool:
        """Whether it can be compared with others."""
        return len(self.results) == len(self.runs)

    @property
    def accuracy(self) -> MeanStd | None:
        """On validation."""
        return mean_std([result.accuracy for result in self.results])

    @property
    def loss(self) -> MeanStd | None:
        """On validation."""
        return mean_std([result.loss for result in self.results])

    @property
    def learning(self) -> int | None:
        """Parameters that learned in the last phase."""
        return self.results[0].learning if self.results else None

    @property
    def seconds(self) -> float | None:
        """Of one run, the mean."""
        return statistics.fmean(result.seconds for result in self.results) if self.results else None

    @property
    def name(self) -> str:
        """The values in one line."""
        return ", ".join(f"{key}={text_of(value)}" for key, value in self.values.items()) or "the config"


@dataclass(frozen=True)
class SweepResults:
    """All points: complete ones first, the best on top, then the others in the order of the grid."""

    plan: SweepPlan
    points: Sequence[SweepPoint]

    @property
    def chosen(self) -> SweepPoint | None:
        """The best point, as soon as no run is still to come."""
        return self.points[0] if self.points and self.points[0].complete and not self.missing else None

    @property
    def missing(self) -> int:
        """Runs that neither are complete nor have failed."""
        return sum(len(point.runs) - len(point.results) - len(point.failures) for point in self.points)

    @property
    def failures(self) -> dict[str, str]:
        """Run name -> why it failed."""
        return {name: reason for point in self.points for name, reason in point.failures.items()}


def mean_std(values: Sequence[float]) -> MeanStd | None:
    """None of no values."""
    if not values:
        return None
    return MeanStd(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def read_results(workdir: Path, plan: SweepPlan) -> SweepResults:
    """The table of what is there; raises UserError for files that no run writes."""
    together: dict[str, list[SweepRun]] = {}
    for run in plan.runs:
        together.setdefault(json.dumps(run.point), []).append(run)
    points = [_point(workdir, runs) for runs in together.values()]
    ranked = sorted((point for point in points if point.complete), key=_rank)
    table = SweepResults(plan, [*ranked, *(point for point in points if not point.complete)])
    if (chosen := table.chosen) is None:
        return table
    return SweepResults(plan, [_tested(workdir, chosen), *table.points[1:]])


def result_of(workdir: Path, run: SweepRun) -> RunOutcome | None:
    """What a run came to; None unless it is complete."""
    summary = run_dir.read_summary(workdir / RUNS / run.name)
    if not summary.complete:
        return None
    last = next(reversed(summary.phases.values()), None)
    if last is None or last.validation.accuracy is None or last.validation.loss is None:
        file = workdir / RUNS / run.name / "summary.json"
        raise UserError(f"{file} has no validation metrics. Remove {file.parent} to train the run again.")
    return RunOutcome(last.validation.accuracy, last.validation.loss, last.trainable_params, summary.wall_seconds)


def test_file(workdir: Path, run: SweepRun) -> Path:
    """Where the answer of `flaxtl evaluate` on the test images lies."""
    return workdir / TESTS / f"{run.name}.json"


def failure_file(workdir: Path, run: SweepRun) -> Path:
    """Holds why a run failed, until it is tried again."""
    return workdir / LOGS / f"{run.name}.failed"


def write_results_csv(table: SweepResults, file: Path) -> None:
    """A row a point, in the table's order; what is not known is empty. Accuracies lie in 0..1."""
    measures = ("validation_accuracy", "validation_loss", "test_accuracy")
    columns = [part for name in measures for part in (name, f"{name}_std")]
    with atomic_write(file, newline="") as stream:
        fileio.write_csv(stream, [[*table.plan.keys, *columns, "n", "runs", "trainable_params", "seconds", "failed"]])
        fileio.write_csv(stream, (_csv_row(table.plan.keys, point) for point in table.points))


def _csv_row(keys: Sequence[str], point: SweepPoint) -> list[object]:
    measured = [
        part
        for found in (point.accuracy, point.loss, point.test)
        for part in ((found.mean, found.deviation) if found else (None, None))
    ]
    seconds = None if point.seconds is None else round(point.seconds, 1)
    failed = "; ".join(dict.fromkeys(point.failures.values()))
    settings = [text_of(point.values[key]) for key in keys]
    return [*settings, *measured, len(point.results), len(point.runs), point.learning, seconds, failed]


def _point(workdir: Path, runs: Sequence[SweepRun]) -> SweepPoint:
    results, failures = [], {}
    for run in runs:
        if (result := result_of(workdir, run)) is not None:
            results.append(result)
        elif (file := failure_file(workdir, run)).is_file():
            failures[run.name] = file.read_text(encoding="utf-8")
    return SweepPoint(runs[0].point, runs, results, failures)


def _rank(point: SweepPoint) -> tuple[float, float]:
    """Ascending: by accuracy, the higher first, then by loss; one that is no number comes last."""
    assert point.accuracy is not None, "only complete points are ranked"
    assert point.loss is not None, "only complete points are ranked"
    return -point.accuracy.mean, math.inf if math.isnan(point.loss.mean) else point.loss.mean


def _tested(workdir: Path, point: SweepPoint) -> SweepPoint:
    """With the accuracy on the test images, where it was measured for all runs of the point."""
    files = [test_file(workdir, run) for run in point.runs]
    if not all(file.is_file() for file in files):
        return point
    from flaxtl.evaluation.evaluate import EvaluationResult  # imports all of training, which a sweep leaves to its runs

    accuracies = [EvaluationResult.read(file).accuracy for file in files]
    return SweepPoint(point.values, point.runs, point.results, point.failures, mean_std(accuracies))
