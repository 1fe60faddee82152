"""`flaxtl export`: each format put back to work, on image files, beside `flaxtl predict`."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
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
from flaxtl.evaluation.predictor import TrainedRun
from flaxtl.export import exporter, formats
from flaxtl.models.classifier import unflatten_params

ROUNDING = 2e-6
"""Of a probability: XLA and onnxruntime, and XLA for another batch, order the sums of a layer differently. Four
convolutions of at most 1,152 products, each a few units of the last place (6e-8) off, and the logits are below 8."""


@pytest.fixture(scope="module")
def run(prepared, parameters):
    """A run that has ended: small, its answers far from 0 and 1."""
    tame = {path: value / 40 if path == "head/predictions/kernel" else value for path, value in parameters.items()}
    return TrainedRun(prepared, tame, "finetune")


@pytest.fixture(scope="module")
def expected(run):
    """What `flaxtl predict` answers for the images that an export is tried on."""
    answers = run.predictor().predict(exporter._samples(run))
    assert 0.05 < answers.probabilities.min() < answers.probabilities.max() < 0.95
    assert np.ptp(answers.probabilities, axis=0).max() > 100 * ROUNDING  # else one answer for all would do
    return answers


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """Format -> its folder and its trial."""
    root = tmp_path_factory.mktemp("exports")
    return {form: (root / form, exporter.export_run(run, root / form, form)) for form in exporter.FORMATS}


def pixels(answers):
    """The images themselves: drawn at the size of the run."""
    return np.stack([np.asarray(Image.open(path)) for path in answers.paths])


@pytest.mark.parametrize("form", exporter.FORMATS)
def test_a_folder_holds_the_network_what_is_true_of_it_and_a_script(exported, form):
    folder, trial = exported[form]
    assert {file.name for file in folder.iterdir()} == {f"model.{form}", "model.json", "predict.py"}
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []
    card = json.loads((folder / "model.json").read_text())
    assert card["trial"] == trial._asdict()
    assert (trial.num_images, trial.tolerance) == (6, 1e-3)
    assert trial.max_difference <= ROUNDING


def test_model_json_tells_everything(exported):
    folder, _ = exported["stablehlo"]
    card = json.loads((folder / "model.json").read_text())
    digest = subprocess.run(["sha256sum", folder / "model.stablehlo"], capture_output=True, text=True, check=True)
    assert digest.stdout.split()[0] == card.pop("sha256")
    assert card.pop("licence").startswith("CC BY 4.0")
    assert card.pop("versions") == {"flaxtl": __version__, "jax": jax.__version__, "pillow": PIL.__version__}
    del card["trial"], card["preprocessing"]["formula"]
    assert card == {
        "phase": "finetune",
        "architecture": "vgg16",
        "stop": "block2_pool",
        "head": {"num_classes": 3, "pooling": "global_average", "units": [8], "dropout": 0.4},
        "dtype": "float32",
        "classes": ["blue", "green", "red"],
        "input": {"name": "images", "dtype": "uint8", "shape": ["batch", 32, 32, 3], "channels": "RGB"},
        "output": {"name": "probabilities", "dtype": "float32", "shape": ["batch", 3]},
        "preprocessing": {
            "name": "caffe",
            "channels": "BGR",
            "scale": 1.0,
            "subtract": [103.939, 116.779, 123.68],
            "divide": [1.0, 1.0, 1.0],
        },
        "resize": {"height": 32, "width": 32, "policy": "squash", "interpolation": "bilinear", "crop_pct": 0.875},
        "temperature": None,
        "file": "model.stablehlo",
    }


def test_weights_are_bit_for_bit_those_of_the_run(exported, run):
    folder, _ = exported["safetensors"]
    with safetensors.safe_open(folder / "model.safetensors", "numpy") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        card = json.loads(file.metadata()["flaxtl"])
    assert card["classes"] == ["blue", "green", "red"]
    assert {f"{section}/{layer}" for section, layers in unflatten_params(run.params).items() for layer in layers} == {
        "backbone/block1_conv1",
        "backbone/block1_conv2",
        "backbone/block2_conv1",
        "backbone/block2_conv2",
        "head/dense_1",
        "head/predictions",
    }
    assert found.keys() == {path.split("/", 1)[1] for path in run.params}
    for path, value in run.params.items():
        array = found[path.split("/", 1)[1]]
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, value)


def test_weights_put_back_answer_bit_for_bit(exported, expected):
    folder, _ = exported["safetensors"]
    np.testing.assert_array_equal(formats.load_exported_model(folder)(pixels(expected)), expected.probabilities)


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"dtype": "float61"}, "float61"),
        ({"head": {}}, r"(?=.*\bhead\b)(?=.*`num_classes`)"),
        ({"stop": "block1_pool"}, r"\+ block2_conv1/kernel"),
    ],
)
def test_a_folder_that_was_changed_is_refused(exported, tmp_path, change, facts):
    shutil.copytree(exported["safetensors"][0], tmp_path / "copy")
    file = tmp_path / "copy/model.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(UserError, match=facts):
        formats.load_exported_model(tmp_path / "copy")


@pytest.mark.parametrize("n", [1, 3, 6])
def test_the_program_takes_any_batch(exported, expected, n):
    folder, _ = exported["stablehlo"]
    program = jax.export.deserialize(bytearray((folder / "model.stablehlo").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert [str(aval) for aval in program.in_avals] == ["uint8[batch,32,32,3]"]
    found = program.call(pixels(expected)[:n])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.probabilities[:n], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("n", [1, 3, 6])
def test_onnx_takes_any_batch(exported, expected, n):
    session = onnxruntime.InferenceSession(exported["onnx"][0] / "model.onnx", providers=["CPUExecutionProvider"])
    (given,), (asked,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == ("images", "tensor(uint8)", ["batch", 32, 32, 3])
    assert (asked.name, asked.type, asked.shape) == ("probabilities", "tensor(float)", ["batch", 3])
    (found,) = session.run(None, {"images": pixels(expected)[:n]})
    np.testing.assert_allclose(found, expected.probabilities[:n], rtol=0, atol=ROUNDING)


def test_onnx_has_the_layers_names_and_what_model_json_says(exported):
    model = onnx.load(exported["onnx"][0] / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    places = [node.name.split("/")[0] for node in model.graph.node if node.op_type == "Conv"]
    assert places == ["block1_conv1", "block1_conv2", "block2_conv1", "block2_conv2"]
    (card,) = (entry.value for entry in model.metadata_props if entry.key == "flaxtl")
    assert json.loads(card)["classes"] == ["blue", "green", "red"]


def test_the_script_needs_no_flaxtl(exported, expected, tmp_path):
    shutil.copytree(exported["onnx"][0], tmp_path / "elsewhere")
    code = """
