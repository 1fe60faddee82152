"""TFDS datasets are exported to class folders, or listed in place. The datasets are created here, offline."""

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from flaxtl.data.manifest import make_manifest
from flaxtl.data.record_files import open_binary
from flaxtl.data.sources.base import open_source
from flaxtl.data.sources.class_folders import NOTES_NAME, read_notes
from flaxtl.data.sources.image_folder import DatasetIndex, scan_folder
from flaxtl.data.sources.tfds import export_tfds, list_records
from flaxtl.errors import UserError

tfds = pytest.importorskip("tensorflow_datasets")

from helpers import tiny_tfds  # noqa: E402
from helpers.tiny_tfds import prepare  # noqa: E402


def expected(splits: dict[str, int], nested: bool) -> set[tuple[str, str, bytes]]:
    """(folder, suffix, bytes) of every image. TFDS shuffles while writing, so the number in a name is arbitrary."""
    return {
        (
            (f"{split}/" if nested else "") + tiny_tfds.NAMES[i % 3].replace("/", "-"),
            ".png" if i % 4 == 3 else ".jpg",
            tiny_tfds.original(split, i),
        )
        for split, n in splits.items()
        for i in range(n)
    }


def found(folder: Path) -> set[tuple[str, str, bytes]]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != NOTES_NAME]
    return {(path.parent.relative_to(folder).as_posix(), path.suffix, path.read_bytes()) for path in files}


@pytest.fixture(scope="module", autouse=True)
def _tensorflow() -> None:
    """Import TensorFlow, with which TFDS writes records, once for the tests here: it takes longer than they do."""
    pytest.importorskip("tensorflow")


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_tfds.work_offline(monkeypatch, tmp_path / "tfds")


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_export_one_split_becomes_class_folders(tmp_path: Path, file_format: str) -> None:
    if file_format == "array_record":
        pytest.importorskip("array_record")
    name = prepare(tmp_path / "tfds", {"train": 30}, file_format)
    folder = export_tfds(name, tmp_path / "out", tmp_path / "tfds")
    assert folder == tmp_path / "out"
    assert found(folder) == expected({"train": 30}, nested=False)
    assert sorted(p.stem for p in folder.rglob("*.*")) == [f"train_{i:06d}" for i in range(30)]
    labels = Counter(each.label for each in scan_folder(folder).images)
    assert labels == {"daisy-white": 10, "roses": 10, "tulips": 10}


def test_export_keeps_published_splits(tmp_path: Path) -> None:
    splits = {"test": 6, "train": 9, "validation": 12, "unlabeled": 3}
    folder = export_tfds(prepare(tmp_path / "tfds", splits), tmp_path / "out", tmp_path / "tfds")
    del splits["unlabeled"]
    assert found(folder) == expected(splits, nested=True)
    assert scan_folder(folder).splits == ("train", "validation", "test")


def test_export_uses_the_one_known_split(tmp_path: Path) -> None:
    splits = {"train": 6, "extra": 3, "unlabeled": 2}
    folder = export_tfds(prepare(tmp_path / "tfds", splits), tmp_path / "out", tmp_path / "tfds")
    assert found(folder) == expected({"train": 6}, nested=False)
    assert read_notes(folder) == (
        "TFDS dataset 'tiny_plants': the images of other splits are left out: extra (3) and unlabeled (2).",
    )


def test_export_drops_unlabeled_images(tmp_path: Path) -> None:
    name = prepare(tmp_path / "tfds", {"train": 6, "test": 6}, unlabeled="test")
    folder = export_tfds(name, tmp_path / "out", tmp_path / "tfds")
    assert found(folder) == expected({"train": 6}, nested=True)
    assert read_notes(folder) == ("TFDS dataset 'tiny_plants': 6 image(s) without a label are left out.",)


def test_export_refuses_a_dataset_without_labels(tmp_path: Path) -> None:
    name = prepare(tmp_path / "tfds", {"train": 6}, unlabeled="train")
    assert fails(tmp_path, name) == "TFDS dataset 'tiny_plants' has no images with a class."


