"""`flaxtl doctor`: tables on the console, the HTML page and the command."""

import base64
import io
import json
import re
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from deep_images import save_png16
from helpers.finished_run import Page
from PIL import Image
from rich.console import Console

from flaxtl.cli import main
from flaxtl.data.doctor import ISSUE_TYPES, DatasetReport, Issue, check_dataset
from flaxtl.data.sources.image_folder import DatasetIndex, SourceImage, inspect_folder
from flaxtl.report import doctor_report

TWO_IMAGES = (SourceImage(Path("/set/ants/a.jpg"), "ants"), SourceImage(Path("/set/bees/b.jpg"), "bees"))


def diagnosis(*issues, images=()):
    return DatasetReport(DatasetIndex(tuple(images), "/set"), issues)


def empty_file(name):
    return Issue("empty", (Path("/set/ants", name),), "the file is empty")


def console_lines(report):
    """Return the printed lines without surrounding white space."""
    console = Console(file=io.StringIO(), width=140)
    console.print(*doctor_report.doctor_tables(report, "my photos/"), sep="\n")
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines() if line.strip()]


def test_doctor_tables_without_issues():
    lines = console_lines(diagnosis(images=TWO_IMAGES))
    assert lines[-3] == "bees 1"  # no table of issues
    assert lines[-2:] == ["2 images of 2 classes: no errors found", "Train on them: flaxtl train 'my photos/'"]


def test_doctor_tables_count_images_by_split():
    images = [SourceImage(Path(f"/set/{split}/ants/a.jpg"), "ants", split) for split in ("train", "validation")]
    lines = console_lines(diagnosis(images=[*images, SourceImage(Path("/set/train/bees/b.jpg"), "bees", "train")]))
    assert "class train validation all" in lines
    assert "ants 1 1 2" in lines
    assert "bees 1 0 1" in lines


def test_doctor_tables_one_file_precedes_message():
    lines = console_lines(diagnosis(empty_file("a.jpg"), images=TWO_IMAGES))
    assert "Empty 1 set/ants/a.jpg: the file is empty" in lines
    assert re.fullmatch(r"2 \w+ of 2 classes\D+\b1\b\D+", lines[-1])


def test_doctor_tables_many_issues_are_truncated():
    lines = console_lines(diagnosis(*(empty_file(f"{n}.jpg") for n in range(1200)), images=TWO_IMAGES))
    assert "Empty 1,200 set/ants/0.jpg: the file is empty" in lines
    assert "set/ants/2.jpg: the file is empty" in lines
    assert "set/ants/3.jpg: the file is empty" not in lines
    assert any(re.fullmatch(r"\D*\b1,197\b\D*", line) for line in lines)


def test_doctor_tables_files_of_group_follow_message():
    paths = tuple(Path("/set/ants", f"{n}.jpg") for n in range(5))
    lines = console_lines(diagnosis(Issue("duplicate", paths, "the same bytes in 5 files of ants"), images=TWO_IMAGES))
    start = lines.index("Duplicate 1 the same bytes in 5 files of ants")
    assert lines[start + 1 : start + 4] == ["set/ants/0.jpg", "set/ants/1.jpg", "set/ants/2.jpg"]
    assert re.fullmatch(r"\D*\b2\b\D*", lines[start + 4])
    assert lines[-2] == "2 images of 2 classes: no errors found"


def test_doctor_tables_class_issue_has_no_file():
    assert "Small class 1 ants holds 1 image" in console_lines(
        diagnosis(Issue("few", (), "ants holds 1 image"), images=TWO_IMAGES)
    )


def test_doctor_tables_hostile_names_are_replaced():
    lines = console_lines(diagnosis(empty_file("\udcff[red]\x1b[2J\n.jpg"), images=TWO_IMAGES))
    assert "Empty 1 set/ants/\N{REPLACEMENT CHARACTER}[red]\N{REPLACEMENT CHARACTER}[2J" in "".join(lines)
    assert "\x1b" not in "".join(lines)


SCRIPT = "<script>alert(1)</script>"


def rendered(*issues, images=()):
    return doctor_report.render_doctor_report(diagnosis(*issues, images=images), "folder:/set")


def image(path, size=(300, 200)):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def thumbnails(html):
    """Return the decoded images of a page."""
    encoded = re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", html)
    return [Image.open(io.BytesIO(base64.b64decode(text))) for text in encoded]


def test_page_without_issues():
    page = Page(
        rendered(images=[SourceImage(Path("/set/ants/a.jpg"), "ants"), SourceImage(Path("/set/bees/b.jpg"), "bees")])
    )
    assert "No errors found" in page.text
    assert ("span", "class", "figure error") not in page.attributes
    assert "ants 1 bees 1 All 2" in page.text


