"""Test-time augmentation: the views, their mean, its effect, and the command."""

import json
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import tiny_run
from PIL import Image

from flaxtl.cli.main import main
from flaxtl.data.augment import tta
from flaxtl.data.augment.config import AugmentConfig
from flaxtl.data.decode import Resize, decode
from flaxtl.data.loaders import DeviceLoader, ImageSet
from flaxtl.errors import UserError
from flaxtl.evaluation import classification
from flaxtl.evaluation import tta as evaluation_tta
from flaxtl.evaluation.evaluate import evaluate_workdir
from flaxtl.evaluation.predictor import load_run
from flaxtl.train import eval_steps
from flaxtl.train.eval_loop import Evaluation, evaluate
from flaxtl.train.metrics import ClassProbabilities

OWN = Resize(tiny_run.SIDE, tiny_run.SIDE)
LARGER = 36  # 32 / 0.875 = 36.57


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """A run with new parameters."""
    return load_run(tiny_run.untrained(folder, tmp_path_factory.mktemp("runs") / "run"))


@pytest.fixture(scope="module")
def eval_step(run, val_images):
    setup = run.setup
    sharding = val_images.loader(setup.mesh).sharding(setup.mesh)
    return eval_steps.make_eval_step(setup.model_info.model, setup.mesh, None, sharding)


@pytest.fixture(scope="module")
def evaluate_images(run, eval_step):
    """A function that evaluates as `flaxtl evaluate` does without test-time augmentation."""
    return lambda images: evaluate(eval_step, run.params, images.loader(run.setup.mesh), run.setup.config.batch_size)


@pytest.fixture(scope="module")
def plain(evaluate_images, val_images):
    return evaluate_images(val_images)


@pytest.fixture(scope="module")
def val_images(run):
    """The validation images of the run and their labels: 6, so that the second batch of 4 is padded."""
    return decoded(run, OWN)


def decoded(run, resize):
    examples = run.setup.manifest.of_split("validation")
    pixels = np.stack([decode(Path(example.path), resize) for example in examples])
    return ImageSet(pixels, run.setup.manifest.labels(examples))


def evaluate_with_tta(run, views, plain, images):
    data = images.loader(run.setup.mesh)
    return evaluation_tta.average_views(run, views, plain, images.labels, data, tiny_run.quiet())


def mean_probabilities(*evaluations):
    """The mean of the evaluations' probabilities, rounded once."""
    return np.mean([each.probabilities for each in evaluations], axis=0, dtype=np.float64).astype(np.float32)


def apply_view(views, images, view, indices=None):
    indices = np.arange(len(images), dtype=np.int32) if indices is None else indices
    return np.asarray(jax.jit(views.view_fn)(images, indices, np.int32(view)))


def test_flip_is_mean_of_two_evaluations(run, val_images, evaluate_images, plain):
    mirrored = ImageSet(np.ascontiguousarray(val_images.images[:, :, ::-1]), val_images.labels)
    averaged = evaluate_with_tta(run, tta.flip_views(OWN), plain, val_images)
    expected = mean_probabilities(plain, evaluate_images(mirrored))
    np.testing.assert_array_equal(averaged.probabilities, expected)
    assert np.abs(averaged.probabilities - plain.probabilities).max() > 1e-4
    assert averaged.metrics.n == 6
    assert averaged.metrics.accuracy == (expected.argmax(1) == val_images.labels).mean()
    assert averaged.metrics.balanced_accuracy == averaged.metrics.accuracy  # two images of each class
    # float32 probabilities, a float64 logarithm
    assert averaged.metrics.loss == pytest.approx(-np.log(expected[np.arange(6), val_images.labels]).mean(), rel=1e-6)


