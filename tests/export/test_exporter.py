"""`flaxtl export`: every format, loaded again and compared with `flaxtl predict` on image files."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import onnx
import onnxruntime
import PIL
import pytest
import safetensors
from helpers import tiny_run
from PIL import Image

from flaxtl import __version__
from flaxtl.errors import UserError
from flaxtl.evaluation.predictor import TrainedRun, load_run
from flaxtl.export import exporter, formats
from flaxtl.models.classifier import unflatten_params

ROUNDING = 2e-6
"""Of a probability: XLA and onnxruntime, and XLA for another batch size, sum in a different order. Four convolutions of
at most 1,152 products, each off by a few units in the last place (6e-8); logits are below 8."""


@pytest.fixture(scope="module")
def run(prepared, parameters):
    """A small finished run; its probabilities are far from 0 and 1."""
    damped = {path: value / 40 if path == "head/predictions/kernel" else value for path, value in parameters.items()}
    return TrainedRun(prepared, damped, "finetune")


@pytest.fixture(scope="module")
def expected(run):
    """Predictions of the images of the parity check."""
    predictions = run.predictor().predict(exporter._check_images(run))
    assert 0.05 < predictions.probabilities.min() < predictions.probabilities.max() < 0.95
    assert (
        np.ptp(predictions.probabilities, axis=0).max() > 100 * ROUNDING
    )  # otherwise one output for all images would pass
    return predictions


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """Format -> (folder, parity check)."""
    root = tmp_path_factory.mktemp("exports")
    return {form: (root / form, exporter.export_run(run, root / form, form, "# Card")) for form in exporter.FORMATS}


def pixels(predictions):
    """Return the images, which have the input size already."""
    return np.stack([np.asarray(Image.open(path)) for path in predictions.paths])


@pytest.mark.parametrize("form", exporter.FORMATS)
def test_export_folder_has_model_texts_and_script(exported, form):
    folder, check = exported[form]
    texts = {"README.md", "requirements.txt", "model_card.md"}
    assert {file.name for file in folder.iterdir()} == {f"model.{form}", "model.json", "predict.py"} | texts
    assert (folder / "model_card.md").read_text() == "# Card"
    assert f"| model.{form} |" in (folder / "README.md").read_text()
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []
    metadata = json.loads((folder / "model.json").read_text())
    assert metadata["parity_check"] == msgspec.to_builtins(check)
    assert (check.num_images, check.tolerance) == (6, 1e-3)
    assert check.max_difference <= ROUNDING


def test_export_metadata_is_complete(exported):
    folder, _ = exported["stablehlo"]
    metadata = json.loads((folder / "model.json").read_text())
    digest = subprocess.run(["sha256sum", folder / "model.stablehlo"], capture_output=True, text=True, check=True)
    assert digest.stdout.split()[0] == metadata.pop("sha256")
    assert metadata.pop("license").startswith("CC BY 4.0")
    assert metadata.pop("versions") == {"flaxtl": __version__, "jax": jax.__version__, "pillow": PIL.__version__}
    del metadata["parity_check"], metadata["preprocessing"]["formula"]
    assert metadata == {
        "phase": "finetune",
        "architecture": "vgg16",
        "output_layer": "block2_pool",
        "head": {"num_classes": 3, "pooling": "global_average", "units": [8], "dropout": 0.4},
        "dtype": "float32",
        "classes": ["blue", "green", "red"],
        "input": {"name": "images", "dtype": "uint8", "shape": ["batch", 32, 32, 3], "channels": "RGB"},
        "output": {"name": "probabilities", "dtype": "float32", "shape": ["batch", 3]},
        "preprocessing": {
            "name": "caffe",
            "channels": "BGR",
            "scale": 1.0,
            "mean": [103.939, 116.779, 123.68],
            "std": [1.0, 1.0, 1.0],
        },
        "resize": {"height": 32, "width": 32, "policy": "squash", "interpolation": "bilinear", "crop_pct": 0.875},
        "temperature": None,
        "file": "model.stablehlo",
    }


@pytest.mark.slow
@pytest.mark.parametrize("normalize", ["l2", "layer_norm", "standardize", "batch_norm"])
def test_export_normalized_head_predicts_the_same(folder, tmp_path, normalize):
    head = {"pooling": "global_average", "units": (), "normalize": normalize}
    run = load_run(tiny_run.untrained(folder, tmp_path / "run", head=head))
    rng = np.random.default_rng(0)
    statistics = {path: rng.uniform(1, 2, leaf.shape).astype(np.float32) for path, leaf in run.params.items()}
    run = run._replace(params=run.params | {path: statistics[path] for path in run.params if "/normalize/" in path})
    for form in exporter.FORMATS:
        assert exporter.export_run(run, tmp_path / form, form).max_difference <= ROUNDING
        assert json.loads((tmp_path / form / "model.json").read_text())["head"]["normalize"] == normalize


def test_safetensors_weights_are_bit_identical(exported, run):
    folder, _ = exported["safetensors"]
    with safetensors.safe_open(folder / "model.safetensors", "numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        metadata = json.loads(file.metadata()["flaxtl"])
    assert metadata["classes"] == ["blue", "green", "red"]
    assert {f"{section}/{layer}" for section, layers in unflatten_params(run.params).items() for layer in layers} == {
        "backbone/block1_conv1",
        "backbone/block1_conv2",
        "backbone/block2_conv1",
        "backbone/block2_conv2",
        "head/dense_1",
        "head/predictions",
    }
    assert arrays.keys() == {path.split("/", 1)[1] for path in run.params}
    for path, value in run.params.items():
        array = arrays[path.split("/", 1)[1]]
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, value)


def test_load_exported_model_predicts_bit_identical(exported, expected):
    folder, _ = exported["safetensors"]
    np.testing.assert_array_equal(formats.load_exported_model(folder)(pixels(expected)), expected.probabilities)


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"dtype": "float61"}, "float61"),
        ({"head": {}}, r"`num_classes`.*\bhead\b"),
        ({"output_layer": "block1_pool"}, r"\+ block2_conv1/kernel"),
    ],
)
def test_load_exported_model_changed_metadata_raises(exported, tmp_path, change, facts):
    shutil.copytree(exported["safetensors"][0], tmp_path / "copy")
    file = tmp_path / "copy/model.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(UserError, match=facts):
        formats.load_exported_model(tmp_path / "copy")


@pytest.mark.parametrize("n", [1, 3, 6])
def test_stablehlo_any_batch_size_matches(exported, expected, n):
    folder, _ = exported["stablehlo"]
    program = jax.export.deserialize(bytearray((folder / "model.stablehlo").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert [str(aval) for aval in program.in_avals] == ["uint8[batch,32,32,3]"]
    output = program.call(pixels(expected)[:n])
    assert output.dtype == np.float32
    np.testing.assert_allclose(output, expected.probabilities[:n], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("n", [1, 3, 6])
def test_onnx_any_batch_size_matches(exported, expected, n):
    session = onnxruntime.InferenceSession(exported["onnx"][0] / "model.onnx", providers=["CPUExecutionProvider"])
    (model_input,), (model_output,) = session.get_inputs(), session.get_outputs()
    assert (model_input.name, model_input.type, model_input.shape) == ("images", "tensor(uint8)", ["batch", 32, 32, 3])
    assert (model_output.name, model_output.type, model_output.shape) == (
        "probabilities",
        "tensor(float)",
        ["batch", 3],
    )
    (output,) = session.run(None, {"images": pixels(expected)[:n]})
    np.testing.assert_allclose(output, expected.probabilities[:n], rtol=0, atol=ROUNDING)


def test_onnx_has_layer_names_and_metadata(exported):
    model = onnx.load(exported["onnx"][0] / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    layers = [node.name.split("/")[0] for node in model.graph.node if node.op_type == "Conv"]
    assert layers == ["block1_conv1", "block1_conv2", "block2_conv1", "block2_conv2"]
    (metadata,) = (entry.value for entry in model.metadata_props if entry.key == "flaxtl")
    assert json.loads(metadata)["classes"] == ["blue", "green", "red"]


def test_predict_script_onnx_needs_no_flaxtl(exported, expected, tmp_path):
    shutil.copytree(exported["onnx"][0], tmp_path / "elsewhere")
    code = """
