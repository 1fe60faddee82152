"""CSV files as sources: columns in any order, relative paths, and each problem with its row."""

import os
import re
from pathlib import Path

import pytest
from helpers.image_folders import fill

from flaxtl.data.sources.csv_file import inspect_csv, scan_csv
from flaxtl.data.sources.image_folder import SourceImage
from flaxtl.errors import UserError


@pytest.fixture
def table(tmp_path: Path):
    """Return a function that writes a CSV file next to the images in/0000.jpg to in/0003.jpg."""
    fill(tmp_path / "in", 4)

    def write(text: str, encoding: str = "utf-8") -> Path:
        file = tmp_path / "list.csv"
        file.write_text(text, encoding=encoding, newline="")
        return file

    return write


def test_scan_csv_without_splits_lists_images(table, tmp_path: Path) -> None:
    index = scan_csv(table(f"path,label\nin/0001.jpg,b\n{tmp_path}/in/0000.jpg,a\n\n"))
    assert index.images == (
        SourceImage(tmp_path.resolve() / "in/0001.jpg", "b"),
        SourceImage(tmp_path / "in/0000.jpg", "a"),
    )
    assert index.origin == str(tmp_path / "list.csv")
    assert not index.has_splits


def test_scan_csv_root_contains_all_images(table, tmp_path: Path) -> None:
    assert scan_csv(table("path,label\nin/0001.jpg,b\n")).root == tmp_path
    fill(tmp_path / "lists", 1)
    file = table("").rename(tmp_path / "lists" / "list.csv")
    file.write_text(f"path,label\n{tmp_path}/in/0000.jpg,a\n0000.jpg,b\n")
    assert scan_csv(file).root == tmp_path


def test_scan_csv_accepts_columns_in_any_order(table, tmp_path: Path) -> None:
    sha = "0123456789ABCDEF" * 4
    index = scan_csv(table(f"split, sha256,Label,path\nVal,{sha},é ö,in/0001.jpg\ntrain,,a,in/0002.jpg\n"))
    assert index.images == (
        SourceImage(tmp_path.resolve() / "in/0001.jpg", "é ö", "validation", sha.lower()),
        SourceImage(tmp_path.resolve() / "in/0002.jpg", "a", "train"),
    )
    assert index.splits == ("train", "validation")


@pytest.mark.parametrize(("encoding", "end"), [("utf-8", "\n"), ("utf-8-sig", "\r\n")])
def test_scan_csv_accepts_bom_and_crlf(table, encoding: str, end: str) -> None:
    index = scan_csv(table(end.join(("path,label", "in/0000.jpg,ä", "in/0001.jpg,b")), encoding))
    assert index.classes == ("b", "ä")


def test_scan_csv_paths_are_relative_to_its_folder(table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = table("path,label\nin/0000.jpg,a\n")
    expected = scan_csv(file).images
    monkeypatch.chdir(tmp_path)
    assert scan_csv(Path("list.csv")).images == expected
    monkeypatch.setenv("HOME", str(tmp_path))
    assert scan_csv(Path("~/list.csv")).images == expected


@pytest.mark.skipif(os.name == "nt" or os.uname().sysname == "Darwin", reason="file names are Unicode there")
def test_scan_csv_keeps_non_unicode_names(table, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    (tmp_path / "in" / name).write_bytes(b"1")
    file = table("")
    file.write_bytes(b"path,label\nin/caf\xe9.jpg,a\n")
    assert scan_csv(file).images[0].path == tmp_path.resolve() / "in" / name


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("in/0001.jpg,a", r"\b2\D+4\b"),
        (",a,train,", r"\bpath\b"),
        ("in/0001.jpg,,train,", r"\blabel\b"),
        ("in/0001.jpg, a,train,", "' a'"),
        ("in/0001.jpg,a,tain,", "'tain'.*train, validation, test"),
        ("in/0001.jpg,a,,", "''.*train, validation, test"),
        ("in/0001.jpg,a,train,12", "'12'.*SHA-256"),
        ("in/0009.jpg,a,train,", r"/in/0009\.jpg\b"),
        (r"in\0001.jpg,a,train,", r"/in\\0001\.jpg \(write / instead of \\\)"),
        ("in,a,train,", r"/in\b.*\b(folder|directory)\b"),
        ("in/0000.jpg,b,test,", r"/in/0000\.jpg\b"),
    ],
)
def test_scan_csv_bad_row_is_named_by_number(table, row: str, fault: str) -> None:
    file = table(f"path,label,split,sha256\nin/0000.jpg,a,train,\n\n{row}\nin/0002.jpg,b,validation,\n")
    with pytest.raises(UserError) as caught:
        scan_csv(file)
    assert str(file) in str(caught.value)
    number, message = re.search(r"\brow (\d+)\b(.*)", str(caught.value)).groups()
    assert number == "4"
    assert re.search(fault, message), message
    report = inspect_csv(file)
    index, problems = report.index, report.problems
    assert problems[0] == str(caught.value)
    assert (len(index.images), index.skipped) == (2, ())


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("", r"\bpath\b.*\blabel\b"),
        ("path|label\nin/0000.jpg|a\n", r"'path\|label'.*\bpath\b.*\blabel\b"),
        ("id,label\n1,a\n", r"'id,label'.*\bpath\b.*\blabel\b"),
        ("path,label,label\n", "'path,label,label'"),
        ("path,label\n", r"list\.csv\b.*\brow\b"),
        ("path\rlabel\nin/0000.jpg,a\n", r"list\.csv\b.*'path'.*\blabel\b"),
        ("path,label" + "x" * 200_000, r"list\.csv\b.*\bfield larger\b"),
        ('path,label\n"in/0000.jpg,a', r"list\.csv\b.*\bunexpected end of data\b"),
    ],
)
def test_scan_csv_of_other_table_raises(table, text: str, fact: str) -> None:
    with pytest.raises(UserError, match=fact):
        scan_csv(table(text))


