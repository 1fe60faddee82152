"""The manifest of a run: layouts, split, order, file."""

import hashlib
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from flaxtl.data import manifest
from flaxtl.data.manifest import Example, Manifest, build
from flaxtl.errors import UserError

LECTURE = {"train": 0.5, "validation": 0.2, "test": 0.3}
FLOWERS = {"daisy": 633, "dandelion": 898, "roses": 641, "sunflowers": 699, "tulips": 799}


def fill(folder: Path, n: int, prefix: str = "", suffix: str = ".jpg") -> None:
    """n files in `folder` that differ from each other; the manifest never looks at pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        (folder / f"{prefix}{i:04d}{suffix}").write_bytes(f"{folder.name}/{prefix}{i}".encode())


def names(made: Manifest, split: str, label: str) -> set[str]:
    return {Path(e.path).name for e in made.of_split(split) if e.label == label}


@pytest.fixture
def two(tmp_path: Path) -> Path:
    fill(tmp_path / "set" / "cats", 20)
    fill(tmp_path / "set" / "dogs", 11)
    return tmp_path / "set"


def test_the_3670_flowers_split_into_1835_735_1100(tmp_path: Path) -> None:
    for label, n in FLOWERS.items():
        fill(tmp_path / label, n)
    (tmp_path / "LICENSE.txt").write_text("CC-BY")
    counts = build(tmp_path, LECTURE, seed=0).counts()
    # 0.5 and 0.2 of each class, half to even (633 / 2 = 316.5 -> 316; 699 / 2 = 349.5 -> 350), the rest to test.
    assert counts == {
        "train": {"daisy": 316, "dandelion": 449, "roses": 320, "sunflowers": 350, "tulips": 400},
        "validation": {"daisy": 127, "dandelion": 180, "roses": 128, "sunflowers": 140, "tulips": 160},
        "test": {"daisy": 190, "dandelion": 269, "roses": 193, "sunflowers": 209, "tulips": 239},
    }
    assert {split: sum(classes.values()) for split, classes in counts.items()} == {
        "train": 1835,
        "validation": 735,
        "test": 1100,
    }


def test_every_picture_once_with_its_hash_in_a_fixed_order(two: Path) -> None:
    made = build(two, LECTURE, seed=3)
    assert made.classes == ("cats", "dogs")
    assert made.splits == ("train", "validation", "test")
    assert sorted(e.path for e in made.examples) == sorted(str(p) for p in two.resolve().rglob("*.jpg"))
    assert all(e.sha256 == hashlib.sha256(Path(e.path).read_bytes()).hexdigest() for e in made.examples)
    key = [(manifest.SPLITS.index(e.split), e.label, e.path) for e in made.examples]
    assert key == sorted(key)
    assert sum((made.of_split(split) for split in made.splits), ()) == made.examples


def test_the_permutation_is_the_documented_one(two: Path) -> None:
    order = np.random.default_rng([7, *b"dogs"]).permutation(11)
    made = build(two, LECTURE, seed=7)
    # 11 * 0.5 = 5.5 -> 6 (half to even), 11 * 0.2 = 2.2 -> 2, the rest 3.
    assert names(made, "train", "dogs") == {f"{i:04d}.jpg" for i in order[:6]}
    assert names(made, "validation", "dogs") == {f"{i:04d}.jpg" for i in order[6:8]}
    assert names(made, "test", "dogs") == {f"{i:04d}.jpg" for i in order[8:]}


def test_the_split_follows_seed_and_class_alone(two: Path, tmp_path: Path) -> None:
    first = build(two, LECTURE, seed=1)
    moved = shutil.copytree(two, tmp_path / "elsewhere" / "deep")
    fill(moved / "ants", 9)
    second = build(moved, LECTURE, seed=1)
    for split in manifest.SPLITS:
        assert names(first, split, "cats") == names(second, split, "cats")
    assert names(build(two, LECTURE, seed=2), "train", "cats") != names(first, "train", "cats")


def test_classes_of_one_size_are_permuted_differently(tmp_path: Path) -> None:
    fill(tmp_path / "a", 30)
    fill(tmp_path / "b", 30)
    made = build(tmp_path, LECTURE, seed=0)
    assert names(made, "train", "a") != names(made, "train", "b")


@pytest.mark.parametrize("seed", range(8))
def test_copies_never_straddle_and_counts_stay(tmp_path: Path, seed: int) -> None:
    fill(tmp_path / "a", 20)
    fill(tmp_path / "b", 20)
    for i in (0, 5, 10):  # three groups of three identical files
        for twin in (i + 1, i + 2):
            (tmp_path / "a" / f"{twin:04d}.jpg").write_bytes((tmp_path / "a" / f"{i:04d}.jpg").read_bytes())
    made = build(tmp_path, LECTURE, seed)
    assert {split: classes["a"] for split, classes in made.counts().items()} == {
        "train": 10,
        "validation": 4,
        "test": 6,
    }
    groups: dict[str, set[str]] = {}
    for e in made.examples:
        groups.setdefault(e.sha256, set()).add(e.split)
    assert all(len(splits) == 1 for splits in groups.values())


def test_counts_stay_even_where_all_pictures_are_identical(tmp_path: Path) -> None:
    for label in "ab":
        fill(tmp_path / label, 10)
        for path in (tmp_path / label).iterdir():
            path.write_bytes(b"")
    counts = build(tmp_path, LECTURE, seed=0).counts()
    assert [counts[split]["a"] for split in manifest.SPLITS] == [5, 2, 3]


@pytest.mark.parametrize("test", [{}, {"test": 0.0}])
def test_without_test_fraction_validation_takes_the_rest(two: Path, test: dict[str, float]) -> None:
    made = build(two, {"train": 0.8, "validation": 0.2, **test}, seed=0)
    assert made.counts() == {"train": {"cats": 16, "dogs": 9}, "validation": {"cats": 4, "dogs": 2}}


@pytest.mark.parametrize("validation", ["validation", "val", "valid", "Val"])
@pytest.mark.parametrize("test", [True, False])
def test_given_splits_are_taken_as_they_are(tmp_path: Path, validation: str, test: bool) -> None:
    for split, n in {"train": 3, validation: 2, **({"test": 1} if test else {})}.items():
        for label in ("b", "a"):
            fill(tmp_path / split / label, n, prefix=split)
    made = build(tmp_path, LECTURE, seed=0)
    expected = {"train": {"a": 3, "b": 3}, "validation": {"a": 2, "b": 2}, "test": {"a": 1, "b": 1}}
    assert made.counts() == (expected if test else {s: expected[s] for s in ("train", "validation")})
    assert all(f"/{validation}/" in e.path for e in made.of_split("validation"))
    assert made.examples[0] == Example(
        str((tmp_path / "train" / "a" / "train0000.jpg").resolve()),
        "a",
        "train",
        hashlib.sha256(b"a/train0").hexdigest(),
    )


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for label in ("bus", "plane", "train"):
        fill(tmp_path / label, 10)
    assert build(tmp_path, LECTURE, seed=0).classes == ("bus", "plane", "train")


def test_hidden_junk_and_other_files_do_not_count(two: Path) -> None:
    plain = build(two, LECTURE, seed=0)
    for junk in (".ipynb_checkpoints", "__MACOSX", ".git"):
        fill(two / junk, 3)
        fill(two / "cats" / junk, 3)
    for stray in (
        "LICENSE.txt",
        ".DS_Store",
        "Thumbs.db",
        "._0001.jpg",
        "cats/notes.txt",
        "cats/.DS_Store",
        "cats/._0.jpg",
    ):
        (two / stray).write_bytes(b"x")
    assert build(two, LECTURE, seed=0) == plain


def test_suffixes_count_in_any_case(two: Path) -> None:
    fill(two / "cats", 2, prefix="more", suffix=".JPEG")
    fill(two / "cats", 2, prefix="more", suffix=".PNG")
    assert sum(c["cats"] for c in build(two, LECTURE, seed=0).counts().values()) == 24


def test_paths_are_absolute_wherever_one_stands(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(two.parent)
    assert build(Path("set"), LECTURE, seed=0) == build(two, LECTURE, seed=0)
    monkeypatch.setenv("HOME", str(two.parent))
    assert build(Path("~/set"), LECTURE, seed=0) == build(two, LECTURE, seed=0)


def test_labels_are_class_indices(two: Path) -> None:
    made = build(two, LECTURE, seed=0)
    labels = made.labels(made.of_split("validation"))
    assert labels.dtype == np.int32
    assert labels.tolist() == [0, 0, 0, 0, 1, 1]
    assert made.labels(()).shape == (0,)


def test_an_unknown_split_names_those_there_are(two: Path) -> None:
    made = build(two, {"train": 0.5, "validation": 0.5}, seed=0)
    with pytest.raises(UserError, match="no split 'test'; known: train, validation"):
        made.of_split("test")


@pytest.mark.parametrize(
    ("fractions", "seed", "sentence"),
    [
        ({"train": 0.5, "validation": 0.2, "test": 0.2}, 0, r"\(train 0.5, validation 0.2, test 0.2\) sum to 0.9"),
        ({"train": 1.2, "validation": -0.2}, 0, "train is 1.2; fractions lie between 0 and 1"),
        ({"train": 0.9, "validation": 0.2, "test": -0.1}, 0, "test is -0.1"),
        ({"train": float("nan"), "validation": 0.2}, 0, "train is nan"),
        ({"train": 1.0}, 0, "leave train or validation without pictures"),
        ({"train": 0.5, "validation": 0.0, "test": 0.5}, 0, "leave train or validation without pictures"),
        ({"train": 0.5, "validaton": 0.5}, 0, "no split 'validaton'; did you mean 'validation'"),
        (LECTURE, -1, "seed of the split is -1"),
    ],
)
def test_fractions_and_seed_that_will_not_do(two: Path, fractions: dict[str, float], seed: int, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        build(two, fractions, seed)


def test_thirds_typed_by_hand_sum_to_one(two: Path) -> None:
    assert build(two, {"train": 0.333333, "validation": 0.333333, "test": 0.333334}, 0).counts()["train"]["cats"] == 7


def faulty(root: Path) -> dict[str, str]:
    """Makes one faulty folder for every sentence, by its name."""
    (root / "empty").mkdir()
    (root / "file").write_bytes(b"")
    fill(root / "one" / "cats", 9)
    for case in (
        "bare",
        "small",
        "nested",
        "loose",
        "no-validation",
        "extra",
        "twice",
        "other",
        "hollow",
        "unlabelled",
    ):
        split = case in ("no-validation", "extra", "twice", "other", "hollow", "unlabelled")
        for base in ("train", "validation") if split else (".",):
            for label in "ab":
                fill(root / case / base / label, 9)
    fill(root / "bare" / "c", 3, suffix=".txt")
    fill(root / "small" / "c", 3)
    fill(root / "nested" / "a" / "inner", 3)
    fill(root / "loose", 2)
    shutil.rmtree(root / "no-validation" / "validation")
    fill(root / "extra" / "tset" / "a", 2)
    fill(root / "twice" / "val" / "a", 2)
    fill(root / "other" / "validation" / "c", 2)
    (root / "hollow" / "train" / "c").mkdir()
    fill(root / "unlabelled" / "test", 2)
    return {
        "missing": "there is no folder .*missing; check the path",
        "file": "is a file, not a folder.*write archive:",
        "empty": "empty holds no class folders; put",
        "one": "holds only one class, 'cats'; a classifier needs two",
        "bare": r"class folder .*bare/c holds no pictures \(.*\.jpg.*\); fill or remove",
        "small": r"class .*small/c is too small: its 3 picture\(s\) leave",  # 1.5 -> 2, 0.6 -> 1, rest 0
        "nested": "nested/a/inner is a folder within a class",
        "loose": r"loose holds 2 picture\(s\) outside the class folders, such as 0000.jpg; move",
        "no-validation": "holds train but no validation folder; move a part of the pictures",
        "extra": "holds splits and also 'tset', which is none of train, validation, test",
        "twice": "holds both 'val' and 'validation' for validation; join them",
        "other": r"other/train lacks the class folder\(s\) c of the other splits",
        "hollow": "class folder .*hollow/train/c holds no pictures",
        "unlabelled": r"unlabelled/test holds 2 picture\(s\) outside the class folders",
    }


def test_every_faulty_folder_has_its_sentence(tmp_path: Path) -> None:
    for case, sentence in faulty(tmp_path).items():
        with pytest.raises(UserError) as caught:
            build(tmp_path / case, LECTURE, seed=0)
        assert re.search(sentence, str(caught.value)), (case, str(caught.value))
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_picture_is_named(two: Path) -> None:
    (two / "cats" / "0003.jpg").chmod(0)
    with pytest.raises(UserError, match=r"cannot read the picture .*0003\.jpg"):
        build(two, LECTURE, seed=0)


def test_write_and_read_give_the_same_manifest(two: Path, tmp_path: Path) -> None:
    fill(two / 'a, "strange"\nclass é', 5)
    made = build(two, LECTURE, seed=0)
    made.write(tmp_path / "manifest.csv")
    assert Manifest.read(tmp_path / "manifest.csv") == made
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.csv", "set"]


def test_the_file_is_plain_csv(tmp_path: Path) -> None:
    Manifest(("a",), (Example("/x/1.jpg", "a", "train", "0" * 64),)).write(tmp_path / "m.csv")
    assert (tmp_path / "m.csv").read_bytes() == b"path,label,split,sha256\n/x/1.jpg,a,train," + b"0" * 64 + b"\n"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("old")
    with pytest.raises(AttributeError):
        Manifest(("a",), (None,)).write(path)  # type: ignore[arg-type]
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt" or os.uname().sysname == "Darwin", reason="file names are Unicode there")
def test_names_that_are_no_unicode_survive(two: Path, tmp_path: Path) -> None:
    (two / "cats" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"1")
    made = build(two, LECTURE, seed=0)
    made.write(tmp_path / "m.csv")
    assert Manifest.read(tmp_path / "m.csv") == made


GOOD = f"/x/1.jpg,a,train,{'0' * 64}"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is no manifest: its first line must be path,label,split,sha256"),
        ("path,label\n", "is no manifest"),
        ("path,label,split,sha256\n", "lists no pictures"),
        (f"path,label,split,sha256\n{GOOD}\n/x/2.jpg,a,train", "row 3: 3 columns instead of 4"),
        (f"path,label,split,sha256\n{GOOD[:-1]}\n", "row 2: '0{63}' is no SHA-256"),
        (f"path,label,split,sha256\n{GOOD.replace('train', 'tain')}\n", "row 2: 'tain' is no split"),
        (f"path,label,split,sha256\n{GOOD.replace(',a,', ',,')}\n", "row 2: it has no label"),
        (f"path,label,split,sha256\n{GOOD[1:]}\n", "row 2: 'x/1.jpg' is no absolute path"),
        (f"path,label,split,sha256\n{GOOD}\n{GOOD}\n", "row 3: its picture was listed before"),
        (f'path,label,split,sha256\n{GOOD}\n"/x/2.jpg,a', "damaged"),
    ],
)
def test_damaged_manifests_are_refused(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "manifest.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence):
        Manifest.read(path)


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the manifest .*m\.csv: No such file"):
        Manifest.read(tmp_path / "m.csv")


def test_the_real_flowers() -> None:
    folder = Path(__file__).parents[2] / "shared" / "data" / "flowers"
    if not folder.is_dir():
        pytest.skip("the flower pictures are not here")
    made = build(folder, LECTURE, seed=0)
    assert made.classes == tuple(FLOWERS)
    assert {split: len(made.of_split(split)) for split in made.splits} == {"train": 1835, "validation": 735}
    twins = {e.path: e.sha256 for e in made.examples if "15922772266_1167a06620" in e.path}
    assert len(twins) == 2  # one picture, under roses and under tulips
    assert len(set(twins.values())) == 1
