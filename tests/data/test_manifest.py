"""The manifest: splits, order, warnings, and its file."""

import hashlib
import os
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.image_folders import fill, image, paint

from flaxtl.data import duplicates
from flaxtl.data.manifest import Example, Manifest, collect_examples, fingerprint_images, make_manifest, relocate
from flaxtl.data.sources import csv_file
from flaxtl.data.sources.image_folder import SPLITS, DatasetIndex, SourceImage, scan_folder
from flaxtl.errors import UserError

LECTURE = {"train": 0.5, "validation": 0.2, "test": 0.3}


def counts(manifest: Manifest) -> dict[str, dict[str, int]]:
    """split -> class -> images"""
    found = Counter((example.split, example.label) for example in manifest.examples)
    return {split: {label: found[split, label] for label in manifest.classes} for split in manifest.splits}


def names(manifest: Manifest, split: str, label: str) -> set[str]:
    return {Path(e.path).name for e in manifest.of_split(split) if e.label == label}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    fill(tmp_path / "set" / "cats", 20)
    fill(tmp_path / "set" / "dogs", 11)
    return tmp_path / "set"


@pytest.fixture
def two(place: Path) -> DatasetIndex:
    return scan_folder(place)


def test_make_manifest_lists_each_image_once_in_order(two: DatasetIndex) -> None:
    manifest = make_manifest(two, LECTURE, seed=3)
    assert manifest.classes == ("cats", "dogs")
    assert manifest.splits == ("train", "validation", "test")
    assert sorted(e.path for e in manifest.examples) == sorted(str(found.path) for found in two.images)
    assert all(e.sha256 == hashlib.sha256(Path(e.path).read_bytes()).hexdigest() for e in manifest.examples)
    key = [(SPLITS.index(e.split), e.label, e.path) for e in manifest.examples]
    assert key == sorted(key)
    assert sum((manifest.of_split(split) for split in manifest.splits), ()) == manifest.examples


@pytest.mark.parametrize("test", [{}, {"test": 0.0}])
def test_make_manifest_without_test_split(two: DatasetIndex, test: dict[str, float]) -> None:
    manifest = make_manifest(two, {"validation": 0.2, "train": 0.8, **test}, seed=0)
    assert counts(manifest) == {"train": {"cats": 16, "dogs": 9}, "validation": {"cats": 4, "dogs": 2}}


def test_manifest_labels_are_class_indices(two: DatasetIndex) -> None:
    manifest = make_manifest(two, LECTURE, seed=0)
    labels = manifest.labels(manifest.of_split("validation"))
    assert labels.dtype == np.int32
    assert labels.tolist() == [0, 0, 0, 0, 1, 1]
    assert manifest.labels(()).shape == (0,)


def test_manifest_of_unknown_split_lists_splits(two: DatasetIndex) -> None:
    manifest = make_manifest(two, {"train": 0.5, "validation": 0.5}, seed=0)
    with pytest.raises(UserError, match=r"'test'.*\btrain, validation\b"):
        manifest.of_split("test")


@pytest.mark.parametrize(
    ("fractions", "seed", "facts"),
    [
        (
            {"train": 0.5, "validation": 0.2, "test": 0.2},
            0,
            r"(?=.*\b0\.9\b).*\btrain\W+0\.5\W+validation\W+0\.2\W+test\W+0\.2\b",
        ),
        ({"train": 1.2, "validation": -0.2}, 0, r"\btrain\b.*\b1\.2\b"),
        ({"train": 0.9, "validation": 0.2, "test": -0.1}, 0, r"\btest\b.*-0\.1\b"),
        ({"train": float("nan"), "validation": 0.2}, 0, r"\btrain\b.*\b(?i:nan)\b"),
        ({"train": 1.0}, 0, r"\btrain\b.*\bvalidation\b"),
        ({"train": 0.5, "validation": 0.0, "test": 0.5}, 0, r"\btrain\b.*\bvalidation\b"),
        ({"train": 0.5, "validaton": 0.5}, 0, "'validaton'.*'validation'"),
        (LECTURE, -1, r"seed\b.*-1\b"),
    ],
)
def test_make_manifest_invalid_fractions_or_seed_raise(
    two: DatasetIndex, fractions: dict[str, float], seed: int, facts: str
) -> None:
    with pytest.raises(UserError, match=facts):
        make_manifest(two, fractions, seed)