def test_scan_csv_missing_file_raises(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.csv\b.*No such file"):
        scan_csv(tmp_path / "none.csv")


def test_inspect_csv_includes_find_problems(table) -> None:
    problems = inspect_csv(table("path,label,split\nin/0000.jpg,a,test\nin/0001.jpg,b,test\n")).problems
    assert len(problems) == 1
    assert re.search(r"\btest\b.*\btrain\b", problems[0])


def test_scan_csv_with_named_pipe_raises(table, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(UserError, match=r"(?i)pipe\.jpg\b.*\b(ordinary|regular)\b"):
        scan_csv(table("path,label\nin/0000.jpg,a\npipe.jpg,b\n"))


@pytest.mark.parametrize("name", ["x" * 300 + ".jpg", "a\0b.jpg", "in/0000.jpg/x.jpg"])
def test_scan_csv_impossible_path_is_a_row_problem(table, name: str) -> None:
    with pytest.raises(UserError, match=rf"\brow 2\b.*{re.escape(name)}"):
        scan_csv(table(f"path,label\n{name},a\n"))


PLAIN = "path,label\nin/0000.jpg,Gänse\nin/0001.jpg,b\n"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize(
    ("start", "delimiter"), [("", ","), ("", ";"), ("", "\t"), ("sep=;\n", ";"), ("SEP=\t\n", "\t")]
)
def test_scan_csv_detects_encoding_and_delimiter(table, encoding, start, delimiter):
    mark = "\ufeff" if encoding.endswith(("-le", "-be")) else ""
    index = scan_csv(table(mark + (start + PLAIN.replace(",", delimiter)).replace("\n", "\r\n"), encoding))
    assert [(image.path.name, image.label) for image in index.images] == [("0000.jpg", "Gänse"), ("0001.jpg", "b")]
    assert index.notes == ()


def test_scan_csv_in_windows_encoding_says_so(table, tmp_path):
    (tmp_path / "in" / "Rübe.jpg").write_bytes(b"1")
    file = table("path;label\nin/Rübe.jpg;a – b\nin/0001.jpg;c\n", "cp1252")
    index = scan_csv(file)
    assert index.classes == ("a – b", "c")
    assert index.images[0].path == tmp_path.resolve() / "in" / "Rübe.jpg"
    assert index.messages == (
        f"{file} is not UTF-8. It was read as Windows-1252, the encoding of Excel; check the class names.",
    )
    index = scan_csv(table("path;label\nin/Rübe.jpg;a\n", "cp1252"))  # the encoding shows in a path only
    assert index.images[0].path.name == "Rübe.jpg"


def test_scan_csv_in_unknown_encoding_raises(table):
    file = table("")
    file.write_bytes(b"path,label\nin/0000.jpg,a\x81\n")  # undefined in Windows-1252
    with pytest.raises(UserError, match=r"list\.csv.*UTF-8.*byte 24"):
        scan_csv(file)


def test_scan_csv_ignores_comments_and_other_columns(table, tmp_path):
    (tmp_path / "#1.jpg").write_bytes(b"1")
    rows = (
        "# by hand; in 2026",
        ",id,path,label,note",
        "0,7,in/0000.jpg,a,",
        "#0,8,in/9.jpg,a,",
        ",,,,",
        "0,9,in/0001.jpg,b,x,,",
    )
    index = scan_csv(table("\n".join(rows)))
    assert [(image.path.name, image.label) for image in index.images] == [("0000.jpg", "a"), ("0001.jpg", "b")]
    (note,) = index.notes
    assert "ignored the columns id, note." in note
    index = scan_csv(table("path,label\n#1.jpg,a\n#2.jpg,a\nin/0000.jpg,b\n"))
    assert [image.path.name for image in index.images] == ["#1.jpg", "0000.jpg"]


def test_scan_csv_counts_rows_of_the_file(table):
    with pytest.raises(UserError, match=r"\brow 5: .*/in/0009\.jpg"):
        scan_csv(table("sep=;\n# note\npath;label\nin/0000.jpg;a\nin/0009.jpg;b\n"))
