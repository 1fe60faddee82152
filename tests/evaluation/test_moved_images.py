"""Images of a run that are no longer where they were: every command finds them by their SHA-256."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_run
from helpers.image_folders import paint

from flaxtl.config import config_to_json
from flaxtl.data.decode import Resize
from flaxtl.data.manifest import make_manifest
from flaxtl.data.sources.image_folder import scan_folder
from flaxtl.errors import UserError
from flaxtl.evaluation import evaluate, gradcam
from flaxtl.evaluation.moved_images import relocate_run
from flaxtl.evaluation.predictions import Predictions, read_predictions, write_predictions
from flaxtl.train import resume, run_dir
from flaxtl.train.run_records import RunSummary

HALVES = {"train": 0.5, "validation": 0.25, "test": 0.25}


@pytest.fixture
def run(tmp_path):
    """A run directory with predictions and a heat map, without a model; returns it and the folder of its images."""
    folder, workdir = tmp_path / "images", tmp_path / "run"
    paint(folder / "a", range(4))
    paint(folder / "b", range(100, 104))
    config = tiny_run.config(folder)
    manifest = make_manifest(scan_folder(folder), HALVES, config.seed)
    run_dir.create_run_dir(workdir, config_to_json(config), manifest, [], RunSummary())
    test = manifest.of_split("test")
    paths, chances = tuple(example.path for example in test), np.full((len(test), 2), 0.5, np.float32)
    predictions = Predictions(paths, ("test",) * len(test), manifest.labels(test), chances, manifest.classes)
    write_predictions(workdir / "predictions.csv", predictions)
    maps = {paths[0]: {"a": np.zeros((2, 2), np.uint8)}}
    gradcam.write_heatmaps(workdir, gradcam.HeatmapSet("conv", 2, 2, Resize(8, 8, "squash"), maps))
    return workdir, folder


def move(folder):
    """Move the images, each class to another name of its folder; return the new folder."""
    target = folder.parent / "elsewhere"
    shutil.move(folder, target)
    (target / "b").rename(target / "flower b")
    return target


def test_relocate_run_writes_the_new_paths_into_every_file(run):
    workdir, folder = run
    before, messages = run_dir.read_manifest(workdir), []
    target = move(folder)
    relocate_run(workdir, f"folder:{target}", messages.append)
    after = run_dir.read_manifest(workdir)
    expected = [
        (example.path.replace(f"{folder}/b", f"{target}/flower b").replace(str(folder), str(target)), example.split)
        for example in before.examples
    ]
    assert [(example.path, example.split) for example in after.examples] == expected
    assert [example.label for example in after.examples] == [example.label for example in before.examples]
    paths = read_predictions(workdir / "predictions.csv").paths
    assert paths == tuple(example.path for example in after.of_split("test"))
    assert list(gradcam.read_heatmaps(workdir).maps) == [paths[0]]
    assert messages == [f"folder:{target} has 8 of the 8 images of the run."]
    assert run_dir.read_summary(workdir).data_root == str(target)
    assert f"/{target.name}/" not in (workdir / "manifest.csv").read_text()


def test_relocate_run_to_a_source_without_its_images_changes_nothing(run, tmp_path):
    workdir, _ = run
    paint(tmp_path / "others" / "a", range(50, 52))
    paint(tmp_path / "others" / "b", range(60, 62))
    before = (workdir / "manifest.csv").read_bytes()
    with pytest.raises(UserError, match=r"\bothers has none of the 8 images\b.*SHA-256"):
        relocate_run(workdir, f"folder:{tmp_path / 'others'}", lambda text: None)
    assert (workdir / "manifest.csv").read_bytes() == before


def collect(workdir, source, console=None):
    manifest = run_dir.read_manifest(workdir)
    return evaluate._collect_examples(manifest, source, "test", console or tiny_run.quiet())[0]


def test_evaluate_of_missing_images_names_the_option(run):
    workdir, folder = run
    move(folder)
    with pytest.raises(UserError, match=r"\b2 of the 2 test images\b.*images/a/.*--data=folder:PATH"):
        collect(workdir, None)


def test_evaluate_of_a_run_without_test_images_names_its_splits(run):
    manifest = run_dir.read_manifest(run[0])
    others = replace(manifest, examples=manifest.of_split("train") + manifest.of_split("validation"))
    with pytest.raises(UserError, match=r"no test images\b.*: --split=validation or --split=train$"):
        evaluate._collect_examples(others, None, "test", tiny_run.quiet())


def test_evaluate_of_a_source_without_splits_says_all_images(run):
    workdir, folder = run
    console = tiny_run.quiet()
    assert len(collect(workdir, f"folder:{folder}", console)) == 8
    assert f"folder:{folder} has no splits: evaluating all of its images." in tiny_run.texts(console).replace("\n", "")


def test_evaluate_of_moved_images_keeps_the_split(run):
    workdir, folder = run
    own, console = collect(workdir, None), tiny_run.quiet()
    assert len(collect(workdir, f"folder:{folder}")) == 8  # other images, as far as flaxtl can know
    shutil.copytree(folder, folder.parent / "elsewhere")
    shutil.rmtree(folder)
    moved = collect(workdir, f"folder:{folder.parent / 'elsewhere'}", console)
    assert [example.sha256 for example in moved] == [example.sha256 for example in own]
    assert all(Path(example.path).is_file() for example in moved)
    assert re.search(r"\ball 2 test images\b", tiny_run.texts(console))


def test_evaluate_of_moved_images_uses_corrected_labels(run):
    workdir, folder = run
    first, second = collect(workdir, None)
    target, console = move(folder), tiny_run.quiet()
    assert (first.label, second.label) == ("a", "b")
    name = Path(first.path).name
    (target / "b").mkdir()  # beside "flower b", the former b
    (target / "a" / name).rename(target / "b" / name)
    corrected = collect(workdir, f"folder:{target}", console)
    assert [(example.label, example.sha256) for example in corrected] == [("b", first.sha256), ("b", second.sha256)]
    assert "evaluating these, 1 with another label." in tiny_run.texts(console).replace("\n", " ")


def resumed(workdir, source):
    """Check the run's config with another source; return the messages."""
    config, messages = run_dir.load_config(workdir), []
    config.data.source = f"folder:{source}"
    resume.check_resumable(workdir, config, messages.append)
    return messages


