"""Read and write flaxtl's own weight file: safetensors, one tensor per parameter, with the key '<layer>/<leaf>'.

Kernels are stored in the chosen precision, all other leaves in float32: biases are small, and their errors add up.
int8 is symmetric, with one float32 scale per output channel (the last axis) stored as '<layer>/<leaf>.scale'.
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
from flaxtl.pretrained.merge import LoadedLayers, ParamTree, StoredTensor, check_size, damaged_file

Precision = Literal["float32", "bfloat16", "int8"]

_SCALE_SUFFIX = ".scale"
_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I8": np.int8,
    "I64": np.int64,  # PyTorch's batch counters
}

_deserialize: Callable[[bytes], list[tuple[str, dict[str, Any]]]] = safetensors.deserialize  # untyped in the library


class SafetensorsFile(NamedTuple):
    """The parameters of a file by layer and leaf, decoded to float32, and the file's metadata."""

    layers: LoadedLayers
    metadata: dict[str, str]


def write_safetensors(
    path: Path, params: ParamTree, metadata: Mapping[str, str], precision: Precision = "float32"
) -> None:
    """Write `params` atomically to `path`. The key 'precision' is added to the metadata."""
    tensors: dict[str, NDArray[Any]] = {}
    for layer, leaves in params.items():
        for leaf, values in leaves.items():
            tensors |= _encode(f"{layer}/{leaf}", values, precision if leaf == "kernel" else "float32")
    payload = save(tensors, {**metadata, "precision": precision})
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "wb") as file:
        file.write(payload)


def read_safetensors(path: Path) -> SafetensorsFile:
    """Read a file written by `write_safetensors`, or any safetensors file with keys '<layer>/<leaf>'.

    Raises:
      UserError: the file is damaged, or a tensor has another kind of name, an unsupported dtype or no scale.
    """
    tensors, metadata = read_tensors(path)
    layers: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in sorted(tensors.items()):
        if name.endswith(_SCALE_SUFFIX):
            continue
        layer, _, leaf = name.rpartition("/")
        if not layer:
            raise UserError(
                f"{path} is not a file of flaxtl: it has a tensor {name!r}, not LAYER/LEAF. Convert a file of timm or "
                "torchvision first, with flaxtl convert --layout=timm."
            )
        layers.setdefault(layer, {})[leaf] = _decode(tensor, tensors.get(name + _SCALE_SUFFIX), path)
    return SafetensorsFile(layers, metadata)


def read_tensors(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Read all tensors of any safetensors file, by name, with their own dtypes, and the file's metadata.

    Raises:
      UserError: the file is damaged, or a tensor has an unsupported dtype.
    """
    payload = path.read_bytes()
    try:
        tensors = {name: _to_stored_tensor(name, tensor, path) for name, tensor in sorted(_deserialize(payload))}
        metadata = _read_metadata(payload)
    except (safetensors.SafetensorError, ValueError) as error:
        raise damaged_file(path, error) from error
    check_size(path, sum(np.dtype(np.float32).itemsize * tensor.values.size for tensor in tensors.values()))
    return tensors, metadata


def quantize(kernel: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantize a kernel to symmetric int8 per output channel.

    Returns:
      The int8 kernel, and the float32 scales, shape (out,), with kernel ~ int8 * scale.
    """
    largest = np.abs(kernel).max(axis=tuple(range(kernel.ndim - 1)))
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.rint(kernel / scale).astype(np.int8), scale


def _encode(key: str, values: NDArray[np.float32], precision: Precision) -> dict[str, NDArray[Any]]:
    if precision == "int8":
        quantized, scale = quantize(values)
        return {key: np.ascontiguousarray(quantized), key + _SCALE_SUFFIX: scale}
    dtype = ml_dtypes.bfloat16 if precision == "bfloat16" else np.float32
    return {key: np.ascontiguousarray(values, dtype=dtype)}


def _decode(tensor: StoredTensor, scale: StoredTensor | None, path: Path) -> StoredTensor:
    if tensor.values.dtype == np.int64:
        return tensor  # a counter, not a weight
    values = tensor.values.astype(np.float32, copy=False)
    if tensor.values.dtype == np.int8:
        if scale is None or scale.values.shape != values.shape[-1:]:
            raise UserError(f"{path} stores {tensor.name!r} as int8 without a scale per channel. Create it again.")
        values = values * scale.values
    return StoredTensor(tensor.name, tensor.dtype, values)


def _to_stored_tensor(name: str, tensor: Mapping[str, Any], path: Path) -> StoredTensor:
    if tensor["dtype"] not in _DTYPES:
        raise UserError(f"{path} stores {name!r} as {tensor['dtype']}, which is not supported. Save it as F32.")
    values = np.frombuffer(tensor["data"], _DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
    return StoredTensor(name, values.dtype.name, values)


def _read_metadata(payload: bytes) -> dict[str, str]:
    """Return the metadata of the header: eight bytes of length, then that many bytes of JSON."""
    length = int.from_bytes(payload[:8], "little")
    metadata: dict[str, str] | None = json.loads(payload[8 : 8 + length]).get("__metadata__")
    return metadata or {}
