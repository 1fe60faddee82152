"""Valid weight files of a network of four layers, and the doors that read them."""

import io
import json
import zipfile
from pathlib import Path

import h5py
import numpy as np
from ml_dtypes import bfloat16

from flaxtl.pretrained import safetensors_io
from flaxtl.pretrained.loader import load_timm_weights, load_weights
from fuzzing.subject import Subject

NETWORK = {
    "conv1": {"kernel": (3, 3, 3, 4), "bias": (4,)},
    "batch_normalization": {"scale": (4,), "bias": (4,), "mean": (4,), "var": (4,)},
    "conv2": {"kernel": (1, 1, 4, 4), "bias": (4,)},
    "predictions": {"kernel": (4, 2), "bias": (2,)},
}
TREE = {
    layer: {leaf: np.full(shape, 0.5, np.float32) for leaf, shape in leaves.items()}
    for layer, leaves in NETWORK.items()
}
CAFFE = {layer: leaves for layer, leaves in NETWORK.items() if "mean" not in leaves}
VGG = {"block1_conv1": {"kernel": (3, 3, 3, 4), "bias": (4,)}, "fc2": {"kernel": (4, 2), "bias": (2,)}}

_ONNX_TYPES = {"float32": 1, "float16": 10, "bfloat16": 16}


def keras_h5(folder: Path) -> list[Subject]:
    """Keras' legacy layout: weights alone, a whole model with its lists in parts, compressed in chunks."""
    for name in ("weights.h5", "model.h5", "chunks.h5"):
        with h5py.File(folder / name, "w", libver="latest" if name == "chunks.h5" else "earliest") as file:
            _legacy(file, name)
    return [Subject(folder, (name,), _load) for name in ("weights.h5", "model.h5", "chunks.h5")]


def _legacy(file: h5py.File, name: str) -> None:
    root = file.create_group("model_weights") if name == "model.h5" else file
    layers = [layer.encode() for layer in TREE]
    if name == "model.h5":
        root.attrs["layer_names0"], root.attrs["layer_names1"] = layers[:2], layers[2:]
        file.attrs["model_config"] = json.dumps({"class_name": "Functional"})
    else:
        root.attrs["layer_names"] = layers
    root.attrs["backend"], root.attrs["keras_version"] = b"tensorflow", b"2.15.0"
    packed = {"compression": "gzip", "shuffle": True, "fletcher32": True} if name == "chunks.h5" else {}
    for layer, leaves in TREE.items():
        group = root.create_group(layer)
        group.attrs["weight_names"] = [f"{layer}/{leaf}:0".encode() for leaf in leaves]
        for leaf, values in leaves.items():
            group.create_dataset(f"{layer}/{leaf}:0", data=values, **packed)


def keras3(folder: Path) -> list[Subject]:
    """Keras 3's layout: `.weights.h5`, and `.keras` archives as Keras writes them and with everything deflated."""
    with h5py.File(folder / "k.weights.h5", "w") as file:
        _nested(file)
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        _nested(file)
    for name, kind in (("stored.keras", zipfile.ZIP_STORED), ("deflated.keras", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(folder / name, "w", kind) as archive:
            for member, content in (
                ("metadata.json", b'{"keras_version": "3.12.0"}'),
                ("config.json", b'{"module": "keras", "class_name": "Functional"}'),
                ("model.weights.h5", stream.getvalue()),
            ):
                archive.writestr(zipfile.ZipInfo(member), content, kind)
    return [Subject(folder, (name,), _load) for name in ("k.weights.h5", "stored.keras", "deflated.keras")]


def _nested(file: h5py.File) -> None:
    for number, (layer, leaves) in enumerate(TREE.items()):
        group = file.create_group(f"layers/conv2d_{number}/vars")
        group.attrs["name"] = layer
        for index, values in enumerate(leaves.values()):
            group.create_dataset(str(index), data=values)
    file.create_group("optimizer/vars").create_dataset("0", data=np.zeros(3, np.float32))


def safetensors(folder: Path) -> list[Subject]:
    """flaxtl's own file in three precisions, and PyTorch's names."""
    for precision in ("float32", "bfloat16", "int8"):
        safetensors_io.write_safetensors(folder / f"{precision}.safetensors", TREE, {"architecture": "tiny"}, precision)
    torch = {
        "features.0": {"weight": np.zeros((4, 3, 3, 3), np.float32), "bias": np.zeros(4, np.float32)},
        "classifier.3": {"weight": np.zeros((2, 4), np.float32), "bias": np.zeros(2, np.float32)},
    }
    safetensors_io.write_safetensors(folder / "torch.safetensors", torch, {"format": "pt"})
    content = (folder / "torch.safetensors").read_bytes().replace(b"features.0/", b"features.0.")
    (folder / "torch.safetensors").write_bytes(content.replace(b"classifier.3/", b"classifier.3."))
    own = [Subject(folder, (f"{precision}.safetensors",), _load) for precision in ("float32", "bfloat16", "int8")]
    return [*own, Subject(folder, ("torch.safetensors",), _load_timm)]


def onnx(folder: Path) -> list[Subject]:
    """The initialisers of a graph in three precisions, as packed floats and as raw bytes."""
    tensors = []
    for number, layer in enumerate(CAFFE):
        for leaf, letter in (("kernel", "w"), ("bias", "b")):
            values, dtype = TREE[layer][leaf].T, (np.float32, np.float16, bfloat16)[number]
            tensors.append(_tensor(f"{layer}_{letter}_0", np.ascontiguousarray(values, dtype), raw=number != 0))
    graph = _field(2, b"graph") + b"".join(_field(5, tensor) for tensor in tensors)
    (folder / "tiny.onnx").write_bytes(b"\x08\x03" + _field(2, b"onnx-caffe2") + _field(7, graph))
    return [Subject(folder, ("tiny.onnx",), _load_caffe)]


def _tensor(name: str, values: np.ndarray, *, raw: bool) -> bytes:
    """A TensorProto: dims (1), data_type (2), name (8), float_data (4) or raw_data (9)."""
    kind = b"\x10" + _varint(_ONNX_TYPES[values.dtype.name])
    dims = b"".join(b"\x08" + _varint(side) for side in values.shape)
    return dims + kind + _field(8, name.encode()) + _field(9 if raw else 4, values.tobytes())


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    head, rest = value & 0x7F, value >> 7
    return bytes([head | 0x80]) + _varint(rest) if rest else bytes([head])


def _load(folder: Path, file: str) -> None:
    load_weights(folder / file, NETWORK, NETWORK.keys())


def _load_caffe(folder: Path, file: str) -> None:
    load_weights(folder / file, CAFFE, CAFFE.keys(), trusted=True)  # a trial would import onnx for every file


def _load_timm(folder: Path, file: str) -> None:
    load_timm_weights(folder / file, "vgg16", VGG, VGG.keys())
