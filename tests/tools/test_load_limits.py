"""Loads: nothing grows with the square of a data set, fills a screen, or is written outside its folder."""

import csv
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from helpers.image_folders import image, paint

from flaxtl.cli import main
from flaxtl.data.sources import base, image_folder
from flaxtl.data.sources.csv_file import scan_csv
from flaxtl.data.split_writer import write_folders, write_folds
from flaxtl.errors import UserError
from flaxtl.evaluation import classification
from flaxtl.evaluation.evaluate import brief_result
from flaxtl.report.report import ClassRow, _worst_first

sys.path.append(str(Path(__file__).parents[2] / "tools"))

from loads import classes, names, readonly, rows


def test_the_functions_that_see_all_rows_at_once(tmp_path):
    slow = [row for row in rows.functions(tmp_path, 5_000) if row.seconds > 2]  # of seconds for twenty times as many
    assert slow == []


@pytest.mark.slow
def test_the_functions_on_a_hundred_thousand_rows(tmp_path):
    assert [row for row in rows.functions(tmp_path, rows.ROWS) if not row.fine] == []


@pytest.mark.slow
@pytest.mark.parametrize("load", [classes, names, readonly])
def test_the_commands_under_load(load):
    with tempfile.TemporaryDirectory() as folder:  # not below tmp_path, which other users may not enter
        assert [row for row in load.run(Path(folder)) if not row.fine] == []


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in folder.rglob("*")}


HOSTILE = ("../../x", "/tmp/x", "..", ".", ".hidden", "a/b", "a\\b", "a\0b", "x" * 256, "é" * 128)


@pytest.mark.parametrize("label", HOSTILE)
def test_labels_never_lead_out_of_the_folder(tmp_path, label):
    """`flaxtl split` makes folders of labels, and a list may hold any label."""
    paint(tmp_path / "in", range(4))
    with (tmp_path / "list.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [("path", "label"), *((f"in/{n}.png", label if n % 2 else "fine") for n in range(4))]
        )
    before = tree(tmp_path)
    with pytest.raises(UserError, match="cannot be a folder's name; rename it there"):
        split(tmp_path / "list.csv", tmp_path / "deep" / "out")
    assert tree(tmp_path) == before


def split(file: Path, output: Path) -> None:
    parts = {"train": 0.5, "validation": 0.5}
    write_folders(scan_csv(file), output, parts, 0, near_duplicates=-1, link=False, notify=print)


def test_paths_outside_are_copied_in_under_their_names(tmp_path):
    paint(tmp_path / "elsewhere", range(4))
    rows = "".join(f"../elsewhere/../elsewhere/{n}.png,{'ab'[n % 2]}\n" for n in range(4))
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "list.csv").write_text("path,label\n" + rows)
    before = tree(tmp_path)
    split(tmp_path / "lists" / "list.csv", tmp_path / "out")
    after = tree(tmp_path)
    made = {path for path in after if path not in before}
    assert {path: after[path] for path in before} == before
    assert all(path.startswith(str(tmp_path / "out")) for path in made)
    assert {Path(path).name for path in made if path.endswith(".png")} == {"0.png", "1.png", "2.png", "3.png"}


@pytest.mark.parametrize("write", [write_folders, write_folds])
def test_labels_that_a_list_could_not_give_back_are_refused(tmp_path, write):
    paint(tmp_path / "in" / " a", range(4))
    paint(tmp_path / "in" / "b", range(4, 8))
    found = image_folder.scan_folder(tmp_path / "in")
    how = {"k": 2} if write is write_folds else {"fractions": {"train": 0.5, "test": 0.5}, "link": False}
    with pytest.raises(UserError, match=r"' a' .* begins or ends with a space; rename it there"):
        write(found, tmp_path / "out", **how, seed=0, near_duplicates=-1, notify=print)