def test_make_manifest_accepts_rounded_thirds(two: DatasetIndex) -> None:
    manifest = make_manifest(two, {"train": 0.333333, "validation": 0.333333, "test": 0.333334}, 0)
    assert [len(manifest.of_split(split)) for split in SPLITS] == [10, 10, 11]


def test_make_manifest_split_depends_on_names_not_location(place: Path, tmp_path: Path) -> None:
    first = make_manifest(scan_folder(place), LECTURE, seed=1)
    moved = make_manifest(scan_folder(shutil.copytree(place, tmp_path / "elsewhere" / "deep")), LECTURE, seed=1)
    rows = "".join(f"{path},{path.parent.name}\n" for path in sorted(place.rglob("*.jpg"), key=lambda p: p.name))
    (tmp_path / "list.csv").write_text(f"path,label\n{rows}")
    listed = make_manifest(csv_file.scan_csv(tmp_path / "list.csv"), LECTURE, seed=1)
    other = make_manifest(scan_folder(place), LECTURE, seed=2)
    for split in SPLITS:
        for label in ("cats", "dogs"):
            assert names(first, split, label) == names(moved, split, label) == names(listed, split, label)
    assert names(other, "train", "cats") != names(first, "train", "cats")


def test_make_manifest_permutation_is_the_documented_one(two: DatasetIndex) -> None:
    order = np.random.default_rng([7, *b"dogs"]).permutation(11)
    manifest = make_manifest(two, LECTURE, seed=7)
    # Of 31 images 15.5, 6.2 and 9.3 are 16, 6 and 9; the 20 cats are 10, 4 and 6 of them.
    assert names(manifest, "train", "dogs") == {f"{i:04d}.jpg" for i in order[:6]}
    assert names(manifest, "validation", "dogs") == {f"{i:04d}.jpg" for i in order[6:8]}
    assert names(manifest, "test", "dogs") == {f"{i:04d}.jpg" for i in order[8:]}


def test_make_manifest_keeps_near_duplicates_together(tmp_path: Path) -> None:
    for number, label in enumerate("ab"):
        paint(tmp_path / label, range(100 * number, 100 * number + 20))
        for twin in range(6):  # the same images, smaller and recompressed
            small = image(100 * number + twin).resize((48, 48))
            small.save(tmp_path / label / f"small{twin}.jpg", quality=70)
    shutil.copy(tmp_path / "a" / "9.png", tmp_path / "b" / "conflict.png")
    together, apart = 0, 0
    for seed in range(5):
        splits = {Path(e.path): e.split for e in make_manifest(scan_folder(tmp_path), LECTURE, seed).examples}
        loose = {
            Path(e.path): e.split
            for e in make_manifest(scan_folder(tmp_path), LECTURE, seed, near_duplicates=-1).examples
        }
        root = tmp_path.resolve()
        for number, label in enumerate("ab"):
            for twin in range(6):
                pair = (root / label / f"{100 * number + twin}.png", root / label / f"small{twin}.jpg")
                assert splits[pair[0]] == splits[pair[1]]
                together, apart = together + 1, apart + (loose[pair[0]] != loose[pair[1]])
        for manifest in (splits, loose):  # equal files, whatever the threshold, under two labels
            assert manifest[root / "a" / "9.png"] == manifest[root / "b" / "conflict.png"]
    assert together == 60
    assert apart > 20


@pytest.fixture
def leaking(tmp_path: Path) -> Path:
    """Defined splits with one image in both, and a near-duplicate across them."""
    for number, split in enumerate(("train", "validation")):
        for offset, label in enumerate("ab"):
            first = 100 * number + 50 * offset
            paint(tmp_path / split / label, range(first, first + 3))
    shutil.copy(tmp_path / "train" / "a" / "0.png", tmp_path / "validation" / "a" / "same.png")
    image(51).save(tmp_path / "validation" / "b" / "similar.jpg")
    return tmp_path