import runpy, sys
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
assert not {"flaxtl", "jax"} & sys.modules.keys()
"""
    command = [sys.executable, "-c", code, tmp_path / "elsewhere/predict.py", *expected.paths]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    for row, line in enumerate(result.stdout.splitlines()):
        top = [(score.label, f"{score.probability:.1%}") for score in expected.top(row, 3)]
        path, _, printed = line.partition(": ")
        assert path == expected.paths[row]
        assert re.findall(r"(\w+) (\d+\.\d%)", printed) == top


def test_predict_script_without_its_runtime_says_what_to_install(exported, expected):
    code = """
import runpy, sys
sys.modules["onnxruntime"] = None
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    command = [sys.executable, "-c", code, exported["onnx"][0] / "predict.py", expected.paths[0]]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    requirements = exported["onnx"][0] / "requirements.txt"
    assert (result.returncode, result.stderr) == (2, f"predict.py needs onnxruntime: pip install -r {requirements}\n")


def test_predict_script_unreadable_image_is_reported(exported, expected, tmp_path):
    (tmp_path / "notes.jpg").write_text("not an image")
    script = [sys.executable, exported["onnx"][0] / "predict.py"]
    paths = [tmp_path / "notes.jpg", expected.paths[0], tmp_path / "nowhere.jpg"]
    result = subprocess.run([*script, *paths], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        f"{paths[0]}: cannot read the image (not an image of a known format)",
        f"{paths[2]}: cannot read the image (No such file or directory)",
    ]
    assert result.stdout.startswith(f"{paths[1]}: ")
    (tmp_path / "photos" / "empty").mkdir(parents=True)
    shutil.copy(expected.paths[0], tmp_path / "photos")
    folders = [tmp_path / "photos", tmp_path / "photos" / "empty"]
    again = subprocess.run([*script, *folders], capture_output=True, text=True, check=False)
    copy = tmp_path / "photos" / Path(expected.paths[0]).name
    assert again.stdout == result.stdout.replace(expected.paths[0], str(copy))
    assert (again.returncode, again.stderr) == (2, f"{folders[1]}: no images found\n")
    help_text = subprocess.run([*script, "--help"], capture_output=True, text=True, check=True).stdout
    assert re.match(r"usage: predict\.py \[-h\] \[--raw\] ([A-Z]+) \[\1 \.\.\.\]", help_text)


