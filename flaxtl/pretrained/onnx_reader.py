"""ONNX files: the initialisers of the graph, under the names that Caffe2 gave them.

An ONNX file is one protocol buffer. Of its many fields the eight that hold weights are read here, by their numbers in
onnx.proto; all others are skipped, and no node of the graph is looked at. Whatever the file declares, its arrays are
made of its own bytes and nothing is allocated beyond them.
"""

import re
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from flaxtl.errors import UserError
from flaxtl.pretrained import convert
from flaxtl.pretrained.merge import StoredTensor

# No magic number: a model begins with its field ir_version (1), and one of the next seven follows.
_START = re.compile(rb"\x08[\x01-\x7f][\x12\x1a\x22\x28\x32\x3a\x42]")

_GRAPH = 7  # of ModelProto
_INITIALIZER = 5  # of GraphProto
_DIMS, _DATA_TYPE, _FLOAT_DATA, _NAME, _RAW_DATA, _DATA_LOCATION = 1, 2, 4, 8, 9, 14  # of TensorProto

_FLOAT = 1
_DTYPES: dict[int, Any] = {_FLOAT: "<f4", 10: "<f2", 11: "<f8", 16: ml_dtypes.bfloat16}
"""TensorProto.DataType of the kinds that weights come in; what is left out are shapes and indices."""

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5  # wire types of protocol buffers

_TOO_MANY_AXES = 65  # for numpy, which says so: a stranger's file may announce any number

_NAMES = re.compile(r"(?P<layer>.+)_(?P<leaf>[wb])_0")
_LEAVES = {"w": "kernel", "b": "bias"}


def is_onnx(start: bytes) -> bool:
    """Whether a file with these first bytes may be one."""
    return _START.match(start) is not None


def read_onnx(path: Path) -> dict[str, dict[str, StoredTensor]]:
    """layer -> leaf -> array, as Flax has it; 'inception_3a/1x1_w_0' is the kernel of the layer inception_3a_1x1.

    Raises UserError for a damaged file and for one whose weights lie in other files.
    """
    try:
        return _leaves(memoryview(path.read_bytes()), path)
    except (ValueError, OverflowError) as error:
        raise UserError(f"{path} is damaged, or no ONNX file ({error}); copy or download it again") from error


def _leaves(model: memoryview, path: Path) -> dict[str, dict[str, StoredTensor]]:
    found: dict[str, dict[str, StoredTensor]] = {}
    for graph in _chunks(model, _GRAPH):
        for tensor in _chunks(graph, _INITIALIZER):
            if _last(tensor, _DATA_TYPE) not in _DTYPES:
                continue
            name = b"".join(_chunks(tensor, _NAME)).decode()
            if _last(tensor, _DATA_LOCATION):
                raise UserError(f"{path} keeps {name!r} in another file; save the model again with its weights inside")
            layer, leaf = _place(name)
            if leaf in found.setdefault(layer, {}):
                raise ValueError(f"{name!r} is there twice")
            found[layer][leaf] = _stored(name, layer, tensor)
    return found


def _place(name: str) -> tuple[str, str]:
    match = _NAMES.fullmatch(name)
    return (match["layer"].replace("/", "_"), _LEAVES[match["leaf"]]) if match else (name, "initialiser")


def _stored(name: str, layer: str, tensor: memoryview) -> StoredTensor:
    kind, shape = _last(tensor, _DATA_TYPE), list(islice(_numbers(tensor, _DIMS), _TOO_MANY_AXES))
    data = _chunks(tensor, _RAW_DATA) or (_chunks(tensor, _FLOAT_DATA) if kind == _FLOAT else [])
    values = np.frombuffer(data[0] if len(data) == 1 else b"".join(data), _DTYPES[kind]).reshape(shape)
    if values.shape[:2] == (1, 1) and values.ndim == 4:  # Caffe once kept matrices with four axes
        values = values[0, 0]
    return StoredTensor(name, values.dtype.name, convert.channels_last_kernel(layer, values))


def _chunks(message: memoryview, number: int) -> list[memoryview]:
    """What the fields `number` hold, those with a length or of a fixed size."""
    return [value for field, value in _fields(message) if field == number and isinstance(value, memoryview)]


def _numbers(message: memoryview, number: int) -> Iterator[int]:
    """The whole numbers in the fields `number`, one by one or packed."""
    for field, value in _fields(message):
        if field == number and isinstance(value, int):
            yield value
        elif field == number and isinstance(value, memoryview):
            at = 0
            while at < len(value):
                packed, at = _varint(value, at)
                yield packed


def _last(message: memoryview, number: int) -> int:
    """The whole number in the last of the fields `number`, which rules; 0 where there is none."""
    last = deque(_numbers(message, number), maxlen=1)
    return last[0] if last else 0


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(number, value) of every field; values of a known length are views."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == _LENGTH:
            length, at = _varint(message, at)
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"a field of wire type {wire}")
        if length > len(message) - at:
            raise ValueError("it ends in the middle of a field")
        yield number, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number that begins at byte `at`, seven bits a byte, the lowest first, and where the next thing begins."""
    value = 0
    for shift in range(0, 64, 7):
        if at == len(message):
            raise ValueError("it ends in the middle of a number")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than 64 bits")
