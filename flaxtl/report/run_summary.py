"""Key figures of a run: the headline result, facts about the setup, the phase table and the training curves.

Every function also works on an unfinished run and shows what its files contain so far.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

from flaxtl.evaluation import classification
from flaxtl.evaluation.run_files import Json, RunRecord
from flaxtl.report import plots
from flaxtl.report.templating import format_count, format_duration

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Headline:
    """The result of a run on one split, `num_images` > 0."""

    split: str
    num_correct: int
    num_images: int

    @property
    def accuracy(self) -> float:
        """Share of correct predictions, in [0, 1]."""
        return self.num_correct / self.num_images

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the accuracy."""
        return classification.wilson_interval(self.num_correct, self.num_images)


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
        accuracy: split -> accuracy in [0, 1]; None if not measured.
    """

    name: str
    lrs: Mapping[str, float]
    trainable_params: int | None
    verified_arrays: int | None
    augment: bool
    epochs: int
    planned_epochs: int
    seconds: float | None
    accuracy: Mapping[str, float | None]


def headline(run: RunRecord) -> Headline | None:
    """Return the main result, from the predictions, the summary or the last epoch, whichever exists first."""
    predictions = run.eval_predictions
    if predictions is not None:
        return _headline(run.eval_split, int(predictions.correct.sum()), len(predictions.paths))
    last: Json = next(reversed(run.summary.get("phases", {}).values()), {})
    for split in ("test", "validation"):
        if split in last:
            n = int(last[split]["n"])
            return _headline(split, round(last[split]["accuracy"] * n), n)
    if run.epochs and run.epochs[-1].get("validation_accuracy") is not None:
        n = sum(row["split"] == "validation" for row in run.manifest)
        return _headline("validation", round(run.epochs[-1]["validation_accuracy"] * n), n)
    return None


def _headline(split: str, num_correct: int, num_images: int) -> Headline | None:
    return Headline(split, num_correct, num_images) if num_images else None


def facts(run: RunRecord) -> list[tuple[str, str]]:
    """Return (term, value) pairs about the model, the data and the run."""
    data, model = run.config.get("data", {}), run.config.get("model", {})
    output_layer = model.get("output_layer")
    devices: Counter[str] = Counter(run.summary.get("devices", []))
    return [
        ("Model", str(model.get("name", "–")) + (f" up to {output_layer}" if output_layer else "")),
        ("Input", f"{data['height']} × {data['width']}" if {"height", "width"} <= data.keys() else "–"),
        ("Weights", str(run.summary.get("weights", {}).get("source", "–"))),
        ("Classes", format_count(len(run.classes))),
        ("Images", format_count(len(run.manifest)) if run.manifest else "–"),
        ("Seed", str(run.config.get("seed", "–"))),
        ("Wall time", format_duration(run.summary.get("wall_seconds"))),
        ("Devices", ", ".join(f"{n} × {kind}" for kind, n in devices.items()) or "–"),
    ]


def phase_rows(run: RunRecord) -> list[PhaseRow]:
    """Return the phases in the order of the config, from the summary, else the epochs so far, else the config."""
    rows = []
    for name in run.config.get("phases", []):
        planned, done = run.config.get(name, {}), run.summary.get("phases", {}).get(name, {})
        epochs = [epoch for epoch in run.epochs if epoch.get("phase") == name]
        accuracy = {split: done.get(split, {}).get("accuracy") for split in SPLITS}
        if not done and epochs:
            accuracy |= {split: epochs[-1].get(f"{split}_accuracy") for split in ("train", "validation")}
        seconds = sum(float(epoch.get("seconds", 0)) for epoch in epochs) if epochs else None
        rows.append(
            PhaseRow(
                name=name,
                lrs=done.get("lrs") or planned.get("lr", {}),
                trainable_params=done.get("trainable_params"),
                verified_arrays=done.get("frozen_arrays_verified"),
                augment=bool(done.get("augment", planned.get("augment", False))),
                epochs=int(done.get("epochs", len(epochs))),
                planned_epochs=int(planned.get("epochs", 0)),
                seconds=done.get("wall_seconds", seconds),
                accuracy=accuracy,
            )
        )
    return rows


def training_curves(run: RunRecord) -> dict[str, Markup]:
    """Return title -> SVG of loss and accuracy over all epochs; empty before the first epoch ends."""
    if not run.epochs:
        return {}
    return {
        "Loss": Markup(plots.plot_curves(run.epochs, "loss")),
        "Accuracy": Markup(plots.plot_curves(run.epochs, "accuracy")),
    }
