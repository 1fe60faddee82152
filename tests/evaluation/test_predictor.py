"""`flaxtl predict --model` against Keras' own network and decode_predictions, with the same random weights."""

import csv
import json
import os
import re
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import pytest
from helpers import keras_zoo
from helpers.image_folders import image, paint
from keras.src.applications import imagenet_utils

from flaxtl.cli import main
from flaxtl.data.decode import Resize, decode_all
from flaxtl.data.file_listing import find_images
from flaxtl.errors import UserError
from flaxtl.evaluation import predictor
from flaxtl.models import imagenet, registry
from flaxtl.pretrained import download

NAME = "mobilenet_025"
TAP = "conv_pw_6_relu"
BOUND = 5e-6  # of the largest value: tests/models/test_keras_parity.py


class Place(NamedTuple):
    """Keras' weights with and without the top, five files of which one is not an image, and Keras' outputs.

    `outputs`: of the images as ImageNet networks are evaluated, shorter side to 256, bicubic, center crop.
    """

    whole: Path
    base: Path
    images: Path
    outputs: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("place")
    network = keras_zoo.keras_network(NAME, 224, include_top=True)
    last = network.get_layer("conv_preds")
    last.set_weights([array / 10 for array in last.get_weights()])  # else the softmax saturates: scores of 1 and 0
    images = root / "images"
    images.mkdir()
    for number, size in enumerate(((300, 200), (90, 250), (224, 224), (640, 480))):
        image(number, 256).resize(size).save(images / f"{number}.{'png' if number % 2 else 'jpg'}")
    (images / "2b.png").write_text("no image")
    pixels = decode_all(readable(images), Resize(224, 224, "crop", "bicubic"))
    model = keras.Model(network.input, {layer: network.get_layer(layer).output for layer in (TAP, "predictions")})
    pixels = keras_zoo.preprocessing(NAME)(pixels.astype("float32"))
    kernel, bias = last.get_weights()
    # the mean of the logits over the images becomes 0: else all would have the same best class
    last.set_weights([kernel, bias - np.log(model.predict(pixels, verbose=0)["predictions"]).mean(0)])
    outputs = model.predict(pixels, verbose=0)
    base = keras.Model(network.input, network.get_layer("conv_pw_13_relu").output)
    whole, alone = keras_zoo.save_legacy(network, root / "whole.h5"), keras_zoo.save_legacy(base, root / "base.h5")
    return Place(whole, alone, images, outputs)


def readable(folder):
    return sorted(path for path in folder.iterdir() if path.name != "2b.png")


@pytest.fixture
def run_predict(capsys):
    """A function that runs `flaxtl predict --model` and returns its exit code, stdout and stderr."""

    def run(*arguments):
        code = 0
        try:
            main.main(["predict", f"--model={NAME}", *map(str, arguments)])
        except SystemExit as ended:
            code = ended.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def decoded(probabilities, top, tmp_path, monkeypatch):
    """Keras' decode_predictions, with the file that it would download created from flaxtl's."""
    index = tmp_path / "imagenet_class_index.json"
    index.write_text(json.dumps({str(number): each for number, each in enumerate(imagenet.imagenet_classes())}))
    monkeypatch.setattr(imagenet_utils, "CLASS_INDEX", None)
    monkeypatch.setattr(imagenet_utils.file_utils, "get_file", lambda *arguments, **options: str(index))
    return imagenet_utils.decode_predictions(probabilities, top)


@pytest.mark.slow
def test_predict_classes_and_scores_equal_keras(place, run_predict, tmp_path, monkeypatch):
    code, out, err = run_predict(
        f"--weights={place.whole}",
        *("--input", *readable(place.images), "--top=3"),
        *(f"--json={tmp_path / 'out.json'}", f"--csv={tmp_path / 'out.csv'}"),
    )
    assert (code, err) == (0, "")
    assert "whole.h5" in out.splitlines()[0]
    probabilities = place.outputs["predictions"]
    expected = decoded(probabilities, 3, tmp_path, monkeypatch)
    assert len({best[0] for best, *_ in expected}) > 1  # else a constant prediction would pass
    rows = json.loads((tmp_path / "out.json").read_text())
    assert [row["path"] for row in rows] == list(map(str, readable(place.images)))
    for row, best in zip(rows, expected, strict=True):
        assert [(entry["wordnet_id"], entry["label"]) for entry in row["top"]] == [(id, name) for id, name, _ in best]
        scores = [entry["probability"] for entry in row["top"]]
        np.testing.assert_allclose(scores, [score for *_, score in best], rtol=0, atol=BOUND * probabilities.max())
        assert f"{best[0][1]} {scores[0]:.1%}" in out
    with (tmp_path / "out.csv").open() as file:
        lines = list(csv.DictReader(file))
    for line, row in zip(lines, rows, strict=True):
        assert list(line)[:4] == ["path", "prediction", "confidence", "wordnet_id"]
        third = row["top"][2]
        assert (line["prediction_3"], line["wordnet_id_3"]) == (third["label"], third["wordnet_id"])
        assert line["confidence_3"] == f"{third['probability']:.6f}"
        assert len(line) == 1 + 3 * 3


@pytest.mark.slow
def test_predict_taps_equal_keras_layer_outputs(place, run_predict, tmp_path):
    file = tmp_path / "out.npz"
    glob = place.images / "[0-9].*"
    code, out, err = run_predict(
        f"--weights={place.whole}", f"--input={glob}", f"--tap={TAP}", "--tap=predictions", f"--npz={file}"
    )
    assert (code, err) == (0, "")
    assert re.search(r"\d\.\d%", out)  # scores
    arrays = np.load(file)
    assert sorted(arrays) == sorted(["path", TAP, "predictions"])
    assert list(arrays["path"]) == list(map(str, readable(place.images)))
    keras_zoo.assert_outputs_close(place.outputs, {layer: arrays[layer] for layer in (TAP, "predictions")}, BOUND)