def test_make_manifest_leaking_splits_raise(leaking: Path) -> None:
    with pytest.raises(UserError) as caught:
        make_manifest(scan_folder(leaking), LECTURE, 0)
    text = str(caught.value)
    assert re.search(r"\b1 \w", text)
    assert re.search(r"\btrain/a/0\.png\b[^,;]*\bvalidation/a/same\.png\b", text)
    assert all(fact in text for fact in (str(leaking.resolve()), "flaxtl doctor", "--config.data.allow_leaks=true"))
    assert ".jpg" not in text  # near-duplicates are not refused


def test_make_manifest_allowed_and_near_leaks_warn(leaking: Path) -> None:
    warnings: list[str] = []
    manifest = make_manifest(scan_folder(leaking), LECTURE, 0, allow_leaks=True, warn=warnings.append)
    assert len(manifest.examples) == 14
    assert [re.findall(r"\b\d+(?= \w)", text) for text in warnings] == [["1"], ["1"]]
    assert re.search(r"\btrain/a/0\.png\b[^,;]*\bvalidation/a/same\.png\b", warnings[0])
    assert re.search(r"\btrain/b/51\.png\b[^,;]*\bvalidation/b/similar\.jpg\b", warnings[1])
    assert ".jpg" not in warnings[0]
    assert "same.png" not in warnings[1]
    make_manifest(scan_folder(leaking), LECTURE, 0, allow_leaks=True, near_duplicates=-1, warn=warnings.append)
    assert len(warnings) == 3


def test_make_manifest_of_one_class_raises(tmp_path: Path) -> None:
    fill(tmp_path / "only", 3)
    with pytest.raises(UserError, match="'only'"):
        make_manifest(scan_folder(tmp_path), LECTURE, 0)


def test_make_manifest_class_too_small_raises(place: Path) -> None:
    fill(place / "ants", 2)
    with pytest.raises(UserError, match=r"'ants'.*\b2\b.*\b(train|validation|test)\b"):
        make_manifest(scan_folder(place), LECTURE, 0)


