"""A run in figures: its result in one line, its facts, its phases; as far as the files of the run directory tell."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from flaxtl.evaluation import classification
from flaxtl.evaluation.run_files import Json, RunRecord
from flaxtl.report.templating import format_count, format_duration

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Headline:
    """The result in one line: `right` of `n` images of a split, an accuracy in [0, 1] and its 95 % interval."""

    split: str
    accuracy: float
    right: int
    n: int
    interval: tuple[float, float]


@dataclass(frozen=True)
class PhaseRow:
    """One row of the phase table; accuracies by split, None where not measured; seconds of wall time."""

    name: str
    rates: Mapping[str, float]
    parameters: int | None
    verified: int | None
    augment: bool
    epochs: int
    planned: int
    seconds: float | None
    accuracy: Mapping[str, float | None]


def headline(run: RunRecord) -> Headline | None:
    """The result that stands on top; from the predictions, else the summary, else the last epoch; None before that."""
    split = run.eval_split
    if run.predictions and split in run.predictions.splits:
        judged = run.predictions.of_split(split)
        return _headline(split, int((judged.predicted == judged.labels).sum()), len(judged.paths))
    last: Json = next(reversed(run.summary.get("phases", {}).values()), {})
    for split in ("test", "validation"):
        if split in last:
            n = int(last[split]["n"])
            return _headline(split, round(last[split]["accuracy"] * n), n)
    if run.epochs and run.epochs[-1].get("validation_accuracy") is not None:
        n = sum(row["split"] == "validation" for row in run.manifest)
        return _headline("validation", round(run.epochs[-1]["validation_accuracy"] * n), n)
    return None


def _headline(split: str, right: int, n: int) -> Headline | None:
    return Headline(split, right / n, right, n, classification.wilson_interval(right, n)) if n else None


def facts(run: RunRecord) -> list[tuple[str, str]]:
    """Terms and values of the line of facts below the headline."""
    data, model = run.config.get("data", {}), run.config.get("model", {})
    network = str(model.get("name", "–")) + (f" up to {model['output_layer']}" if model.get("output_layer") else "")
    devices: Counter[str] = Counter(run.summary.get("devices", []))
    return [
        ("Network", network),
        ("Input", f"{data['height']} × {data['width']}" if {"height", "width"} <= data.keys() else "–"),
        ("Weights", str(run.summary.get("weights", {}).get("origin", "–"))),
        ("Classes", format_count(len(run.classes))),
        ("Images", format_count(len(run.manifest)) if run.manifest else "–"),
        ("Seed", str(run.config.get("seed", "–"))),
        ("Wall time", format_duration(run.summary.get("wall_seconds"))),
        ("Devices", ", ".join(f"{n} × {kind}" for kind, n in devices.items()) or "–"),
    ]


def phase_rows(run: RunRecord) -> list[PhaseRow]:
    """The phases in the config's order: as summed up, else as far as the epochs tell, else as planned."""
    rows = []
    for name in run.config.get("phases", []):
        plan, done = run.config.get(name, {}), run.summary.get("phases", {}).get(name, {})
        epochs = [epoch for epoch in run.epochs if epoch.get("phase") == name]
        accuracy = {split: done.get(split, {}).get("accuracy") for split in SPLITS}
        if not done and epochs:
            accuracy |= {split: epochs[-1].get(f"{split}_accuracy") for split in ("train", "validation")}
        seconds = sum(float(epoch.get("seconds", 0)) for epoch in epochs) if epochs else None
        rows.append(
            PhaseRow(
                name=name,
                rates=done.get("rates") or plan.get("lr", {}),
                parameters=done.get("learning_parameters"),
                verified=done.get("frozen_leaves_unchanged"),
                augment=bool(done.get("augment", plan.get("augment", False))),
                epochs=int(done.get("epochs", len(epochs))),
                planned=int(plan.get("epochs", 0)),
                seconds=done.get("wall_seconds", seconds),
                accuracy=accuracy,
            )
        )
    return rows