@pytest.mark.slow
def test_predict_backbone_taps_need_no_top_weights(place, run_predict, tmp_path):
    file = tmp_path / "out.npz"
    arguments = (f"--weights={place.base}", "--input", *readable(place.images), f"--tap={TAP}", f"--npz={file}")
    code, out, err = run_predict(*arguments)
    assert (code, err) == (0, "")
    assert not re.search(r"\d\.\d%", out)
    assert "4x14x14x128" in out
    keras_zoo.assert_outputs_close({TAP: place.outputs[TAP]}, {TAP: np.load(file)[TAP]}, BOUND)
    for more in ("--top=1", "--tap=predictions"):
        code, out, err = run_predict(*arguments, more)
        assert (code, out) == (2, "")
        assert re.search(r"\bconv_preds\b.*top", err)


@pytest.mark.slow
def test_predict_padded_batches_compile_once(place, run_predict, tmp_path, monkeypatch):
    """Five files in batches of two: the second skips the file that is not an image, the third is half empty."""
    compiled = []

    def counting(model, parameters, x, **options):
        compiled.append(x.shape)
        return infer(model, parameters, x, **options)

    infer = predictor.infer
    monkeypatch.setattr(predictor, "infer", counting)
    monkeypatch.setattr(predictor, "MAX_BATCH_PIXELS", 2 * 224 * 224 + 1)
    file = tmp_path / "out.npz"
    code, _, err = run_predict(
        f"--weights={place.whole}", f"--input={place.images}", "--tap=predictions", f"--npz={file}"
    )
    assert code == 2
    assert err.startswith("flaxtl: ")
    assert [line.count(".png") for line in err.splitlines()] == [1]
    assert str(place.images / "2b.png") in err
    assert compiled == [(2, 224, 224, 3)]
    arrays = np.load(file)
    assert list(arrays["path"]) == list(map(str, readable(place.images)))
    keras_zoo.assert_outputs_close(
        {"predictions": place.outputs["predictions"]}, {"predictions": arrays["predictions"]}, BOUND
    )


@pytest.mark.parametrize(
    ("num_devices", "masks"), [(1, [[1]] * 5), (2, [[1, 1], [1, 1], [1, 0]]), (8, [[1] * 5 + [0] * 3])]
)
def test_image_batches_large_images_one_per_device(tmp_path, monkeypatch, num_devices, masks):
    paint(tmp_path, range(5))
    monkeypatch.setattr(predictor, "MAX_BATCH_PIXELS", 100)
    batches = list(predictor.ImageBatches(sorted(tmp_path.iterdir()), Resize(20, 20), num_devices))
    assert [images.shape for images, _ in batches] == [(num_devices, 20, 20, 3)] * len(masks)
    assert [mask.tolist() for _, mask in batches] == masks


@pytest.mark.parametrize(("num_images", "batch_size"), [(1, 4), (5, 8), (500, 128)])
def test_image_batches_small_sets_are_shared_by_all_devices(num_images, batch_size):
    images = predictor.ImageBatches([Path("missing.png")] * num_images, Resize(224, 224), 4)
    assert images.batch_size == batch_size


@pytest.mark.slow
def test_predict_pretrained_weights_from_cache(place, run_predict, tmp_path):
    """The file with the top contains the base, so it works for both."""
    models = Path(os.environ["KERAS_HOME"]) / "models"
    models.mkdir(parents=True)
    cached = models / registry.get_spec(NAME).weights.name
    cached.symlink_to(place.whole)
    first = readable(place.images)[0]
    for more in ((), (f"--tap={TAP}", f"--npz={tmp_path / 'out.npz'}")):
        code, out, err = run_predict("--input", first, *more)
        assert (code, err) == (0, "")
        assert re.search(rf"\b{re.escape(cached.name)} .*\bKeras\b", out.splitlines()[0])


def test_predict_offline_without_cache_names_url_and_option(tmp_path, run_predict, monkeypatch):
    paint(tmp_path, range(1))

    def offline(*arguments):
        raise OSError("no network")

    monkeypatch.setattr(download, "_download", offline)
    code, out, err = run_predict("--input", tmp_path)
    url = registry.get_spec(NAME).weights.url
    assert (code, out) == (2, "")
    assert re.search(rf"{re.escape(url)} .*--weights=FILE", err.splitlines()[-1])


def test_predict_unknown_layer_fails_before_loading_weights(tmp_path, run_predict):
    paint(tmp_path, range(1))
    code, _, err = run_predict("--input", tmp_path, "--tap=conv_pw_6_rlu", "--npz=unwritten.npz")
    assert code == 2
    assert re.fullmatch(r"flaxtl: .*'conv_pw_6_rlu'.*'conv_pw_6_relu'.*\n", err)
    assert not Path("unwritten.npz").exists()


def test_predict_finds_linked_images_and_counts_other_files(tmp_path, run_predict):
    paint(tmp_path / "away", range(2))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "away")
    image(3).save(tmp_path / "set" / "download", "PNG")
    (tmp_path / "set" / "notes.txt").write_text("x")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "notes.txt").write_text("x")
    listing = find_images([str(tmp_path / "*et")])
    assert [path.name for path in listing.images] == ["download", "0.png", "1.png"]
    code, _, err = run_predict("--input", tmp_path / "set", "--tap=unknown", "--npz=unwritten.npz")
    assert code == 2
    assert err.startswith("Skipped 1 file that is not an image flaxtl can read: .txt 1\n")
    with pytest.raises(UserError, match=r"No images found at .*\.txt 1"):
        find_images([str(tmp_path / "texts")])