def test_average_of_underflowed_views_has_the_logarithm_of_the_mean(run, val_images, monkeypatch):
    log_softmax = np.zeros((6, 3), np.float32)
    log_softmax[np.arange(6), val_images.labels] = -200.46
    evaluation = Evaluation(np.exp(log_softmax), log_softmax, None)
    sharper = ClassProbabilities(evaluation.probabilities, log_softmax - 30)
    monkeypatch.setattr(evaluation_tta, "run_batches", lambda *_: [([sharper], np.ones(6, bool))])
    averaged = evaluate_with_tta(run, tta.flip_views(OWN), evaluation, val_images)
    # (exp(-200.46) + exp(-230.46)) / 2; 200.46 is rounded to float32
    assert averaged.metrics.loss == pytest.approx(200.46 + np.log(2) - np.log1p(np.exp(-30)), rel=2**-24)


def test_flip_symmetric_images_change_nothing(run, val_images, evaluate_images):
    half = val_images.images[:, :, :16]
    own = ImageSet(np.concatenate([half, half[:, :, ::-1]], axis=2), val_images.labels)
    plain = evaluate_images(own)
    averaged = evaluate_with_tta(run, tta.flip_views(OWN), plain, own)
    np.testing.assert_array_equal(averaged.probabilities, plain.probabilities)
    gain = evaluation_tta.compare_evaluations(own.labels, plain, averaged)
    assert gain.to_json() == {"points": 0.0, "became_right": 0, "became_wrong": 0, "p": 1.0}


def test_crops_positions_and_mirror_images():
    """Each pixel of the image encodes its position: its row in red, its column in green."""
    views = tta.crop_views(OWN)
    assert (views.resize.height, views.resize.width, views.num_views) == (LARGER, LARGER, 10)
    drawn = np.zeros((2, LARGER, LARGER, 3), np.uint8)
    drawn[..., 0], drawn[..., 1] = np.arange(LARGER)[:, None], np.arange(LARGER)
    drawn[1, ..., 2] = 9
    corners = [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2)]
    for view, (top, left) in enumerate(corners):
        seen, mirrored = apply_view(views, drawn, view), apply_view(views, drawn, view + 5)
        assert seen.dtype == np.uint8
        np.testing.assert_array_equal(seen, drawn[:, top : top + 32, left : left + 32])
        np.testing.assert_array_equal(mirrored, seen[:, :, ::-1])


def test_crops_non_square_images():
    views = tta.crop_views(Resize(14, 28, "crop", "bicubic"))
    assert views.resize == Resize(16, 32, "crop", "bicubic", border=(2, 4))
    assert tta.crop_views(Resize(200, 200)).resize == Resize(228, 228)
    assert tta.crop_views(Resize(200, 200, "crop", crop_pct=1.0)).resize == Resize(228, 228, "crop", crop_pct=1.0)
    drawn = np.arange(16 * 32 * 3).reshape(1, 16, 32, 3).astype(np.uint16)
    np.testing.assert_array_equal(apply_view(views, drawn, 3), drawn[:, 2:, 4:])
    np.testing.assert_array_equal(apply_view(views, drawn, 4), drawn[:, 1:15, 2:30])


