"""Image folders: layouts, their problems, and all problems at once."""

import os
import re
import shutil
from pathlib import Path

import pytest
from helpers.image_folders import fill

from flaxtl.data.sources.image_folder import DatasetIndex, SourceImage, find_problems, inspect_folder, scan_folder
from flaxtl.errors import UserError


@pytest.fixture
def two(tmp_path: Path) -> Path:
    fill(tmp_path / "set" / "cats", 20)
    fill(tmp_path / "set" / "dogs", 11)
    return tmp_path / "set"


def test_scan_folder_of_classes_lists_images(two: Path) -> None:
    index = scan_folder(two)
    assert index.origin == str(two.resolve())
    assert index.classes == ("cats", "dogs")
    assert not index.has_splits
    assert index.images[0] == SourceImage(two.resolve() / "cats" / "0000.jpg", "cats")
    assert [found.path for found in index.images] == sorted(two.resolve().rglob("*.jpg"))


def test_scan_folder_of_training_and_testing_are_splits(tmp_path: Path) -> None:
    for folder in ("Training", "Testing", "Validation"):
        fill(tmp_path / folder / "a", 1)
    assert scan_folder(tmp_path).splits == ("train", "validation", "test")


@pytest.mark.parametrize("validation", ["validation", "val", "valid", "Val"])
@pytest.mark.parametrize("test", [True, False])
def test_scan_folder_with_splits_keeps_them(tmp_path: Path, validation: str, test: bool) -> None:
    expected = []
    for split, folder, n in (("train", "train", 3), ("validation", validation, 2), ("test", "test", 1))[: 2 + test]:
        for label in ("a", "b"):
            fill(tmp_path / folder / label, n)
            place = tmp_path.resolve() / folder / label
            expected += [SourceImage(place / f"{i:04d}.jpg", label, split) for i in range(n)]
    index = scan_folder(tmp_path)
    assert list(index.images) == expected
    assert index.has_splits
    assert index.splits == ("train", "validation", "test")[: 2 + test]


def test_scan_folder_with_class_named_train_has_no_splits(tmp_path: Path) -> None:
    for label in ("bus", "plane", "train"):
        fill(tmp_path / label, 2)
    index = scan_folder(tmp_path)
    assert (index.classes, index.has_splits) == (("bus", "plane", "train"), False)


def test_scan_folder_ignores_hidden_and_other_files(two: Path) -> None:
    plain = scan_folder(two)
    for junk in (".ipynb_checkpoints", "__MACOSX", ".git", "@eaDir"):
        fill(two / junk, 3)
        fill(two / "cats" / junk, 3)
    for stray in (
        "LICENSE.txt",
        ".DS_Store",
        "Thumbs.db",
        "._0.jpg",
        "cats/notes.txt",
        "cats/.DS_Store",
        "cats/._0.jpg",
    ):
        (two / stray).write_bytes(b"x")
    assert scan_folder(two) == plain
    root = two.resolve()
    skipped = inspect_folder(two).index.skipped
    assert [file.path for file in skipped] == [root / "LICENSE.txt", root / "cats" / "notes.txt"]


def test_scan_folder_accepts_suffixes_in_any_case(two: Path) -> None:
    fill(two / "cats", 2, prefix="more", suffix=".JPEG")
    fill(two / "cats", 3, prefix="more", suffix=".Png")
    assert sum(found.label == "cats" for found in scan_folder(two).images) == 25


