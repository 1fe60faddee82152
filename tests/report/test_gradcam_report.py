"""Grad-CAM in the report: computed at the end of a run, stored, and recomputed on request."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.finished_run import Page
from helpers.tiny_run import images, untrained

from flaxtl.cli.main import main
from flaxtl.data.decode import Resize
from flaxtl.evaluation import gradcam, run_files
from flaxtl.evaluation.gradcam import HeatmapSet
from flaxtl.evaluation.predictions import Predictions, write_predictions
from flaxtl.evaluation.predictor import load_run
from flaxtl.report import report

pytestmark = pytest.mark.usefixtures("unplotted")

SETTINGS = {
    "data": {"height": 32, "width": 32, "fractions": {"train": 0.25, "validation": 0.25, "test": 0.5}},
    "head": {"pooling": "global_average", "units": (), "dropout": 0.0},
    "phases": ("frozen",),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with images/ and a run/ whose predictions are drawn: some of the 12 of the test split are correct."""
    folder = tmp_path_factory.mktemp("user")
    images(folder / "images")
    data = SETTINGS["data"] | {"source": f"folder:{folder / 'images'}"}
    run = load_run(untrained(folder / "images", folder / "run", **SETTINGS | {"data": data}))
    manifest = run.setup.manifest
    examples = [example for split in ("validation", "test") for example in manifest.of_split(split)]
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), len(examples)).astype(np.float32)
    paths, splits = (tuple(getattr(each, name) for each in examples) for name in ("path", "split"))
    predictions = Predictions(paths, splits, manifest.labels(examples), probabilities, tuple(manifest.classes))
    write_predictions(folder / "run" / "predictions.csv", predictions)
    gradcam.update_heatmaps(folder / "run", lambda: run, not_called)
    report.write_report(folder / "run")
    return folder


@pytest.fixture
def workdir(finished, tmp_path):
    """A copy of the run that a test may change; its images stay where they are."""
    return Path(shutil.copytree(finished / "run", tmp_path / "run"))


@pytest.fixture
def moved(finished):
    """The images are moved away while the test runs."""
    moved_folder = (finished / "images").rename(finished / "moved")
    yield
    moved_folder.rename(finished / "images")


def not_called(*_):
    raise AssertionError("the model is needed")


def page(workdir):
    return Page((workdir / "report" / "index.html").read_text(encoding="utf-8"))


def photo_sections(workdir):
    """Return the sections with photos, which have the heat maps, as HTML without its plots."""
    html = (workdir / "report" / "index.html").read_text(encoding="utf-8")
    html = re.sub("<svg.*?</svg>", "", html, flags=re.DOTALL)
    return html[html.index('<section id="confusion"') : html.index('<section id="calibration"')]


def alts(page):
    return [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]


def heatmap_pairs(workdir):
    return gradcam.heatmap_targets(run_files.read_run(workdir))


@pytest.mark.slow
def test_update_heatmaps_stores_those_of_the_shown_images(finished):
    run = finished / "run"
    pairs, stored = heatmap_pairs(run), gradcam.read_heatmaps(run)
    errors = [pair for pair in pairs.values() if pair[0] != pair[1]]
    assert 0 < len(errors) < len(pairs)
    assert (stored.layer, stored.rows, stored.columns) == ("block2_conv2", 16, 16)
    assert {path: set(maps) for path, maps in stored.maps.items()} == {path: set(pair) for path, pair in pairs.items()}
    assert all(heat.max() in (0, 255) for maps in stored.maps.values() for heat in maps.values())
    section = Page(photo_sections(run))
    assert re.search(r"Grad-CAM\b[^.]*\bblock2_conv2\b[^.]*\b16 [×x] 16\b", section.text)
    map_alts = [alt for alt in alts(section) if re.match(r"Heat map for (blue|green|red)\b", alt)]
    num_maps = 2 * len(errors) + (len(pairs) - len(errors))  # errors have a second map, for the true class
    assert len(map_alts) == num_maps


def test_report_again_needs_no_model(workdir):
    before = photo_sections(workdir)
    gradcam.update_heatmaps(workdir, not_called, not_called)
    report.write_report(workdir)
    assert "Heat map" in before
    assert photo_sections(workdir) == before


def test_report_gradcam_layer_is_stored(workdir, capsys):
    before = gradcam.read_heatmaps(workdir)
    main(["report", f"--workdir={workdir}", "--gradcam=block1_conv2"])
    stored = gradcam.read_heatmaps(workdir)
    assert (stored.layer, stored.rows, stored.columns) == ("block1_conv2", 32, 32)
    assert stored.maps.keys() == before.maps.keys()
    main(["report", f"--workdir={workdir}"])
    assert gradcam.read_heatmaps(workdir).layer == "block1_conv2"
    assert re.search(r"\bblock1_conv2\b[^.]*\b32 [×x] 32\b", Page(photo_sections(workdir)).text)
    assert capsys.readouterr().err == ""