@pytest.mark.parametrize("side", [200, 95])  # 95 / 0.875 = 108.57: a border of 13
def test_center_crop_shows_the_pixels_of_the_run(tmp_path, side):
    """Exact, as `nearest` and an image that is not scaled move pixels only."""
    own = Resize(side, side, "crop", "nearest")
    views = tta.crop_views(own)
    for width in range(views.resize.width, views.resize.width + 5):
        pixels = np.random.default_rng(width).integers(0, 256, (views.resize.height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path := tmp_path / "a.png")
        center = apply_view(views, decode(path, views.resize)[None], 4)[0]
        np.testing.assert_array_equal(center, decode(path, own))


@pytest.mark.parametrize("size", [(300, 200), (200, 333), (256, 256)])
def test_center_crop_equals_resize_policy_crop(tmp_path, size):
    """To Pillow's rounding: both scale one box of the file, to another number of pixels."""
    path, own = tmp_path / "a.png", Resize(224, 224, "crop", "bilinear")
    shades = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(shades).resize(size, Image.Resampling.BICUBIC).save(path)
    views = tta.crop_views(own)
    assert views.resize.height == 256
    center = apply_view(views, decode(path, views.resize)[None], 4)[0]
    assert np.abs(center.astype(int) - decode(path, own)).max() <= 2


def test_crops_are_mean_of_ten_evaluations(run, val_images, evaluate_images, plain):
    views = tta.crop_views(OWN)
    larger = decoded(run, views.resize)
    averaged = evaluate_with_tta(run, views, plain, larger)
    crops = [ImageSet(apply_view(views, larger.images, view), val_images.labels) for view in range(10)]
    np.testing.assert_array_equal(
        averaged.probabilities, mean_probabilities(*(evaluate_images(images) for images in crops))
    )


@pytest.mark.slow
def test_augmented_view_equals_training_augmentation_of_epoch(run, val_images):
    setup = run.setup
    views = evaluation_tta.make_tta("3")(setup)
    assert (views.name, views.num_generated, views.include_original, views.num_views) == ("3", 2, True, 3)
    data = val_images.loader(setup.mesh)
    (_, _), (examples, real) = data.eval_batches(4)
    assert real.tolist() == [True, True, False, False]
    for view in range(2):
        passed = examples._replace(epochs=np.full(4, view, np.int32))
        trained_on = jax.jit(partial(type(passed).inputs, seed=3, augmentation=setup.augmentation))(passed)
        seen = apply_view(views, val_images.images[examples.indices], view, examples.indices)
        np.testing.assert_array_equal(seen, trained_on)


def test_augmented_views_are_functions_of_seed_image_view(val_images):
    augmentation = AugmentConfig(brightness=0.2)
    views = tta.random_views(OWN, 4, 7, augmentation)
    whole = [apply_view(views, val_images.images, view) for view in range(3)]
    assert not any((whole[0] == other).all() for other in whole[1:])
    order = np.array([4, 4, 0, 5, 4, 2], np.int32)
    np.testing.assert_array_equal(apply_view(views, val_images.images[order], 2, order), whole[2][order])
    more = tta.random_views(OWN, 9, 7, augmentation)
    np.testing.assert_array_equal(apply_view(more, val_images.images, 1), whole[1])
    other = tta.random_views(OWN, 4, 8, augmentation)
    assert (apply_view(other, val_images.images, 1) != whole[1]).any()


@pytest.mark.slow
def test_n_views_include_original_image(run, val_images, evaluate_images, plain):
    views = evaluation_tta.make_tta("3")(run.setup)
    augmented = [ImageSet(apply_view(views, val_images.images, view), val_images.labels) for view in range(2)]
    averaged = evaluate_with_tta(run, views, plain, val_images)
    # float32 images here, as in training: the model takes them as they are
    expected = mean_probabilities(plain, *(evaluate_images(images) for images in augmented))
    np.testing.assert_array_equal(averaged.probabilities, expected)


@pytest.mark.parametrize("method", ["crops", pytest.param("3", marks=pytest.mark.slow)])
def test_all_views_compile_once_and_share_the_batches(run, plain, monkeypatch, method):
    steps, make_tta_step = [], eval_steps.make_tta_step
    readings, eval_batches = [], DeviceLoader.eval_batches
    monkeypatch.setattr(DeviceLoader, "eval_batches", lambda *args: readings.append(args) or eval_batches(*args))
    monkeypatch.setattr(eval_steps, "make_tta_step", lambda *args: steps.append(make_tta_step(*args)) or steps[-1])
    views = evaluation_tta.make_tta(method)(run.setup)
    evaluate_with_tta(run, views, plain, decoded(run, views.resize))
    assert [step._cache_size() for step in steps] == [1]
    assert len(readings) == 1


@pytest.mark.slow
def test_tta_streamed_images_equal_resident_images(run, tmp_path):
    """Each image has its own index, which seeds its augmented views."""
    workdir = shutil.copytree(run.setup.workdir, tmp_path / "run")
    settings = json.loads((workdir / "config.json").read_text())
    results = {}
    for pipeline in ("resident", "stream"):
        settings["data"]["pipeline"] = pipeline
        (workdir / "config.json").write_text(json.dumps(settings))
        results[pipeline] = evaluate_workdir(workdir, None, "validation", tiny_run.quiet(), "3")
    assert results["stream"] == results["resident"]


def test_tta_gain_counts_corrected_and_broken_images():
    labels = np.zeros(5, np.int32)

    def evaluation(*correct):
        probabilities = np.array([[0.75, 0.25] if each else [0.25, 0.75] for each in correct], np.float32)
        log_softmax = np.log(probabilities)
        return Evaluation(probabilities, log_softmax, evaluation_tta._metrics(log_softmax, labels))

    plain, averaged = evaluation(1, 1, 0, 0, 0), evaluation(1, 0, 1, 1, 1)
    gain = evaluation_tta.compare_evaluations(labels, plain, averaged)
    expected = {"points": 40.0, "became_right": 3, "became_wrong": 1, "p": classification.mcnemar(1, 3)}
    assert gain.to_json() == expected
    text = evaluation_tta.describe_gain(plain.metrics, averaged.metrics, gain)
    assert re.findall(r"\d+(?:\.\d+)?", text) == ["40", "80", "3", "5", "1", "0.62"]


@pytest.mark.parametrize("method", ["1", "0", "-2", "2.5", "flips", "", "Flip", "²"])
def test_tta_unknown_method_exits_with_choices(method, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "--workdir=nowhere", f"--tta={method}"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert f"--tta={method}." in error
    assert re.search(r"(?=.*\bflip\b)(?=.*\bcrops\b)(?=.*\b2\b)", error.replace(f"--tta={method}.", ""))


def test_make_tta_without_augmentation_raises(run):
    for none in (AugmentConfig(), AugmentConfig(mixup=0.4, fill="wrap")):
        with pytest.raises(UserError, match=r"(?=.*--tta=4\b)(?=.*--tta=flip\b)(?=.*--tta=crops\b)"):
            evaluation_tta.make_tta("4")(replace(run.setup, augmentation=none))
    for some in (AugmentConfig(erasing=0.5), AugmentConfig(hue=0.1), AugmentConfig(zoom=0.1)):
        assert evaluation_tta.make_tta("4")(replace(run.setup, augmentation=some)).num_views == 4


def test_evaluate_tta_command_output_and_gain(run, tmp_path, capsys):
    workdir = run.setup.workdir
    plain = evaluate_workdir(workdir, None, "test", tiny_run.quiet()).to_json()
    assert not plain.keys() & {"tta", "without", "gain"}
    main(["evaluate", f"--workdir={workdir}", "--tta=crops", f"--json={tmp_path / 'result.json'}"])
    output = capsys.readouterr()
    result = json.loads(output.out.splitlines()[-1])
    assert result == json.loads((tmp_path / "result.json").read_text())
    assert result.keys() == plain.keys() | {"tta", "without", "gain"}
    assert result["tta"] == {"name": "crops", "views": 10}
    assert result["without"] == {key: plain[key] for key in ("accuracy", "loss")}
    assert result["loss"] != plain["loss"]
    assert result["n"] == plain["n"] == np.sum(result["confusion_matrix"]) == 6
    assert result["accuracy"] == np.trace(result["confusion_matrix"]) / 6 == (6 - result["errors"]) / 6
    gain = result["gain"]
    assert gain["points"] == pytest.approx(100 * (result["accuracy"] - plain["accuracy"]))
    assert gain["became_right"] - gain["became_wrong"] == plain["errors"] - result["errors"]
    assert re.search(rf"\b{100 * plain['accuracy']:.0f} ?%.*\b{100 * result['accuracy']:.0f} ?%", output.err)
    assert f"Evaluating images: {result['n']} in " in output.err
    assert f"Evaluating views: {10 * result['n']} in " in output.err
    assert "--split=validation" in output.err


def test_evaluate_tta_validation_split_does_not_warn(run):
    console = tiny_run.quiet()
    result = evaluate_workdir(run.setup.workdir, None, "validation", console, "2").to_json()
    assert result["tta"] == {"name": "2", "views": 2}
    accuracies = [f"{100 * each['accuracy']:.0f}" for each in (result["without"], result)]
    assert re.search(rf"\b{accuracies[0]} ?%.*\b{accuracies[1]} ?%", tiny_run.texts(console))
    assert "--split=validation" not in tiny_run.texts(console)
