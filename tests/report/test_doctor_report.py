"""The doctor's page: what it shows, that it is whole in itself, and that no name can do it harm."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from helpers.finished_run import Page
from PIL import Image

from flaxtl.data.doctor import ISSUE_TYPES, DatasetReport, Issue
from flaxtl.data.sources.image_folder import DatasetIndex, SourceImage
from flaxtl.errors import UserError
from flaxtl.report import doctor_report

SCRIPT = "<script>alert(1)</script>"


def rendered(*findings, found=()):
    return doctor_report.render_doctor_report(
        DatasetReport(DatasetIndex(tuple(found), "/set"), findings), "folder:/set"
    )


def image(path, size=(300, 200)):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def thumbnails(html):
    """The images within a page, decoded."""
    coded = re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", html)
    return [Image.open(io.BytesIO(base64.b64decode(text))) for text in coded]


def test_a_sound_set():
    page = Page(
        rendered(found=[SourceImage(Path("/set/ants/a.jpg"), "ants"), SourceImage(Path("/set/bees/b.jpg"), "bees")])
    )
    assert ("span", "class", "figure") in page.attributes
    assert ("span", "class", "figure stops") not in page.attributes
    assert "ants 1 bees 1 All 2" in page.text


def test_counts_by_split():
    found = [SourceImage(Path("/set/a.jpg"), "ants", "train")] * 2 + [
        SourceImage(Path("/set/b.jpg"), "ants", "validation")
    ]
    assert "Class Train Validation All ants 2 1 3 All 2 1 3" in Page(rendered(found=found)).text


def test_the_headline_counts_what_stops():
    findings = [Issue("empty", (Path("/set/ants", f"{n}.jpg"),), "the file is empty") for n in range(2)]
    page = Page(rendered(*findings, Issue("few", (), "ants holds 2 images")))
    text = page.text
    assert ("span", "class", "figure stops") in page.attributes
    assert re.search(r"\b2 findings\b", text)
    assert "Findings 3" in text
    assert page.attributes.count(("span", "class", "badge")) == 1
    assert "set/ants/1.jpg the file is empty" in text
    assert re.search(rf"Small class 1 .*{re.escape(ISSUE_TYPES['few'].advice)}\W+ants holds 2 images", text)


def test_pairs_stand_side_by_side(tmp_path):
    paths = (image(tmp_path / "a.png"), image(tmp_path / "b.png", (200, 300)))
    html = rendered(Issue("label-conflict", paths, "the same bytes under ants and bees"))
    assert [pil_image.size for pil_image in thumbnails(html)] == [(128, 85), (85, 128)]
    page = Page(html)
    assert "the same bytes under ants and bees" in page.text
    assert {value for tag, name, value in page.attributes if (tag, name) == ("img", "title")} == set(map(str, paths))


@pytest.mark.parametrize("orientation", [1, 6])
def test_thumbnails_are_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.new("RGB", (300, 200), "white")
    stored.paste("black", (0, 0, 150, 200))  # the left half, which orientation 6 turns to the top
    stored.save(tmp_path / "a.jpg", exif=exif)
    (pil_image,) = thumbnails(rendered(Issue("rotated", (tmp_path / "a.jpg",), "turned")))
    assert pil_image.size == ((128, 85) if orientation == 1 else (85, 128))
    width, height = pil_image.size
    dark = pil_image.getpixel((width // 2, height // 8) if orientation == 6 else (width // 8, height // 2))
    assert max(dark) < 30
    assert pil_image.getexif() == {}


def test_small_images_are_not_enlarged(tmp_path):
    path = image(tmp_path / "a.png", (20, 12))
    assert [pil_image.size for pil_image in thumbnails(rendered(Issue("tiny", (path,), "20 × 12 pixels")))] == [
        (20, 12)
    ]


def test_of_many_the_first_are_shown_and_the_others_counted(tmp_path):
    path = image(tmp_path / "a.png", (40, 40))
    many = [Issue("tiny", (path,), "small")] * (doctor_report.ITEMS + 1200)
    html = rendered(Issue("duplicate", (path,) * 9, "the same bytes in 9 files of ants"), *many)
    assert len(thumbnails(html)) == doctor_report.MEMBERS + doctor_report.ITEMS
    text = Page(html).text
    assert re.search(r"\b3 more\b", text)
    assert re.search(r"\b1,200 more\b.*--json\b", text)


def test_a_image_that_is_gone_since_leaves_its_place(tmp_path):
    paths = (image(tmp_path / "a.png"), tmp_path / "gone.png")
    html = rendered(Issue("duplicate", paths, "the same bytes in 2 files of ants"))
    assert len(thumbnails(html)) == 1
    assert ("div", "class", "missing") in Page(html).attributes


def test_nothing_is_asked_of_the_network_and_nothing_runs(tmp_path):
    html = rendered(Issue("tiny", (image(tmp_path / "a.png"),), "small"), Issue("few", (), "ants holds 2"))
    page = Page(html)
    assert {"script", "iframe", "object", "embed", "base"}.isdisjoint(page.tags)
    targets = {value for _, name, value in page.attributes if name in ("src", "href")}
    assert all(value.startswith(("data:", "#")) for value in targets)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "default-src 'none'" in html
    assert "url(" not in html


def test_every_link_has_its_target():
    page = Page(rendered(Issue("few", (), "ants holds 2"), Issue("empty", (Path("/a.jpg"),), "empty")))
    links = {value[1:] for tag, name, value in page.attributes if (tag, name) == ("a", "href")}
    assert links == {"few", "empty", "images"}
    assert links <= {value for _, name, value in page.attributes if name == "id"}


def test_names_are_text_and_nothing_else(tmp_path):
    bad = Path("/set/ants", f'{SCRIPT}"\udcff\x1b.jpg')
    found = [SourceImage(bad, SCRIPT)]
    made = DatasetReport(DatasetIndex(tuple(found), "/set"), (Issue("empty", (bad,), f"{SCRIPT} is empty"),))
    doctor_report.write_doctor_report(made, f"folder:{SCRIPT}", tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text("utf-8")
    assert "script" not in Page(html).tags
    assert "\x1b" not in html
    assert Page(html).text.count(SCRIPT) >= 4


def test_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match=r"no/page\.html\b.*No such file or directory"):
        doctor_report.write_doctor_report(
            DatasetReport(DatasetIndex((), "/set"), ()), "folder:/set", tmp_path / "no" / "page.html"
        )
    assert list(tmp_path.iterdir()) == []
