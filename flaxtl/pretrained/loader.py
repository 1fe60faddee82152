"""Load a weight file of any supported format into the parameters of a model.

Formats: Keras HDF5 of every version, `.keras` archives, flaxtl's and PyTorch's safetensors, ViT's .npz, and ONNX.
The format is detected from the content, never from the file name.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import h5py

from flaxtl.errors import UserError, unknown
from flaxtl.pretrained import augreg, convert, keras_layers, keras_legacy, keras_v3, onnx_reader, safetensors_io, timm
from flaxtl.pretrained.hdf5 import open_h5
from flaxtl.pretrained.merge import (
    ExpectedShapes,
    LoadedLayers,
    ParamTree,
    StoredLayers,
    WeightRow,
    check_size,
    merge_params,
)
from flaxtl.pretrained.trained_head import merge_with_head
from flaxtl.pretrained.trial import trial_read


@dataclass(frozen=True)
class LoadedWeights:
    """A weight file fitted to a model.

    Attributes:
      params: exactly the expected parameters, float32.
      rows: what happened to each array of the file.
      format: the detected file format, for messages.
    """

    params: ParamTree
    rows: list[WeightRow]
    format: str


def load_weights(
    path: Path,
    expected: ExpectedShapes,
    optional: Collection[str] = frozenset(),
    *,
    skip_layers: str = "",
    trusted: bool = False,
) -> LoadedWeights:
    """Read a weight file and fit it to a model.

    Args:
      path: a Keras HDF5 file, a `.keras` archive, a flaxtl safetensors file, ViT's .npz or an ONNX file.
      expected: the parameters that the model needs.
      optional: layers to skip if the file holds them. May list all layers of the model with its top: layers with
        automatic Keras names are identified by their order in that list.
      skip_layers: a regular expression for layer names of the file that are left out, such as another head; "" for
        none. The model's own layers are needed all the same.
      trusted: the file is known to be a published one (its hash was checked). Any other HDF5 or ONNX file is first
        read in a separate process (see `trial`).

    Raises:
      UserError: the file is in none of these formats, damaged or unsafe, or does not fit the model; or `skip_layers`
        is invalid or matches none of its layers.
    """
    if not trusted:
        _check_readable(path)
    layers, file_format = read_layers(path, expected, dict.fromkeys((*optional, *expected)), skip_layers)
    return LoadedWeights(*merge_params(expected, layers, optional=optional, source=str(path)), file_format)


def load_weights_with_head(
    path: Path,
    backbone: ExpectedShapes,
    head: ExpectedShapes,
    *,
    published: ExpectedShapes,
    skip_layers: str = "",
    trusted: bool = False,
) -> ParamTree:
    """Do the same for a file that may hold a trained head; see `merge_with_head` for the arguments and the result."""
    if not trusted:
        _check_readable(path)
    layers, _ = read_layers(path, backbone, dict.fromkeys((*published, *backbone)), skip_layers)
    return merge_with_head(layers, backbone, head, published=published, source=str(path))


def load_timm_weights(
    path: Path, model_name: str, expected: ExpectedShapes, optional: Collection[str] = frozenset()
) -> LoadedWeights:
    """Do the same for a safetensors file of PyTorch's `model_name` with the names of timm or torchvision."""
    start = _read_start(path)
    if not _is_safetensors(start):
        raise UserError(f"{path} is {_guess_content(start)}, not a safetensors file, which --layout=timm reads.")
    check_size(path, path.stat().st_size)  # it is read as a whole
    layers = timm.read_timm(path, model_name, {*expected, *optional}, expected)
    params, rows = merge_params(expected, layers, optional=optional, source=str(path))
    return LoadedWeights(params, rows, "PyTorch safetensors")


