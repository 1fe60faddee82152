"""Labeled images in parquet files, as Hugging Face's `datasets` writes them.

An image is a struct of its encoded `bytes` and a `path`. The names of the classes are in the file's metadata entry
'huggingface', or in the README of the repository ("dataset_info").
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flaxtl.errors import UserError, first_line, join_names, missing_package, unknown

BATCH = 64
"""Rows that are read at a time: some hundred MB of photos at most."""

UNLABELED = -1
"""Class index of an image without a published class, as in `datasets`."""


@dataclass(frozen=True)
class Features:
    """What the columns of a dataset are, as its metadata declares them.

    Attributes:
      images: columns of images.
      classes: column of class indices -> names of the classes.
    """

    images: Sequence[str] = ()
    classes: Mapping[str, Sequence[str]] | None = None


@dataclass(frozen=True)
class Columns:
    """The columns of the image and its label, and the names of the classes; None: the label itself is the name."""

    image: str
    label: str
    classes: Sequence[str] | None


def import_parquet(reference: str) -> Any:
    """Return the module pyarrow.parquet. Raises UserError if it is not installed; `reference` needs it."""
    try:
        from pyarrow import parquet  # an optional dependency
    except ImportError as error:
        raise missing_package(reference, "pyarrow", "hub") from error
    return parquet


def card_features(info: Any) -> Features:
    """Return the features that the "dataset_info" of a README declares; anything else declares none.

    There, they are a list: {name: image, dtype: image}, {name: label, dtype: {class_label: {names: {'0': daisy}}}}.
    """
    rows = info.get("features") if isinstance(info, dict) else None
    images, classes = [], {}
    for row in rows if isinstance(rows, list) else []:
        match row:
            case {"name": str(name), "dtype": "image"}:
                images.append(name)
            case {"name": str(name), "dtype": {"class_label": {"names": dict(names)}}}:
                classes[name] = [str(label) for _, label in sorted(names.items(), key=lambda item: int(item[0]))]
            case {"name": str(name), "dtype": {"class_label": {"names": list(names)}}}:
                classes[name] = [str(label) for label in names]
    return Features(images, classes)


def _file_features(schema: Any) -> Features:
    """Return the features that the metadata of a parquet file declares."""
    try:
        declared = json.loads(schema.metadata[b"huggingface"])["info"]["features"].items()
    except (TypeError, KeyError, AttributeError, ValueError):  # another program wrote the file
        return Features()
    images, classes = [], {}
    for name, feature in declared:
        match feature:
            case {"_type": "Image"}:
                images.append(name)
            case {"_type": "ClassLabel", "names": list(names)}:
                classes[name] = [str(label) for label in names]
    return Features(images, classes)


def find_columns(file: Path, card: Features, label: str | None, reference: str) -> Columns:
    """Return the columns of a parquet file to train on.

    Args:
      file: the first file of a split.
      card: what the README declares; the file's own metadata takes precedence.
      label: the column of the label; None finds it.
      reference: the dataset, as the user wrote it.

    Raises:
      UserError: the file is damaged, has no images, or does not determine the label.
    """
    from pyarrow import types

    schema = _read(file, lambda parquet: parquet.read_schema(file), reference)
    own = _file_features(schema)
    image_columns = [name for name in own.images or card.images if name in schema.names]
    if not image_columns:
        image_columns = [field.name for field in schema if types.is_struct(field.type) and _has_bytes(field.type)]
    classes = {name: names for name, names in (own.classes or card.classes or {}).items() if name in schema.names}
    values = [field.name for field in schema if _holds_labels(field.type)]
    if not image_columns:
        raise UserError(f"{reference} has no column of images. Its columns: {join_names(schema.names)}.")
    if len(image_columns) > 1 and "image" not in image_columns:
        raise UserError(f"{reference} has several columns of images, {join_names(image_columns)}. Export one yourself.")
    image = "image" if "image" in image_columns else image_columns[0]
    column = _find_label(label, classes, values, reference)
    return Columns(image, column, classes.get(column))


def _has_bytes(struct: Any) -> bool:
    return "bytes" in [struct.field(index).name for index in range(struct.num_fields)]


def _holds_labels(column_type: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(column_type):  # a column of categories in pandas
        return _holds_labels(column_type.value_type)
    return any(is_kind(column_type) for is_kind in (types.is_integer, types.is_string, types.is_large_string))


def _find_label(label: str | None, classes: Mapping[str, Any], values: Sequence[str], reference: str) -> str:
    """Return the column of the label: the given one, the only one of class indices, or that called 'label'."""
    if label is not None:
        if label not in values:
            raise unknown(f"column of {reference}", label, values)
        return label
    if len(classes) == 1:
        return next(iter(classes))
    candidates = list(classes) or [name for name in values if name in ("label", "labels")]
    if len(candidates) == 1:
        return candidates[0]
    options = candidates or values
    if not options:
        raise UserError(f"{reference} has no column of labels.")
    raise UserError(
        f"{reference} does not say which column is the label, {join_names(options)}. Write {reference}:COLUMN, such as "
        f"{reference}:{options[0]}"
    )


def labeled_images(file: Path, columns: Columns, reference: str) -> Iterator[tuple[bytes, str] | None]:
    """Yield the encoded image and the class name of each row; None for a row without image or label.

    Raises:
      UserError: the file is damaged or lacks a column, or an image or a label is not what the metadata says.
    """
    content, needed = _read(file, lambda parquet: parquet.ParquetFile(file), reference), [columns.image, columns.label]
    if missing := [name for name in needed if name not in content.schema_arrow.names]:
        raise UserError(
            f"{file.name} of {reference} has no column {join_names(map(repr, missing))}, which other files have. Use "
            "another dataset."
        )
    batches = content.iter_batches(BATCH, columns=needed)
    while (batch := _read(file, lambda parquet: next(batches, None), reference)) is not None:
        rows = zip(batch.column(columns.image).to_pylist(), batch.column(columns.label).to_pylist(), strict=True)
        for image, label in rows:
            name = _class_name(label, columns, reference)
            yield None if image is None or name is None else (_image_bytes(image, reference), name)


def _image_bytes(image: Any, reference: str) -> bytes:
    content = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(content, bytes):
        raise UserError(f"{reference} does not contain its images, only paths, such as {image!r}. Use another dataset.")
    return content


def _class_name(label: Any, columns: Columns, reference: str) -> str | None:
    """Return the class of a value; None for no label."""
    if label is None or label == UNLABELED:
        return None
    if columns.classes is None or isinstance(label, str):  # a name instead of an index, which `datasets` reads, too
        return str(label)
    if not 0 <= label < len(columns.classes):
        raise UserError(f"{reference} has the label {label} and only {len(columns.classes)} classes. Report it there.")
    return str(columns.classes[label])


def _read(file: Path, read: Any, reference: str) -> Any:
    """Return `read(pyarrow.parquet)`; raises UserError if the file cannot be read."""
    parquet = import_parquet(reference)
    try:
        return read(parquet)
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise UserError(
            f"Cannot read {file} of {reference} ({first_line(error)}). Remove it and download it again."
        ) from error