def test_export_used_folder_is_not_touched(run, tmp_path):
    (tmp_path / "mine").write_text("dear")
    with pytest.raises(UserError, match=rf"{re.escape(str(tmp_path))}.*(?i:empty).*--output"):
        exporter.export_run(run, tmp_path, "stablehlo")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    with pytest.raises(UserError, match=rf"{re.escape(str(tmp_path))}/mine\b.*Not a directory.*--output"):
        exporter.export_run(run, tmp_path / "mine", "stablehlo")


def test_export_to_empty_folder(run, tmp_path):
    (tmp_path / "out").mkdir()
    exporter.export_run(run, tmp_path / "out", "safetensors")
    assert (tmp_path / "out/model.safetensors").is_file()


def test_export_failed_parity_check_is_removed(run, tmp_path, monkeypatch):
    def write_scaled(file, predictor, metadata):
        scaled = jax.tree.map(lambda leaf: leaf * 1.5, predictor.params)
        formats.write_safetensors_export(file, predictor._replace(params=scaled), metadata)

    monkeypatch.setattr(exporter, "_writer", lambda form: write_scaled)
    with pytest.raises(UserError, match=rf"\b{exporter.TOLERANCES['float32']:g}\b.*--format\b"):
        exporter.export_run(run, tmp_path / "out", "safetensors")
    assert list(tmp_path.iterdir()) == []