def test_page_counts_images_by_split():
    images = [SourceImage(Path("/set/a.jpg"), "ants", "train")] * 2 + [
        SourceImage(Path("/set/b.jpg"), "ants", "validation")
    ]
    assert "Class Train Validation All ants 2 1 3 All 2 1 3" in Page(rendered(images=images)).text


def test_page_headline_counts_errors():
    issues = [Issue("empty", (Path("/set/ants", f"{n}.jpg"),), "the file is empty") for n in range(2)]
    page = Page(rendered(*issues, Issue("few", (), "ants holds 2 images")))
    text = page.text
    assert ("span", "class", "figure error") in page.attributes
    assert re.search(r"\b2 errors\b", text)
    assert re.search(r"\bwarnings 3\b", text)
    assert page.attributes.count(("span", "class", "badge")) == 1
    assert "set/ants/1.jpg the file is empty" in text
    assert re.search(rf"Small class 1 .*{re.escape(ISSUE_TYPES['few'].advice)}\W+ants holds 2 images", text)


def test_page_shows_files_of_group_together(tmp_path):
    paths = (image(tmp_path / "a.png"), image(tmp_path / "b.png", (200, 300)))
    html = rendered(Issue("label-conflict", paths, "the same bytes under ants and bees"))
    assert [pil_image.size for pil_image in thumbnails(html)] == [(128, 85), (85, 128)]
    page = Page(html)
    assert "the same bytes under ants and bees" in page.text
    assert {value for tag, name, value in page.attributes if (tag, name) == ("img", "title")} == set(map(str, paths))


def test_page_thumbnails_of_12_bits_are_bright(tmp_path):
    for label in ("ants", "bees"):
        (tmp_path / label).mkdir()
        save_png16(tmp_path / label / "a.png", np.full((8, 12, 3), 4095))
    report = check_dataset(inspect_folder(tmp_path), lambda title, total: nullcontext(lambda n: None))
    assert report.bit_depth == 12
    images = thumbnails(doctor_report.render_doctor_report(report, "folder:x"))
    assert images
    assert all(pil_image.getextrema() == ((255, 255),) * 3 for pil_image in images)


