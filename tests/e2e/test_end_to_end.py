"""All commands on a small run with synthetic images and the built-in weights, in one process."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
from helpers import tiny_run
from helpers.tiny_run import images

from flaxtl.cli.main import main
from flaxtl.evaluation import calibration, predictions


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with images/, config.py and a finished run/."""
    place = tmp_path_factory.mktemp("user")
    images(place / "images")
    finetune = {"epochs": 1, "lr": {"head": 1e-5, "block2": 1e-5, "base": 0.0}}  # not so far that all is certain
    tiny_run.write_config(place, seed=0, weights={"path": "builtin"}, frozen={"epochs": 3}, finetune=finetune)
    train(place, "run")
    return place


def train(place, workdir, *more):
    source = f"--config.data.source=folder:{place / 'images'}"
    main(["train", f"--config={place / 'config.py'}", f"--workdir={place / workdir}", source, *more])


def error_of(capsys, *arguments):
    """Return the message of a command that must exit with code 2 and without a traceback."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("flaxtl: ")
    assert "Traceback" not in error
    return error


def test_run_directory_has_its_documented_files(place):
    names = {path.name for path in (place / "run").iterdir()}
    assert names >= {
        "config.json",
        "manifest.csv",
        "metrics.jsonl",
        "checkpoints",
        "predictions.csv",
        "summary.json",
        "layers.json",
        "report",
        "tensorboard",
    }
    assert "features" not in names  # only a run that may be resumed needs them


def test_summary_has_every_phase_and_split(place):
    summary = json.loads((place / "run" / "summary.json").read_text())
    assert list(summary["phases"]) == ["frozen", "finetune"]
    for phase in summary["phases"].values():
        assert [phase[split]["n"] for split in ("validation", "test")] == [6, 6]
        for split in ("train", "validation", "test"):
            assert 0 <= phase[split]["accuracy"] <= 1
            assert np.isfinite(phase[split]["loss"])
    # Two layers of block 1, in both phases; block 2 is frozen in the first.
    assert summary["phases"]["frozen"]["frozen_arrays_verified"] == 8
    assert summary["phases"]["finetune"]["frozen_arrays_verified"] == 4
    assert "vgg16_notop.safetensors" in summary["weights"]["source"]


def test_predictions_have_one_row_per_image(place):
    with (place / "run" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["split"] for row in rows] == ["validation"] * 6 + ["test"] * 6
    for row in rows:
        chances = {name: float(row[name]) for name in ("blue", "green", "red")}
        assert row["prediction"] == max(chances, key=chances.get)
        assert sum(chances.values()) == pytest.approx(1, abs=1e-5)  # three float32 values, written in decimals


def test_temperature_is_fitted_on_validation_images(place):
    validation = predictions.read_predictions(place / "run" / "predictions.csv").of_split("validation")
    images = validation.log_probabilities, validation.labels
    temperature = calibration.fit_temperature(*images)
    expected = {
        "temperature": temperature,
        "n": 6,
        "interval": list(calibration.temperature_interval(*images, temperature)),
    }
    assert json.loads((place / "run" / "summary.json").read_text())["calibration"] == expected


def test_predict_uses_the_temperature_unless_raw(place, tmp_path, capsys):
    workdir = shutil.copytree(place / "run", tmp_path / "run")
    summary = json.loads((workdir / "summary.json").read_text())

    def predicted(temperature, *more):
        calibrated = summary | {"calibration": {"temperature": temperature, "n": 6}}
        (workdir / "summary.json").write_text(json.dumps(calibrated))
        command = ["predict", f"--workdir={workdir}", "--input", str(place / "images"), *more]
        if temperature is None:
            return error_of(capsys, *command)
        main([*command, f"--csv={tmp_path / 'out.csv'}"])
        with (tmp_path / "out.csv").open() as file:
            return np.array([[row[name] for name in ("blue", "green", "red")] for row in csv.DictReader(file)], float)

    plain, calibrated = predicted(2.0, "--raw"), predicted(2.0)
    roots = np.sqrt(plain)  # which is what 2 makes of them
    # the file has six decimals: p is off by up to 5e-7, its root by up to 7e-4, where p is 0
    np.testing.assert_allclose(calibrated, roots / roots.sum(axis=1, keepdims=True), rtol=0, atol=1e-3)
    assert np.abs(calibrated - plain).max() > 0.01
    np.testing.assert_array_equal(predicted(2.0, "--calibrated"), calibrated)
    assert "temperature" in predicted(None, "--calibrated")


def test_report_makes_no_requests(place):
    page = (place / "run" / "report" / "index.html").read_text()
    assert "finetune" in page
    assert 'src="http' not in page
    assert 'href="http' not in page


def test_evaluate_agrees_with_the_summary(place, capsys):
    capsys.readouterr()
    main(["evaluate", f"--workdir={place / 'run'}", f"--json={place / 'test.json'}"])
    line = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(line) == json.loads((place / "test.json").read_text())
    expected = json.loads((place / "run" / "summary.json").read_text())["phases"]["finetune"]["test"]
    metrics = json.loads(line)
    assert (metrics["n"], metrics["accuracy"]) == (6, expected["accuracy"])
    # From images here, from the outputs of a frozen layer there: one float32 sum in another order.
    assert metrics["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert np.sum(metrics["confusion_matrix"]) == 6


def test_evaluate_other_images(place, capsys):
    capsys.readouterr()
    main(["evaluate", f"--workdir={place / 'run'}", f"--data=folder:{place / 'images'}"])
    captured = capsys.readouterr()
    metrics = json.loads(captured.out.splitlines()[-1])
    assert (metrics["n"], metrics["phase"], metrics["seen_in_training"]) == (24, "finetune", 12)
    assert metrics["split"] == "all"
    assert re.search(r"accuracy +\d+ % \(95 % interval", captured.err)
    assert re.search(r"\b12 of (the )?24\b", captured.err)


def test_predict_writes_the_requested_files(place):
    files = {kind: place / f"out.{kind}" for kind in ("csv", "json", "npz")}
    main(
        ["predict", f"--workdir={place / 'run'}", "--input", str(place / "images" / "red"), "--top=2"]
        + [f"--{kind}={file}" for kind, file in files.items()]
        + ["--tap=block1_pool", "--tap=predictions"]
    )
    arrays = np.load(files["npz"])
    assert sorted(arrays) == ["block1_pool", "path", "predictions"]
    assert arrays["block1_pool"].shape == (8, 16, 16, 64)
    rows = json.loads(files["json"].read_text())
    assert [row["path"] for row in rows] == list(arrays["path"])
    assert [len(row["top"]) for row in rows] == [2] * 8
    with files["csv"].open() as file:
        assert [row["prediction"] for row in csv.DictReader(file)] == [row["top"][0]["label"] for row in rows]


def test_export_reports_the_difference_and_does_not_overwrite(place, capsys):
    command = ["export", f"--workdir={place / 'run'}", "--format=safetensors"]
    folder = place / "run" / "export" / "safetensors"
    capsys.readouterr()
    main(command)
    first, second = capsys.readouterr().out.splitlines()
    number = r"(\d+(?:\.\d+)?(?:e[+-]\d+)?)"
    images, difference = re.search(rf"\b(\d+) images\b\D+?\b{number}\b", first).groups()
    assert int(images) == 6
    assert 0 <= float(difference) <= 1e-3
    assert second.endswith(f" {folder}")
    before = (folder / "model.json").read_bytes()
    assert str(folder) in error_of(capsys, *command)
    assert (folder / "model.json").read_bytes() == before
    assert "'tflite'" in error_of(capsys, *command[:-1], "--format=tflite")


def test_train_of_a_complete_run_changes_nothing(place, capsys):
    before = (place / "run" / "summary.json").read_bytes()
    capsys.readouterr()
    train(place, "run")
    assert re.search(rf"{re.escape(str(place / 'run'))}\b.*\bcomplete\b", capsys.readouterr().out)
    assert (place / "run" / "summary.json").read_bytes() == before


@pytest.mark.slow
def test_train_writes_a_missing_report(place):
    """A run that was stopped after its evaluation, which had set `complete`."""
    before = {file.name: file.read_bytes() for file in (place / "run" / "report").iterdir()}
    shutil.rmtree(place / "run" / "report")
    train(place, "run")
    assert {file.name: file.read_bytes() for file in (place / "run" / "report").iterdir()} == before


@pytest.mark.slow
def test_train_restores_a_lost_last_checkpoint(place):
    before = (place / "run" / "predictions.csv").read_bytes()
    shutil.rmtree(place / "run" / "checkpoints" / "phases" / "2")
    train(place, "run")
    assert (place / "run" / "checkpoints" / "phases" / "2").is_dir()
    assert (place / "run" / "predictions.csv").read_bytes() == before


@pytest.mark.slow
def test_train_writes_lost_predictions_again(place):
    file = place / "run" / "predictions.csv"
    before = file.read_bytes()
    file.unlink()
    train(place, "run")
    assert file.read_bytes() == before


def test_summary_of_a_truncated_backbone_needs_no_other_rules(place, capsys):
    capsys.readouterr()
    main(
        [
            "summary",
            f"--config={place / 'config.py'}",
            "--config.model.output_layer=block1_pool",
            "--config.data.classes=('a','b')",
        ]
    )
    output = capsys.readouterr().out
    assert "finetune" in output
    assert "block2" not in output


def test_evaluate_with_a_damaged_checkpoint_names_it(place, tmp_path, capsys):
    shutil.copytree(place / "run", tmp_path / "run")
    for file in (tmp_path / "run" / "checkpoints" / "phases" / "2").rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            file.write_bytes(file.read_bytes()[:500])
    error = error_of(capsys, "evaluate", f"--workdir={tmp_path / 'run'}")
    assert str(tmp_path / "run" / "checkpoints" / "phases" / "2") in error


def test_train_in_the_workdir_of_another_config_is_refused(place, capsys):
    arguments = [f"--config={place / 'config.py'}", f"--workdir={place / 'run'}"]
    source = f"--config.data.source=folder:{place / 'images'}"
    error = error_of(capsys, "train", *arguments, source, "--config.seed=9")
    assert re.search(r"\bseed\b\D+\b0\b\D+\b9\b", error)


@pytest.mark.slow
def test_nan_loss_stops_the_run_and_keeps_earlier_phases(place, capsys):
    arguments = [f"--config={place / 'config.py'}", f"--workdir={place / 'nan'}"]
    source = f"--config.data.source=folder:{place / 'images'}"
    rate = "--config.finetune.lr.head=1e38"  # float32 ends at 3.4e38: a few steps
    error = error_of(capsys, "train", *arguments, source, rate, "--config.finetune.epochs=4")
    assert re.search(r"(?i)\bnan\b", error)
    assert "finetune.lr.head=1e+38" in error
    summary = json.loads((place / "nan" / "summary.json").read_text())
    assert summary["phases"]["frozen"]["validation"]["n"] == 6
    main(["evaluate", f"--workdir={place / 'nan'}", "--split=validation"])


def test_train_lists_all_bad_images_and_writes_nothing(place, tmp_path, capsys):
    images(tmp_path / "images")
    whole = tmp_path / "images" / "red" / "0.png"
    whole.write_bytes(whole.read_bytes()[:500])
    (tmp_path / "images" / "blue" / "note.jpg").write_text("not an image")
    workdir = tmp_path / "run"
    error = error_of(
        capsys,
        "train",
        f"--config={place / 'config.py'}",
        f"--workdir={workdir}",
        f"--config.data.source=folder:{tmp_path / 'images'}",
    )
    assert "0.png" in error
    assert "note.jpg" in error
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("override", "facts"),
    [
        ("--config.lerning_rate=1", "'lerning_rate'"),
        ("--config.frozen.lr.hed=1", r"'frozen\.lr\.hed'.*'frozen\.lr\.head'"),
        ("--config.data.source=folder:nowhere", r"\bnowhere\b"),
        ("--config.model.name=vg16", "'vg16'.*'vgg16'"),
        ("--config.model.output_layer=block2_pol", "'block2_pol'.*'block2_pool'"),
        ("--config.weights.path=nowhere.h5", r"nowhere\.h5"),
        ("--config.head.pooling=mean", "'mean'.*global_average"),
        ("--config.batch_size=0", r"\bbatch\w*\D+\b0\b"),
        ("--config.data.height=16", r"\b16x32\b.*\bvgg16\b.*\b32\b"),
        ("--config.optimizer.name=adm", "'adm'.*'adam'"),
        ("--config.frozen.epochs=0", r"\bfrozen\.epochs\D+\b0\b"),
        ("--config.phases=('frozen','fintune')", "fintune"),
        ("--config.dtype=float61", "'float61'"),
    ],
)
def test_train_with_an_invalid_setting_writes_nothing(place, tmp_path, capsys, override, facts):
    source = f"--config.data.source=folder:{place / 'images'}"
    workdir = tmp_path / "run"
    command = ["train", f"--config={place / 'config.py'}", f"--workdir={workdir}", source, override]
    assert re.search(facts, error_of(capsys, *command))
    assert not workdir.exists() or list(workdir.iterdir()) == []


def test_train_in_an_unwritable_workdir_names_it(place, capsys):
    workdir = place / "config.py" / "run"
    source = f"--config.data.source=folder:{place / 'images'}"
    error = error_of(capsys, "train", f"--config={place / 'config.py'}", f"--workdir={workdir}", source)
    assert str(workdir) in error
    assert "--workdir" in error


def test_predict_skips_an_unreadable_image(place, tmp_path, capsys):
    (tmp_path / "bad.jpg").write_text("not an image")
    good = place / "images" / "red" / "0.png"
    target = tmp_path / "out.csv"
    error = error_of(
        capsys, "predict", f"--workdir={place / 'run'}", "--input", str(tmp_path), str(good), f"--csv={target}"
    )
    reason = f"Cannot read the image {tmp_path}/bad.jpg: not an image of a known format. Replace or remove it."
    assert error.endswith(f"Skipped 1 of 2 images. {reason}\n")
    assert len(target.read_text().splitlines()) == 2


@pytest.mark.slow
def test_run_and_images_moved_to_another_machine(place, tmp_path, capsys):
    workdir, source = tmp_path / "lr=[0.1]" / "run", tmp_path / "photos"  # orbax would take the first for a pattern
    shutil.copytree(place / "run", workdir)
    summary = (workdir / "summary.json").read_text().replace(str(place / "images"), "/gone")
    predicted = (workdir / "predictions.csv").read_text().replace(str(place / "images"), "/gone")
    (workdir / "summary.json").write_text(summary)
    (workdir / "predictions.csv").write_text(predicted)
    shutil.copytree(place / "images", source)
    page, run, data = workdir / "report/index.html", f"--workdir={workdir}", f"--data=folder:{source}"
    num_images = page.read_text().count("<img")
    assert re.search(r"\b6 of the 6 test images\b.*--data=", error_of(capsys, "evaluate", run))
    main(["evaluate", run, data])
    metrics = json.loads(capsys.readouterr().out.splitlines()[-1])
    expected = json.loads((workdir / "summary.json").read_text())["phases"]["finetune"]["test"]
    assert (metrics["n"], metrics["accuracy"]) == (6, expected["accuracy"])
    main(["export", run, "--format=safetensors", f"--output={tmp_path / 'synthetic'}"])
    assert "8 synthetic images" in capsys.readouterr().out
    main(["export", run, data, "--format=safetensors", f"--output={tmp_path / 'out'}"])
    assert re.search(r"\bverified on 6 images\b", capsys.readouterr().out)
    main(["report", run])
    assert re.search(r"\b24 of the 24 images\b.*--data=", capsys.readouterr().err)
    assert page.read_text().count("<img") == num_images
    assert 'class="missing"' not in page.read_text()
    main(["report", run, data])
    assert page.read_text().count("<img") == num_images
    assert str(source) in (workdir / "predictions.csv").read_text()
    main(["evaluate", run])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["n"] == 6
