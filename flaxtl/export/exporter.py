"""Export a trained run as a folder with the model, its description and predict.py, and verify the result."""

import hashlib
import runpy
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from secrets import token_hex

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
from PIL import Image

from flaxtl import fileio
from flaxtl.data.record_files import image_exists, open_binary
from flaxtl.errors import UserError
from flaxtl.evaluation.predictor import Predictor, TrainedRun
from flaxtl.export import formats, predict_script, readme
from flaxtl.export.metadata import ModelMetadata, ParityCheck, model_metadata, write_metadata
from flaxtl.models.classifier import Classifier

FORMATS = ("safetensors", "stablehlo", "onnx")

NUM_CHECK_IMAGES = 8
"""Images of the parity check: enough to show an error, few enough to take seconds."""

TOLERANCES = {"float32": 1e-3, "tensorfloat32": 0.0125, "bfloat16": 0.1}
"""Format of the operands of products -> tolerated difference of a probability from `flaxtl predict`.

Another order of sums changes logits by up to 2.3e-5 of the largest (MobileNetV2 and V3, tests/models), and a
probability by half of that: 5e-4 where logits reach 40. In bfloat16, a value between two representable numbers may be
rounded either way, by 2**-8 of itself, in every layer: up to 0.02 was measured with VGG16. TensorFloat-32 rounds by an
eighth of that. An error such as swapped channels or a missing batch norm changes the predicted class of some images.
"""

DEFAULT_OPERANDS = {"tpu": "bfloat16", "cuda": "tensorfloat32", "gpu": "tensorfloat32"}
"""Platform -> to what a float32 model rounds the operands of products with precision=default; float32 elsewhere."""


def export_run(run: TrainedRun, output: Path, form: str, model_card: str = "") -> ParityCheck:
    """Write the model of a run to the new folder `output`; the folder appears only if the check succeeds.

    ONNX models compute in float32 and are compared with the run's model in float32, even if the run uses bfloat16.

    Args:
      run: a run with trained parameters.
      output: a folder that is empty or does not exist.
      form: one of FORMATS.
      model_card: Markdown for the file model_card.md; '' leaves it out.

    Raises:
      UserError: `output` is not empty or cannot be written, no image of the run can be read, or the exported model
        does not give the probabilities of the run's model.
    """
    target = _check_empty(output)
    predictor = run.predictor()
    if form == "onnx":
        predictor = predictor._replace(model=predictor.model.clone(dtype=jnp.float32))
    scratch = target.with_name(fileio.temporary_prefix(target) + token_hex(4))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch.mkdir()
        metadata = _write_export(scratch, run, predictor, form)
        check = _check_export(scratch, run, predictor, form)
        write_metadata(scratch, msgspec.structs.replace(metadata, parity_check=check))
        _write_texts(scratch, metadata, run.setup.workdir.resolve().name, form, model_card)
        scratch.replace(target)
    except OSError as error:
        raise UserError(f"Cannot write {output} ({error.strerror}). Choose another --output.") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return check


def _check_empty(output: Path) -> Path:
    """Return the absolute path of the new folder; raises UserError if it is not empty."""
    target = output.resolve()
    try:
        is_used = target.exists() and any(target.iterdir())
    except OSError as error:
        raise UserError(f"Cannot use {output} ({error.strerror}). Choose a new folder as --output.") from error
    if is_used:
        raise UserError(f"{output} is not empty. Empty it, or choose a new folder as --output.")
    return target


def _write_export(folder: Path, run: TrainedRun, predictor: Predictor, form: str) -> ModelMetadata:
    """Write predict.py, the model and model.json; return the metadata."""
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(predictor.params))
    fileio.check_disk_space(folder, size, "The exported model needs", "Free some space, or choose another --output.")
    shutil.copyfile(predict_script.__file__, folder / "predict.py")
    metadata = model_metadata(run, predictor)
    file = folder / f"model.{form}"
    _writer(form)(file, predictor, metadata.to_json())
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    metadata = msgspec.structs.replace(metadata, file=file.name, sha256=digest)
    write_metadata(folder, metadata)
    return metadata


