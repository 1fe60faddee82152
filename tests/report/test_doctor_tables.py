"""`flaxtl doctor` on the command line."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from flaxtl.cli import main
from flaxtl.data.doctor import DatasetReport, Issue
from flaxtl.data.sources.image_folder import DatasetIndex, SourceImage
from flaxtl.report import doctor_report

TWO = (SourceImage(Path("/set/ants/a.jpg"), "ants"), SourceImage(Path("/set/bees/b.jpg"), "bees"))


def diagnosis(*findings, found=TWO):
    return DatasetReport(DatasetIndex(tuple(found), "/set"), findings)


def printed(made):
    """The lines that a diagnosis comes to, without the white space around them."""
    screen = Console(file=io.StringIO(), width=140)
    screen.print(*doctor_report.doctor_tables(made), sep="\n")
    return [" ".join(line.split()) for line in screen.file.getvalue().splitlines() if line.strip()]


def empty(name):
    return Issue("empty", (Path("/set/ants", name),), "the file is empty")


def test_a_sound_set():
    lines = printed(diagnosis())
    assert re.fullmatch(r"2 \w+ of 2 classes\D*", lines[-1])
    assert lines[-2] == "bees 1"  # no table of findings


def test_images_by_class_and_split():
    found = [SourceImage(Path(f"/set/{split}/ants/a.jpg"), "ants", split) for split in ("train", "validation")]
    lines = printed(diagnosis(found=[*found, SourceImage(Path("/set/train/bees/b.jpg"), "bees", "train")]))
    assert "class train validation all" in lines
    assert "ants 1 1 2" in lines
    assert "bees 1 0 1" in lines


def test_a_file_stands_before_its_sentence():
    lines = printed(diagnosis(empty("a.jpg")))
    assert "Empty 1 set/ants/a.jpg: the file is empty" in lines
    assert re.fullmatch(r"2 \w+ of 2 classes\D+\b1\b\D+", lines[-1])


def test_of_many_findings_three_are_told_and_the_others_counted():
    lines = printed(diagnosis(*(empty(f"{n}.jpg") for n in range(1200))))
    assert "Empty 1,200 set/ants/0.jpg: the file is empty" in lines
    assert "set/ants/2.jpg: the file is empty" in lines
    assert "set/ants/3.jpg: the file is empty" not in lines
    assert any(re.fullmatch(r"\D*\b1,197\b\D*", line) for line in lines)


def test_a_group_stands_below_its_sentence():
    paths = tuple(Path("/set/ants", f"{n}.jpg") for n in range(5))
    lines = printed(diagnosis(Issue("duplicate", paths, "the same bytes in 5 files of ants")))
    start = lines.index("Duplicate 1 the same bytes in 5 files of ants")
    assert lines[start + 1 : start + 4] == ["set/ants/0.jpg", "set/ants/1.jpg", "set/ants/2.jpg"]
    assert re.fullmatch(r"\D*\b2\b\D*", lines[start + 4])
    assert re.fullmatch(r"2 \w+ of 2 classes\D*", lines[-1])  # nothing stops a run


def test_a_class_needs_no_file():
    assert "Small class 1 ants holds 1 image" in printed(diagnosis(Issue("few", (), "ants holds 1 image")))


def test_strange_names_cannot_reach_the_terminal():
    lines = printed(diagnosis(empty("\udcff[red]\x1b[2J\n.jpg")))
    assert "Empty 1 set/ants/\N{REPLACEMENT CHARACTER}[red]\N{REPLACEMENT CHARACTER}[2J" in "".join(lines)
    assert "\x1b" not in "".join(lines)


def fill(folder, first):
    folder.mkdir(parents=True)
    for number in range(first, first + 10):
        cells = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(cells).resize((40, 40), Image.Resampling.BICUBIC).save(folder / f"{number}.png")


@pytest.fixture
def images(tmp_path):
    fill(tmp_path / "set" / "ants", 0)
    fill(tmp_path / "set" / "bees", 100)
    return tmp_path / "set"


def doctor(*arguments):
    """The exit code."""
    try:
        main.main(["doctor", *map(str, arguments)])
    except SystemExit as ended:
        return ended.code
    return 0


def test_the_command_on_a_sound_set(images, capsys):
    assert doctor(f"--data=folder:{images}") == 0
    assert re.fullmatch(r"20 \w+ of 2 classes\D*", capsys.readouterr().out.splitlines()[-1])


def test_the_command_on_a_broken_set(images, capsys, tmp_path):
    (images / "ants" / "x.jpg").write_bytes(b"")
    page, values = tmp_path / "page.html", tmp_path / "values.json"
    assert doctor(f"--data=folder:{images}", f"--json={values}", f"--html={page}") == 1
    assert re.fullmatch(r"21 \w+ of 2 classes\D+\b1\b\D+", capsys.readouterr().out.splitlines()[-1])
    found = json.loads(values.read_text())
    assert found["source"] == f"folder:{images}"
    assert [finding["kind"] for finding in found["findings"]] == ["empty"]
    assert re.search(r'(?s)<section id="empty".*\bx\.jpg\b', page.read_text("utf-8"))


def test_a_warning_is_no_failure(images, capsys):
    Image.new("RGB", (40, 40), "teal").save(images / "ants" / "x.png")
    assert doctor(f"--data=folder:{images}") == 0
    assert re.search(r"(?i)\bsingle.colou?r\b", capsys.readouterr().out)


def test_the_threshold_is_an_option(images, capsys):
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
def test_a_wrong_command_is_code_2(capsys, arguments, facts):
    assert doctor(*arguments) == 2
    assert re.match(f"flaxtl: .*{facts}", capsys.readouterr().err)


def test_an_impossible_threshold_and_an_impossible_file_are_code_2(images, capsys):
    assert doctor(f"--data=folder:{images}", "--near-duplicates=65") == 2
    assert re.search(r"\b65\b", capsys.readouterr().err)
    for option in ("json", "html"):
        assert doctor(f"--data=folder:{images}", f"--{option}={images}/no/such") == 2
        facts = rf"(?m)^flaxtl: .*{re.escape(str(images))}/no/such\b.*No such file or directory"
        assert re.search(facts, capsys.readouterr().err)
