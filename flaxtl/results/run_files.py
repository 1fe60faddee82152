"""What the files of a run directory say, checked: the directory may come from anybody."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from flaxtl.errors import UserError
from flaxtl.results import predictions_file
from flaxtl.results.predictions_file import Predictions
from flaxtl.results.shape import (
    Record,
    Shape,
    fault,
    is_amount,
    is_count,
    is_flag,
    is_loss,
    is_share,
    is_temperature,
    is_text,
)

Json = dict[str, Any]

_RATES: Shape = {...: is_amount}
_MEASURES: Shape = {"accuracy": is_share, "loss": is_loss, "n": is_count}

CONFIG: Shape = {
    "data": {"source": is_text},
    "model": {"name": is_text},
    "phases": [is_text],
    "weights": {"path": is_text},
}
"""Of config.json what the report tells; PHASE of each phase in it."""

PHASE: Shape = {"lr": _RATES, "epochs": is_count}

EPOCH: Shape = Record(
    {"phase": is_text},
    {
        "seconds": is_amount,
        **{f"{split}_accuracy": is_share for split in ("train", "validation")},
        **{f"{split}_loss": is_loss for split in ("train", "validation")},
    },
)
"""A line of metrics.jsonl."""

LAYERS: Shape = [
    Record(
        {
            "layer": is_text, "kind": is_text, "shape": [is_count], "parameters": is_count, "group": is_text,
            "learns": [is_text], "origin": is_text,
        }
    )
]  # fmt: skip

SUMMARY: Shape = {
    "calibration": Record({"temperature": is_temperature, "n": is_count}),
    "classes": [is_text],
    "command": is_text,
    "complete": is_flag,
    "devices": [is_text],
    "phases": {
        ...: {
            "rates": _RATES,
            "learning_parameters": is_count,
            "frozen_leaves_unchanged": is_count,
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
    "weights": {"origin": is_text},
}

EVALUATION: Shape = Record({"accuracy": is_amount, "n": is_count})
"""What `flaxtl evaluate --json` writes, as far as it is read again."""


@dataclass(frozen=True)
class Run:
    """The files of a run directory; what is missing is empty, or None."""

    workdir: Path
    config: Json
    epochs: list[Json]
    manifest: list[dict[str, str]]
    predictions: Predictions | None
    layers: list[Json]
    summary: Json

    @cached_property
    def judged(self) -> str:
        """The split that judges the run: test if it was predicted (or is to be), else validation."""
        predicted = set(self.predictions.splits) if self.predictions else set()
        return "test" if "test" in (predicted or {row["split"] for row in self.manifest}) else "validation"

    @cached_property
    def classes(self) -> list[str]:
        """Class names in the order of the network's outputs, as far as the run knows it."""
        if self.predictions:
            return list(self.predictions.classes)
        return list(self.summary.get("classes") or sorted({row["label"] for row in self.manifest}))


def read(workdir: Path) -> Run:
    """Read the files of a run directory; only config.json has to be there.

    Raises:
        UserError: workdir is no run directory, or one of its files cannot be read or is none that a run writes.
    """
    if not (workdir / "config.json").is_file():
        raise UserError(f"{workdir} is no run directory: it has no config.json; name the --workdir of a `flaxtl train`")
    config = _object(workdir / "config.json", CONFIG)
    _check(workdir / "config.json", config, dict.fromkeys(config.get("phases", ()), PHASE))
    predictions = workdir / "predictions.csv"
    return Run(
        workdir=workdir,
        config=config,
        epochs=_epochs(workdir / "metrics.jsonl"),
        manifest=_manifest(workdir / "manifest.csv"),
        predictions=predictions_file.read(predictions) if predictions.exists() else None,
        layers=_layers(workdir / "layers.json"),
        summary=summary_of(workdir),
    )


def summary_of(workdir: Path) -> Json:
    """summary.json of a run directory, {} before it is there; raises UserError if it is none that a run writes."""
    return _object(workdir / "summary.json", SUMMARY)


def evaluated(path: Path) -> Json:
    """What `flaxtl evaluate --json` wrote; raises UserError for anything else."""
    value: Json = _json(path, EVALUATION)
    return value


def _object(path: Path, shape: Shape) -> Json:
    value: Json = _json(path, shape) if path.exists() else {}
    return value


def _layers(path: Path) -> list[Json]:
    value: list[Json] = _json(path, LAYERS) if path.exists() else []
    return value


def _epochs(path: Path) -> list[Json]:
    """The lines of metrics.jsonl; a last line without its end is still being written and does not count."""
    *lines, _ = _text(path).split("\n") if path.exists() else ("",)
    epochs = [_parsed(path, line) for line in lines if line]
    _check(path, epochs, [EPOCH])
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
    if found := fault(value, shape):
        raise _foreign(path, found)


def _foreign(path: Path, reason: str) -> UserError:
    return UserError(f"{path} cannot be read: {reason}; restore the file or train anew")
