"""Large and hostile data: no quadratic time, no flood of output, no file outside its folder."""

import csv
import os
from pathlib import Path

import load
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


def test_row_functions_on_five_thousand_rows_are_fast():
    assert [row for row in load.row_functions(5_000) if row.seconds > 2] == []


@pytest.mark.slow
def test_row_functions_on_hundred_thousand_rows_pass():
    assert [row for row in load.row_functions(load.ROWS) if not row.passed] == []


@pytest.mark.exhaustive("load")
@pytest.mark.parametrize("name", load.LOADS)
def test_commands_under_load_pass(tmp_path, name):
    assert [row for row in load.LOADS[name](tmp_path, 1.0) if not row.passed] == []


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in folder.rglob("*")}


HOSTILE = ("../../x", "/tmp/x", "..", ".", ".hidden", "a/b", "a\\b", "a\0b", "x" * 256, "é" * 128)


@pytest.mark.parametrize("label", HOSTILE)
def test_write_folders_hostile_label_is_refused(tmp_path, label):
    """`flaxtl split` names folders after labels, and a list may contain any label."""
    paint(tmp_path / "in", range(4))
    with (tmp_path / "list.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [("path", "label"), *((f"in/{n}.png", label if n % 2 else "fine") for n in range(4))]
        )
    before = tree(tmp_path)
    with pytest.raises(UserError, match="not a valid folder name"):
        split(tmp_path / "list.csv", tmp_path / "deep" / "out")
    assert tree(tmp_path) == before


def split(file: Path, output: Path) -> None:
    parts = {"train": 0.5, "validation": 0.5}
    write_folders(scan_csv(file), output, parts, 0, near_duplicates=-1, link=False, notify=print)


def test_write_folders_copies_files_outside_by_name(tmp_path):
    paint(tmp_path / "elsewhere", range(4))
    rows = "".join(f"../elsewhere/../elsewhere/{n}.png,{'ab'[n % 2]}\n" for n in range(4))
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "list.csv").write_text("path,label\n" + rows)
    before = tree(tmp_path)
    split(tmp_path / "lists" / "list.csv", tmp_path / "out")
    after = tree(tmp_path)
    new_paths = {path for path in after if path not in before}
    assert {path: after[path] for path in before} == before
    assert all(path.startswith(str(tmp_path / "out")) for path in new_paths)
    assert {Path(path).name for path in new_paths if path.endswith(".png")} == {"0.png", "1.png", "2.png", "3.png"}


@pytest.mark.parametrize("write", [write_folders, write_folds])
def test_split_writer_label_with_outer_space_is_refused(tmp_path, write):
    paint(tmp_path / "in" / " a", range(4))
    paint(tmp_path / "in" / "b", range(4, 8))
    index = image_folder.scan_folder(tmp_path / "in")
    arguments = {"k": 2} if write is write_folds else {"fractions": {"train": 0.5, "test": 0.5}, "link": False}
    with pytest.raises(UserError, match=r"' a' .* space"):
        write(index, tmp_path / "out", **arguments, seed=0, near_duplicates=-1, notify=print)


def test_write_folders_shortens_colliding_long_names(tmp_path):
    long = "n" * 251 + ".png"
    for number in range(6):
        (tmp_path / f"{number}").mkdir()
        image(number // 2).save(tmp_path / f"{number}" / "a.png")  # two equal files each
        (tmp_path / f"{number}" / "a.png").rename(tmp_path / f"{number}" / long)
    text = "".join(f"{number}/{long},{'ab'[number // 3]}\n" for number in range(6))
    (tmp_path / "list.csv").write_text("path,label\n" + text)
    split(tmp_path / "list.csv", tmp_path / "out")
    names = [path.name for path in (tmp_path / "out").rglob("*.png")]
    assert len(names) == 6
    assert all(len(os.fsencode(name)) == 255 for name in names)


def test_open_source_archive_with_long_name_is_cached(tmp_path):
    import tarfile

    paint(tmp_path / "set" / "a", range(2))
    paint(tmp_path / "set" / "b", range(2, 4))
    file = tmp_path / ("é" * 125 + ".tar")
    with tarfile.open(file, "w") as tar:
        tar.add(tmp_path / "set", "set")
    assert len(base.open_source(f"archive:{file}", tmp_path / "cache").images) == 4


def test_scan_folder_without_permission_is_refused(tmp_path, monkeypatch):
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


def test_find_problems_counts_many_missing_classes(tmp_path):
    images = [image_folder.SourceImage(Path(f"/{n}"), f"class{n:04}", "test") for n in range(1000)]
    (problem,) = image_folder.find_problems(
        image_folder.DatasetIndex((*images, image_folder.SourceImage(Path("/x"), "class0000", "train")), "/set")
    )
    assert "lack the class(es) class0001, class0002, class0003, class0004, class0005 and 994 more of" in problem


def test_brief_result_omits_large_matrices():
    result = {"accuracy": 0.5, "classes": ["a"] * 50, "confusion_matrix": [[0] * 50] * 50}
    assert brief_result(result) == result
    assert brief_result(result | {"classes": ["a"] * 51}) == {"accuracy": 0.5}


def test_classes_with_most_errors_are_sorted():
    matrix = np.diag([9, 9, 9, 9, 9])
    matrix[1, 3] = 2
    assert classification.classes_with_most_errors(matrix, 2).tolist() == [1, 3]
    assert classification.classes_with_most_errors(matrix, 3).tolist() == [0, 1, 3]
    assert classification.classes_with_most_errors(matrix, 9).tolist() == [0, 1, 2, 3, 4]


def test_worst_first_sorts_many_classes_by_recall():
    rows = [ClassRow(str(n), 1.0, recall, 1.0, 1, 1) for n, recall in enumerate([0.5, float("nan"), 0.25, 1.0] * 10)]
    assert _worst_first(rows[:30]) == rows[:30]
    assert [row.recall for row in _worst_first(rows)][:20] == [0.25] * 10 + [0.5] * 10
    assert [row.name for row in _worst_first(rows)][-10:] == [str(n) for n in range(1, 40, 4)]


def test_split_shows_no_pillow_warnings(tmp_path, recwarn, capsys):
    paint(tmp_path / "a", range(10))
    paint(tmp_path / "b", range(10, 20))
    (tmp_path / "b" / "x.tif").write_bytes(b"II*\0\x08\0\0\0\xff\xff")
    with pytest.raises(SystemExit):
        main.main(["split", f"--source=folder:{tmp_path}", f"--output={tmp_path}-out", "--kfold=20"])
    assert [str(warning.message) for warning in recwarn] == []
