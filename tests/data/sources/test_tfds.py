"""TFDS datasets become class folders with the original encoded images. The datasets are created here, offline."""

import io
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flaxtl.data.sources.image_folder import scan_folder
from flaxtl.data.sources.tfds import export_tfds
from flaxtl.errors import UserError

tfds = pytest.importorskip("tensorflow_datasets")
gcs_utils = pytest.importorskip("tensorflow_datasets.core.utils.gcs_utils")

KEYS = ("image", "label")
NAMES = ["tulips", "daisy/white", "roses"]  # not sorted, and not all valid as folder names


def encoded(seed: int, kind: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def made(
    data_dir: Path, splits: dict[str, int], file_format: str = "tfrecord", unlabelled: str = "", keys: Any = KEYS
) -> str:
    """Prepares a dataset of JPEG and PNG images as TFDS does; `splits` gives the number of examples per split."""

    class TinyPlants(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[misc,call-arg]
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=NAMES), "id": np.int64}
            features["mask"] = tfds.features.Image()  # a second image that must be neither used nor decoded
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=keys
            )

        def _split_generators(self, manager: Any) -> dict[str, Any]:
            return {split: self._generate_examples(split, n) for split, n in splits.items()}

        def _generate_examples(self, split: str, n: int) -> Iterator[tuple[int, dict[str, Any]]]:
            for i in range(n):
                image = io.BytesIO(original(split, i))
                label = -1 if split == unlabelled else i % 3
                yield i, {"image": image, "label": label, "id": i, "mask": io.BytesIO(encoded(999))}

    TinyPlants(data_dir=data_dir).download_and_prepare(file_format=file_format)
    return "tiny_plants"


def original(split: str, i: int) -> bytes:
    return encoded(1000 * len(split) + i, "PNG" if i % 4 == 3 else "JPEG")


def expected(splits: dict[str, int], nested: bool) -> set[tuple[str, str, bytes]]:
    """(folder, suffix, bytes) of every image. TFDS shuffles while writing, so the number in a name is arbitrary."""
    return {
        (
            (f"{split}/" if nested else "") + NAMES[i % 3].replace("/", "-"),
            ".png" if i % 4 == 3 else ".jpg",
            original(split, i),
        )
        for split, n in splits.items()
        for i in range(n)
    }


def found(folder: Path) -> set[tuple[str, str, bytes]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {(path.parent.relative_to(folder).as_posix(), path.suffix, path.read_bytes()) for path in files}


@pytest.fixture(autouse=True)
def _no_cloud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gcs_utils, "_is_gcs_disabled", True)


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_export_one_split_becomes_class_folders(tmp_path: Path, file_format: str) -> None:
    if file_format == "array_record":
        pytest.importorskip("array_record")
    name = made(tmp_path / "tfds", {"train": 30}, file_format)
    folder = export_tfds(name, tmp_path / "out", tmp_path / "tfds")
    assert folder == tmp_path / "out"
    assert found(folder) == expected({"train": 30}, nested=False)
    assert sorted(p.stem for p in folder.rglob("*.*")) == [f"train_{i:06d}" for i in range(30)]
    labels = Counter(each.label for each in scan_folder(folder).images)
    assert labels == {"daisy-white": 10, "roses": 10, "tulips": 10}


def test_export_keeps_published_splits(tmp_path: Path) -> None:
    splits = {"test": 6, "train": 9, "validation": 12, "unlabeled": 3}
    folder = export_tfds(made(tmp_path / "tfds", splits), tmp_path / "out", tmp_path / "tfds")
    del splits["unlabeled"]
    assert found(folder) == expected(splits, nested=True)
    assert scan_folder(folder).splits == ("train", "validation", "test")


def test_export_uses_the_one_known_split(tmp_path: Path) -> None:
    folder = export_tfds(made(tmp_path / "tfds", {"train": 6, "extra": 3}), tmp_path / "out", tmp_path / "tfds")
    assert found(folder) == expected({"train": 6}, nested=False)


def test_export_drops_unlabeled_images(tmp_path: Path) -> None:
    name = made(tmp_path / "tfds", {"train": 6, "test": 6}, unlabelled="test")
    folder = export_tfds(name, tmp_path / "out", tmp_path / "tfds")
    assert found(folder) == expected({"train": 6}, nested=True)


def test_export_names_are_deterministic(tmp_path: Path) -> None:
    first = export_tfds(made(tmp_path / "a", {"train": 9}), tmp_path / "first", tmp_path / "a")
    second = export_tfds(made(tmp_path / "b", {"train": 9}), tmp_path / "second", tmp_path / "b")
    assert {p.relative_to(first): p.read_bytes() for p in first.rglob("*.*")} == {
        p.relative_to(second): p.read_bytes() for p in second.rglob("*.*")
    }


def test_export_refuses_class_name_with_dot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "NAMES", ["tulips", "..", "roses"])
    name = made(tmp_path / "tfds", {"train": 3})
    with pytest.raises(UserError, match=r"'tiny_plants'.*(\bdot\b|'\.)"):
        export_tfds(name, tmp_path / "out", tmp_path / "tfds")
    assert not (tmp_path / "out").exists()


def test_export_runs_once(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert export_tfds("no_such_set", tmp_path / "out") == tmp_path / "out"


def test_export_uses_tfds_data_dir_and_no_tensorflow(tmp_path: Path) -> None:
    made(tmp_path / "tfds", {"train": 6})
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


def test_export_refuses_other_tasks(tmp_path: Path) -> None:
    error = fails(tmp_path, made(tmp_path / "tfds", {"train": 3}, keys=None))
    assert re.search("(?i)'tiny_plants'.*image classification", error)


def test_export_refuses_text_before_download(tmp_path: Path) -> None:
    assert re.search("(?i)'imdb_reviews'.*image classification", fails(tmp_path, "imdb_reviews"))


def test_export_unknown_splits_are_listed(tmp_path: Path) -> None:
    name = made(tmp_path / "tfds", {"fold1": 3, "fold2": 3})
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
    name = made(tmp_path / "tfds", {"train": 3})
    (file,) = (tmp_path / "tfds").rglob("*.tfrecord*")
    file.write_bytes(damage(file.read_bytes()))
    assert file.name in fails(tmp_path, name)