def test_export_names_are_deterministic(tmp_path: Path) -> None:
    first = export_tfds(prepare(tmp_path / "a", {"train": 9}), tmp_path / "first", tmp_path / "a")
    second = export_tfds(prepare(tmp_path / "b", {"train": 9}), tmp_path / "second", tmp_path / "b")
    assert {p.relative_to(first): p.read_bytes() for p in first.rglob("*.*")} == {
        p.relative_to(second): p.read_bytes() for p in second.rglob("*.*")
    }


def test_export_refuses_class_name_with_dot(tmp_path: Path) -> None:
    name = prepare(tmp_path / "tfds", {"train": 3}, names=("tulips", "..", "roses"))
    with pytest.raises(UserError, match=r"'tiny_plants'.*(\bdot\b|'\.)"):
        export_tfds(name, tmp_path / "out", tmp_path / "tfds")
    assert not (tmp_path / "out").exists()


def test_export_runs_once(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert export_tfds("no_such_set", tmp_path / "out") == tmp_path / "out"


def test_export_uses_tfds_data_dir_and_no_tensorflow(tmp_path: Path) -> None:
    prepare(tmp_path / "tfds", {"train": 6})
    code = (
        "import sys; from pathlib import Path; from flaxtl.data.sources.tfds import export_tfds;"
        "export_tfds('tiny_plants', Path(sys.argv[1])); print('tensorflow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")],
        env={**os.environ, "TFDS_DATA_DIR": str(tmp_path / "tfds")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found(tmp_path / "out") == expected({"train": 6}, nested=False)
    assert done.stdout.strip() == "False"


def fails(tmp_path: Path, name: str) -> str:
    with pytest.raises(UserError) as caught:
        export_tfds(name, tmp_path / "out", tmp_path / "tfds")
    assert not (tmp_path / "out").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_export_unknown_name_suggests_one(tmp_path: Path) -> None:
    assert re.search("'tf_flower'.*'tf_flowers'", fails(tmp_path, "tf_flower"))
    assert re.search("'tf_flower'.*'tf_flowers'", fails(tmp_path, "tf_flower:3.0.1"))
    assert "'tf_flowers/big'" in fails(tmp_path, "tf_flowers/big")


def test_export_unknown_version_lists_the_known_ones(tmp_path: Path) -> None:
    error = fails(tmp_path, "tf_flowers:9.9.9")
    assert re.search(r"'tf_flowers:9\.9\.9': Dataset tf_flowers\b.*\b9\.9\.9, only: \d+\.\d", error)
    assert re.search(r"'tf_flowers:new'.*'tf_flowers'", fails(tmp_path, "tf_flowers:new"))


def test_export_refuses_other_tasks(tmp_path: Path) -> None:
    error = fails(tmp_path, prepare(tmp_path / "tfds", {"train": 3}, keys=None))
    assert re.search("(?i)'tiny_plants'.*image classification", error)


def test_export_refuses_text_before_download(tmp_path: Path) -> None:
    assert re.search("(?i)'imdb_reviews'.*image classification", fails(tmp_path, "imdb_reviews"))


def test_export_unknown_splits_are_listed(tmp_path: Path) -> None:
    name = prepare(tmp_path / "tfds", {"fold1": 3, "fold2": 3})
    splits = ("fold1", "fold2", "train", "validation", "test")
    assert re.search("".join(rf"(?=.*\b{split}\b)" for split in splits), fails(tmp_path, name))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionError("Failed to connect\nmore"), r"Failed to connect\b(?!.*\bmore\b)"),
        (AssertionError("Manual directory does not exist."), r"Manual directory does not exist\b(?!\.\W)"),
        (TimeoutError(), r"\bTimeoutError\b"),
        (ModuleNotFoundError("No module", name="scipy"), r"\bpip install scipy\b"),
    ],
)
def test_export_failure_is_one_user_error(
    tmp_path: Path, error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    error_text = fails(tmp_path, "tf_flowers")
    assert "'tf_flowers'" in error_text
    assert re.search(reason, error_text)


def test_export_without_tfds_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert "pip install 'flaxtl[tfds]'" in fails(tmp_path, "tf_flowers")


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:5], lambda data: data + b"123"])
def test_export_detects_truncated_records(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    name = prepare(tmp_path / "tfds", {"train": 3})
    (file,) = (tmp_path / "tfds").rglob("*.tfrecord*")
    file.write_bytes(damage(file.read_bytes()))
    assert file.name in fails(tmp_path, name)


def rows(index: DatasetIndex) -> list[tuple[str, str, str | None, bytes]]:
    """Class, file name, split and bytes of each image."""
    contents = []
    for image in index.images:
        with open_binary(image.path) as stream:
            contents.append((image.label, image.path.name, image.split, stream.read()))
    return contents


@pytest.mark.parametrize(
    "splits",
    [{"train": 30}, {"test": 6, "train": 9, "validation": 12, "unlabeled": 3}, {"train": 12, "extra": 3}],
    ids=["one", "published", "one known"],
)
def test_list_records_equals_the_export(tmp_path: Path, splits: dict[str, int]) -> None:
    name = prepare(tmp_path / "tfds", splits, num_shards=3)
    listed = list_records(name, tmp_path / "tfds")
    exported = open_source(f"tfds:{name}", tmp_path / "cache")
    assert rows(listed) == rows(exported)
    assert listed.origin == exported.origin == "tfds:tiny_plants"
    assert (listed.classes, listed.splits, listed.messages) == (exported.classes, exported.splits, exported.messages)
    fractions = {"train": 0.5, "validation": 0.2, "test": 0.3}
    manifests = [make_manifest(index, fractions, 5) for index in (listed, exported)]
    lines = [
        [(Path(e.path).parent.name, Path(e.path).name, e.label, e.split, e.sha256) for e in manifest.examples]
        for manifest in manifests
    ]
    assert lines[0] == lines[1]
    root = tmp_path / "tfds" / "tiny_plants" / "1.0.0"
    assert listed.root == root
    shards = {image.path.relative_to(root).parts[0] for image in listed.images}
    assert "tiny_plants-train.tfrecord-00002-of-00003" in shards


def test_list_records_skips_unlabeled_images(tmp_path: Path) -> None:
    name = prepare(tmp_path / "tfds", {"train": 6, "test": 6}, unlabeled="test")
    assert {image.split for image in list_records(name, tmp_path / "tfds").images} == {"train"}
    name = prepare(tmp_path / "none", {"train": 6}, unlabeled="train")
    with pytest.raises(UserError, match=r"'tiny_plants'.*no images with a class"):
        list_records(name, tmp_path / "none")


def test_list_records_of_another_format_names_the_loader(tmp_path: Path) -> None:
    pytest.importorskip("array_record")
    name = prepare(tmp_path / "tfds", {"train": 3}, "array_record")
    with pytest.raises(UserError, match=r"'tiny_plants'.*array_record.*data\.loader=decoded"):
        list_records(name, tmp_path / "tfds")


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:12] + bytes(len(data) - 12)])
def test_list_records_detects_damaged_records(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    name = prepare(tmp_path / "tfds", {"train": 3})
    (file,) = (tmp_path / "tfds").rglob("*.tfrecord*")
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=f"{file.name} is missing, truncated or damaged"):
        list_records(name, tmp_path / "tfds")
    file.unlink()
    with pytest.raises(UserError, match=f"{file.name} is missing, truncated or damaged"):
        list_records(name, tmp_path / "tfds")


def test_open_source_with_tfdata_writes_nothing(tmp_path: Path) -> None:
    name = prepare(tmp_path / "tfds", {"train": 3})
    index = open_source(f"tfds:{name}", tmp_path / "cache", loader="tfdata")
    assert len(index.images) == 3
    assert not (tmp_path / "cache").exists()
    assert rows(open_source(f"tfds:{name}", tmp_path / "cache")) == rows(index)
    assert (tmp_path / "cache" / "tfds" / "tiny_plants").is_dir()


@pytest.mark.parametrize(("level", "expected"), [(None, "2"), ("1", "2"), ("0", "0"), ("3", "3")])
def test_unknown_dataset_hides_warnings_of_tensorflow(monkeypatch, tmp_path, level, expected):
    """Its own messages, not those that were asked for; 1 is what jax sets."""
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", level or "")
    if level is None:
        monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    with pytest.raises(UserError, match="misspelt"):
        export_tfds("misspelt", tmp_path / "out")
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == expected
