"""Heat maps in the report of a run: made when it ends, kept, and made again where they are asked for."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.finished_run import Page
from helpers.tiny_run import images
from PIL import Image

from flaxtl.cli.main import main
from flaxtl.data.decode import Resize, decode, visible_region
from flaxtl.evaluation import gradcam, run_files
from flaxtl.evaluation.gradcam import HeatmapSet
from flaxtl.evaluation.predictor import load_run
from flaxtl.report import galleries, report
from flaxtl.report.plots import heat_colors

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    c = ConfigDict()
    c.batch_size = 4
    c.data = dict(height=32, width=32, fractions=dict(train=0.25, validation=0.25, test=0.5))
    c.weights = dict(path="builtin")
    c.model = dict(name="vgg16", output_layer="block2_pool")
    c.head = dict(pooling="global_average", units=(), dropout=0.0)
    c.augmentation = dict(horizontal_flip=True)
    c.param_groups = (("head", "head/.*"), ("base", "backbone/.*"))
    c.phases = ("frozen",)
    c.frozen = dict(epochs=1, augment=True, lr=dict(head=1e-6, base=0.0))
    return c
"""
"""A head that learned next to nothing: some of the 12 test answers are right, some wrong."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with images/ and a finished run/."""
    place = tmp_path_factory.mktemp("user")
    images(place / "images")
    (place / "config.py").write_text(CONFIG)
    source = f"--config.data.source=folder:{place / 'images'}"
    main(["train", f"--config={place / 'config.py'}", f"--workdir={place / 'run'}", source])
    return place


@pytest.fixture
def workdir(finished, tmp_path):
    """A copy of the run that a test may take apart; its images stay where they are."""
    return Path(shutil.copytree(finished / "run", tmp_path / "run"))


@pytest.fixture
def moved(finished):
    """The images are elsewhere while the test runs."""
    elsewhere = (finished / "images").rename(finished / "elsewhere")
    yield
    elsewhere.rename(finished / "images")


def never():
    raise AssertionError("the network was asked")


def page(workdir):
    return Page((workdir / "report" / "index.html").read_text(encoding="utf-8"))


def heat_section(workdir):
    """The report's part on heat maps, as HTML."""
    html = (workdir / "report" / "index.html").read_text(encoding="utf-8")
    return html[html.index('<section id="heat"') : html.index('<section id="labels"')]


def alts(page):
    return [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]


def asked(workdir):
    return gradcam.heatmap_targets(run_files.read_run(workdir))


def test_the_end_of_a_run_has_them(finished):
    run = finished / "run"
    wanted, kept = asked(run), gradcam.read_heatmaps(run)
    errors = [pair for pair in wanted.values() if pair[0] != pair[1]]
    assert 0 < len(errors) < len(wanted)
    assert (kept.layer, kept.rows, kept.columns) == ("block2_conv2", 16, 16)
    assert {path: set(heats) for path, heats in kept.maps.items()} == {path: set(pair) for path, pair in wanted.items()}
    assert all(heat.max() in (0, 255) for heats in kept.maps.values() for heat in heats.values())
    shown = Page(heat_section(run))
    assert re.search(r"Grad-CAM\b[^.]*\bblock2_conv2\b[^.]*\b16 [×x] 16\b", shown.text)
    spoken = [alt for alt in alts(shown) if re.search(r"\b(blue|green|red)\b", alt)]
    maps = 2 * len(errors) + (len(wanted) - len(errors))  # of an error also the label's
    assert len(spoken) == shown.tags.count("figure") == len(wanted) + maps


def test_the_page_is_written_again_without_the_network(workdir):
    before = heat_section(workdir)
    gradcam.update_heatmaps(workdir, never, never)
    report.write_report(workdir)
    assert "<figure" in before
    assert heat_section(workdir) == before


def test_another_layer_is_kept_from_then_on(workdir, capsys):
    before = gradcam.read_heatmaps(workdir)
    main(["report", f"--workdir={workdir}", "--gradcam=block1_conv2"])
    kept = gradcam.read_heatmaps(workdir)
    assert (kept.layer, kept.rows, kept.columns) == ("block1_conv2", 32, 32)
    assert kept.maps.keys() == before.maps.keys()
    main(["report", f"--workdir={workdir}"])
    assert gradcam.read_heatmaps(workdir).layer == "block1_conv2"
    assert re.search(r"\bblock1_conv2\b[^.]*\b32 [×x] 32\b", Page(heat_section(workdir)).text)
    assert capsys.readouterr().err == ""


