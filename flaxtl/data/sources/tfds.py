"""A TensorFlow Datasets set -> folders of classes that hold the original encoded images.

TFDS downloads and prepares, for which it may load TensorFlow (its own sessions keep to the CPU). The prepared records
are read here without TensorFlow, so that the accelerator's memory stays with JAX.
"""

import re
import struct
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flaxtl.data.sources.archive import atomic_folder
from flaxtl.data.sources.image_folder import SPLITS
from flaxtl.errors import UserError, unknown

# First bytes of the encodings that TFDS' Image feature accepts (tf.io.decode_image) and the suffix each is given.
_SIGNATURES = {b"\xff\xd8\xff": ".jpg", b"\x89PNG\r\n\x1a\n": ".png", b"GIF8": ".gif", b"BM": ".bmp"}


def export_tfds(name: str, into: Path, data_dir: Path | None = None) -> Path:
    """Writes every labelled image of a TFDS set, byte for byte, to the folder `into`, unless that exists already.

    A set with one split (tf_flowers) becomes `into`/CLASS/SPLIT_INDEX.jpg, for flaxtl to split; a set with two or more
    of train, validation and test becomes `into`/SPLIT/CLASS/SPLIT_INDEX.jpg with the splits as published. INDEX is the
    position in the split, six digits. A '/' in a class name becomes '-'. Images without a label are left out.

    Args:
      name: as for `tfds.builder`: 'tf_flowers', or with configuration and version 'name/config:1.0.0'.
      into: the folder to make; appears only when complete.
      data_dir: where TFDS keeps its prepared sets; None: $TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Raises:
      UserError: tensorflow-datasets is not installed, the set is unknown, cannot be had, or is no image classification.
    """
    if into.is_dir():
        return into
    builder = _prepared(name, data_dir)
    image, label = _keys(name, builder.info)
    names = [title.replace("/", "-") for title in builder.info.features[label].names]
    if len(set(names)) < len(names):
        raise UserError(f"TFDS set {name!r} has classes whose folder names would be the same; export it yourself")
    if any(title.startswith(".") for title in names):  # '..' would lead outside, and what is hidden is not listed
        raise UserError(f"TFDS set {name!r} has a class whose name begins with a dot; export it yourself")
    splits = _splits(name, list(builder.info.splits))
    with atomic_folder(into) as folder:
        for split in splits:
            parent = folder / split if len(splits) > 1 else folder
            for index, example in enumerate(_examples(builder, split)):
                if example[label] >= 0:  # -1 is TFDS' mark for a label that was never published
                    stem = f"{split}_{index:06d}"
                    _write(parent / names[example[label]], stem, example[image], name)
    return into


def _prepared(name: str, data_dir: Path | None) -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError("source tfds: needs tensorflow-datasets; pip install 'flaxtl[tfds]'") from error
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.registered.DatasetNotFoundError as error:
        raise unknown("TFDS set", re.split("[/:]", name)[0], tfds.list_builders()) from error
    except ValueError as error:  # a wrong configuration or version, or a malformed name
        raise UserError(f"cannot open TFDS set {name!r}: {_first_line(error)}") from error
    _keys(name, builder.info)  # before a long download
    try:
        builder.download_and_prepare()
    except ImportError as error:  # many a set needs a module that TFDS itself does not
        raise UserError(f"TFDS set {name!r} needs the module {error.name}; pip install {error.name}") from error
    except Exception as error:  # whatever the network, the disk or the set's own code may raise
        raise UserError(
            f"cannot prepare TFDS set {name!r} ({_first_line(error)}); check network and disk, or prepare it elsewhere"
            " and point $TFDS_DATA_DIR there"
        ) from error
    return builder


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return textwrap.shorten(line, 160, placeholder=" ...").rstrip(".")


def _keys(name: str, info: Any) -> tuple[str, str]:
    """The names of the image and the class in an example."""
    from tensorflow_datasets import features

    keys = info.supervised_keys
    if not (
        keys
        and len(keys) == 2
        and all(isinstance(key, str) for key in keys)
        and isinstance(info.features[keys[0]], features.Image)
        and isinstance(info.features[keys[1]], features.ClassLabel)
    ):
        raise UserError(f"TFDS set {name!r} is no image classification: it does not pair one image with one class")
    return keys[0], keys[1]


def _splits(name: str, published: list[str]) -> list[str]:
    known = [split for split in SPLITS if split in published]
    if known:
        return known
    if len(published) == 1:
        return published
    raise UserError(f"TFDS set {name!r} has the splits {', '.join(published)}, none of them train, validation or test")


def _examples(builder: Any, split: str) -> Iterator[dict[str, Any]]:
    """The examples of a split in the order of its files, images as encoded bytes."""
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
    """The records of a TFRecord file: length (8 bytes, little-endian), its checksum (4), data, its checksum (4)."""
    with file.open("rb") as stream:
        while head := stream.read(12):
            length = struct.unpack("<Q", head[:8])[0] if len(head) == 12 else 0
            record = stream.read(length + 4)
            if len(head) < 12 or len(record) < length + 4:
                raise UserError(f"{file} is cut off; remove its folder and let TFDS prepare the set again")
            yield record[:-4]


def _write(folder: Path, stem: str, image: bytes, name: str) -> None:
    suffix = next((suffix for start, suffix in _SIGNATURES.items() if image.startswith(start)), None)
    if suffix is None:
        raise UserError(f"TFDS set {name!r} holds an image that is neither JPEG, PNG, GIF nor BMP: {stem}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / (stem + suffix)).write_bytes(image)
