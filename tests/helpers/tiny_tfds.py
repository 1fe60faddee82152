"""A small dataset that TensorFlow Datasets prepares offline. Import it after `pytest.importorskip` of TFDS."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import constants
from tensorflow_datasets.core.utils import gcs_utils

KEYS = ("image", "label")
NAMES = ("tulips", "daisy/white", "roses")  # not sorted, and not all valid as folder names


def work_offline(patch: pytest.MonkeyPatch, data_dir: Path) -> None:
    """Make `data_dir` the default of TFDS, as $TFDS_DATA_DIR does before its import, and keep it from the network."""
    patch.setattr(gcs_utils, "_is_gcs_disabled", True)
    patch.setattr(constants, "DATA_DIR", str(data_dir))


def prepare(
    data_dir: Path,
    splits: dict[str, int],
    file_format: str = "tfrecord",
    *,
    unlabeled: str = "",
    keys: Any = KEYS,
    names: Sequence[str] = NAMES,
    num_shards: int | None = None,
) -> str:
    """Prepare JPEG and PNG images as TFDS does; `splits` gives the number of examples per split. Returns the name."""

    class TinyPlants(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[misc,call-arg]
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=names), "id": np.int64}
            features["mask"] = tfds.features.Image()  # a second image that must be neither used nor decoded
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=keys
            )

        def _split_generators(self, manager: Any) -> dict[str, Any]:
            return {split: self._generate_examples(split, n) for split, n in splits.items()}

        def _generate_examples(self, split: str, n: int) -> Iterator[tuple[int, dict[str, Any]]]:
            for i in range(n):
                image = io.BytesIO(original(split, i))
                label = -1 if split == unlabeled else i % 3
                yield i, {"image": image, "label": label, "id": i, "mask": io.BytesIO(encoded(999))}

    config = tfds.download.DownloadConfig(num_shards=num_shards)
    TinyPlants(data_dir=data_dir).download_and_prepare(file_format=file_format, download_config=config)
    return "tiny_plants"


def original(split: str, i: int) -> bytes:
    """Return the encoded image `i` of a split: noise, every fourth one PNG."""
    return encoded(1000 * len(split) + i, "PNG" if i % 4 == 3 else "JPEG")


def encoded(seed: int, kind: str = "JPEG") -> bytes:
    """Return an encoded image of noise, 24 x 32 pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()