def test_scan_folder_returns_absolute_paths(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = scan_folder(two)
    monkeypatch.chdir(two.parent)
    assert scan_folder(Path("set")) == expected
    monkeypatch.setenv("HOME", str(two.parent))
    assert scan_folder(Path("~/set")) == expected


def test_scan_folder_with_folders_in_classes_uses_their_images(two: Path) -> None:
    fill(two / "cats" / "2023" / "may", 2)
    fill(two / "cats" / "2024", 3)
    (two / "dogs" / "empty").mkdir()
    (two / "cats" / "2023" / "notes.txt").write_text("x")
    index = scan_folder(two)
    assert [found.path for found in index.images] == sorted(two.resolve().rglob("*.jpg"))
    assert sum(found.label == "cats" for found in index.images) == 25
    assert index.notes == ("5 images in 2 folders inside classes, such as cats/2023, belong to the class.",)
    assert [file.path.name for file in index.skipped] == ["notes.txt"]


def test_scan_folder_of_equal_folders_in_classes_asks_for_splits(tmp_path: Path) -> None:
    for folder in ("dev", "eval"):
        for label in ("cat", "dog"):
            fill(tmp_path / folder / label, 2)
    index = scan_folder(tmp_path)
    assert index.classes == ("dev", "eval")
    assert re.search(r"(?=.*\bdev and eval\b)(?=.*\bcat and dog\b)(?=.*\btrain, validation and test\b)", index.notes[0])
    shutil.rmtree(tmp_path / "eval" / "dog")  # a split may lack a class
    assert scan_folder(tmp_path).notes[0] == index.notes[0]
    fill(tmp_path / "dev", 1)  # a class with images of its own is one
    assert len(scan_folder(tmp_path).notes) == 1


def faulty(root: Path) -> dict[str, str]:
    """Create one invalid folder per message: folder name -> pattern of the facts in the message."""
    (root / "empty").mkdir()
    for case in ("bare", "inverted", "loose", "extra", "twice", "hollow", "unlabelled"):
        split = case in ("extra", "twice", "hollow", "unlabelled")
        for base in ("train", "validation") if split else (".",):
            for label in "ab":
                fill(root / case / base / label, 9)
    fill(root / "bare" / "c", 3, suffix=".txt")
    fill(root / "inverted" / "c" / "train", 3)
    fill(root / "inverted" / "c" / "test", 3)
    fill(root / "above" / "photos" / "a", 3)
    fill(root / "above_split" / "train" / "photos" / "a", 3)
    fill(root / "loose", 2)
    fill(root / "extra" / "tset" / "a", 2)
    fill(root / "twice" / "val" / "a", 2)
    (root / "hollow" / "train" / "c").mkdir()
    fill(root / "unlabelled" / "test", 2)
    return {
        "empty": r"(?i)(?=.*/empty\b)(?=.*\bclass)",
        "bare": r"(?=.*/bare/c\b)(?=.*\.jpg\b)",
        "inverted": r"(?=.*/inverted/c\b)(?=.*\btest and train\b)(?=.*/inverted/test/c\b)",
        "above": r"(?=.*/above\b)(?=.*'photos')(?=.*\bWrite folder:[^ ]*/above/photos if\b)",
        "above_split": r"(?=.*/above_split/train\b)(?=.*'photos')(?=.*\bMove them to [^ ]*/above_split/train if\b)",
        "loose": r"(?=.*/loose\b)(?=.* 2 )(?=.*\b0000\.jpg\b)",
        "extra": r"(?=.*/extra\b)(?=.*'tset')(?=.*\btrain\b)(?=.*\bvalidation\b)(?=.*\btest\b)",
        "twice": r"(?=.*/twice\b)(?=.*'val')(?=.*'validation')",
        "hollow": r"(?=.*/hollow/train/c\b)(?=.*\.jpg\b)",
        "unlabelled": r"(?=.*/unlabelled/test\b)(?=.* 2 )(?=.*\b0000\.jpg\b)",
    }


def test_scan_folder_with_bad_layout_raises_first_problem(tmp_path: Path) -> None:
    for case, facts in faulty(tmp_path).items():
        with pytest.raises(UserError) as caught:
            scan_folder(tmp_path / case)
        assert re.search(facts, str(caught.value)), (case, str(caught.value))
        assert "\n" not in str(caught.value)
        assert inspect_folder(tmp_path / case).problems[0] == str(caught.value)


def test_inspect_folder_lists_all_problems_and_good_images(tmp_path: Path) -> None:
    for label in "ab":
        fill(tmp_path / label, 3)
    fill(tmp_path / "a" / "inner", 3)
    (tmp_path / "c").mkdir()
    fill(tmp_path, 2)
    found = inspect_folder(tmp_path)
    root = re.escape(str(tmp_path.resolve()))
    facts = (rf"(?=.*{root})(?=.* 2 )(?=.*\b0000\.jpg\b)", rf"(?=.*{root}/c\b)(?=.*\.jpg\b)")
    assert len(found.problems) == 2
    assert all(map(re.search, facts, found.problems)), found.problems
    assert len(found.index.images) == 9


@pytest.mark.parametrize("look", [scan_folder, inspect_folder])
def test_scan_and_inspect_of_no_folder_raise(tmp_path: Path, look) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "missing"))):
        look(tmp_path / "missing")
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match=rf"/fotos\. Did you mean {re.escape(str(tmp_path))}/photos\?"):
        look(tmp_path / "fotos")
    with pytest.raises(UserError, match=r"(?=.*\bcsv:[^ ]*/file\b)(?=.*\barchive:[^ ]*/file\b)"):
        look(tmp_path / "file")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_unreadable_class_folder_is_a_problem(two: Path) -> None:
    (two / "dogs").chmod(0)
    try:
        with pytest.raises(UserError, match=r"(?=.*/dogs\b)(?=.*Permission denied)"):
            scan_folder(two)
        assert len(inspect_folder(two).index.images) == 20
    finally:
        (two / "dogs").chmod(0o700)


