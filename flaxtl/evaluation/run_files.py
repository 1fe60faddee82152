"""Whether a JSON value has the shape that flaxtl writes.

A shape is a test of one value, such as `is_count`; [shape], a list of such; {key: shape}, an object in which keys may
be absent and others present; {...: shape}, an object with any keys; or a `Record`, in which some keys must be present.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from flaxtl.errors import UserError
from flaxtl.evaluation import calibration
from flaxtl.evaluation import predictions as predictions_file
from flaxtl.evaluation.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    CalibrationMetrics,
    CoveragePoint,
    RiskCoverage,
)
from flaxtl.evaluation.predictions import Predictions
from flaxtl.train.run_records import load_versioned

MAX_NUMBER = 10**15
"""Of counts, seconds and rates, which no run comes near."""

Shape = Any  # see above; it is recursive
Key = str | int


class Record(NamedTuple):
    """The shape of an object that has all the keys of `required`, and may have those of `optional`."""

    required: Mapping[str, Shape]
    optional: Mapping[str, Shape] = {}


def is_text(value: Any) -> bool:
    """A text."""
    return isinstance(value, str)


def is_flag(value: Any) -> bool:
    """True or false."""
    return isinstance(value, bool)


def is_count(value: Any) -> bool:
    """A whole number of 0 or more."""
    return isinstance(value, int) and is_amount(value)


def is_amount(value: Any) -> bool:
    """A number of 0 or more."""
    return isinstance(value, int | float) and not is_flag(value) and 0 <= value <= MAX_NUMBER


def is_temperature(value: Any) -> bool:
    """A number above 0, or null where none was found."""
    return value is None or (is_amount(value) and value >= 1 / MAX_NUMBER)


def is_share(value: Any) -> bool:
    """A number from 0 to 1, or null where nothing was measured."""
    return value is None or (is_amount(value) and value <= 1)


def is_loss(value: Any) -> bool:
    """Any number, also one that is infinite or undefined, as where training diverged; or null."""
    return value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) <= MAX_NUMBER)


_KINDS = {
    is_text: "a text",
    is_flag: "true or false",
    is_count: "a count",
    is_amount: "an amount",
    is_temperature: "a temperature",
    is_share: "a share of 1",
    is_loss: "a loss",
}


def shape_fault(value: Any, shape: Shape, name: str = "it") -> str | None:
    """What is wrong with `value`, which is called `name`: "'phases.frozen.epochs' is not a count"; None if nothing."""
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{name} is not a list"
        return _first(enumerate(value), lambda key: shape[0], name)
    if isinstance(shape, Mapping | Record):
        if not isinstance(value, dict):
            return f"{name} is not an object"
        return _of_object(value, shape if isinstance(shape, Record) else Record({}, shape), name)
    return None if shape(value) else f"{name} is not {_KINDS[shape]}"


def _of_object(value: dict[str, Any], shape: Record, name: str) -> str | None:
    if absent := [key for key in shape.required if key not in value]:
        return f"{name} has no {absent[0]!r}"
    shapes: dict[Any, Shape] = {**shape.optional, **shape.required}
    rest = shapes.get(..., lambda anything: True)
    return _first(value.items(), lambda key: shapes.get(key, rest), name)


def _first(members: Iterable[tuple[Key, Any]], shape_of: Callable[[Key], Shape], name: str) -> str | None:
    """The first fault of the members of a list or an object."""
    within = "" if name == "it" else f"{name}."
    faults = (shape_fault(value, shape_of(key), f"{within}{key}") for key, value in members)
    return next((found for found in faults if found), None)


Json = dict[str, Any]

_RATES: Shape = {...: is_amount}
_MEASURES: Shape = {"accuracy": is_share, "loss": is_loss, "n": is_count}

CONFIG_SHAPE: Shape = {
    "data": {"source": is_text},
    "model": {"name": is_text},
    "phases": [is_text],
    "weights": {"path": is_text},
}
"""Of config.json what the report tells; PHASE of each phase in it."""

PHASE_SHAPE: Shape = {"lr": _RATES, "epochs": is_count}

EPOCH_SHAPE: Shape = Record(
    {"phase": is_text},
    {
        "seconds": is_amount,
        **{f"{split}_accuracy": is_share for split in ("train", "validation")},
        **{f"{split}_loss": is_loss for split in ("train", "validation")},
    },
)
"""A line of metrics.jsonl."""

LAYERS_SHAPE: Shape = [
    Record(
        {
            "layer": is_text, "kind": is_text, "shape": [is_count], "params": is_count, "group": is_text,
            "trained_in": [is_text], "source": is_text,
        }
    )
]  # fmt: skip

SUMMARY_SHAPE: Shape = {
    "calibration": Record({"temperature": is_temperature, "n": is_count}),
    "classes": [is_text],
    "command": is_text,
    "complete": is_flag,
    "devices": [is_text],
    "phases": {
        ...: {
            "lrs": _RATES,
            "trainable_params": is_count,
            "frozen_arrays_verified": is_count,
            "augment": is_flag,
            "epochs": is_count,
            "wall_seconds": is_amount,
            "train": _MEASURES,
            **dict.fromkeys(("validation", "test"), Record({"accuracy": is_share, "n": is_count}, {"loss": is_loss})),
        }
    },
    "skipped": {...: is_text},
    "timings": {...: is_amount},
    "versions": {...: is_text},
    "wall_seconds": is_amount,
    "weights": {"source": is_text},
}

EVALUATION_SHAPE: Shape = Record({"accuracy": is_amount, "n": is_count})
"""What `flaxtl evaluate --json` writes, as far as it is read again."""


@dataclass(frozen=True)
class RunRecord:
    """The files of a run directory; what is missing is empty, or None."""

    workdir: Path
    config: Json
    epochs: list[Json]
    manifest: list[dict[str, str]]
    predictions: Predictions | None
    layers: list[Json]
    summary: Json

    @cached_property
    def eval_split(self) -> str:
        """The split that judges the run: test if it was predicted (or is to be), else validation."""
        predicted = set(self.predictions.splits) if self.predictions else set()
        return "test" if "test" in (predicted or {row["split"] for row in self.manifest}) else "validation"

    @cached_property
    def eval_predictions(self) -> Predictions | None:
        """The predictions on `eval_split`; None if there are none."""
        if self.predictions is None or self.eval_split not in self.predictions.splits:
            return None
        return self.predictions.of_split(self.eval_split)

    @cached_property
    def classes(self) -> list[str]:
        """Class names in the order of the network's outputs, as far as the run knows it."""
        if self.predictions:
            return list(self.predictions.classes)
        return list(self.summary.get("classes") or sorted({row["label"] for row in self.manifest}))


