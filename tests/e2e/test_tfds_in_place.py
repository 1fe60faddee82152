"""A run that reads its images from the TFRecord files of TFDS equals the run on exported images."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_run

from flaxtl.cli.main import main
from flaxtl.data.sources.tfds import export_tfds
from flaxtl.evaluation.predictions import read_predictions
from flaxtl.train import run_dir
from flaxtl.train.epoch_loop import PhaseTrainer

pytest.importorskip("tensorflow_datasets")

from helpers import tiny_tfds

pytestmark = [pytest.mark.slow, pytest.mark.needs_tf]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with records/ (a run on TFDS' files), exported/ (the same on the export), tfds/ and export/."""
    place = tmp_path_factory.mktemp("place")
    settings = {"data": tiny_run.DATA | {"loader": "tfdata"}, "checkpoint": {"every_seconds": 0.0}}
    tiny_run.write_config(place, **settings, phases=("frozen",), frozen={"augment": True})
    with pytest.MonkeyPatch.context() as patch:
        tiny_tfds.work_offline(patch, place / "tfds")
        patch.setenv("FLAXTL_CACHE", str(place / "cache"))
        tiny_tfds.prepare(place / "tfds", {"train": 36}, num_shards=3)
        train(place, "records", "tfds:tiny_plants")
        assert not (place / "cache" / "data" / "tfds").exists()
        train(place, "exported", f"folder:{export_tfds('tiny_plants', place / 'export')}")
        yield place


def train(place, workdir, source):
    main(["train", f"--config={place / 'config.py'}", f"--workdir={place / workdir}", f"--config.data.source={source}"])


def test_run_on_records_equals_run_on_export(place):
    records, exported = place / "records", place / "exported"
    manifests = [run_dir.read_manifest(workdir) for workdir in (records, exported)]
    rows = [
        [(*Path(e.path).parts[-2:], e.label, e.split, e.sha256) for e in manifest.examples] for manifest in manifests
    ]
    assert rows[0] == rows[1]
    assert all("/bytes=" in example.path for example in manifests[0].examples)
    assert len({Path(example.path).parents[2] for example in manifests[0].examples}) == 3
    assert tiny_run.results(records) == tiny_run.results(exported)
    predictions = [read_predictions(workdir / "predictions.csv") for workdir in (records, exported)]
    assert np.array_equal(*(each.probabilities for each in predictions))
    assert [Path(path).name for path in predictions[0].paths] == [Path(path).name for path in predictions[1].paths]


def test_report_of_records_shows_the_photos_of_the_export(place):
    pages = [(place / run / "report" / "index.html").read_text() for run in ("records", "exported")]
    photos = [page.count('src="data:image/jpeg') for page in pages]
    assert photos[0] == photos[1] > 0
    assert 'class="missing"' not in pages[0]


def test_commands_read_images_in_record_files(place, capsys):
    results = []
    for run in ("records", "exported"):
        main(["evaluate", f"--workdir={place / run}", "--split=test", f"--json={place / run}.json"])
        results.append(json.loads((place / f"{run}.json").read_text()) | {"workdir": "", "data": ""})
    assert results[0] == results[1]
    path = run_dir.read_manifest(place / "records").examples[0].path
    capsys.readouterr()
    main(["predict", f"--workdir={place / 'records'}", f"--input={path}", f"--csv={place / 'predicted.csv'}"])
    with (place / "predicted.csv").open() as file:
        assert [row["path"] for row in csv.DictReader(file)] == [path]
    main(["export", f"--workdir={place / 'records'}", "--format=safetensors", f"--output={place / 'out'}"])
    message = capsys.readouterr().out
    assert "verified on" in message
    assert "synthetic" not in message


def test_split_of_a_list_of_records_copies_them(place):
    lists, folders = place / "lists", place / "folders"
    with (place / "all.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label"))
        examples = run_dir.read_manifest(place / "records").examples
        writer.writerows((example.path, example.label) for example in examples)
    main(["split", f"--source=csv:{place / 'all.csv'}", "--kfold=3", f"--output={lists}"])
    assert (lists / "fold-1.csv").read_text().count("/bytes=") == 36
    main(["split", f"--source=csv:{lists / 'fold-1.csv'}", "--fractions=0.5,0.5", f"--output={folders}"])
    copies = {path.name: path.read_bytes() for path in folders.rglob("train_*")}
    assert copies == {path.name: path.read_bytes() for path in (place / "export").rglob("train_*")}


@pytest.fixture(scope="module")
def prepared_anew(place):
    """Interrupt a run, cut/, in its second epoch, then let TFDS write other files; the tests of this come last."""
    with pytest.MonkeyPatch.context() as patch:
        tiny_run.stop_at(patch, PhaseTrainer, "_begin_epoch", 2)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            train(place, "cut", "tfds:tiny_plants")
    shutil.rmtree(place / "tfds")
    tiny_tfds.prepare(place / "tfds", {"train": 36}, num_shards=2)
    return place


def test_interrupted_run_resumes_on_a_dataset_prepared_anew(prepared_anew, capsys):
    cut, records = prepared_anew / "cut", prepared_anew / "records"
    train(prepared_anew, "cut", "tfds:tiny_plants")
    assert "has all 36 images of the run" in capsys.readouterr().out
    assert tiny_run.results(cut) == tiny_run.results(records)
    predictions = [read_predictions(workdir / "predictions.csv") for workdir in (cut, records)]
    assert np.array_equal(*(each.probabilities for each in predictions))
    assert all("-of-00002/bytes=" in path for path in predictions[0].paths)


def test_finished_run_finds_images_of_a_dataset_prepared_anew(prepared_anew, capsys):
    workdir, data = prepared_anew / "records", "--data=tfds:tiny_plants"
    before = read_predictions(workdir / "predictions.csv")
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", f"--workdir={workdir}"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "9 of the 9 test images" in error
    assert "tiny_plants-train.tfrecord" in error
    main(["evaluate", f"--workdir={workdir}", data, f"--json={prepared_anew / 'again.json'}"])
    assert json.loads((prepared_anew / "again.json").read_text())["n"] == 9
    main(["report", f"--workdir={workdir}", data])
    after = read_predictions(workdir / "predictions.csv")
    assert all("-of-00002/bytes=" in path for path in after.paths)
    assert [Path(path).name for path in after.paths] == [Path(path).name for path in before.paths]
    assert np.array_equal(after.probabilities, before.probabilities)
    assert not (prepared_anew / "cache" / "data" / "tfds").exists()
