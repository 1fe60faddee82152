"""`flaxtl split`: folders and lists, complete or absent, and independent of the location of the images."""

import csv
import hashlib
import os
import re
import shutil
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from helpers.image_folders import fill, paint

from flaxtl.data import split_writer
from flaxtl.data.sources.csv_file import scan_csv
from flaxtl.data.sources.image_folder import DatasetIndex, SourceImage, scan_folder
from flaxtl.data.split_writer import parse_fractions, write_folders, write_folds
from flaxtl.errors import UserError

LECTURE = {"train": 0.5, "validation": 0.2, "test": 0.3}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    paint(tmp_path / "set" / "ants", range(20))
    paint(tmp_path / "set" / "bees", range(100, 111))
    return tmp_path / "set"


def written(index: DatasetIndex, output: Path, fractions=LECTURE, seed=0, link=False, **changes):
    messages: list[str] = []
    counts = write_folders(
        index, output, fractions, seed, **{"near_duplicates": 4, "link": link, "notify": messages.append, **changes}
    )
    return counts, messages


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_write_folders_copies_and_lists_each_image_once(place: Path, tmp_path: Path) -> None:
    steps: list[int] = []
    counts, messages = written(scan_folder(place), tmp_path / "out", on_progress=steps.append)
    assert counts == {
        ("ants", "train"): 10,
        ("ants", "validation"): 4,
        ("ants", "test"): 6,
        ("bees", "train"): 6,
        ("bees", "validation"): 2,
        ("bees", "test"): 3,
    }
    assert messages == []
    assert steps == list(range(1, 63))
    listed = rows(tmp_path / "out" / "manifest.csv")
    assert [row["path"] for row in listed] == sorted(row["path"] for row in listed)
    for row in listed:
        path = tmp_path / "out" / row["path"]
        assert row["path"] == f"{row['split']}/{row['label']}/{path.name}"
        assert path.read_bytes() == (place / row["label"] / path.name).read_bytes()
        assert row["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    files = set((tmp_path / "out").rglob("*.*"))
    assert files == {tmp_path / "out" / row["path"] for row in listed} | {tmp_path / "out" / "manifest.csv"}
    assert {path.name for path in tmp_path.iterdir()} == {"set", "out"}


def test_write_folders_output_is_folder_and_csv_source(place: Path, tmp_path: Path) -> None:
    written(scan_folder(place), tmp_path / "out")
    folder, listed = scan_folder(tmp_path / "out"), scan_csv(tmp_path / "out" / "manifest.csv")
    assert {(f.path, f.label, f.split) for f in folder.images} == {(f.path, f.label, f.split) for f in listed.images}
    assert folder.splits == listed.splits == ("train", "validation", "test")


def test_write_folders_shows_hidden_images(place: Path, tmp_path: Path) -> None:
    (place / "ants" / "0.png").rename(place / "ants" / ".0.png")
    (place / "ants" / "1.png").rename(place / "ants" / f".{'a' * 250}.png")
    table = place.parent / "list.csv"
    table.write_text("path,label\n" + "".join(f"{path},{path.parent.name}\n" for path in sorted(place.glob("*/*.png"))))
    written(scan_csv(table), tmp_path / "out")
    names = {image.path.name for image in scan_folder(tmp_path / "out").images if image.label == "ants"}
    assert names == {"_.0.png", f"_.{'a' * 249}.png", *(f"{i}.png" for i in range(2, 20))}


@pytest.mark.parametrize(
    ("name", "addition", "expected"),
    [
        ("_" + "a" * 251 + ".png", "", "_" + "a" * 250 + ".png"),
        ("ß" * 125 + ".png", "-2", "ß" * 124 + "-2.png"),
        ("a." + "b" * 250, "-2", "a." + "b" * 250 + "-2"),
        ("a." + "b" * 253, "-2", "a." + "b" * 251 + "-2"),
        ("a.png", "-2", "a-2.png"),
    ],
)
def test_append_to_stem_keeps_names_within_255_bytes(name: str, addition: str, expected: str) -> None:
    assert split_writer._append_to_stem(name, addition) == expected


def test_write_folders_same_seed_same_bytes(place: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(place, tmp_path / "other" / "deep")
    written(scan_folder(place), tmp_path / "one", seed=5)
    written(scan_folder(moved), tmp_path / "two", seed=5, link=True)
    written(scan_folder(moved), tmp_path / "three", seed=6)
    one, two, three = ((tmp_path / name / "manifest.csv").read_bytes() for name in ("one", "two", "three"))
    assert one == two != three


def test_write_folders_links_are_hard_links(place: Path, tmp_path: Path) -> None:
    (place / "ants" / "link.png").symlink_to(place / "ants" / "0.png")
    written(scan_folder(place), tmp_path / "out", link=True)
    for path in (tmp_path / "out").rglob("*.png"):
        assert not path.is_symlink()
        assert path.samefile(place / path.parent.name / path.name)


def test_write_folders_pools_splits_and_renames_equal_names(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "validation")):
        for offset, label in enumerate("ab"):
            paint(tmp_path / "set" / split / label, range(50 * offset + 100 * number, 50 * offset + 100 * number + 5))
    root = tmp_path / "set"
    shutil.copy(root / "train/a/0.png", root / "validation/a/0.png")  # an equal file of an equal name
    shutil.copy(root / "train/b/50.png", root / "train/b/X.png")
    shutil.copy(root / "validation/b/150.png", root / "validation/b/x.PNG")  # equal but for case
    counts, messages = written(scan_folder(root), tmp_path / "out", {"train": 0.6, "test": 0.4})
    pooled, alike = messages
    assert str(root.resolve()) in pooled
    assert "train, validation" in pooled
    assert re.findall(r"\d+", alike) == ["6", "3"]
    assert counts.total() == 23
    names = {path.name for path in (tmp_path / "out").rglob("*.*") if path.suffix != ".csv"}
    sha = {
        name: hashlib.sha256((root / name).read_bytes()).hexdigest()[:8] for name in ("train/a/0.png", "train/b/X.png")
    }
    other = hashlib.sha256((root / "validation/b/x.PNG").read_bytes()).hexdigest()[:8]
    own = sha["train/a/0.png"]
    assert {f"0-{own}.png", f"0-{own}-2.png", f"X-{sha['train/b/X.png']}.png", f"x-{other}.PNG"} <= names
    assert "0.png" not in names
    assert "1.png" in names


def test_write_folders_paths_differ_on_file_systems_of_macos(tmp_path: Path) -> None:
    """Upper case in a class or a name, and NFC or NFD, would be one folder or file: an image would be lost."""
    rows = ["path,label"]
    for number, (label, name) in enumerate(
        [("Rose", "0.png"), ("rose", "0.png"), ("ants", "\u00e4.png"), ("ants", "a\u0308.png"), ("ants", "1.png")]
    ):
        paint(tmp_path / "set" / str(number), [number])
        (tmp_path / "set" / str(number) / f"{number}.png").rename(tmp_path / "set" / str(number) / name)
        rows.append(f"{number}/{name},{label}")
    (tmp_path / "set" / "list.csv").write_text("\n".join(rows), encoding="utf-8")
    written(scan_csv(tmp_path / "set" / "list.csv"), tmp_path / "out", {"all": 1.0})
    names = {path.parent.name + "/" + path.stem.split("-")[0] for path in (tmp_path / "out").rglob("*.png")}
    assert names == {"Rose/0", "rose/0", "ants/\u00e4", "ants/a\u0308", "ants/1"}
    paths = [str(path.relative_to(tmp_path)) for path in (tmp_path / "out").rglob("*.png")]
    assert len({unicodedata.normalize("NFD", path).casefold() for path in paths}) == 5


def test_write_folders_with_named_splits(place: Path, tmp_path: Path) -> None:
    parts = parse_fractions("train=0.6,val=0.2,test=0.1,holdout=0.1")
    counts, _ = written(scan_folder(place), tmp_path / "out", parts)
    totals = Counter()
    for (_, split), n in counts.items():
        totals[split] += n
    assert totals == {"train": 19, "validation": 6, "test": 3, "holdout": 3}  # of 18.6, 6.2, 3.1 and 3.1
    assert (tmp_path / "out" / "holdout" / "bees").is_dir()


def test_parse_fractions_accepts_both_forms() -> None:
    assert parse_fractions("0.5,0.2,0.3") == LECTURE
    assert parse_fractions(" 0.8, .2") == {"train": 0.8, "validation": 0.2}
    assert parse_fractions("1") == {"train": 1.0}
    assert parse_fractions("validation=0.3,Train=0.7") == {"validation": 0.3, "train": 0.7}
    for text, fact in (
        ("0.25,0.25,0.25,0.25", "train=0.5,validation=0.2,test=0.3"),
        ("train=0.5,0.5", "train=0.5,validation=0.2,test=0.3"),
        ("train=0.5,Train=0.5", "'Train'"),
        ("val=0.5,valid=0.5", "'valid'"),
        ("../x=1", "'../x'"),
        ("=1", "''"),
        ("a,b", "'a'"),
        ("", "''"),
    ):
        with pytest.raises(UserError, match=f"{re.escape(repr(text))}.*{re.escape(fact)}"):
            parse_fractions(text)


def test_write_folders_output_must_be_empty(place: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    written(scan_folder(place), tmp_path / "out")
    before = sorted((tmp_path / "out").rglob("*"))
    with pytest.raises(UserError, match=r"/out\b.*(?i:empty).*--output"):
        written(scan_folder(place), tmp_path / "out")
    with pytest.raises(UserError, match=r"/out\b.*(?i:empty)"):
        write_folds(scan_folder(place), tmp_path / "out", 2, 0, near_duplicates=4, notify=print)
    assert sorted((tmp_path / "out").rglob("*")) == before
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(UserError, match=r"/file\b.*Not a directory"):
        written(scan_folder(place), tmp_path / "file")


def test_write_folders_output_inside_source_raises(place: Path) -> None:
    with pytest.raises(UserError, match=rf"{re.escape(str(place))}/split\b.*{re.escape(str(place))}(?!/)"):
        written(scan_folder(place), place / "split")


@pytest.mark.parametrize("link", [True, False])
@pytest.mark.parametrize("there", [True, False])
def test_write_folders_failure_leaves_nothing(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: bool, there: bool
) -> None:
    if there:
        (tmp_path / "out").mkdir()
    real, done = (os.link, shutil.copy2)[not link], []

    def failing(source, target):
        if len(done) == 10:
            raise OSError(28, "No space left on device")
        done.append(target)
        real(source, target)

    monkeypatch.setattr(split_writer.os if link else split_writer.shutil, "link" if link else "copy2", failing)
    facts = r"/set/.*\.png\b.*No space left.*--link\b" if link else r"/out\b.*No space left"
    with pytest.raises(UserError, match=facts):
        written(scan_folder(place), tmp_path / "out", link=link)
    assert len(done) == 10
    assert {path.name for path in tmp_path.iterdir()} == {"set", "out"} if there else {"set"}
    assert not there or not any((tmp_path / "out").iterdir())


@pytest.mark.parametrize("label", ["a/b", "..", ".hidden", "a\\b"])
def test_write_folders_invalid_folder_name_raises(tmp_path: Path, label: str) -> None:
    fill(tmp_path / "in", 9)
    found = [SourceImage(path, label if i % 2 else "b") for i, path in enumerate(sorted((tmp_path / "in").iterdir()))]
    with pytest.raises(UserError, match=rf"{re.escape(repr(label))}.*\bx\.csv"):
        written(DatasetIndex(tuple(found), "x.csv"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_write_folds_lists_each_image_once_for_validation(place: Path, tmp_path: Path) -> None:
    shutil.copy(place / "ants" / "3.png", place / "ants" / "copy.png")
    messages: list[str] = []
    steps: list[int] = []
    counts = write_folds(
        scan_folder(place), tmp_path / "out", 4, 1, near_duplicates=4, notify=messages.append, on_progress=steps.append
    )
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"fold-{i}.csv" for i in (1, 2, 3, 4)}
    (said,) = messages
    assert re.findall(r"\d+", said) == ["2", "1"]
    assert steps == list(range(1, 33))
    validated = Counter()
    for fold in (1, 2, 3, 4):
        index = scan_csv(tmp_path / "out" / f"fold-{fold}.csv")
        assert index.splits == ("train", "validation")
        assert {found.path for found in index.images} == {found.path for found in scan_folder(place).images}
        own = [found for found in index.images if found.split == "validation"]
        validated.update(found.path for found in own)
        assert Counter((found.label, f"fold {fold}") for found in own) == {
            key: n for key, n in counts.items() if key[1] == f"fold {fold}"
        }
        assert len({found.split for found in index.images if found.path.name in ("3.png", "copy.png")}) == 1
    assert set(validated.values()) == {1}
    assert len(validated) == 32