@pytest.mark.parametrize("orientation", [1, 6])
def test_page_thumbnails_are_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.new("RGB", (300, 200), "white")
    stored.paste("black", (0, 0, 150, 200))  # the left half, which is at the top with orientation 6
    stored.save(tmp_path / "a.jpg", exif=exif)
    (pil_image,) = thumbnails(rendered(Issue("rotated", (tmp_path / "a.jpg",), "rotated")))
    assert pil_image.size == ((128, 85) if orientation == 1 else (85, 128))
    width, height = pil_image.size
    dark = pil_image.getpixel((width // 2, height // 8) if orientation == 6 else (width // 8, height // 2))
    assert max(dark) < 30
    assert pil_image.getexif() == {}


def test_page_small_images_are_not_enlarged(tmp_path):
    path = image(tmp_path / "a.png", (20, 12))
    assert [pil_image.size for pil_image in thumbnails(rendered(Issue("tiny", (path,), "20 × 12 pixels")))] == [
        (20, 12)
    ]


def test_page_many_issues_are_truncated(tmp_path):
    path = image(tmp_path / "a.png", (40, 40))
    many_issues = [Issue("tiny", (path,), "small")] * (doctor_report.MAX_PAGE_ISSUES + 1200)
    html = rendered(Issue("duplicate", (path,) * 9, "the same bytes in 9 files of ants"), *many_issues)
    assert len(thumbnails(html)) == doctor_report.MAX_PAGE_FILES + doctor_report.MAX_PAGE_ISSUES
    text = Page(html).text
    assert re.search(r"\b3 more\b", text)
    assert re.search(r"\b1,200 more\b.*--json\b", text)


def test_page_missing_image_has_placeholder(tmp_path):
    paths = (image(tmp_path / "a.png"), tmp_path / "missing.png")
    html = rendered(Issue("duplicate", paths, "the same bytes in 2 files of ants"))
    assert len(thumbnails(html)) == 1
    assert ("div", "class", "missing") in Page(html).attributes


def test_page_needs_no_internet_and_no_scripts(tmp_path):
    html = rendered(Issue("tiny", (image(tmp_path / "a.png"),), "small"), Issue("few", (), "ants holds 2"))
    page = Page(html)
    assert {"script", "iframe", "object", "embed", "base"}.isdisjoint(page.tags)
    targets = {value for _, name, value in page.attributes if name in ("src", "href")}
    assert all(value.startswith(("data:", "#")) for value in targets)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "default-src 'none'" in html
    assert "url(" not in html


def test_page_links_have_targets():
    page = Page(rendered(Issue("few", (), "ants holds 2"), Issue("empty", (Path("/a.jpg"),), "empty")))
    links = {value[1:] for tag, name, value in page.attributes if (tag, name) == ("a", "href")}
    assert links == {"few", "empty", "images"}
    assert links <= {value for _, name, value in page.attributes if name == "id"}


def test_page_hostile_names_are_text():
    bad = Path("/set/ants", f'{SCRIPT}"\udcff\x1b.jpg')
    images = [SourceImage(bad, SCRIPT)]
    report = diagnosis(Issue("empty", (bad,), f"{SCRIPT} is empty"), images=images)
    html = doctor_report.render_doctor_report(report, f"folder:{SCRIPT}")
    html.encode()
    assert "script" not in Page(html).tags
    assert "\x1b" not in html
    assert Page(html).text.count(SCRIPT) >= 4


def write_images(folder, first):
    folder.mkdir(parents=True)
    for number in range(first, first + 10):
        cells = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(cells).resize((40, 40), Image.Resampling.BICUBIC).save(folder / f"{number}.png")


@pytest.fixture
def images(tmp_path):
    write_images(tmp_path / "set" / "ants", 0)
    write_images(tmp_path / "set" / "bees", 100)
    return tmp_path / "set"


def doctor(*arguments):
    """Return the exit code."""
    try:
        main.main(["doctor", *map(str, arguments)])
    except SystemExit as error:
        return error.code
    return 0


def test_doctor_command_without_issues_exits_0(images, capsys):
    assert doctor(f"--data=folder:{images}") == 0
    result, command = capsys.readouterr().out.splitlines()[-2:]
    assert (result, command.rstrip()) == (
        "20 images of 2 classes: no errors found",
        f"Train on them: flaxtl train folder:{images}",
    )


def test_doctor_command_with_error_exits_1(images, capsys, tmp_path):
    (images / "ants" / "x.jpg").write_bytes(b"")
    page, json_file = tmp_path / "page.html", tmp_path / "values.json"
    assert doctor(f"--data=folder:{images}", f"--json={json_file}", f"--html={page}") == 1
    assert re.fullmatch(r"21 \w+ of 2 classes\D+\b1\b\D+", capsys.readouterr().out.splitlines()[-1])
    report = json.loads(json_file.read_text())
    assert report["source"] == f"folder:{images}"
    assert [finding["kind"] for finding in report["findings"]] == ["empty"]
    assert re.search(r'(?s)<section id="empty".*\bx\.jpg\b', page.read_text("utf-8"))


def test_doctor_command_with_warning_exits_0(images, capsys):
    Image.new("RGB", (40, 40), "teal").save(images / "ants" / "x.png")
    assert doctor(f"--data=folder:{images}") == 0
    assert re.search(r"(?i)\bsingle.colou?r\b", capsys.readouterr().out)


def test_doctor_command_near_duplicate_threshold(images, capsys):
    with Image.open(images / "ants" / "0.png") as image:
        image.save(images / "ants" / "x.jpg", quality=60)
    doctor(f"--data=folder:{images}")
    assert "Near-duplicate" in capsys.readouterr().out
    doctor(f"--data=folder:{images}", "--near-duplicates=-1")
    assert "Near-duplicate" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["--data=folder:/no/such"], r"(?<!folder:)/no/such\b"),
        (["--data=fodler:/no/such"], r"'fodler'.*'folder'"),
        ([], r"--data\b"),
    ],
)
def test_doctor_command_wrong_option_exits_2(capsys, arguments, facts):
    assert doctor(*arguments) == 2
    assert re.match(f"flaxtl: .*{facts}", capsys.readouterr().err)


def test_doctor_command_invalid_value_exits_2(images, capsys):
    assert doctor(f"--data=folder:{images}", "--near-duplicates=65") == 2
    assert re.search(r"\b65\b", capsys.readouterr().err)
    for option in ("json", "html"):
        assert doctor(f"--data=folder:{images}", f"--{option}={images}/no/such") == 2
        facts = rf"flaxtl: .*{re.escape(str(images))}/no/such\b.*{re.escape(str(images))}/no is not a folder\..*\n"
        assert re.fullmatch(facts, capsys.readouterr().err)  # no image was inspected
