"""`flaxtl export`: a trained run as a folder to be used without it, tried on the run's own pictures first.

The folder holds the network (model.safetensors, model.stablehlo or model.onnx), all that is true of it (model.json) and
predict.py, which reads picture files as the run did. Resizing is no part of the exported network: the run was trained
on what Pillow makes of a file, and predict.py uses Pillow itself.
"""

import hashlib
import json
import os
import runpy
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flaxtl import files
from flaxtl.errors import UserError
from flaxtl.results import export_card, export_predict, export_program, export_weights
from flaxtl.results.predict import Predictor, of_run, predict
from flaxtl.results.trained import Trained

FORMATS = ("safetensors", "stablehlo", "onnx")

PICTURES = 8
"""Picture files that an export is tried on: enough for a fault to show, few enough for seconds."""

BOUNDS = {"float32": 1e-3, "bfloat16": 0.1}
"""By what the network computes in: how far a probability may be from that of `flaxtl predict`.

Sums in another order put logits off by up to 2.3e-5 of the largest (MobileNetV2 and V3, tests/test_mobilenet.py), and a
probability by half of that: 5e-4 where logits reach 40. In bfloat16 a value that lies between two roundings may go
either way, by 2**-8 of itself, in every layer: 0.02 was seen with VGG16. A fault, such as channels in another order or
a batch norm left out, shows in some of the pictures as a whole class.
"""


class Trial(NamedTuple):
    """The largest difference of a probability from that of `flaxtl predict`, on so many picture files."""

    pictures: int
    largest_difference: float
    bound: float


def export(run: Trained, output: Path, form: str) -> Trial:
    """Write the run's network to the new folder `output`, which appears when all is written and tried.

    ONNX computes in float32, whatever the run does, and is compared with the run's network in float32.

    Raises UserError where `output` holds something already, none of the run's pictures can be read, or the exported
    network does not answer as the run's does.
    """
    target = _free(output)
    predictor = of_run(run)
    if form == "onnx":
        predictor = predictor._replace(model=predictor.model.clone(dtype=jnp.float32))
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch.mkdir()
        _write(scratch, run, predictor, form)
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


def _write(folder: Path, run: Trained, predictor: Predictor, form: str) -> None:
    """Write predict.py, model.json and the network, which holds what model.json says before its file is there."""
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(predictor.parameters))
    files.require_room(folder, size, "the network needs", "make room, or choose another --output")
    shutil.copyfile(export_predict.__file__, folder / "predict.py")
    card = export_card.describe(run, predictor)
    files.write_text(folder / "model.json", _json(card))
    file = folder / f"model.{form}"
    _writer(form)(file, predictor.model, predictor.parameters, predictor.resize, json.dumps(card))
    _note(folder, file=file.name, sha256=hashlib.sha256(file.read_bytes()).hexdigest())


def _writer(form: str) -> export_program.Writer:
    if form == "onnx":
        from flaxtl.results import export_onnx  # needs packages that nothing else does

        return export_onnx.write
    return {"safetensors": export_weights.write, "stablehlo": export_program.write}[form]


def _note(folder: Path, **facts: Any) -> None:
    """Add to model.json."""
    file = folder / "model.json"
    files.write_text(file, _json({**json.loads(file.read_text(encoding="utf-8")), **facts}))


def _json(value: Any) -> str:
    return json.dumps(value, indent=1) + "\n"


def _samples(run: Trained) -> list[Path]:
    """Pictures from all over the test split, or where there is none the validation split."""
    manifest = run.setup.manifest
    examples = manifest.of_split("test" if "test" in manifest.splits else "validation")
    places = np.linspace(0, len(examples) - 1, min(PICTURES, len(examples))).astype(int)
    return [Path(examples[place].path) for place in places]


def _try(folder: Path, predictor: Predictor, paths: Sequence[Path], form: str) -> Trial:
    """Run the folder's own predict.py, on all pictures together and on one alone; raises UserError for a fault."""
    # Accelerators round float32 to fewer bits unless they are told not to; the runtime of an ONNX file may not.
    with jax.default_matmul_precision("float32") if form == "onnx" else nullcontext():
        expected = predict(predictor, paths, [])
    script = runpy.run_path(str(folder / "predict.py"))
    resize = script["card"]()["resize"]
    pictures = np.stack([script["picture"](path, resize) for path in expected.paths])
    run = script["network"]()
    found = (run(pictures), run(pictures[:1]))
    difference = max(float(np.abs(part - expected.probabilities[: len(part)]).max()) for part in found)
    bound = BOUNDS[np.dtype(predictor.model.dtype).name]
    if not difference <= bound:
        raise UserError(
            f"the exported network is {difference:.2g} off the run's probabilities, more than rounding explains "
            f"({bound:g}), and was removed; choose another --format"
        )
    return Trial(len(pictures), difference, bound)