def test_all_batches_are_one_program(workdir, monkeypatch):
    """Three batches, the last one filled up, give the maps that each image has on its own."""
    traced, gradcam_maps = [], gradcam.gradcam_maps

    def counting(model, parameters, images, classes, layer):
        traced.append(images.shape)
        return gradcam_maps(model, parameters, images, classes, layer)

    monkeypatch.setattr(gradcam, "gradcam_maps", counting)
    run, wanted = load_run(workdir), dict(list(asked(workdir).items())[:5])
    monkeypatch.setattr(gradcam, "MAX_BATCH_PIXELS", 2 * 32 * 32)
    found = gradcam.compute_heatmaps(run, wanted, None)
    assert traced == [(2, 32, 32, 3)]
    for path, pair in wanted.items():
        alone = gradcam.compute_heatmaps(run, {path: pair}, None)
        for name in pair:  # float32 sums in another order; a value may be rounded to the next of 256
            np.testing.assert_allclose(found.maps[path][name].astype(int), alone.maps[path][name], rtol=0, atol=1)


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["--gradcam=block2_conv3"], "'block2_conv3'.*'block2_conv2'"),
        (["--gradcam=predictions"], r"'predictions'.*\b3\b"),
        (["--gradcam=block2_conv2", "--workdir=other"], "--gradcam.*--workdir"),
    ],
)
def test_what_cannot_be_shown_is_told_in_a_sentence(workdir, capsys, arguments, facts):
    before = gradcam.read_heatmaps(workdir)
    with pytest.raises(SystemExit) as stop:
        main(["report", f"--workdir={workdir}", *arguments])
    assert stop.value.code == 2
    assert re.search(facts, capsys.readouterr().err)
    assert gradcam.read_heatmaps(workdir).maps.keys() == before.maps.keys()


def test_what_a_stranger_adds_to_the_file_is_not_used(workdir):
    file = workdir / "report" / "gradcam.json"
    told, before = json.loads(file.read_text()), page(workdir).text
    assert told["resize"].keys() == {"height", "width", "policy", "interpolation"}
    told["resize"] |= {"policy": "crop", "cover": 0}
    file.write_text(json.dumps(told))
    assert gradcam.read_heatmaps(workdir).resize == Resize(32, 32, "crop")
    report.write_report(workdir)
    assert page(workdir).text.count("<figure") == before.count("<figure")


def test_moved_images(workdir, moved, capsys):
    n = len(asked(workdir))
    main(["report", f"--workdir={workdir}"])
    assert re.search(rf'<p class="empty">\D*\b{n}\b', heat_section(workdir))
    (workdir / "report" / "gradcam.json").unlink()
    capsys.readouterr()
    main(["report", f"--workdir={workdir}"])
    assert re.search(rf"(?i)heat.?map.*\b{n} .*manifest\.csv", capsys.readouterr().err)
    assert "flaxtl report" in Page(heat_section(workdir)).text
    assert "<figure" not in heat_section(workdir)
    with pytest.raises(SystemExit):  # who asks for them is refused
        main(["report", f"--workdir={workdir}", "--gradcam=block1_conv2"])


def test_a_image_that_is_gone_is_left_out(workdir, tmp_path):
    run, wanted = load_run(workdir), asked(workdir)
    gone = str(tmp_path / "gone.png")
    found = gradcam.compute_heatmaps(run, {gone: next(iter(wanted.values())), **wanted}, None)
    assert found.maps.keys() == wanted.keys()


def test_a_run_without_its_checkpoints_has_a_report_without_them(workdir, capsys):
    shutil.rmtree(workdir / "checkpoints")
    (workdir / "report" / "gradcam.json").unlink()
    main(["report", f"--workdir={workdir}"])
    said = capsys.readouterr().err
    assert re.search(r"(?i)heat.?map.*\bphase\b", said)
    assert str(workdir) in said
    assert "flaxtl report" in Page(heat_section(workdir)).text
    assert "<figure" not in heat_section(workdir)


