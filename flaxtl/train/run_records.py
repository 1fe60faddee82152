"""The JSON records of a run directory: summary.json, metrics.jsonl and layers.json.

Each class is the only definition of its keys: the trainer writes it, the report reads it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import msgspec
from msgspec import Meta, Struct

from flaxtl.errors import UserError

FORMAT_VERSION = 2
"""Format of config.json and summary.json. Files of the first edition, format 1, have no key `format_version`."""

Count = Annotated[int, Meta(ge=0, le=10**15)]
Amount = Annotated[float, Meta(ge=0, le=1e15)]
Fraction = Annotated[float, Meta(ge=0, le=1)]


class Record(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An immutable record with one JSON form; fields that have their default value are left out of it."""

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return values

    @classmethod
    def from_json(cls, values: object, file: Path) -> Self:
        """Return the record of JSON values.

        Raises:
          UserError: a key is missing or unknown, or a value has the wrong type; the message names `file` and the key.
        """
        try:
            return msgspec.convert(values, cls)
        except (msgspec.ValidationError, RecursionError) as error:
            raise invalid_file(file, error) from error

    def replace(self, **changes: Any) -> Self:
        """Return a copy with other values."""
        return msgspec.structs.replace(self, **changes)


class SplitMetrics(Record, frozen=True):
    """Metrics of one split. `accuracy` and `loss` are None if they were not measured; a diverged loss is inf or nan."""

    accuracy: Fraction | None
    n: Count
    loss: float | None = None
    balanced_accuracy: Fraction | None = None


class PhaseSummary(Record, frozen=True):
    """One phase in summary.json.

    Attributes:
      epochs: epochs trained; `steps` is their train steps.
      best_epoch: the epoch with the best monitored value, from 1. With early stopping its parameters are kept.
      lrs: param group -> learning rate at the start; 0: frozen.
      augment: whether training images were augmented.
      trainable_params: number of trained weights.
      frozen_arrays_verified: frozen weight arrays that were verified bit for bit at the end.
      wall_seconds: duration, over all resumed runs.
      train: averaged over the selected epoch, with dropout and augmentation active.
      validation: at the end of the selected epoch.
      test: None if there is no test split, or the run has not ended.
    """

    epochs: Count
    steps: Count
    best_epoch: Count
    lrs: dict[str, Amount]
    augment: bool
    trainable_params: Count
    frozen_arrays_verified: Count
    wall_seconds: Amount
    train: SplitMetrics
    validation: SplitMetrics
    test: SplitMetrics | None = None


class WeightsSource(Record, frozen=True):
    """Initial weights: the value of `weights.path`, and what it stood for."""

    path: str
    source: str


Temperature = Annotated[float, Meta(ge=1e-15, le=1e15)]


class TemperatureFit(Record, frozen=True):
    """The calibration temperature, fitted on `n` validation images; None if no temperature helps.

    `interval` is its 95 % interval (low, high); None without a temperature, and in runs of older versions.
    """

    temperature: Temperature | None
    n: Count
    interval: tuple[Temperature, Temperature] | None = None


class NonfiniteStep(Record, frozen=True):
    """Where training stopped because the loss or a gradient became nan or inf.

    `images` are the paths of the step's batch; [] if it is the validation loss, after this step.
    """

    phase: str
    epoch: Count
    step: Count
    images: list[str]


