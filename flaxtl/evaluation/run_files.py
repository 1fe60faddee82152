"""Typed reader of a run directory, for everything that looks at a run from outside: report, sweep, notebook."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from flaxtl.data.manifest import Manifest
from flaxtl.evaluation.calibration import CalibrationReport, calibration_report
from flaxtl.evaluation.predictions import Predictions, read_predictions
from flaxtl.train import run_dir
from flaxtl.train.run_records import (
    EpochMetrics,
    LayerRecord,
    RunSummary,
    SplitMetrics,
    invalid_file,
    load_json,
    read_metrics,
)


@dataclass(frozen=True)
class RunRecord:
    """A run directory. Each file is read when it is first used; a file that is not there yet gives an empty value.

    Reading raises UserError if a file is damaged or was written by another version.
    """

    workdir: Path

    @cached_property
    def config(self) -> Any:
        """The config of the run, a ConfigDict."""
        return run_dir.load_config(self.workdir)

    @cached_property
    def summary(self) -> RunSummary:
        """summary.json."""
        return run_dir.read_summary(self.workdir)

    @cached_property
    def epochs(self) -> list[EpochMetrics]:
        """metrics.jsonl. A last line that is still being written is left out."""
        return read_metrics(self.workdir)

    @cached_property
    def layers(self) -> list[LayerRecord]:
        """layers.json."""
        file = self.workdir / "layers.json"
        if not file.is_file():
            return []
        values = load_json(file)
        if not isinstance(values, list):
            raise invalid_file(file, "Expected a list")
        return [LayerRecord.from_json(value, file) for value in values]

    @cached_property
    def manifest(self) -> Manifest:
        """manifest.csv."""
        exists = (self.workdir / "manifest.csv").is_file()
        return run_dir.read_manifest(self.workdir) if exists else Manifest((), ())

    def train_metrics(self, phase: str) -> SplitMetrics:
        """The training metrics of a finished phase; their `n` is at most the number of training images, if known.

        In summary.json it is the number of uses: with `min_steps` an epoch uses each image several times.
        """
        metrics = self.summary.phases[phase].train
        num_images = sum(example.split == "train" for example in self.manifest.examples)
        return metrics.replace(n=min(metrics.n, num_images or metrics.n))

    @cached_property
    def predictions(self) -> Predictions | None:
        """predictions.csv; None before the run has finished."""
        file = self.workdir / "predictions.csv"
        return read_predictions(file) if file.is_file() else None

    @cached_property
    def eval_split(self) -> str:
        """The split that the run is evaluated on: test if it was predicted (or is to be), else validation."""
        splits = self.predictions.splits if self.predictions is not None else self.manifest.splits
        return "test" if "test" in splits else "validation"

    @cached_property
    def eval_predictions(self) -> Predictions | None:
        """The predictions on `eval_split`; None if there are none."""
        if self.predictions is None or self.eval_split not in self.predictions.splits:
            return None
        return self.predictions.of_split(self.eval_split)

    @cached_property
    def calibrated_predictions(self) -> Predictions | None:
        """`predictions` at the temperature of the run, if it has one: the confidences that people are shown."""
        fit = self.summary.calibration
        if self.predictions is None or fit is None or fit.temperature is None:
            return self.predictions
        return self.predictions.at_temperature(fit.temperature)

    @cached_property
    def calibrated_eval_predictions(self) -> Predictions | None:
        """`calibrated_predictions` on `eval_split`; None if there are none."""
        predictions = self.calibrated_predictions
        return predictions.of_split(self.eval_split) if predictions is not None and self.eval_predictions else None

    @cached_property
    def classes(self) -> list[str]:
        """Class names in the order of the model's outputs, as far as they are known."""
        if self.predictions is not None:
            return list(self.predictions.classes)
        return self.summary.classes or list(self.manifest.classes)

    @cached_property
    def calibration(self) -> CalibrationReport | None:
        """The calibration of `eval_predictions`; None if there are none."""
        predictions = self.eval_predictions
        if predictions is None:
            return None
        return calibration_report(predictions.log_probabilities, predictions.labels, self.summary.calibration)


def read_run(workdir: Path) -> RunRecord:
    """Return the record of a run directory.

    Raises:
      UserError: `workdir` is not a run directory, or another version of flaxtl wrote it.
    """
    run_dir.load_config(workdir)
    return RunRecord(workdir)
