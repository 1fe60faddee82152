"""Export a TensorFlow Datasets dataset to class folders with the original encoded images.

TFDS downloads and prepares the dataset, for which it may load TensorFlow (its own sessions use only the CPU). The
prepared records are read here without TensorFlow, so that the accelerator's memory is left to JAX.
"""

import re
import struct
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flaxtl.data.sources.class_folders import ClassFolders
from flaxtl.data.sources.image_folder import SPLITS
from flaxtl.errors import UserError, missing_package, unknown
from flaxtl.fileio import atomic_folder


def export_tfds(name: str, target: Path, data_dir: Path | None = None) -> Path:
    """Write every labeled image of a TFDS dataset, byte for byte, to the folder `target` unless it exists.

    A dataset with one split (tf_flowers) becomes `target`/CLASS/SPLIT_INDEX.jpg and is split by flaxtl; a dataset with
    two or more of train, validation and test becomes `target`/SPLIT/CLASS/SPLIT_INDEX.jpg with the published splits.
    INDEX is the position in the split, six digits. A '/' in a class name becomes '-'. Unlabeled images are skipped.

    Args:
      name: as for `tfds.builder`: 'tf_flowers', or with config and version 'name/config:1.0.0'.
      target: the folder to create; it appears only when it is complete.
      data_dir: where TFDS stores prepared datasets; default: $TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Returns:
      `target`.

    Raises:
      UserError: tensorflow-datasets is not installed, or the dataset is unknown, not available, or not an image
        classification dataset.
    """
    if target.is_dir():
        return target
    builder = _prepare(name, data_dir)
    image_key, label_key = _supervised_keys(name, builder.info)
    classes, writer = builder.info.features[label_key].names, ClassFolders(f"TFDS dataset {name!r}")
    for label in classes:
        writer.check(label)
    splits = _select_splits(name, list(builder.info.splits))
    with atomic_folder(target) as folder:
        for split in splits:
            parent = folder / split if len(splits) > 1 else folder
            for index, example in enumerate(_examples(builder, split)):
                if example[label_key] >= 0:  # -1: the label was never published
                    writer.write(parent, classes[example[label_key]], f"{split}_{index:06d}", example[image_key])
    return target


def _prepare(name: str, data_dir: Path | None) -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise missing_package("The source tfds:NAME", "tensorflow-datasets", "tfds") from error
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.registered.DatasetNotFoundError as error:
        raise unknown("TFDS dataset", re.split("[/:]", name)[0], tfds.list_builders()) from error
    except ValueError as error:  # unknown config or version, or a malformed name
        raise UserError(f"Cannot open the TFDS dataset {name!r}: {_first_line(error)}") from error
    _supervised_keys(name, builder.info)  # fail before a long download
    try:
        builder.download_and_prepare()
    except ImportError as error:  # some datasets need modules that TFDS itself does not
        raise UserError(f"TFDS dataset {name!r} needs the module {error.name}: pip install {error.name}") from error
    except Exception as error:  # the network, the disk or the code of the dataset may raise anything
        raise UserError(
            f"Cannot prepare the TFDS dataset {name!r} ({_first_line(error)}). Check network and disk, or prepare it "
            "elsewhere and set $TFDS_DATA_DIR."
        ) from error
    return builder


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return textwrap.shorten(line, 160, placeholder=" ...").rstrip(".")


def _supervised_keys(name: str, info: Any) -> tuple[str, str]:
    """Return the keys of the image and the class in an example."""
    from tensorflow_datasets import features

    keys = info.supervised_keys
    if not (
        keys
        and len(keys) == 2
        and all(isinstance(key, str) for key in keys)
        and isinstance(info.features[keys[0]], features.Image)
        and isinstance(info.features[keys[1]], features.ClassLabel)
    ):
        raise UserError(
            f"TFDS dataset {name!r} is not an image classification dataset: it does not pair one image with one class"
        )
    return keys[0], keys[1]


def _select_splits(name: str, published: list[str]) -> list[str]:
    known = [split for split in SPLITS if split in published]
    if known:
        return known
    if len(published) == 1:
        return published
    raise UserError(f"TFDS dataset {name!r} has none of the splits {', '.join(SPLITS)}, only {', '.join(published)}")


def _examples(builder: Any, split: str) -> Iterator[dict[str, Any]]:
    """Yield the examples of a split in the order of its files, with encoded images."""
    from tensorflow_datasets import decode, features

    images = [key for key, feature in builder.info.features.items() if isinstance(feature, features.Image)]
    skip = {key: decode.SkipDecoding() for key in images}
    if builder.info.file_format.value != "tfrecord":
        yield from builder.as_data_source(split, decoders=skip)
        return
    for file in builder.info.splits[split].filepaths:
        for record in _records(Path(file)):
            yield builder.info.features.deserialize_example_np(record, decoders=skip)


def _records(file: Path) -> Iterator[bytes]:
    """Yield the records of a TFRecord file: length (8 bytes, little-endian), checksum (4), data, checksum (4)."""
    with file.open("rb") as stream:
        while head := stream.read(12):
            length = struct.unpack("<Q", head[:8])[0] if len(head) == 12 else 0
            record = stream.read(length + 4)
            if len(head) < 12 or len(record) < length + 4:
                raise UserError(f"{file} is truncated. Remove its folder and let TFDS prepare the dataset again.")
            yield record[:-4]