def test_before_there_are_predictions_nothing_is_done(workdir, capsys):
    for name in ("predictions.csv", "report/gradcam.json"):
        (workdir / name).unlink()
    gradcam.update_heatmaps(workdir, never, never)
    report.write_report(workdir)
    said = Page(heat_section(workdir)).text
    assert "predictions" in said
    assert "flaxtl report" not in said  # which cannot help yet
    with pytest.raises(SystemExit):
        main(["report", f"--workdir={workdir}", "--gradcam=block1_conv2"])
    said = capsys.readouterr().err
    assert all(fact in said for fact in (str(workdir), "predictions", "--gradcam"))


HEATS = {"x": np.arange(6, dtype=np.uint8).reshape(2, 3), "": np.zeros((2, 3), np.uint8)}
KEPT = HeatmapSet("conv", 2, 3, Resize(20, 30, "crop"), {"a\udcff/<b>.png": HEATS})


def test_what_is_kept_is_read_again(tmp_path):
    gradcam.write_heatmaps(tmp_path, KEPT)
    found = gradcam.read_heatmaps(tmp_path)
    assert replace(found, maps={}) == replace(KEPT, maps={})
    np.testing.assert_equal(found.maps, KEPT.maps)


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
    ],
)
def test_a_damaged_file_is_as_none(tmp_path, changed):
    gradcam.write_heatmaps(tmp_path, KEPT)
    file = tmp_path / "report" / "gradcam.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    assert gradcam.read_heatmaps(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"[" * (sys.getrecursionlimit() + 1)])
def test_another_file_is_as_none(tmp_path, content):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "gradcam.json").write_bytes(content)
    assert gradcam.read_heatmaps(tmp_path) is None


def test_the_map_lies_over_the_grey_image():
    image = Image.new("RGB", (40, 20), (250, 0, 0))
    heat = np.array([[0, 0, 0, 255], [0, 0, 0, 255]], np.uint8)
    shown = np.asarray(galleries.overlay(image, heat), float)
    grey = np.asarray(image.convert("L"), float)[0, 0]
    for column, value in ((0, 0), (39, 255)):
        expected = 0.4 * grey + 0.6 * heat_colors(np.array([value], np.uint8))[0]
        np.testing.assert_allclose(shown[10, column], expected, atol=1)  # whole grey levels


def test_colours_grow_brighter_with_heat():
    colours = heat_colors(np.arange(256, dtype=np.uint8)).astype(float)
    brightness = colours @ (0.2126, 0.7152, 0.0722)
    assert np.diff(brightness).min() > -0.5  # rounded to whole levels
    assert brightness[-1] - brightness[0] > 200


@pytest.mark.parametrize(
    ("place", "where"),
    [
        ((0, 0), "(upper|top) left"),
        ((0, 5), "top|upper centre"),
        ((5, 5), "centre|center|middle"),
        ((6, 11), "right"),
        ((11, 11), "(lower|bottom) right"),
    ],
)
def test_where_the_map_is_largest(place, where):
    heat = np.zeros((12, 12), np.uint8)
    assert galleries.strongest(heat) == ""
    heat[place] = 255
    assert re.fullmatch(f"(the )?({where})", galleries.strongest(heat))


@pytest.mark.parametrize("policy", ["squash", "crop"])
@pytest.mark.parametrize("size", [(160, 60), (60, 161)])
def test_the_image_is_shown_as_the_network_saw_it(tmp_path, policy, size):
    """Red grows to the right and green to the bottom: what is seen and what is shown agree at every place."""
    right, down = np.meshgrid(*(np.linspace(0, 255, side) for side in size))
    ramps = Image.fromarray(np.dstack([right, down, 0 * right]).astype(np.uint8))
    ramps.save(tmp_path / "ramps.png")
    resize = Resize(48, 48, policy)
    shown = visible_region(ramps, resize)
    assert (shown.width == shown.height) is (policy == "crop")
    seen = decode(tmp_path / "ramps.png", resize).astype(float)
    # the cut is at whole pixels of the file, up to half of one off: 255 / 60 / 2 levels, and one for rounding
    np.testing.assert_allclose(np.asarray(shown.resize((48, 48)), float), seen, rtol=0, atol=3.2)