def read_run(workdir: Path) -> RunRecord:
    """Read the files of a run directory; only config.json has to be there.

    Raises:
        UserError: workdir is no run directory, or one of its files cannot be read or is none that a run writes.
    """
    if not (workdir / "config.json").is_file():
        raise UserError(f"{workdir} is no run directory: it has no config.json; name the --workdir of a `flaxtl train`")
    config = load_versioned(workdir / "config.json")
    _check(workdir / "config.json", config, CONFIG_SHAPE)
    _check(workdir / "config.json", config, dict.fromkeys(config.get("phases", ()), PHASE_SHAPE))
    predictions = workdir / "predictions.csv"
    return RunRecord(
        workdir=workdir,
        config=config,
        epochs=_epochs(workdir / "metrics.jsonl"),
        manifest=_manifest(workdir / "manifest.csv"),
        predictions=predictions_file.read_predictions(predictions) if predictions.exists() else None,
        layers=_layers(workdir / "layers.json"),
        summary=read_summary(workdir),
    )


def read_summary(workdir: Path) -> Json:
    """summary.json of a run directory, {} before it is there; raises UserError if it is none that a run writes."""
    return _object(workdir / "summary.json", SUMMARY_SHAPE)


def read_evaluation(path: Path) -> Json:
    """What `flaxtl evaluate --json` wrote; raises UserError for anything else."""
    value: Json = _json(path, EVALUATION_SHAPE)
    return value


def _object(path: Path, shape: Shape) -> Json:
    value: Json = _json(path, shape) if path.exists() else {}
    return value