def _write_texts(folder: Path, metadata: ModelMetadata, name: str, form: str, model_card: str) -> None:
    """Write what people read who have only this folder: README, requirements and, if given, the model card."""
    text = readme.render_readme(metadata, name, has_model_card=bool(model_card))
    fileio.atomic_write_text(folder / readme.README_FILE, text)
    fileio.atomic_write_text(folder / readme.REQUIREMENTS_FILE, readme.render_requirements(form, metadata.versions))
    if model_card:
        fileio.atomic_write_text(folder / readme.MODEL_CARD_FILE, model_card)


def _writer(form: str) -> formats.WriteModel:
    if form == "onnx":
        from flaxtl.export import onnx  # needs packages that are optional

        return onnx.write_onnx
    return {"safetensors": formats.write_safetensors_export, "stablehlo": formats.write_stablehlo}[form]


def _check_export(folder: Path, run: TrainedRun, predictor: Predictor, form: str) -> ParityCheck:
    """Check the export on images of the run, or on synthetic ones if none of them exists."""
    with tempfile.TemporaryDirectory() as scratch:
        if paths := _check_images(run):
            files = [_as_file(path, Path(scratch)) for path in paths]
            return check_parity(folder, predictor, files, form)
        check = check_parity(folder, predictor, _synthetic_images(Path(scratch), predictor), form)
    return msgspec.structs.replace(check, synthetic=True)


def _check_images(run: TrainedRun) -> list[Path]:
    """Return existing files spread over the test split, or over the validation split if there is no test split."""
    manifest = run.setup.manifest
    examples = manifest.of_split("test" if "test" in manifest.splits else "validation")
    paths = [path for path in (Path(example.path) for example in examples) if image_exists(path)]
    indices = np.linspace(0, len(paths) - 1, min(NUM_CHECK_IMAGES, len(paths))).astype(int)
    return [paths[index] for index in indices]


def _as_file(path: Path, folder: Path) -> Path:
    """Return the path of an image as predict.py can open it: one inside a record file is written to `folder`."""
    if path.is_file():
        return path
    copy = folder / path.name
    with open_binary(path) as image:
        copy.write_bytes(image.read())
    return copy


def _synthetic_images(folder: Path, predictor: Predictor) -> list[Path]:
    """Write images of random colors in random resolutions, from coarse blocks to pixels, at the input size."""
    rng, size = np.random.default_rng(0), (predictor.resize.width, predictor.resize.height)
    paths = [folder / f"{number}.png" for number in range(NUM_CHECK_IMAGES)]
    for number, path in enumerate(paths):
        blocks = rng.integers(0, 256, (2 ** (number + 1), 2 ** (number + 1), 3), np.uint8)
        Image.fromarray(blocks).resize(size, Image.Resampling.BILINEAR).save(path)
    return paths


def operand_format(model: Classifier, form: str, platform: str) -> str:
    """Return the format of the operands of products, a key of TOLERANCES; an ONNX model multiplies in float32."""
    dtype: str = np.dtype(model.dtype).name
    if dtype == "float32" and model.precision == "default" and form != "onnx":
        return DEFAULT_OPERANDS.get(platform, dtype)
    return dtype


def check_parity(folder: Path, predictor: Predictor, paths: Sequence[Path], form: str) -> ParityCheck:
    """Compare the folder's own predict.py with `predictor`, on all images at once and on a single one.

    Raises UserError if a probability differs by more than the tolerance.
    """
    # By default, accelerators round float32 operands of a matrix product; an ONNX runtime may not.
    with jax.default_matmul_precision("float32") if form == "onnx" else nullcontext():
        expected = predictor.predict(paths)
    script = runpy.run_path(str(folder / "predict.py"))
    resize = script["read_metadata"]()["resize"]
    images = np.stack([script["load_image"](path, resize) for path in expected.paths])
    run_model = script["load_model"]()
    outputs = (run_model(images), run_model(images[:1]))
    difference = max(float(np.abs(output - expected.probabilities[: len(output)]).max()) for output in outputs)
    device, *_ = jax.tree.leaves(predictor.params)[0].devices()
    tolerance = TOLERANCES[operand_format(predictor.model, form, device.platform)]
    if not difference <= tolerance:
        raise UserError(
            f"The exported model differs from the run by {difference:.2g} in a probability, more than rounding errors "
            f"explain ({tolerance:g}). The export was removed. Choose another --format."
        )
    return ParityCheck(len(images), difference, tolerance)
