"""Runs from Python: training, and the results of a run in a notebook."""

import json
import os
import pickle
import re
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import finished_run, tiny_run
from helpers.train_process import Place
from ml_collections import ConfigDict, FrozenConfigDict
from PIL import ExifTags, Image

from flaxtl import api
from flaxtl.data.array_store import DIGEST_LENGTH
from flaxtl.data.decode import load_images
from flaxtl.errors import UserError
from flaxtl.evaluation import predictor
from flaxtl.train import run_dir
from flaxtl.train.signals import StopRequested


@pytest.mark.slow
def test_train_returns_results_and_repeats_nothing(tmp_path):
    place = Place(tmp_path / "user", {"epochs": 1}, {"epochs": 1})
    config = api.load_config(str(place.folder / "config.py"), f"data.source=folder:{place.folder / 'images'}")
    config.phases = ("frozen",)
    config.frozen.epochs = 2
    run = api.train(config, tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["complete"]
    assert [row["epoch"] for row in run.history] == [1, 2]
    accuracy = summary["phases"]["frozen"]["test"]["accuracy"]
    assert run.metrics["test"].accuracy == accuracy
    assert f"test accuracy {100 * accuracy:.0f} % (6 images)" in repr(run)
    assert repr(run).endswith(str(run.report_path))
    rows = [row for row, split in enumerate(run.predictions.splits) if split == "test"]
    again = run.predict([run.predictions.paths[row] for row in rows])
    # predictions.csv has six digits; here without cached features, so float32 sums in another order
    np.testing.assert_allclose(again.probabilities, run.predictions.probabilities[rows], rtol=0, atol=1e-5)
    folder = run.export("safetensors", tmp_path / "exported")
    assert {file.name for file in folder.iterdir()} == {
        "README.md", "model_card.md", "requirements.txt", "model.safetensors", "model.json", "predict.py",
    }  # fmt: skip
    before = run.report_path.stat().st_mtime_ns
    assert repr(api.train(config, tmp_path / "run")) == repr(run)
    assert run.report_path.stat().st_mtime_ns == before
    feature_file = tmp_path / "run" / "features" / f"{'a' * DIGEST_LENGTH}.npy"  # of a run that was killed at its end
    feature_file.parent.mkdir()
    feature_file.touch()
    run.report_path.unlink()
    api.train(config, tmp_path / "run")
    assert run.report_path.is_file()
    assert not feature_file.parent.exists()


def test_train_stop_request_interrupts_the_cell(monkeypatch, tmp_path):
    configs = Path(__file__).parents[2] / "configs"

    def stopped(*_):
        raise StopRequested(signal.SIGINT)

    monkeypatch.setattr(api.trainer, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        api.train(api.load_config(str(configs / "demo.py")), tmp_path)


def test_train_completes_and_checks_the_config(monkeypatch, tmp_path):
    configs = []

    def record(config, *_):
        configs.append(config)
        raise StopRequested(signal.SIGINT)

    monkeypatch.setattr(api.trainer, "train", record)
    config = ConfigDict({"frozen": {"lr": {"head": 1}}})
    with pytest.raises(KeyboardInterrupt):
        api.train(FrozenConfigDict(config), tmp_path)
    assert (configs[0].seed, configs[0].phases, configs[0].frozen.lr.head) == (0, ("frozen",), 1.0)
    config.frozen.lr = {"head": float("inf")}
    with pytest.raises(UserError, match=r"'frozen\.lr\.head' is inf\b"):
        api.train(config, tmp_path)
    assert len(configs) == 1


def test_train_out_of_memory_is_a_user_error(monkeypatch, tmp_path):
    def fail(*_):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.")

    monkeypatch.setattr(api.trainer, "train", fail)
    with pytest.raises(UserError, match=r"\bmemory\b.*\bbatch_size\b.*\baccum_steps\b"):
        api.train(api.load_config(str(Path(__file__).parents[2] / "configs" / "demo.py")), tmp_path)


def test_training_session_is_deterministic_before_it_uses_a_device(monkeypatch, tmp_path):
    """XLA reads its flags once, when a device is first used."""
    flags, devices = [], jax.devices
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(jax, "devices", lambda *names: flags.append(os.environ["XLA_FLAGS"]) or devices(*names))
    config = api.load_config(str(Path(__file__).parents[2] / "configs" / "demo.py"), "deterministic=true")
    with api.training_session(config, tmp_path):
        jax.devices()
    assert set(flags) == {"--xla_gpu_deterministic_ops=true"}


def test_run_result_html_has_phases_curves_and_matrix(tmp_path):
    run = finished_run.write_run(tmp_path)
    shown = finished_run.Page(api.load_run(run)._repr_html_())
    assert shown.tags.count("svg") == 3  # loss, accuracy, confusion matrix
    assert "script" not in shown.tags
    rows = [phase for phase in json.loads((run / "config.json").read_text())["phases"] if phase in shown.text]
    assert len(rows) == 2


def test_run_result_counts_and_selects_test_errors(tmp_path):
    run = api.load_run(finished_run.write_run(tmp_path))
    matrix = run.confusion_matrix
    assert (matrix.dtype, matrix.sum(), matrix.trace()) == (np.int64, 16, 13)
    assert run.classes == list(finished_run.CLASSES)
    errors = run.errors()
    assert len(errors) == len(errors.paths) == 3
    assert set(errors.splits) == {"test"}
    assert not errors.correct.any()
    true_class = errors.probabilities[np.arange(3), errors.labels]
    assert np.all(np.diff(true_class) >= 0)  # largest loss first
    assert len(run.errors(true="daisy", predicted="tulips")) == matrix[0, 3] == 1
    assert len(run.errors(true="tulips")) == 0
    with pytest.raises(UserError, match=r"'dasy'.*'daisy'"):
        run.errors(predicted="dasy")
    with pytest.raises(UserError, match=r"Unknown class 0\. Available: daisy"):
        run.errors(true=0)
    with pytest.raises(UserError, match=r"'onx'.*'onnx'"):
        run.export("onx", tmp_path / "exported")


def test_run_result_model_has_the_outputs_of_predict(tmp_path):
    folder = tiny_run.images(tmp_path / "images")
    workdir = tiny_run.untrained(folder, tmp_path / "run", head={"pooling": "global_average", "units": (8,)})
    run = api.load_run(workdir)
    model, variables = run.model()
    assert model.input_size == (tiny_run.SIDE, tiny_run.SIDE)
    assert variables["params"].keys() == {"backbone", "head"}
    predicted = run.predict([folder])
    images = load_images(predicted.paths, model.input_size, resize=run.record.config.data.resize)
    logits = model.apply(variables, images)
    assert (logits.shape, logits.dtype) == ((24, 3), np.float32)
    # float32 rounding of a program and of operations one by one
    np.testing.assert_allclose(jax.nn.softmax(logits), predicted.probabilities, rtol=0, atol=1e-6)
    # uncommitted, as those of create_model: they go with images on any device
    assert {array.committed for array in jax.tree.leaves(variables)} == {False}
    jax.tree.map(lambda array: array.delete(), variables)  # as a step that donates them
    np.testing.assert_array_equal(run.predict([folder]).probabilities, predicted.probabilities)
    assert pickle.loads(pickle.dumps(run)).workdir == workdir  # with a model, which is on a device


def test_calibrate_uses_the_temperature_of_the_run(tmp_path):
    workdir = finished_run.write_run(tmp_path)  # at temperature 2
    predictions = api.load_run(workdir).predictions
    roots = np.sqrt(predictions.probabilities)
    calibrated = predictor.calibrate(predictions, workdir)
    np.testing.assert_allclose(calibrated.probabilities, roots / roots.sum(axis=1, keepdims=True), rtol=1e-6)
    run_dir.update_summary(workdir, calibration=None)
    with pytest.raises(UserError, match=r"no temperature.*cannot be calibrated"):
        predictor.calibrate(predictions, workdir)


def test_predict_images_in_memory_equal_their_files(tmp_path):
    """Bit for bit: as PNG files of the same pixels, or the file that a PIL image was opened from."""
    folder = tiny_run.images(tmp_path / "images")
    run = api.load_run(tiny_run.untrained(folder, tmp_path / "run"))
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 4)).astype(np.uint8)
    rgba, exif = Image.fromarray(noise), Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    rgba.convert("RGB").save(tmp_path / "turned.jpg", exif=exif)
    palette = rgba.convert("RGB").quantize(8)
    palette.info["transparency"] = 3
    gray = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    in_memory = [noise[..., :3], rgba, palette, gray, rgba.convert("L"), Image.open(tmp_path / "turned.jpg")]
    files = [tmp_path / f"{number}.png" for number in range(5)] + [tmp_path / "turned.jpg"]
    for file, pixels in zip(files[:5], in_memory, strict=False):
        (Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels).save(file)
    last = folder / "blue" / "0.png"
    predicted = run.predict([*in_memory, last])
    expected = run.predict([*files, last])
    assert predicted.paths == (*(f"image {number}" for number in range(6)), str(last))
    assert len(np.unique(expected.log_softmax, axis=0)) == 7
    np.testing.assert_array_equal(predicted.log_softmax, expected.log_softmax)
    batch = np.stack([noise[..., :3]] * 2)
    for inputs in (batch, iter(batch), jax.device_put(batch), [*jax.device_put(batch)]):
        assert run.predict(inputs).paths == ("image 0", "image 1")
    for dtype in (str, object):
        assert run.predict(np.array([str(last), str(files[0])], dtype)).paths == (str(last), str(files[0]))
    floats = run.predict([noise[..., :3], Image.new("F", (8, 8))])
    assert floats.paths == ("image 0",)
    assert floats.unreadable[0].startswith("Cannot read image 1: pixels of mode F")