def _layers(path: Path) -> list[Json]:
    value: list[Json] = _json(path, LAYERS_SHAPE) if path.exists() else []
    return value


def _epochs(path: Path) -> list[Json]:
    """The lines of metrics.jsonl; a last line without its end is still being written and does not count."""
    *lines, _ = _text(path).split("\n") if path.exists() else ("",)
    epochs = [_parsed(path, line) for line in lines if line]
    _check(path, epochs, [EPOCH_SHAPE])
    return epochs


def _manifest(path: Path) -> list[dict[str, str]]:
    return list(_manifest_rows(path)) if path.exists() else []


def _manifest_rows(path: Path) -> Iterator[dict[str, str]]:
    columns = ("path", "label", "split")
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = csv.DictReader(file, restval="")
            if not set(columns) <= set(rows.fieldnames or ()):
                raise _foreign(path, "it is no manifest, which has columns path, label and split")
            for row in rows:
                yield {column: row[column] for column in columns}
    except (OSError, csv.Error) as error:
        raise _foreign(path, str(error)) from None


def _json(path: Path, shape: Shape) -> Any:
    value = _parsed(path, _text(path))
    _check(path, value, shape)
    return value


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8
        raise _foreign(path, str(error)) from None


def _parsed(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _foreign(path, str(error)) from None


def _check(path: Path, value: Any, shape: Shape) -> None:
    if found := shape_fault(value, shape):
        raise _foreign(path, found)


def _foreign(path: Path, reason: str) -> UserError:
    return UserError(f"{path} cannot be read: {reason}; restore the file or train anew")


PERCENTS = (100, 95, 90, 80, 50)
"""Of the images answered: the rows of the table."""


@dataclass(frozen=True)
class CalibrationReport:
    """Calibration of the predictions on the evaluation split.

    Attributes:
        uncalibrated: metrics of the probabilities as predicted.
        calibrated: metrics at the run's temperature; None if it has none.
        temperature: fitted on the validation images at the end of the run, or None.
        no_temperature_reason: why there is no temperature, a sentence without full stop; "" if there is one.
        num_fitted: number of validation images that the temperature was fitted on.
        risk_coverage: accuracy against the fraction of images covered.
        coverage_points: points of the curve at PERCENTS.
    """

    uncalibrated: CalibrationMetrics
    calibrated: CalibrationMetrics | None
    temperature: float | None
    no_temperature_reason: str
    num_fitted: int
    risk_coverage: RiskCoverage
    coverage_points: Sequence[CoveragePoint]


def calibration_report(run: RunRecord) -> CalibrationReport | None:
    """Return the calibration of the predictions on the evaluation split; None without predictions."""
    predictions = run.eval_predictions
    if predictions is None:
        return None
    temperature = run.summary.get("calibration", {}).get("temperature")
    scaled = calibration.apply_temperature(predictions.probabilities, temperature) if temperature else None
    curve = calibration.risk_coverage(predictions.confidence, predictions.correct)
    return CalibrationReport(
        uncalibrated=calibration.calibration_metrics(predictions.probabilities, predictions.labels),
        calibrated=None if scaled is None else calibration.calibration_metrics(scaled, predictions.labels),
        temperature=temperature,
        no_temperature_reason=missing_temperature_reason(run.summary),
        num_fitted=run.summary.get("calibration", {}).get("n", 0),
        risk_coverage=curve,
        coverage_points=[calibration.coverage_at(curve, percent) for percent in PERCENTS],
    )


def missing_temperature_reason(summary: Json) -> str:
    """Return why a run has no temperature, a sentence without full stop; "" if it has one."""
    fitted = summary.get("calibration")
    if fitted is None:
        return "This run has no temperature: it has not finished, or was written by an older version"
    if fitted["temperature"] is not None:
        return ""
    if not fitted["n"]:
        return "This run has no temperature: it has no validation images to fit one on"
    return (
        f"This run has no temperature: no value between {MIN_TEMPERATURE:g} and {MAX_TEMPERATURE:g} minimizes the loss "
        f"of its {fitted['n']:,} validation images, because almost all or almost none of them are classified correctly"
    )
