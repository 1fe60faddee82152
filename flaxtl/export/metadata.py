"""model.json: everything that is needed to use an exported model without flaxtl."""

import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from flaxtl.errors import UserError
from flaxtl.evaluation.predictor import Predictor, TrainedRun
from flaxtl.fileio import atomic_write_text
from flaxtl.models.imagenet import PREPROCESSING
from flaxtl.train import run_dir

METADATA_FILE = "model.json"
VERSIONED_PACKAGES = ("flaxtl", "jax", "pillow")  # jax reads programs that are not too old, Pillow resizes images

PREPROCESSING_FORMULA = (
    "(pixel / scale - mean) / std with the channels in this order; included in model.stablehlo and model.onnx, "
    "to be applied before the first layer of model.safetensors"
)


class _Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """A part of model.json. Fields with a default value are left out until they are known."""


class TensorSpec(_Record, frozen=True):
    """Input or output of the model; the first dimension is the batch."""

    name: str
    dtype: str
    shape: list[int | str]
    channels: str = ""


class HeadMetadata(_Record, frozen=True):
    """The fields of `flaxtl.models.head.Head`."""

    num_classes: int
    pooling: str
    units: list[int]
    dropout: float
    normalize: str = "none"


class PreprocessingMetadata(_Record, frozen=True):
    """The fields of `flaxtl.models.imagenet.Preprocessing`, its name, and how they are used."""

    name: str
    formula: str
    channels: str
    scale: float
    mean: list[float]
    std: list[float]


class ResizeMetadata(_Record, frozen=True):
    """The fields of `flaxtl.data.decode.Resize`, without `border`; `crop_pct` is used by the policy 'crop' only."""

    height: int
    width: int
    policy: str
    interpolation: str
    crop_pct: float
    bit_depth: int = 0


class ParityCheck(_Record, frozen=True):
    """The largest difference of a probability from `flaxtl predict` on `num_images` images, and the tolerance.

    `synthetic`: the images are random, because those of the run do not exist.
    """

    num_images: int
    max_difference: float
    tolerance: float
    synthetic: bool = False


class ModelMetadata(_Record, frozen=True):
    """The content of model.json.

    Attributes:
      versions: package -> version.
      phase: the phase after which the weights were saved.
      architecture: name of the model in the registry.
      output_layer: the last layer of the backbone; None for all of it.
      head: the layers on top of the backbone.
      dtype: of the computation, 'float32' or 'bfloat16'.
      precision: of float32 products on accelerators, 'default', 'high' or 'highest'.
      classes: class names in the order of the output.
      input: uint8 RGB images.
      output: probabilities, uncalibrated.
      preprocessing: from pixels to the input of the first layer.
      resize: from image files to the input size.
      temperature: calibration temperature of the run; None if it has none.
      license: of the pretrained weights.
      file: name of the file with the model.
      sha256: of that file.
      parity_check: result of the check after the export.
    """

    versions: dict[str, str]
    phase: str
    architecture: str
    output_layer: str | None
    head: HeadMetadata
    dtype: str
    classes: list[str]
    input: TensorSpec
    output: TensorSpec
    preprocessing: PreprocessingMetadata
    resize: ResizeMetadata
    temperature: float | None
    license: str
    file: str = ""
    sha256: str = ""
    precision: str = "default"
    parity_check: ParityCheck | None = None

    def to_json(self) -> str:
        """Return the text of model.json."""
        return json.dumps(msgspec.to_builtins(self), indent=1) + "\n"


def model_metadata(run: TrainedRun, predictor: Predictor) -> ModelMetadata:
    """Return the metadata of the model that `predictor` runs."""
    model, resize = predictor.model, predictor.resize
    assert model.head is not None, "a trained run has a head"
    fit = run_dir.read_summary(run.setup.workdir).calibration
    preprocessing = PREPROCESSING[model.spec.preprocessing]
    return ModelMetadata(
        versions={name: version(name) for name in VERSIONED_PACKAGES},
        phase=run.phase,
        architecture=model.spec.name,
        output_layer=model.output_layer,
        head=msgspec.convert(asdict(model.head), HeadMetadata),
        dtype=np.dtype(model.dtype).name,
        classes=list(predictor.classes),
        input=TensorSpec("images", "uint8", ["batch", resize.height, resize.width, 3], channels="RGB"),
        output=TensorSpec("probabilities", "float32", ["batch", len(predictor.classes)]),
        preprocessing=PreprocessingMetadata(
            name=model.spec.preprocessing,
            formula=PREPROCESSING_FORMULA,
            channels=preprocessing.channels,
            scale=preprocessing.scale,
            mean=list(preprocessing.mean),
            std=list(preprocessing.std),
        ),
        resize=msgspec.convert(asdict(resize), ResizeMetadata),
        temperature=fit.temperature if fit else None,
        license=model.spec.license,
        precision=model.precision,
    )


def write_metadata(folder: Path, metadata: ModelMetadata) -> None:
    """Write model.json to an export folder."""
    atomic_write_text(folder / METADATA_FILE, metadata.to_json())


def read_metadata(folder: Path) -> ModelMetadata:
    """Read model.json of an export folder; raises UserError if it is missing or invalid."""
    file = folder / METADATA_FILE
    try:
        values: Any = json.loads(file.read_text(encoding="utf-8"))
        return msgspec.convert(values, ModelMetadata)
    except (OSError, ValueError, RecursionError) as error:  # a msgspec.ValidationError is a ValueError
        raise UserError(f"Cannot read {file}: {error}. Export the run again.") from error