def test_export_onnx_unsupported_primitive_raises(run, tmp_path, monkeypatch):
    from flaxtl.export import onnx as export_onnx

    monkeypatch.delitem(export_onnx.OPERATIONS, "reduce_window_max")
    with pytest.raises(UserError, match=r"\breduce_window_max\b.*\bONNX\b.*--format=stablehlo\b"):
        exporter.export_run(run, tmp_path / "out", "onnx")
    assert list(tmp_path.iterdir()) == []


def with_images(run, path_of):
    """Return the run with other paths of its images."""
    manifest = run.setup.manifest
    examples = tuple(replace(example, path=str(path_of(example))) for example in manifest.examples)
    return run._replace(setup=replace(run.setup, manifest=replace(manifest, examples=examples)))


def test_export_without_readable_images_raises(run, tmp_path):
    (tmp_path / "broken.png").write_text("not an image")
    with pytest.raises(UserError, match=rf"{re.escape(str(tmp_path))}/broken\.png\b"):
        exporter.export_run(with_images(run, lambda example: tmp_path / "broken.png"), tmp_path / "out", "safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["broken.png"]


def test_export_without_the_images_of_the_run_uses_synthetic_ones(run, tmp_path):
    moved = with_images(run, lambda example: tmp_path / example.path[1:])
    check = exporter.export_run(moved, tmp_path / "out", "safetensors")
    assert (check.num_images, check.synthetic) == (8, True)
    assert check.max_difference <= check.tolerance
    assert json.loads((tmp_path / "out/model.json").read_text())["parity_check"]["synthetic"] is True


@pytest.mark.parametrize("form", [pytest.param("stablehlo", marks=pytest.mark.slow), "onnx"])
def test_export_bfloat16_run(folder, parameters, form, tmp_path):
    run = TrainedRun(tiny_run.setup(folder, tmp_path / "run", dtype="bfloat16"), parameters, "finetune")
    check = exporter.export_run(run, tmp_path / form, form)
    metadata = json.loads((tmp_path / form / "model.json").read_text())
    dtype = {"stablehlo": "bfloat16", "onnx": "float32"}[form]  # onnxruntime has no bfloat16 convolution on the CPU
    assert (metadata["dtype"], check.tolerance) == (dtype, exporter.TOLERANCES[dtype])


@pytest.mark.parametrize(
    ("platform", "dtype", "precision", "form", "expected"),
    [
        ("cpu", "float32", "default", "stablehlo", "float32"),
        ("tpu", "float32", "default", "stablehlo", "bfloat16"),
        ("tpu", "float32", "default", "onnx", "float32"),
        ("tpu", "float32", "high", "stablehlo", "float32"),
        ("gpu", "float32", "default", "safetensors", "tensorfloat32"),
        ("gpu", "float32", "highest", "safetensors", "float32"),
        ("cpu", "bfloat16", "highest", "safetensors", "bfloat16"),
    ],
)
def test_operand_format_follows_dtype_and_precision(run, platform, dtype, precision, form, expected):
    model = run.setup.model_info.model.clone(dtype=jnp.dtype(dtype), precision=precision)
    assert exporter.operand_format(model, form, platform) == expected
    assert expected in exporter.TOLERANCES


def test_check_images_cover_test_split(run):
    paths = [Path(example.path) for example in run.setup.manifest.of_split("test")]
    assert exporter._check_images(run) == paths


def test_check_images_are_existing_files(run):
    first, *_ = exporter._check_images(run)
    moved = with_images(run, lambda example: first if example.path == str(first) else "/nowhere")
    assert exporter._check_images(moved) == [first]
