"""model.json: all that is true of an exported network, for whoever uses it without flaxtl."""

import hashlib
import json
import os
import runpy
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flaxtl import fileio
from flaxtl.data.decode import CROP_PCT, Resize
from flaxtl.errors import UserError
from flaxtl.evaluation.predictor import Predictor, TrainedRun
from flaxtl.export import formats, predict_script
from flaxtl.models.classifier import Classifier
from flaxtl.models.imagenet import PREPROCESSING
from flaxtl.train import run_dir

VERSIONED_PACKAGES = ("flaxtl", "jax", "pillow")
"""Whose versions matter later: jax reads programs that are not too old, and Pillow resizes."""


def model_metadata(run: TrainedRun, predictor: Predictor) -> dict[str, Any]:
    """The network that `predictor` runs, in words and numbers; JSON values.

    `temperature` is the one that was fitted to the run's answers, which are handed out as they are; null without one.
    """
    model, resize = predictor.model, predictor.resize
    fit = run_dir.read_summary(run.setup.workdir).calibration
    return {
        "versions": {name: version(name) for name in VERSIONED_PACKAGES},
        "phase": run.phase,
        **_network(model),
        "classes": list(predictor.classes),
        "input": {
            "name": "images",
            "dtype": "uint8",
            "shape": ["batch", resize.height, resize.width, 3],
            "channels": "RGB",
        },
        "output": {
            "name": "probabilities",
            "dtype": "float32",
            "shape": ["batch", len(predictor.classes)],
        },
        "preprocessing": _preprocessing(model),
        "resize": _resize(resize),
        "temperature": fit.temperature if fit else None,
        "licence": model.spec.license,
    }


def _network(model: Classifier) -> dict[str, Any]:
    assert model.head is not None, "a run has its own classes"
    return {
        "architecture": model.spec.name,
        "stop": model.output_layer,
        "head": asdict(model.head),
        "dtype": np.dtype(model.dtype).name,
    }


def _preprocessing(model: Classifier) -> dict[str, Any]:
    name = model.spec.preprocessing
    preprocessing = PREPROCESSING[name]
    return {
        "name": name,
        "formula": "(pixel / scale - subtract) / divide, channels in this order; part of the network in model.stablehlo"
        " and model.onnx, to be done before the first layer of model.safetensors",
        "channels": preprocessing.channels,
        "scale": preprocessing.scale,
        "subtract": preprocessing.mean,
        "divide": preprocessing.std,
    }


def _resize(resize: Resize) -> dict[str, Any]:
    """`crop_pct` is used by the policy 'crop' alone."""
    return {**asdict(resize), "crop_pct": CROP_PCT}


FORMATS = ("safetensors", "stablehlo", "onnx")

NUM_IMAGES = 8
"""Image files that an export is tried on: enough for a fault to show, few enough for seconds."""

BOUNDS = {"float32": 1e-3, "bfloat16": 0.1}
"""By what the network computes in: how far a probability may be from that of `flaxtl predict`.

Sums in another order put logits off by up to 2.3e-5 of the largest (MobileNetV2 and V3, tests/test_mobilenet.py), and a
probability by half of that: 5e-4 where logits reach 40. In bfloat16 a value that lies between two roundings may go
either way, by 2**-8 of itself, in every layer: 0.02 was seen with VGG16. A fault, such as channels in another order or
a batch norm left out, shows in some of the images as a whole class.
"""


class ParityCheck(NamedTuple):
    """The largest difference of a probability from that of `flaxtl predict`, on so many image files."""

    num_images: int
    max_difference: float
    tolerance: float


def export_run(run: TrainedRun, output: Path, form: str) -> ParityCheck:
    """Write the run's network to the new folder `output`, which appears when all is written and tried.

    ONNX computes in float32, whatever the run does, and is compared with the run's network in float32.

    Raises UserError where `output` holds something already, none of the run's images can be read, or the exported
    network does not answer as the run's does.
    """
    target = _free(output)
    predictor = run.predictor()
    if form == "onnx":
        predictor = predictor._replace(model=predictor.model.clone(dtype=jnp.float32))
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch.mkdir()
        _write_folder(scratch, run, predictor, form)
        trial = _try(scratch, predictor, _samples(run), form)
        _note(scratch, trial=trial._asdict())
        scratch.replace(target)
    except OSError as error:
        raise UserError(f"cannot write {output} ({error.strerror}); choose another --output") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return trial


def _free(output: Path) -> Path:
    target = output.expanduser().resolve()
    try:
        filled = target.exists() and any(target.iterdir())
    except OSError as error:
        raise UserError(f"cannot use {output} ({error.strerror}); give a new folder as --output") from error
    if filled:
        raise UserError(f"{output} is not empty; give a new folder as --output, or empty this one")
    return target


def _write_folder(folder: Path, run: TrainedRun, predictor: Predictor, form: str) -> None:
    """Write predict.py, model.json and the network, which holds what model.json says before its file is there."""
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(predictor.params))
    fileio.check_disk_space(folder, size, "the network needs", "make room, or choose another --output")
    shutil.copyfile(predict_script.__file__, folder / "predict.py")
    card = model_metadata(run, predictor)
    fileio.atomic_write_text(folder / "model.json", _json(card))
    file = folder / f"model.{form}"
    _writer(form)(file, predictor.model, predictor.params, predictor.resize, json.dumps(card))
    _note(folder, file=file.name, sha256=hashlib.sha256(file.read_bytes()).hexdigest())


def _writer(form: str) -> formats.Writer:
    if form == "onnx":
        from flaxtl.export import onnx  # needs packages that nothing else does

        return onnx.write_onnx
    return {"safetensors": formats.write_safetensors_export, "stablehlo": formats.write_stablehlo}[form]


def _note(folder: Path, **facts: Any) -> None:
    """Add to model.json."""
    file = folder / "model.json"
    fileio.atomic_write_text(file, _json({**json.loads(file.read_text(encoding="utf-8")), **facts}))


def _json(value: Any) -> str:
    return json.dumps(value, indent=1) + "\n"


def _samples(run: TrainedRun) -> list[Path]:
    """Images from all over the test split, or where there is none the validation split."""
    manifest = run.setup.manifest
    examples = manifest.of_split("test" if "test" in manifest.splits else "validation")
    places = np.linspace(0, len(examples) - 1, min(NUM_IMAGES, len(examples))).astype(int)
    return [Path(examples[place].path) for place in places]


def _try(folder: Path, predictor: Predictor, paths: Sequence[Path], form: str) -> ParityCheck:
    """Run the folder's own predict.py, on all images together and on one alone; raises UserError for a fault."""
    # Accelerators round float32 to fewer bits unless they are told not to; the runtime of an ONNX file may not.
    with jax.default_matmul_precision("float32") if form == "onnx" else nullcontext():
        expected = predictor.predict(paths)
    script = runpy.run_path(str(folder / "predict.py"))
    resize = script["read_metadata"]()["resize"]
    images = np.stack([script["load_image"](path, resize) for path in expected.paths])
    run = script["load_network"]()
    found = (run(images), run(images[:1]))
    difference = max(float(np.abs(part - expected.probabilities[: len(part)]).max()) for part in found)
    bound = BOUNDS[np.dtype(predictor.model.dtype).name]
    if not difference <= bound:
        raise UserError(
            f"the exported network is {difference:.2g} off the run's probabilities, more than rounding explains "
            f"({bound:g}), and was removed; choose another --format"
        )
    return ParityCheck(len(images), difference, bound)