def test_make_manifest_changed_file_raises(place: Path) -> None:
    good = [
        SourceImage(path, path.parent.name, None, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in place.rglob("*.*")
    ]
    assert len(make_manifest(DatasetIndex(tuple(good), "x.csv"), LECTURE, 0).examples) == 31
    (place / "dogs" / "0004.jpg").write_bytes(b"other")
    with pytest.raises(UserError, match=r"(?=.*(?i:sha-?256))(?=.*\bx\.csv).*\b1 \w.*dogs/0004\.jpg"):
        make_manifest(DatasetIndex(tuple(good), "x.csv"), LECTURE, 0)


def test_make_manifest_checks_threshold_before_reading(two: DatasetIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "fingerprint_files", None)
    with pytest.raises(UserError, match=r"(?=.*(?i:near.duplicate)).*\b65\b"):
        make_manifest(two, LECTURE, 0, near_duplicates=65)


def test_make_manifest_leaves_unreadable_files_to_decoder(two: DatasetIndex, place: Path) -> None:
    (place / "cats" / "0003.jpg").unlink()
    (place / "dogs" / "0004.jpg").write_bytes(b"")
    (place / "dogs" / "0005.jpg").write_bytes(b"")
    assert len(make_manifest(two, LECTURE, seed=0).examples) == 31
    with pytest.raises(UserError, match=r"\b3 .*\b31 .*0003\.jpg.*0004\.jpg.*(?i:empty)"):
        fingerprint_images(two, near_duplicates=-1)


def test_make_manifest_takes_missing_validation_from_train(tmp_path: Path) -> None:
    for label in ("cats", "dogs"):
        fill(tmp_path / "train" / label, 14, prefix=f"train {label}")
        fill(tmp_path / "test" / label, 5, prefix=f"test {label}")
    warnings: list[str] = []
    manifest = make_manifest(scan_folder(tmp_path), LECTURE, seed=0, near_duplicates=-1, warn=warnings.append)
    counts = {split: len(manifest.of_split(split)) for split in manifest.splits}
    assert counts == {"train": 20, "validation": 8, "test": 10}  # 5 to 2 of 28, and the test images as given
    assert {Path(example.path).parts[-3] for example in manifest.of_split("validation")} == {"train"}
    assert {Path(example.path).parts[-3] for example in manifest.of_split("test")} == {"test"}
    (text,) = warnings
    assert str(tmp_path) in text
    assert "validation" in text
    assert re.findall(r"\d+", text.replace(str(tmp_path), "")) == ["8", "28"]


def test_collect_examples_takes_all_or_one_split(place: Path, tmp_path: Path) -> None:
    manifest = collect_examples(scan_folder(place), "test")
    assert counts(manifest) == {"test": {"cats": 20, "dogs": 11}}
    given = tmp_path / "given"
    for split, n in (("train", 3), ("val", 2)):
        shutil.copytree(place, given / split)
        fill(given / split / "cats", n, prefix=split)
    manifest = collect_examples(scan_folder(given), "validation")
    assert counts(manifest) == {"validation": {"cats": 22, "dogs": 11}}
    assert all(e.sha256 == hashlib.sha256(Path(e.path).read_bytes()).hexdigest() for e in manifest.examples)
    with pytest.raises(UserError, match=r"\btest\b.*\btrain, validation\b"):
        collect_examples(scan_folder(given), "test")


def test_manifest_without_images_keeps_classes_or_raises(two: DatasetIndex) -> None:
    manifest = make_manifest(two, LECTURE, 0)
    gone = {manifest.examples[0].path, manifest.examples[-1].path}
    left = manifest.without(gone)
    assert left.examples == manifest.examples[1:-1]
    assert left.classes == manifest.classes
    dogs = {e.path for e in manifest.of_split("validation") if e.label == "dogs"}
    with pytest.raises(UserError, match=r"(?=.*\bvalidation\b).*'dogs'"):
        manifest.without(dogs)


def test_manifest_write_and_read_round_trip(place: Path, tmp_path: Path) -> None:
    fill(place / 'a, "strange"\nclass é', 5)
    manifest = make_manifest(scan_folder(place), LECTURE, seed=0)
    manifest.write(tmp_path / "manifest.csv")
    assert Manifest.read(tmp_path / "manifest.csv", manifest.root) == manifest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.csv", "set"]


def test_manifest_file_is_plain_csv(tmp_path: Path) -> None:
    Manifest(("a",), (Example("/x/1.jpg", "a", "train", "0" * 64),)).write(tmp_path / "m.csv")
    assert (tmp_path / "m.csv").read_bytes() == b"path,label,split,sha256\n/x/1.jpg,a,train," + b"0" * 64 + b"\n"


def test_manifest_failed_write_keeps_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("old")
    with pytest.raises(AttributeError):
        Manifest(("a",), (None,)).write(path)  # type: ignore[arg-type]
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt" or os.uname().sysname == "Darwin", reason="file names are Unicode there")
def test_manifest_keeps_non_unicode_names(place: Path, tmp_path: Path) -> None:
    (place / "cats" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"1")
    manifest = make_manifest(scan_folder(place), LECTURE, seed=0)
    manifest.write(tmp_path / "m.csv")
    assert Manifest.read(tmp_path / "m.csv", place) == manifest


def test_manifest_file_has_paths_relative_to_the_source(place: Path, tmp_path: Path) -> None:
    manifest = make_manifest(scan_folder(place), LECTURE, seed=0)
    outside = Example("/outside/1.jpg", "cats", "train", "0" * 64)
    replace(manifest, examples=(*manifest.examples, outside)).write(tmp_path / "m.csv")
    *paths, last = (line.split(",")[0] for line in (tmp_path / "m.csv").read_text().splitlines()[1:])
    assert sorted(paths) == sorted(str(path.relative_to(place)) for path in place.glob("*/*"))
    assert last == "/outside/1.jpg"
    moved = Manifest.read(tmp_path / "m.csv", Path("/moved"))
    assert [example.path for example in moved.examples] == [*(f"/moved/{path}" for path in paths), "/outside/1.jpg"]


GOOD = f"/x/1.jpg,a,train,{'0' * 64}"


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("", r"manifest\.csv.*\bpath,label,split,sha256\b"),
        ("path,label\n", r"manifest\.csv.*\bpath,label,split,sha256\b"),
        ("path,label,split,sha256\n", r"^(?!.*(sha256|\brow\b)).*manifest\.csv"),
        (f"path,label,split,sha256\n{GOOD}\n/x/2.jpg,a,train", r"\brow 3\b.*\b3\b.*\b4\b"),
        (f"path,label,split,sha256\n{GOOD[:-1]}\n", r"\brow 2\b.*'0{63}'"),
        (f"path,label,split,sha256\n{GOOD.replace('train', 'tain')}\n", r"\brow 2\b.*'tain'"),
        (f"path,label,split,sha256\n{GOOD.replace(',a,', ',,')}\n", r"\brow 2\b.*\blabel\b"),
        (f"path,label,split,sha256\n{GOOD[1:]}\n", r"\brow 2\b.*'x/1\.jpg'"),
        (f"path,label,split,sha256\n{GOOD}\n{GOOD}\n", r"\brow 3\b(?!.*columns)"),
        (f'path,label,split,sha256\n{GOOD}\n"/x/2.jpg,a', r"manifest\.csv.*unexpected end of data"),
    ],
)
def test_manifest_read_damaged_raises(tmp_path: Path, text: str, facts: str) -> None:
    path = tmp_path / "manifest.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=facts):
        Manifest.read(path)