def test_compute_heatmaps_batches_share_one_program(workdir, monkeypatch):
    """Three batches, the last one padded, give the same maps as each image alone."""
    traced, gradcam_maps = [], gradcam.gradcam_maps

    def counting(model, parameters, images, classes, layer):
        traced.append(images.shape)
        return gradcam_maps(model, parameters, images, classes, layer)

    monkeypatch.setattr(gradcam, "gradcam_maps", counting)
    run, pairs = load_run(workdir), dict(list(heatmap_pairs(workdir).items())[:5])
    monkeypatch.setattr(gradcam, "MAX_BATCH_PIXELS", 2 * 32 * 32)
    heatmaps = gradcam.compute_heatmaps(run, pairs, None)
    assert traced == [(2, 32, 32, 3)]
    for path, pair in pairs.items():
        alone = gradcam.compute_heatmaps(run, {path: pair}, None)
        for name in pair:  # float32 sums in another order: off by at most one level of 256
            np.testing.assert_allclose(heatmaps.maps[path][name].astype(int), alone.maps[path][name], rtol=0, atol=1)


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["--gradcam=block2_conv3"], "'block2_conv3'.*'block2_conv2'"),
        (["--gradcam=predictions"], r"'predictions'.*\b3\b"),
        (["--gradcam=block2_conv2", "--workdir=other"], "--gradcam.*--workdir"),
    ],
)
def test_report_gradcam_invalid_layer_exits_2(workdir, capsys, arguments, facts):
    before = gradcam.read_heatmaps(workdir)
    with pytest.raises(SystemExit) as stop:
        main(["report", f"--workdir={workdir}", *arguments])
    assert stop.value.code == 2
    assert re.search(facts, capsys.readouterr().err)
    assert gradcam.read_heatmaps(workdir).maps.keys() == before.maps.keys()


def test_report_missing_images_are_counted(workdir, moved, capsys):
    n = len(heatmap_pairs(workdir))
    (workdir / "report" / "index.html").unlink()  # the images of an earlier report would be kept
    main(["report", f"--workdir={workdir}"])
    section = photo_sections(workdir)
    assert section.count("image not found") == section.count("<li ") >= n
    (workdir / "report" / "gradcam.json").unlink()
    capsys.readouterr()
    main(["report", f"--workdir={workdir}"])
    assert re.search(rf"(?i)heat.?map.*\b{n} .*manifest\.csv", capsys.readouterr().err)
    assert "flaxtl report" in Page(photo_sections(workdir)).text
    assert "Heat map" not in photo_sections(workdir)
    with pytest.raises(SystemExit):  # an explicit request is an error
        main(["report", f"--workdir={workdir}", "--gradcam=block1_conv2"])


def test_compute_heatmaps_missing_image_is_skipped(workdir, tmp_path):
    run, pairs = load_run(workdir), heatmap_pairs(workdir)
    missing = str(tmp_path / "gone.png")
    heatmaps = gradcam.compute_heatmaps(run, {missing: next(iter(pairs.values())), **pairs}, None)
    assert heatmaps.maps.keys() == pairs.keys()


def test_report_without_checkpoints_has_no_heatmaps(workdir, capsys):
    shutil.rmtree(workdir / "checkpoints")
    for name in ("gradcam.json", "index.html"):
        (workdir / "report" / name).unlink()
    main(["report", f"--workdir={workdir}"])
    err = capsys.readouterr().err
    assert re.search(r"(?i)heat.?map.*\bphase\b", err)
    assert str(workdir) in err
    assert "flaxtl report" in Page(photo_sections(workdir)).text
    assert "Heat map" not in photo_sections(workdir)


def test_report_without_predictions_has_no_heatmaps(workdir, capsys):
    for name in ("predictions.csv", "report/gradcam.json"):
        (workdir / name).unlink()
    gradcam.update_heatmaps(workdir, not_called, not_called)
    report.write_report(workdir)
    section = Page(photo_sections(workdir)).text
    assert "predictions" in section
    assert "flaxtl report" not in section  # it cannot help yet
    with pytest.raises(SystemExit):
        main(["report", f"--workdir={workdir}", "--gradcam=block1_conv2"])
    err = capsys.readouterr().err
    assert all(fact in err for fact in (str(workdir), "predictions", "--gradcam"))


MAPS = {"x": np.arange(6, dtype=np.uint8).reshape(2, 3), "": np.zeros((2, 3), np.uint8)}
HEATMAPS = HeatmapSet("conv", 2, 3, Resize(20, 30, "crop", bit_depth=12), {"a\udcff/<b>.png": MAPS})


def test_heatmaps_round_trip(tmp_path):
    gradcam.write_heatmaps(tmp_path, HEATMAPS)
    heatmaps = gradcam.read_heatmaps(tmp_path)
    assert replace(heatmaps, maps={}) == replace(HEATMAPS, maps={})
    np.testing.assert_equal(heatmaps.maps, HEATMAPS.maps)


@pytest.mark.parametrize(
    "changed",
    [
        {"layer": 1},
        {"rows": 4},
        {"rows": -2},
        {"columns": 10**15},
        {"maps": []},
        {"maps": {"a": {"b": "=="}}},
        {"maps": {"a": {"b": "\u00e9"}}},
        {"maps": {"a": {"b": None}}},
        {"resize": {"height": 0, "width": 1, "policy": "crop", "interpolation": "box"}},
        {"resize": {"height": 1, "width": 1, "policy": "crop", "interpolation": "box", "crop_pct": 0}},
    ],
)
def test_read_heatmaps_damaged_file_returns_none(tmp_path, changed):
    gradcam.write_heatmaps(tmp_path, HEATMAPS)
    file = tmp_path / "report" / "gradcam.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    assert gradcam.read_heatmaps(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"[" * (sys.getrecursionlimit() + 1)])
def test_read_heatmaps_foreign_file_returns_none(tmp_path, content):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "gradcam.json").write_bytes(content)
    assert gradcam.read_heatmaps(tmp_path) is None
