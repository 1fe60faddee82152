"""flaxtl's own weight file: safetensors, one tensor a leaf under the key '<layer>/<leaf>'.

Kernels are kept in the precision asked for, every other leaf in float32: biases are small, and add up.
int8 is symmetric with one float32 scale per output channel (the last axis) beside it, under '<layer>/<leaf>.scale'.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import ml_dtypes
import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import save

from flaxtl.errors import UserError
from flaxtl.fileio import atomic_write
from flaxtl.pretrained.hdf5 import MAX_BYTES
from flaxtl.pretrained.merge import ParamTree, StoredTensor

Precision = Literal["float32", "bfloat16", "int8"]

_SCALE = ".scale"
_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I8": np.int8,
    "I64": np.int64,  # PyTorch's counters of batches
}

_deserialize: Callable[[bytes], list[tuple[str, dict[str, Any]]]] = safetensors.deserialize  # itself without types


class Contents(NamedTuple):
    """What `read` returns: the leaves with their values in float32, and the file's metadata."""

    leaves: dict[str, dict[str, StoredTensor]]
    metadata: dict[str, str]


def write_safetensors(
    path: Path, tree: ParamTree, metadata: Mapping[str, str], precision: Precision = "float32"
) -> None:
    """Write `tree` to `path`, which appears whole or not at all; the metadata gain the key 'precision'."""
    tensors: dict[str, NDArray[Any]] = {}
    for layer, leaves in tree.items():
        for leaf, values in leaves.items():
            tensors |= _encode(f"{layer}/{leaf}", values, precision if leaf == "kernel" else "float32")
    payload = save(tensors, {**metadata, "precision": precision})
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "wb") as file:
        file.write(payload)


def read_safetensors(path: Path) -> Contents:
    """Read a file that `write` made, or any safetensors file with keys '<layer>/<leaf>'.

    Raises UserError for a damaged file and for tensors that are not numbers of a known kind.
    """
    tensors, metadata = tensors_of(path)
    leaves: dict[str, dict[str, StoredTensor]] = {}
    for name, stored in sorted(tensors.items()):
        if name.endswith(_SCALE):
            continue
        layer, _, leaf = name.rpartition("/")
        leaves.setdefault(layer, {})[leaf] = _decode(stored, tensors.get(name + _SCALE), path)
    return Contents(leaves, metadata)


def tensors_of(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Every tensor of any safetensors file under its own name and in its own dtype, and the file's metadata.

    Raises UserError for a damaged file and for tensors that are not numbers of a known kind.
    """
    payload = path.read_bytes()
    try:
        tensors = {name: _view(name, tensor) for name, tensor in _deserialize(payload)}
        metadata = _metadata(payload)
    except (safetensors.SafetensorError, ValueError) as error:
        raise UserError(f"{path} is cut short or damaged ({error}); copy or make it again") from error
    size = sum(np.dtype(np.float32).itemsize * stored.values.size for stored in tensors.values())
    if size > MAX_BYTES:
        raise UserError(f"{path} comes to {size:,} bytes in float32, more than any network needs; it is another file")
    return tensors, metadata


def quantize(kernel: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int8 of a kernel and its float32 scale per output channel, shape (out,): kernel ~ int8 * scale."""
    largest = np.abs(kernel).max(axis=tuple(range(kernel.ndim - 1)))
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.rint(kernel / scale).astype(np.int8), scale


def _encode(key: str, values: NDArray[np.float32], precision: Precision) -> dict[str, NDArray[Any]]:
    if precision == "int8":
        rounded, scale = quantize(values)
        return {key: np.ascontiguousarray(rounded), key + _SCALE: scale}
    dtype = ml_dtypes.bfloat16 if precision == "bfloat16" else np.float32
    return {key: np.ascontiguousarray(values, dtype=dtype)}


def _decode(stored: StoredTensor, scale: StoredTensor | None, path: Path) -> StoredTensor:
    if stored.values.dtype == np.int64:
        return stored  # whole numbers, which are no weights
    values = stored.values.astype(np.float32, copy=False)
    if stored.values.dtype == np.int8:
        if scale is None or scale.values.shape != values.shape[-1:]:
            raise UserError(f"{path} holds {stored.name!r} in int8 without its scale per channel; make the file again")
        values = values * scale.values
    return StoredTensor(stored.name, stored.dtype, values)


def _view(name: str, tensor: Mapping[str, Any]) -> StoredTensor:
    if tensor["dtype"] not in _DTYPES:
        raise ValueError(f"{name!r} has the dtype {tensor['dtype']}")
    values = np.frombuffer(tensor["data"], _DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
    return StoredTensor(name, values.dtype.name, values)


def _metadata(payload: bytes) -> dict[str, str]:
    """The header's metadata: eight bytes of length, then that much JSON (safetensors format)."""
    length = int.from_bytes(payload[:8], "little")
    metadata: dict[str, str] = json.loads(payload[8 : 8 + length]).get("__metadata__", {})
    return metadata
