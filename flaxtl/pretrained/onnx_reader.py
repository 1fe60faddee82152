"""Read ONNX files: the initializers of the graph, with the names that Caffe2 gave them.

The nodes of the graph are ignored. The package `onnx` (extra `onnx`) is imported only when such a file is read.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from flaxtl.errors import UserError, missing_package
from flaxtl.pretrained.convert import channels_last_kernel
from flaxtl.pretrained.merge import LoadedLayers, StoredTensor, damaged_file

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

_START = re.compile(rb"\x08[\x01-\x7f][\x12\x1a\x22\x28\x32\x3a\x42]")
"""ONNX has no magic number: a model begins with its field ir_version (1), and one of the next seven fields follows."""

_NAME = re.compile(r"(?P<layer>.+)_(?P<leaf>[wb])_0")
_LEAVES = {"w": "kernel", "b": "bias"}


def is_onnx(start: bytes) -> bool:
    """Return whether a file with these first bytes can be an ONNX file."""
    return _START.match(start) is not None


def read_onnx(path: Path) -> LoadedLayers:
    """Read all floating-point initializers by layer and leaf, in Flax's layout.

    'inception_3a/1x1_w_0' becomes the kernel of the layer inception_3a_1x1. A name of another form becomes the layer,
    with the leaf 'initializer'. Initializers of other types are shapes and indices and are skipped.

    Raises:
      UserError: the package `onnx` is missing, the file is damaged, or its weights are stored in other files.
    """
    layers: dict[str, dict[str, StoredTensor]] = {}
    for tensor in _parse(path).graph.initializer:
        if not _is_float(tensor):
            continue
        if tensor.data_location == tensor.EXTERNAL:
            raise UserError(f"{path} stores {tensor.name!r} in another file. Save the model as a single file.")
        if not isinstance(tensor.name, str):  # protobuf returns invalid UTF-8 as bytes
            raise damaged_file(path, f"the ONNX initializer name {tensor.name!r} is not valid UTF-8")
        layer, leaf = _split_name(tensor.name)
        if leaf in layers.setdefault(layer, {}):
            raise damaged_file(path, f"ONNX initializer {tensor.name!r} exists twice")
        layers[layer][leaf] = _to_stored_tensor(tensor, layer, path)
    return layers


def _parse(path: Path) -> "ModelProto":
    try:
        from onnx import ModelProto
    except ImportError as error:
        raise missing_package(f"Reading {path}", "onnx", "onnx") from error
    model = ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except Exception as error:  # a DecodeError, which only protobuf itself exports
        raise damaged_file(path, f"not a valid ONNX model: {error}") from error
    return model


def _is_float(tensor: "TensorProto") -> bool:
    return tensor.data_type in (tensor.FLOAT, tensor.FLOAT16, tensor.DOUBLE, tensor.BFLOAT16)


def _split_name(name: str) -> tuple[str, str]:
    match = _NAME.fullmatch(name)
    return (match["layer"].replace("/", "_"), _LEAVES[match["leaf"]]) if match else (name, "initializer")


def _to_stored_tensor(tensor: "TensorProto", layer: str, path: Path) -> StoredTensor:
    from onnx import numpy_helper

    try:
        values = numpy_helper.to_array(tensor)
    except ValueError as error:
        raise damaged_file(path, f"ONNX initializer {tensor.name!r}: {error}") from error
    if values.ndim == 4 and values.shape[:2] == (1, 1):  # old Caffe models store matrices with four axes
        values = values[0, 0]
    return StoredTensor(tensor.name, values.dtype.name, channels_last_kernel(layer, values))