@pytest.mark.skipif(os.name == "nt", reason="links need permission there")
def test_inspect_folder_with_circular_links_ends(two: Path) -> None:
    (two / "cats" / "round").symlink_to(two)
    (two / "knot").symlink_to(two / "knot")
    (two / "cats" / "gone.jpg").symlink_to(two / "nowhere.jpg")
    found = inspect_folder(two)
    assert found.problems == ()
    assert two.resolve() / "cats" / "gone.jpg" in {each.path for each in found.index.images}
    assert len(found.index.images) == 32


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes there")
def test_inspect_folder_skips_named_pipe(two: Path) -> None:
    os.mkfifo(two / "cats" / "pipe.jpg")
    assert [file.path for file in inspect_folder(two).index.skipped] == [two.resolve() / "cats" / "pipe.jpg"]


def test_find_problems_names_what_training_lacks() -> None:
    def listed(*rows: tuple[str, str | None]) -> DatasetIndex:
        return DatasetIndex(tuple(SourceImage(Path(f"/{i}.jpg"), *row) for i, row in enumerate(rows)), "/x")

    assert find_problems(listed(("a", None), ("b", None))) == ()
    assert find_problems(listed()) == ()
    (single,) = find_problems(listed(("a", None)))
    assert re.search(r"(?=.*/x\b)(?=.*'a')", single)
    train, validation = (("a", "train"), ("b", "train")), (("a", "validation"), ("b", "validation"))
    assert find_problems(listed(*train, *validation)) == ()
    assert find_problems(listed(*train)) == ()
    (absent,) = find_problems(listed(*validation))
    assert re.search(r"(?=.*/x\b)(?=.*\bvalidation\b)(?=.*\btrain\b)(?=.*\bflaxtl split\b)", absent)
    (missing,) = find_problems(listed(*train, *validation, ("c", "validation")))
    assert re.search(r"(?=.*\btrain\b)(?=.*/x\b)(?=.*\bc\b)", missing)
    assert not re.search(r"\bvalidation\b|\b[ab]\b", missing)
    rare = listed(*train, ("a", "validation"), *validation, ("a", "test"))
    assert find_problems(rare) == ()  # a rare class need not be in every split
    (message,) = rare.messages
    assert re.search(r"(?=.*\btest images of /x\b)(?=.*\bb\b)(?=.*\bmetrics leave out\b)", message)


def test_inspect_folder_includes_find_problems(tmp_path: Path) -> None:
    fill(tmp_path / "test" / "a", 3)
    fill(tmp_path / "test" / "b", 3)
    assert scan_folder(tmp_path).splits == ("test",)
    assert re.search(r"(?=.*\btest\b)(?=.*\btrain\b)(?=.*\bflaxtl split\b)", inspect_folder(tmp_path).problems[0])
    shutil.rmtree(tmp_path / "test" / "b")
    assert "'a'" in inspect_folder(tmp_path).problems[0]