def test_long_names_that_meet_are_cut_to_fit(tmp_path):
    long = "n" * 251 + ".png"
    for number in range(6):
        (tmp_path / f"{number}").mkdir()
        image(number // 2).save(tmp_path / f"{number}" / "a.png")  # two equal files each
        (tmp_path / f"{number}" / "a.png").rename(tmp_path / f"{number}" / long)
    text = "".join(f"{number}/{long},{'ab'[number // 3]}\n" for number in range(6))
    (tmp_path / "list.csv").write_text("path,label\n" + text)
    split(tmp_path / "list.csv", tmp_path / "out")
    made = [path.name for path in (tmp_path / "out").rglob("*.png")]
    assert len(made) == 6
    assert all(len(os.fsencode(name)) == 255 for name in made)


def test_an_archive_of_a_long_name_has_a_folder_in_the_cache(tmp_path):
    import tarfile

    paint(tmp_path / "set" / "a", range(2))
    paint(tmp_path / "set" / "b", range(2, 4))
    file = tmp_path / ("é" * 125 + ".tar")
    with tarfile.open(file, "w") as tar:
        tar.add(tmp_path / "set", "set")
    assert len(base.open_source(f"archive:{file}", tmp_path / "cache").images) == 4


def test_a_folder_that_may_not_be_looked_into_is_a_complaint(tmp_path, monkeypatch):
    paint(tmp_path / "a", range(2))
    paint(tmp_path / "b", range(2, 4))
    allowed = Path.is_dir

    def is_dir(path: Path) -> bool:
        if path.parent == tmp_path / "a":
            raise PermissionError(13, "Permission denied", str(path))
        return allowed(path)

    monkeypatch.setattr(Path, "is_dir", is_dir)
    with pytest.raises(UserError, match=r"folder .*/a: Permission denied"):
        image_folder.scan_folder(tmp_path)


def test_a_thousand_missing_classes_are_counted(tmp_path):
    found = [image_folder.SourceImage(Path(f"/{n}"), f"class{n:04}", "train") for n in range(1000)]
    (told,) = image_folder.find_problems(
        image_folder.DatasetIndex((*found, image_folder.SourceImage(Path("/x"), "class0000", "test")), "/set")
    )
    assert "lack the class(es) class0001, class0002, class0003, class0004, class0005 and 994 more of" in told


def test_a_terminal_is_spared_large_matrices():
    found = {"accuracy": 0.5, "classes": ["a"] * 50, "confusion_matrix": [[0] * 50] * 50}
    assert brief_result(found) == found
    assert brief_result(found | {"classes": ["a"] * 51}) == {"accuracy": 0.5}


def test_the_most_mistaken_classes():
    matrix = np.diag([9, 9, 9, 9, 9])
    matrix[1, 3] = 2
    assert classification.classes_with_most_errors(matrix, 2).tolist() == [1, 3]
    assert classification.classes_with_most_errors(matrix, 3).tolist() == [0, 1, 3]
    assert classification.classes_with_most_errors(matrix, 9).tolist() == [0, 1, 2, 3, 4]


def test_of_many_classes_the_worst_come_first():
    made = [ClassRow(str(n), 1.0, recall, 1.0, 1) for n, recall in enumerate([0.5, float("nan"), 0.25, 1.0] * 10)]
    assert _worst_first(made[:30]) == made[:30]
    assert [row.recall for row in _worst_first(made)][:20] == [0.25] * 10 + [0.5] * 10
    assert [row.name for row in _worst_first(made)][-10:] == [str(n) for n in range(1, 40, 4)]


def test_what_pillow_warns_of_stays_off_the_screen(tmp_path, recwarn, capsys):
    paint(tmp_path / "a", range(10))
    paint(tmp_path / "b", range(10, 20))
    (tmp_path / "b" / "x.tif").write_bytes(b"II*\0\x08\0\0\0\xff\xff")
    with pytest.raises(SystemExit):
        main.main(["split", f"--source=folder:{tmp_path}", f"--output={tmp_path}-out", "--kfold=20"])
    assert [str(warning.message) for warning in recwarn] == []
