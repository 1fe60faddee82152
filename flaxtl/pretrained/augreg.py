"""Read ViT weights: the .npz files of google-research/vision_transformer, and timm's safetensors of the same networks.

Keys of an .npz file are paths, such as `Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel`. Here a layer is named
after all parts but "Transformer" and the last, which is the leaf. Attention has an axis for its heads there, timm has
one matrix for query, key and value; here they are three dense layers with the heads one after the other.
"""

import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flaxtl.pretrained.merge import ExpectedShapes, LoadedLayers, StoredTensor, check_size, damaged_file

_ATTENTION = "MultiHeadDotProductAttention_1"


def read_npz(path: Path, expected: ExpectedShapes) -> LoadedLayers:
    """Read all arrays by layer and leaf.

    Args:
      path: the .npz file.
      expected: shapes of the parameters that the caller needs; position embeddings are resampled to theirs.

    Raises:
      UserError: the file is damaged, encrypted or too large, or holds anything but numeric arrays.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            check_size(path, sum(info.file_size for info in archive.infolist()))
        with np.load(path, allow_pickle=False) as arrays:
            tensors = {key: _to_stored_tensor(key, arrays[key]) for key in arrays.files}
    except (OSError, ValueError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise damaged_file(path, error) from error
    return _by_layer({_split_key(key): tensor for key, tensor in tensors.items()}, expected)


def _to_stored_tensor(key: str, values: NDArray[Any] | bytes) -> StoredTensor:
    if isinstance(values, bytes) or values.dtype.kind not in "fiub":  # bytes: the member is not an array
        raise ValueError(f"{key!r} is not a numeric array")
    return StoredTensor(key, values.dtype.name, values)


def _split_key(key: str) -> tuple[str, str]:
    """Return the (layer, leaf) of a key of an .npz file."""
    if key == "cls":
        return "cls", "token"
    *layer, leaf = key.removeprefix("Transformer/").split("/")
    return "_".join(layer), leaf


def from_timm(tensors: Mapping[str, StoredTensor], expected: ExpectedShapes) -> LoadedLayers:
    """Name the tensors of timm's VisionTransformer by layer and leaf; unknown ones keep their name.

    Args:
      tensors: the content of a safetensors file.
      expected: shapes of the parameters that the caller needs; position embeddings are resampled to theirs.
    """
    named: dict[tuple[str, str], StoredTensor] = {}
    for name, tensor in tensors.items():
        module, _, suffix = name.rpartition(".")
        values = tensor.values
        leaf = "scale" if suffix == "weight" and values.ndim == 1 else _TIMM_LEAVES.get(name, _TIMM_LEAVES.get(suffix))
        if values.ndim == 4:
            values = values.transpose(2, 3, 1, 0)
        elif values.ndim == 2:
            values = values.T
        for layer, part in _timm_parts(module or name, values):
            named[layer, leaf or suffix] = replace(tensor, values=part)
    return _by_layer(named, expected)


_TIMM_LEAVES = {"cls_token": "token", "pos_embed": "pos_embedding", "weight": "kernel", "bias": "bias"}
_TIMM_LAYERS = {
    "cls_token": "cls",
    "pos_embed": "posembed_input",
    "patch_embed.proj": "embedding",
    "norm": "encoder_norm",
    "head": "head",
}
_TIMM_BLOCK = {
    "norm1": "LayerNorm_0",
    "attn.proj": f"{_ATTENTION}_out",
    "norm2": "LayerNorm_2",
    "mlp.fc1": "MlpBlock_3_Dense_0",
    "mlp.fc2": "MlpBlock_3_Dense_1",
}


def _timm_parts(module: str, values: NDArray[Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield (layer, array) of a module: itself, or query, key and value, which follow one another in the outputs."""
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", module)
    if match and match[2] == "attn.qkv":
        for part, array in zip(("query", "key", "value"), np.array_split(values, 3, axis=-1), strict=True):
            yield f"encoderblock_{match[1]}_{_ATTENTION}_{part}", array
    elif match and match[2] in _TIMM_BLOCK:
        yield f"encoderblock_{match[1]}_{_TIMM_BLOCK[match[2]]}", values
    else:
        yield _TIMM_LAYERS.get(module, module), values


def _by_layer(tensors: Mapping[tuple[str, str], StoredTensor], expected: ExpectedShapes) -> LoadedLayers:
    layers: dict[str, dict[str, StoredTensor]] = {}
    for (layer, leaf), tensor in tensors.items():
        values = _to_flaxtl(layer, leaf, tensor.values, expected.get(layer, {}).get(leaf, ()))
        layers.setdefault(layer, {})[leaf] = replace(tensor, values=values)
    return layers


def _to_flaxtl(layer: str, leaf: str, values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Join the axes of heads and of their channels, and resample position embeddings to `shape`."""
    if leaf == "kernel" and values.ndim == 3:  # [heads, size, outputs] or [inputs, heads, size]
        first, middle, last = values.shape
        return values.reshape(first * middle, last) if layer.endswith("_out") else values.reshape(first, middle * last)
    if leaf == "bias" and values.ndim == 2:
        return values.ravel()
    if leaf == "pos_embedding" and values.ndim == len(shape) == 3 and values.shape[1] != shape[1]:
        return _resample(values, shape[1])
    return values


def _resample(embedding: NDArray[Any], tokens: int) -> NDArray[Any]:
    """Resample embeddings of a square grid to one of `tokens` - 1 patches; unchanged if one of them is not square."""
    from flaxtl.models.tokens import resample_embedding  # here, because the trial process must not load jax

    old, new = (math.isqrt(max(count - 1, 0)) for count in (embedding.shape[1], tokens))
    if (1 + old**2, 1 + new**2) != (embedding.shape[1], tokens):
        return embedding
    return np.asarray(resample_embedding(embedding.astype(np.float32), (old, old), (new, new)))