@pytest.mark.parametrize(
    ("inputs", "fact"),
    [
        ([], "Give one or more"),
        (3, "image 0, which is of type int"),
        (b"PNG", "image 0, which is of type bytes"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3))], r"image 1, which is float64 \[8, 8, 3\]"),
        (np.zeros((8, 8), np.uint8), r"uint8 \[8, 8\]\. .*uint8 RGB arrays \[height, width, 3\]"),
        (Image.new("RGB", (0, 8)), "image 0, which is empty"),
    ],
)
def test_predict_inputs_that_are_no_images_are_user_errors(tmp_path, inputs, fact):
    with pytest.raises(UserError, match=fact):
        api.load_run(finished_run.write_run(tmp_path)).predict(inputs)


def test_predict_takes_one_path(tmp_path):
    with pytest.raises(UserError, match=r"No images found at '.*/absent\.jpg'\. Give image files, folders or glob"):
        api.load_run(finished_run.write_run(tmp_path)).predict(str(tmp_path / "absent.jpg"))


def test_run_result_of_unfinished_run_is_empty(tmp_path):
    workdir = finished_run.write_run(tmp_path)
    for name in ("predictions.csv", "metrics.jsonl", "summary.json"):
        (workdir / name).unlink()
    run = api.load_run(workdir)
    assert repr(run).startswith(f"{workdir}: ")
    assert not re.search(r"\d|%", repr(run).removeprefix(f"{workdir}: "))
    assert (run.history, run.metrics, run.predictions, run.confusion_matrix) == ([], {}, None, None)
    with pytest.raises(UserError, match=re.escape(str(workdir))):
        run.errors()
    assert finished_run.Page(run._repr_html_()).tags.count("svg") == 0


def test_load_config_and_load_run_mistakes_are_user_errors(tmp_path):
    with pytest.raises(UserError, match=r"Give a config, .* not 'folder'"):
        api.train("folder", tmp_path)
    with pytest.raises(UserError, match=r"path .*, not None"):
        api.load_run(None)
    with pytest.raises(UserError, match=r"setting as a text.*not \['seed=1'\]"):
        api.load_config("folder", ["seed=1"])
    with pytest.raises(UserError, match=re.escape(str(tmp_path)) + r"\b.*\bconfig\.json"):
        api.load_run(tmp_path)
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "config.py"))):
        api.load_config(str(tmp_path / "config.py"))
    Place(tmp_path / "user", {"epochs": 1}, {"epochs": 1})
    with pytest.raises(UserError, match=r"'frozen\.epoch'.*'frozen\.epochs'"):
        api.load_config(str(tmp_path / "user" / "config.py"), "frozen.epoch=3")
    assert api.load_config(tmp_path / "user" / "config.py", "frozen.epochs=3").frozen.epochs == 3
