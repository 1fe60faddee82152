"""Key figures of a run: the headline result, facts about the setup, the phase table and the training curves.

Every function also works on an unfinished run and shows what its files contain so far.
"""

import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from flaxtl.evaluation.run_files import RunRecord
from flaxtl.evaluation.run_verdict import run_verdict
from flaxtl.report import plots
from flaxtl.report.templating import format_count, format_duration, format_points, format_rounded, metrics_digits
from flaxtl.train import rounding
from flaxtl.train.run_records import SplitMetrics

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Headline:
    """The result of a run on one split, `num_images` > 0."""

    split: str
    num_correct: int
    num_images: int

    @property
    def accuracy(self) -> float:
        """Fraction of correct predictions, in [0, 1]."""
        return self.num_correct / self.num_images

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the accuracy."""
        return rounding.wilson_interval(self.num_correct, self.num_images)

    @property
    def rounded_accuracy(self) -> str:
        """The accuracy with the digits that the number of images supports, such as '81 %'."""
        return rounding.rounded_percent(self.num_correct, self.num_images)

    @property
    def rounded_interval(self) -> str:
        """The interval with as many digits, such as '57 to 93 %'."""
        return rounding.rounded_interval(self.num_correct, self.num_images)


@dataclass(frozen=True)
class PhaseRow:
    """One row of the phase table.

    Attributes:
      name: of the phase.
      lrs: learning rate of each param group; 0 if it is frozen.
      trainable_params: how many parameters train; None if unknown.
      verified_arrays: how many frozen arrays were verified unchanged; None if the phase has not ended.
      augment: whether training images were augmented.
      epochs: epochs trained so far.
      planned_epochs: epochs in the config.
      seconds: wall time; None if unknown.
      metrics: split -> its accuracy and number of images; None if not measured.
    """

    name: str
    lrs: Mapping[str, float]
    trainable_params: int | None
    verified_arrays: int | None
    augment: bool
    epochs: int
    planned_epochs: int
    seconds: float | None
    metrics: Mapping[str, SplitMetrics | None]


@dataclass(frozen=True)
class PhaseResult:
    """The accuracy after one phase, and its change from the phase before in percentage points, as text."""

    name: str
    accuracy: str
    gain: str


def headline(run: RunRecord) -> Headline | None:
    """Return the main result: from the predictions, or else of the phase in training, or else of the last phase."""
    predictions = run.eval_predictions
    if predictions is not None:
        return _headline(run.eval_split, int(predictions.correct.sum()), len(predictions.paths))
    phases = run.summary.phases
    if run.epochs and run.epochs[-1].phase not in phases:
        num_images = sum(example.split == "validation" for example in run.manifest.examples)
        return _headline("validation", round(run.epochs[-1].validation_accuracy * num_images), num_images)
    if phases:
        last = next(reversed(phases.values()))
        split, metrics = ("test", last.test) if last.test else ("validation", last.validation)
        return _headline(split, round((metrics.accuracy or 0) * metrics.n), metrics.n)
    return None


def describe_unfinished(run: RunRecord) -> str:
    """Return that a run is not finished, or why its training stopped for good; "" for a complete run."""
    if run.summary.complete:
        return ""
    if stop := run.summary.nonfinite_step:
        return (
            f"This run is not finished: loss or gradient became NaN or inf in phase {stop.phase}, epoch "
            f"{stop.epoch}, step {stop.step:,}. The figures are those so far. Start a new --workdir with a lower "
            "learning rate."
        )
    return "This run is not finished. The figures are those so far; run flaxtl report again later."


def summary_lines(run: RunRecord, report: Path) -> list[str]:
    """Return the end of an evaluated run for a terminal: its verdict, one suggestion, the report, the next command."""
    lines = []
    predict = f"flaxtl predict --workdir={shlex.quote(str(run.workdir))} --input PATH"
    if verdict := run_verdict(run):
        lines = [verdict.result, *verdict.findings]
        if verdict.command != predict:
            lines += ["", f"Suggestion: {verdict.advice}", f"  {verdict.command}"]
    return [*lines, "", "Classify new images:", f"  {predict}", f"Report: {report}"]


def _headline(split: str, num_correct: int, num_images: int) -> Headline | None:
    return Headline(split, num_correct, num_images) if num_images else None


def facts(run: RunRecord) -> list[tuple[str, str]]:
    """Return (term, value) pairs about the model, the data and the run."""
    data, model, summary = run.config.data, run.config.model, run.summary
    devices = Counter(summary.devices)
    return [
        ("Model", model.name + (f" up to {model.output_layer}" if model.output_layer else "")),
        ("Input", f"{data.height} × {data.width}"),
        ("Weights", summary.weights.source if summary.weights else "–"),
        ("Classes", format_count(len(run.classes))),
        ("Images", format_count(len(run.manifest.examples)) if run.manifest.examples else "–"),
        ("Seed", str(run.config.seed)),
        ("Training time", format_duration(summary.wall_seconds or None)),
        ("Devices", ", ".join(f"{n} × {kind}" for kind, n in devices.items()) or "–"),
    ]


def phase_rows(run: RunRecord) -> list[PhaseRow]:
    """Return the phases in the order of the config, from the summary, else the epochs so far, else the config."""
    return [_phase_row(run, name) for name in run.config.phases]


def phase_results(run: RunRecord, split: str) -> list[PhaseResult]:
    """Return the accuracy on a split after each phase that was evaluated on it."""
    results: list[PhaseResult] = []
    before: float | None = None
    for row in phase_rows(run):
        metrics = row.metrics[split]
        if metrics is None or metrics.accuracy is None:
            continue
        gain = "" if before is None else format_points(metrics.accuracy - before, metrics_digits(metrics))
        results.append(PhaseResult(row.name, format_rounded(metrics), gain))
        before = metrics.accuracy
    return results


def _phase_row(run: RunRecord, name: str) -> PhaseRow:
    planned, done = run.config[name], run.summary.phases.get(name)
    if done:
        return PhaseRow(
            name=name,
            lrs=done.lrs,
            trainable_params=done.trainable_params,
            verified_arrays=done.frozen_arrays_verified,
            augment=done.augment,
            epochs=done.epochs,
            planned_epochs=planned.epochs,
            seconds=done.wall_seconds,
            metrics={"train": run.train_metrics(name), "validation": done.validation, "test": done.test},
        )
    epochs = [epoch for epoch in run.epochs if epoch.phase == name]
    metrics: dict[str, SplitMetrics | None] = dict.fromkeys(SPLITS)
    if epochs:
        n = Counter(example.split for example in run.manifest.examples)
        metrics["train"] = SplitMetrics(epochs[-1].train_accuracy, n["train"])
        metrics["validation"] = SplitMetrics(epochs[-1].validation_accuracy, n["validation"])
    return PhaseRow(
        name=name,
        lrs=planned.lr.to_dict(),
        trainable_params=None,
        verified_arrays=None,
        augment=planned.augment,
        epochs=len(epochs),
        planned_epochs=planned.epochs,
        seconds=sum(epoch.seconds for epoch in epochs) if epochs else None,
        metrics=metrics,
    )


def training_curves(run: RunRecord) -> dict[str, Markup]:
    """Return title -> SVG of loss and accuracy over all epochs; empty before the first epoch ends."""
    if not run.epochs:
        return {}
    epochs = [epoch.to_json() for epoch in run.epochs]
    return {
        "Loss": Markup(plots.plot_curves(epochs, "loss")),
        "Accuracy": Markup(plots.plot_curves(epochs, "accuracy")),
    }