def test_manifest_read_missing_raises(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"m\.csv.*No such file"):
        Manifest.read(tmp_path / "m.csv")


@pytest.mark.slow
def test_make_manifest_of_real_flowers(shared: Path) -> None:
    warnings: list[str] = []
    manifest = make_manifest(scan_folder(shared / "data" / "flowers"), LECTURE, seed=0, warn=warnings.append)
    assert manifest.classes == ("daisy", "dandelion", "roses", "sunflowers", "tulips")
    assert {split: len(manifest.of_split(split)) for split in manifest.splits} == {"train": 1835, "validation": 735}
    twins = {e.path: e.sha256 for e in manifest.examples if "15922772266_1167a06620" in e.path}
    assert len(twins) == 2  # one image, under roses and under tulips
    assert len(set(twins.values())) == 1
    torn, near = warnings
    pair = r"train/daisy/10466290366_cc72e33532\.jpg\b[^,;]*\bvalidation/daisy/10994032453_ac7f8d9e2e\.jpg"
    assert re.search(pair, near)
    assert re.search(r"train/roses/15922772266_1167a06620\.jpg\b[^,;]*\btrain/tulips/15922772266_1167a06620\.jpg", torn)


def test_relocate_gives_each_equal_file_its_own_path(tmp_path: Path) -> None:
    paint(tmp_path / "a", range(1))
    content = (tmp_path / "a" / "0.png").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    files = [tmp_path / "a" / name for name in ("2", "1", "0.png", "3")]
    for file, written in zip(files, (content, content, content, b"another"), strict=True):
        file.write_bytes(written)
    index = DatasetIndex(tuple(SourceImage(file, "a") for file in files), "a", root=tmp_path)
    rows = (("/x/1", "train", digest), ("/x/2", "test", digest), ("/x/3", "test", "3" * 64))
    own = Manifest(("a",), tuple(Example(path, "a", split, sha256) for path, split, sha256 in rows))
    moved, missing = relocate(own, index)
    expected = [(f"{tmp_path}/a/1", "train"), (f"{tmp_path}/a/2", "test"), ("/x/3", "test")]
    assert [(example.path, example.split) for example in moved.examples] == expected
    assert (moved.root, missing) == (tmp_path, [own.examples[2]])
    assert relocate(own, replace(index, images=index.images[:1]))[1] == list(own.examples[1:])  # of two, one is found
