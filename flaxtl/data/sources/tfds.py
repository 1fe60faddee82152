"""TensorFlow Datasets (TFDS): export to class folders with the original encoded images, or list them in place.

TFDS downloads and prepares the dataset, for which it may load TensorFlow (its own sessions use only the CPU). The
prepared records are read here without TensorFlow, so that the accelerator's memory is left to JAX.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, BinaryIO

from flaxtl.data import tf_example
from flaxtl.data.image_file import SIGNATURE_BYTES
from flaxtl.data.record_files import RecordImage
from flaxtl.data.sources.class_folders import ClassFolders, write_notes
from flaxtl.data.sources.image_folder import SPLITS, DatasetIndex, SourceImage
from flaxtl.errors import UserError, first_line, join_names, missing_package, unknown
from flaxtl.fileio import atomic_folder


def export_tfds(name: str, target: Path, data_dir: Path | None = None) -> Path:
    """Write every labeled image of a TFDS dataset, byte for byte, to the folder `target` unless it exists.

    A dataset with one split (tf_flowers) becomes `target`/CLASS/SPLIT_INDEX.jpg and is split by flaxtl; a dataset with
    two or more of train, validation and test becomes `target`/SPLIT/CLASS/SPLIT_INDEX.jpg with the published splits.
    INDEX is the position in the split, six digits. A '/' in a class name becomes '-'. Unlabeled images and other splits
    are left out; `class_folders.read_notes` returns how many.

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
    dataset = _open(name, data_dir)
    num_images: Counter[str] = Counter()
    with atomic_folder(target) as folder:
        for split in dataset.splits:
            parent = folder / split if len(dataset.splits) > 1 else folder
            for label, stem, image in _encoded_images(dataset, split):
                dataset.folders.write(parent, label, stem, image)
                num_images[split] += 1
        write_notes(folder, _describe_left_out(name, dataset, num_images))
    return target


def list_records(name: str, data_dir: Path | None = None) -> DatasetIndex:
    """List every labeled image of a TFDS dataset where it is, in the TFRecord files of TFDS.

    Labels, splits, file names and order are those of the folder that `export_tfds` writes; the paths are explained in
    `record_files`. Only the first bytes of each image are read.

    Args:
      name: as for `export_tfds`.
      data_dir: as for `export_tfds`.

    Raises:
      UserError: as `export_tfds`, or the files of the dataset are not TFRecord files.
    """
    dataset = _open(name, data_dir)
    if dataset.file_format != "tfrecord":
        raise UserError(
            f"TFDS dataset {name!r} is stored in {dataset.file_format} files, which data.loader=tfdata cannot read in "
            "place. Prepare it as tfrecord, or use data.loader=decoded, which exports its images."
        )
    images: list[SourceImage] = []
    num_images: Counter[str] = Counter()
    for split in dataset.splits:
        found = []
        for label, stem, image, start in _scan_records(dataset, split):
            path = image.path(dataset.folders.relative_path(label, stem, start))
            found.append(SourceImage(path, path.parent.name, split if len(dataset.splits) > 1 else None))
        images += sorted(found, key=lambda image: (image.label, image.path.name))
        num_images[split] = len(found)
    notes = _describe_left_out(name, dataset, num_images)
    return DatasetIndex(tuple(images), f"tfds:{name}", root=images[0].path.parents[3], notes=notes)


@dataclass(frozen=True)
class _Dataset:
    """A prepared image classification dataset.

    Attributes:
      builder: of TFDS.
      image_key: the key of the image in an example.
      label_key: the key of the class.
      classes: the names of the classes by index.
      folders: their folders.
      splits: those to use, in the order of SPLITS.
    """

    builder: Any
    image_key: str
    label_key: str
    classes: list[str]
    folders: ClassFolders
    splits: list[str]

    @property
    def file_format(self) -> str:
        value: str = self.builder.info.file_format.value
        return value


def _open(name: str, data_dir: Path | None) -> _Dataset:
    builder = _prepare(name, data_dir)
    image_key, label_key = _supervised_keys(name, builder.info)
    classes, folders = builder.info.features[label_key].names, ClassFolders(f"TFDS dataset {name!r}")
    for label in classes:
        folders.check(label)
    splits = _select_splits(name, list(builder.info.splits))
    return _Dataset(builder, image_key, label_key, classes, folders, splits)