import runpy, sys
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
assert not {"flaxtl", "jax"} & sys.modules.keys()
"""
    command = [sys.executable, "-c", code, tmp_path / "elsewhere/predict.py", *expected.paths]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for row, line in enumerate(done.stdout.splitlines()):
        told = [(guess.label, f"{guess.probability:.1%}") for guess in expected.top(row, 3)]
        path, _, answers = line.partition(": ")
        assert path == expected.paths[row]
        assert re.findall(r"(\w+) (\d+\.\d%)", answers) == told


def test_the_script_tells_what_it_cannot_read_and_goes_on(exported, expected, tmp_path):
    (tmp_path / "notes.jpg").write_text("no image")
    script = [sys.executable, exported["onnx"][0] / "predict.py"]
    paths = [tmp_path / "notes.jpg", expected.paths[0]]
    done = subprocess.run([*script, *paths], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{paths[0]}: ")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout.startswith(f"{paths[1]}: ")
    help_text = subprocess.run([*script, "--help"], capture_output=True, text=True, check=True).stdout
    assert re.match(r"usage: predict\.py \[-h\] ([A-Z]+) \[\1 \.\.\.\]", help_text)


def test_what_is_there_is_not_touched(run, tmp_path):
    (tmp_path / "mine").write_text("dear")
    with pytest.raises(UserError, match=rf"{re.escape(str(tmp_path))}.*(?i:empty).*--output"):
        exporter.export_run(run, tmp_path, "stablehlo")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    with pytest.raises(UserError, match=rf"{re.escape(str(tmp_path))}/mine\b.*Not a directory.*--output"):
        exporter.export_run(run, tmp_path / "mine", "stablehlo")


def test_an_empty_folder_will_do(run, tmp_path):
    (tmp_path / "out").mkdir()
    exporter.export_run(run, tmp_path / "out", "safetensors")
    assert (tmp_path / "out/model.safetensors").is_file()


def test_a_network_that_answers_otherwise_is_removed(run, tmp_path, monkeypatch):
    def wrong(file, model, parameters, *rest):
        formats.write_safetensors_export(file, model, jax.tree.map(lambda leaf: leaf * 1.5, parameters), *rest)

    monkeypatch.setattr(exporter, "_writer", lambda form: wrong)
    with pytest.raises(UserError, match=rf"\b{exporter.BOUNDS['float32']:g}\b.*--format\b"):
        exporter.export_run(run, tmp_path / "out", "safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_onnx_has_no_words_for(run, tmp_path, monkeypatch):
    from flaxtl.export import onnx as export_onnx

    monkeypatch.delitem(export_onnx.OPERATIONS, "reduce_window_max")
    with pytest.raises(UserError, match=r"\breduce_window_max\b.*\bONNX\b.*--format=stablehlo\b"):
        exporter.export_run(run, tmp_path / "out", "onnx")
    assert list(tmp_path.iterdir()) == []


def test_images_that_are_gone(run, tmp_path):
    setup = run.setup
    gone = tuple(replace(example, path=str(tmp_path / example.path[1:])) for example in setup.manifest.examples)
    lost = run._replace(setup=replace(setup, manifest=replace(setup.manifest, examples=gone)))
    with pytest.raises(UserError, match=rf"{re.escape(str(tmp_path))}/\S+\.png\b"):
        exporter.export_run(lost, tmp_path / "out", "safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["stablehlo", "onnx"])
def test_a_run_in_bfloat16(folder, parameters, form, tmp_path):
    run = TrainedRun(tiny_run.setup(folder, tmp_path / "run", dtype="bfloat16"), parameters, "finetune")
    trial = exporter.export_run(run, tmp_path / form, form)
    card = json.loads((tmp_path / form / "model.json").read_text())
    kept = {"stablehlo": "bfloat16", "onnx": "float32"}[form]  # onnxruntime convolves no bfloat16 on a CPU
    assert (card["dtype"], trial.tolerance) == (kept, exporter.BOUNDS[kept])


def test_samples_are_from_all_over_the_test_split(run):
    paths = [Path(example.path) for example in run.setup.manifest.of_split("test")]
    assert exporter._samples(run) == paths