class RunSummary(Record, frozen=True):
    """summary.json.

    Attributes:
      command: the command line that started the run.
      seed: the config's seed.
      dtype: the config's dtype of the layers.
      precision: the config's precision of float32 products; by default, a TPU multiplies in bfloat16.
      classes: class names, in the order of the model's outputs.
      devices: kind of each device.
      versions: package -> version.
      weights: initial weights.
      data_root: the folder that the paths in manifest.csv are relative to; "" in runs that have absolute ones.
      skipped: path -> reason, of images that could not be read.
      skipped_files: number of files in the folders of the data source that are not images.
      phases: phase name -> its summary, once it has ended.
      timings: name of a part of the run -> seconds.
      wall_seconds: duration of start-up and training, without the final evaluation, over all resumed runs.
      complete: whether the run was trained and evaluated.
      calibration: fitted when the run ended.
      nonfinite_step: set if training diverged.
    """

    command: str = ""
    seed: int | None = None
    dtype: str = ""
    precision: str = ""
    classes: list[str] = []
    devices: list[str] = []
    versions: dict[str, str] = {}
    weights: WeightsSource | None = None
    data_root: str = ""
    skipped: dict[str, str] = {}
    skipped_files: Count = 0
    phases: dict[str, PhaseSummary] = {}
    timings: dict[str, Amount] = {}
    wall_seconds: Amount = 0.0
    complete: bool = False
    calibration: TemperatureFit | None = None
    nonfinite_step: NonfiniteStep | None = None


class EpochMetrics(Record, frozen=True):
    """One line of metrics.jsonl.

    Attributes:
      phase: name of the phase.
      epoch: number of the epoch in its phase, from 1.
      step: train steps of the whole run at the end of the epoch.
      lrs: param group -> learning rate at the end of the epoch, see `Phase.lrs`; frozen groups are left out.
      seconds: duration of the epoch with its validation.
    """

    phase: str
    epoch: Count
    step: Count
    train_loss: float
    train_accuracy: Fraction
    validation_loss: float
    validation_accuracy: Fraction
    validation_balanced_accuracy: Fraction
    lrs: dict[str, Amount]
    seconds: Amount


class LayerRecord(Record, frozen=True):
    """One entry of layers.json, which lists the layers of the model in order.

    Attributes:
      layer: name.
      kind: such as "conv".
      shape: shape of the output without the batch axis.
      params: number of parameters.
      group: param group of its parameters; "" if it has none.
      trained_in: phases that train it.
      source: where its initial parameters are from; "" if it has none.
    """

    layer: str
    kind: str
    shape: list[Count]
    params: Count
    group: str
    trained_in: list[str]
    source: str


def load_json(file: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
      UserError: the file cannot be read, or is not JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise invalid_file(file, error) from error


def read_metrics(workdir: Path) -> list[EpochMetrics]:
    """Return the epochs of metrics.jsonl; [] if there is none.

    A last line without line end is left out: it is being written, or a crash has cut it off.

    Raises:
      UserError: the file cannot be read, or a line is damaged or was written by another version of flaxtl.
    """
    file = workdir / "metrics.jsonl"
    if not file.is_file():
        return []
    try:
        *lines, _ = file.read_bytes().split(b"\n")
        values = [json.loads(line) for line in lines]
    except (OSError, ValueError, RecursionError) as error:
        raise invalid_file(file, error) from error
    return [EpochMetrics.from_json(value, file) for value in values]


def load_versioned(file: Path) -> dict[str, Any]:
    """Return the content of config.json or summary.json, without its format version.

    Raises:
      UserError: the file cannot be read, or another version of flaxtl wrote it.
    """
    values = load_json(file)
    if not isinstance(values, dict):
        raise invalid_file(file, "Expected an object")
    version = values.pop("format_version", 1)
    if version != FORMAT_VERSION:
        edition = "flaxtl 0.1 (first edition)" if version == 1 else "another version of flaxtl"
        raise UserError(
            f"{file.parent} was written by {edition}, in run format {version!r}; this version reads format "
            f"{FORMAT_VERSION}. Start a new --workdir."
        )
    return values


def with_version(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of config.json or summary.json as it is written."""
    return {"format_version": FORMAT_VERSION, **values}


def invalid_file(file: Path, reason: object) -> UserError:
    """Return the error for a damaged file of a run directory."""
    return UserError(f"{file} is not a valid JSON file of a run: {reason}. Restore it, or start a new --workdir.")