def silence_tensorflow() -> None:
    """Hide log lines of TensorFlow other than errors; it reads both variables when it is imported.

    Without a network, its client of Google's storage warns that it found no token if TFDS does not know a dataset.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":  # 1: the default that jax sets
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # prints a notice, and nothing here uses it


def _prepare(name: str, data_dir: Path | None) -> Any:
    silence_tensorflow()
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise missing_package("The source tfds:NAME", "tensorflow-datasets", "tfds") from error
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.registered.DatasetNotFoundError as error:
        dataset, known = re.split("[/:]", name)[0], tfds.list_builders()  # a known one: its version is malformed
        raise unknown("TFDS dataset", name if dataset in known else dataset, known) from error
    except (ValueError, AssertionError) as error:  # unknown config, unknown version, or a malformed name
        reason = first_line(type(error)(re.sub('^Failed to construct dataset .*?}": ', "", str(error))))
        raise UserError(f"Cannot open the TFDS dataset {name!r}: {reason}") from error
    _supervised_keys(name, builder.info)  # fail before a long download
    try:
        builder.download_and_prepare()
    except ImportError as error:  # some datasets need modules that TFDS itself does not
        raise UserError(f"TFDS dataset {name!r} needs the module {error.name}: pip install {error.name}") from error
    except Exception as error:  # the network, the disk or the code of the dataset may raise anything
        raise UserError(
            f"Cannot prepare the TFDS dataset {name!r} ({first_line(error)}). Check network and disk, or prepare it "
            "elsewhere and set $TFDS_DATA_DIR."
        ) from error
    return builder


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


def _describe_left_out(name: str, dataset: _Dataset, num_images: Counter[str]) -> tuple[str, ...]:
    """Return notes on the images that are not used; `num_images` counts those that are, by split.

    Raises UserError if none is used.
    """
    if not num_images.total():
        raise UserError(f"TFDS dataset {name!r} has no images with a class.")
    published = dataset.builder.info.splits
    unlabeled = sum(published[split].num_examples - num_images[split] for split in dataset.splits)
    others = [f"{split} ({published[split].num_examples:,})" for split in published if split not in dataset.splits]
    notes = [f"TFDS dataset {name!r}: {unlabeled:,} image(s) without a label are left out."] if unlabeled else []
    if others:
        notes.append(f"TFDS dataset {name!r}: the images of other splits are left out: {join_names(others)}.")
    return tuple(notes)


def _encoded_images(dataset: _Dataset, split: str) -> Iterator[tuple[str, str, bytes]]:
    """Yield class, file name without suffix, and encoded image of each labeled example of a split, in its order."""
    if dataset.file_format == "tfrecord":
        for label, stem, image, _ in _scan_records(dataset, split):
            yield label, stem, image.read()
        return
    from tensorflow_datasets import decode, features

    images = [key for key, feature in dataset.builder.info.features.items() if isinstance(feature, features.Image)]
    skip = {key: decode.SkipDecoding() for key in images}
    for index, example in enumerate(dataset.builder.as_data_source(split, decoders=skip)):
        if (label := example[dataset.label_key]) >= 0:  # -1: the label was never published
            yield dataset.classes[label], f"{split}_{index:06d}", example[dataset.image_key]


def _scan_records(dataset: _Dataset, split: str) -> Iterator[tuple[str, str, RecordImage, bytes]]:
    """Yield class, file name without suffix, place and first bytes of each labeled image of a split, in its order."""
    index = 0
    for file in map(Path, dataset.builder.info.splits[split].filepaths):
        for label, image, start in _scan_file(file.parent.resolve() / file.name, dataset):
            if label >= 0:  # -1: the label was never published
                yield dataset.classes[label], f"{split}_{index:06d}", image, start
            index += 1


def _scan_file(file: Path, dataset: _Dataset) -> Iterator[tuple[int, RecordImage, bytes]]:
    """Yield class index, place and first bytes of the image of each record of a file."""
    try:
        with file.open("rb") as stream, _map_file(stream) as data:
            for record in tf_example.record_spans(data):
                features = tf_example.parse_features(data, record)
                label = tf_example.int64_value(data, features[dataset.label_key])
                first, last = tf_example.bytes_span(data, features[dataset.image_key])
                start = data[first : min(last, first + SIGNATURE_BYTES)]
                yield label, RecordImage(file, first, last - first), start
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{file} is missing, truncated or damaged. Remove its folder and let TFDS prepare the dataset again."
        ) from error


def _map_file(stream: BinaryIO) -> mmap | AbstractContextManager[bytes]:
    """Return the content of a file, of which only the parts that are used are read."""
    is_empty = not stream.seek(0, os.SEEK_END)  # cannot be mapped
    return nullcontext(b"") if is_empty else mmap(stream.fileno(), 0, access=ACCESS_READ)