def read_layers(
    path: Path, expected: ExpectedShapes | None = None, known: Collection[str] = (), skip_layers: str = ""
) -> tuple[LoadedLayers, str]:
    """Read all arrays of a weight file.

    Args:
      path: the file.
      expected: the parameters that the model needs. They decide the names of arrays that the file leaves open.
      known: all layers that the file may hold, in the order of the model.
      skip_layers: see `load_weights`.

    Returns:
      The arrays by layer and leaf, and the detected file format.
    """
    expected = expected or {}
    start = _read_start(path)
    if _is_keras(path, start):
        layers, file_format = _read_keras(path, start, expected, known)
        layers = _without_layers(layers, skip_layers)  # before automatic names are matched by their number
        layers = keras_layers.drop_normalization(layers, path)
        layers = keras_layers.rename_automatic_layers(layers, (known, expected), path)
        layers = keras_layers.rename_final_norm(layers, expected)
        return convert.name_leaves(layers, expected), file_format
    check_size(path, path.stat().st_size)  # it is read as a whole
    if _is_safetensors(start):
        tensors, metadata = safetensors_io.read_safetensors(path)
        file_format = f"safetensors ({metadata.get('precision', 'unknown precision')})"
        return _without_layers(tensors, skip_layers), file_format
    if _first_member(start).endswith(".npy"):
        return _without_layers(augreg.read_npz(path, expected), skip_layers), "NumPy .npz"
    if onnx_reader.is_onnx(start):
        return _without_layers(onnx_reader.read_onnx(path), skip_layers), "ONNX"
    raise UserError(
        f"{path} is {_guess_content(start)}, not a weight file. "
        "Supported: Keras .h5 and .keras, flaxtl .safetensors, ViT's .npz, and .onnx files."
    )


def skip_pattern(skip_layers: str) -> re.Pattern[str]:
    """Return the regular expression of the setting. Raises UserError if it is not one."""
    try:
        return re.compile(skip_layers)
    except (re.error, TypeError) as error:
        raise UserError(f"skip_layers={skip_layers!r} is not a regular expression: {error}") from error


_Content = TypeVar("_Content")


def _without_layers(layers: Mapping[str, _Content], pattern: str) -> dict[str, _Content]:
    """Remove the layers with a name that `pattern` matches as a whole. Raises UserError if there is none."""
    if not pattern:
        return dict(layers)
    skipped = set(filter(skip_pattern(pattern).fullmatch, layers))
    if not skipped:
        raise unknown("layer in skip_layers", pattern, layers)
    return {layer: content for layer, content in layers.items() if layer not in skipped}


def _is_safetensors(start: bytes) -> bool:
    return start[8:9] == b"{"  # eight bytes of header length, then JSON


_ZIP_MAGIC = b"PK\x03\x04"
_NAME_OFFSET = 30  # of the name of the first file in a zip archive; its length is at 26

_PICKLE_SUFFIX = "data.pkl"  # first file in an archive of PyTorch


def _first_member(start: bytes) -> str:
    """Return the name of the first file in a zip archive that begins with `start`; '' for a file of another format."""
    name = start[_NAME_OFFSET : _NAME_OFFSET + int.from_bytes(start[26:28], "little")]
    return name.decode(errors="replace") if start.startswith(_ZIP_MAGIC) else ""


def _is_keras(path: Path, start: bytes) -> bool:
    is_archive = start.startswith(_ZIP_MAGIC) and not _first_member(start).endswith((".npy", _PICKLE_SUFFIX))
    return is_archive or bool(h5py.is_hdf5(path))


def _check_readable(path: Path) -> None:
    """Read a file first in a separate process if a C library parses it, which a hostile file can crash or exhaust."""
    start = _read_start(path)
    if _is_keras(path, start) or onnx_reader.is_onnx(start):
        trial_read(path)


def _read_keras(path: Path, start: bytes, expected: ExpectedShapes, known: Collection[str]) -> tuple[StoredLayers, str]:
    if start.startswith(_ZIP_MAGIC):
        with open_h5(keras_v3.open_archive(path), path) as file:
            return keras_v3.read_keras_v3(file, expected), "Keras 3 .keras archive"
    with open_h5(path, path) as file:
        if keras_legacy.is_legacy_h5(file):
            return keras_legacy.read_legacy_h5(file, known), keras_legacy.describe_h5(file)
        if keras_v3.is_keras_v3(file):
            return keras_v3.read_keras_v3(file, expected), "Keras 3 .weights.h5"
    raise UserError(f"{path} is an HDF5 file, but not a Keras weight file. Save the weights with Keras.")


def _read_start(path: Path) -> bytes:
    if path.is_dir():
        raise UserError(f"{path} is a directory. Give the path of the weight file in it.")
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except FileNotFoundError as error:
        raise UserError(f"Weight file {path} does not exist. Check the path.") from error
    except OSError as error:
        raise UserError(f"Cannot read {path} ({error.strerror}). Check its permissions.") from error
    if not start:
        raise UserError(f"{path} is empty. Copy or download it again.")
    return start


def _guess_content(start: bytes) -> str:
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page (the download link led to a page, not to the file)"
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer (run `git lfs pull`)"
    if re.match(rb"\x80[\x02-\x05]", start) or _first_member(start).endswith(_PICKLE_SUFFIX):
        return "a pickle, which could run code (of PyTorch: save its tensors with safetensors.torch.save_file)"
    return "of an unknown format"