def test_check_resumable_follows_moved_images(run):
    workdir, folder = run
    assert resumed(workdir, folder) == []
    (workdir / "predictions.csv").unlink()  # an unfinished run
    target = folder.parent / "elsewhere"
    shutil.move(folder, target)
    message = f"folder:{target} has all 8 images of the run: continuing with them and their former labels."
    assert resumed(workdir, target) == [message]
    assert run_dir.load_config(workdir).data.source == f"folder:{target}"
    assert all(Path(example.path).is_file() for example in run_dir.read_manifest(workdir).examples)
    assert resumed(workdir, target) == []


def test_locate_images_of_a_moved_run_changes_nothing(run):
    workdir, folder = run
    before = {file: file.read_bytes() for file in workdir.rglob("*") if file.is_file()}
    target = move(folder)
    config = run_dir.load_config(workdir)
    config.data.source = f"folder:{target}"
    manifest = resume.locate_images(workdir, config)
    assert all(Path(example.path).is_relative_to(target) for example in manifest.examples)
    assert resume.check_images(workdir, manifest) == manifest
    assert {file: file.read_bytes() for file in workdir.rglob("*") if file.is_file()} == before


def test_check_resumable_with_other_images_is_refused(run):
    workdir, folder = run
    target = shutil.copytree(folder, folder.parent / "elsewhere")
    next((target / "a").iterdir()).unlink()
    before = (workdir / "config.json").read_bytes()
    with pytest.raises(UserError, match=r"data\.source: folder:\S+images -> folder:\S+elsewhere\b.*\b1 of its 8\b"):
        resumed(workdir, target)
    assert (workdir / "config.json").read_bytes() == before


def test_describe_growth_counts_new_images(run):
    workdir, folder = run
    assert resume.describe_growth(workdir, f"folder:{folder}") is None
    paint(folder / "a", range(40, 42))
    assert re.search(r"\bhas 2 new images\b", resume.describe_growth(workdir, f"folder:{folder}"))
    assert resume.describe_growth(workdir, "folder:nowhere") is None
