"""Valid weight files of a network of four layers, and their readers, for fuzz.py."""

import json
import zipfile
from pathlib import Path

import h5py
import numpy as np
from fuzz import Sample
from ml_dtypes import bfloat16

from flaxtl.pretrained import safetensors_io
from flaxtl.pretrained.loader import load_timm_weights, load_weights

SHAPES = {
    "conv1": {"kernel": (3, 3, 3, 4), "bias": (4,)},
    "batch_normalization": {"scale": (4,), "bias": (4,), "mean": (4,), "var": (4,)},
    "conv2": {"kernel": (1, 1, 4, 4), "bias": (4,)},
    "predictions": {"kernel": (4, 2), "bias": (2,)},
}
TREE = {
    layer: {leaf: np.full(shape, 0.5, np.float32) for leaf, shape in leaves.items()} for layer, leaves in SHAPES.items()
}
CAFFE_SHAPES = {layer: leaves for layer, leaves in SHAPES.items() if "mean" not in leaves}
VGG_SHAPES = {"block1_conv1": {"kernel": (3, 3, 3, 4), "bias": (4,)}, "fc2": {"kernel": (4, 2), "bias": (2,)}}


def keras_legacy(folder: Path) -> list[Sample]:
    """Write Keras' legacy layout: weights only, a whole model with its name list in two parts, compressed chunks."""
    for name in ("weights.h5", "model.h5", "chunks.h5"):
        with h5py.File(folder / name, "w", libver="latest" if name == "chunks.h5" else "earliest") as file:
            _write_legacy(file, name)
    return [Sample(folder, (name,), _load) for name in ("weights.h5", "model.h5", "chunks.h5")]


def _write_legacy(file: h5py.File, name: str) -> None:
    root = file.create_group("model_weights") if name == "model.h5" else file
    layers = [layer.encode() for layer in TREE]
    if name == "model.h5":
        root.attrs["layer_names0"], root.attrs["layer_names1"] = layers[:2], layers[2:]
        file.attrs["model_config"] = json.dumps({"class_name": "Functional"})
    else:
        root.attrs["layer_names"] = layers
    root.attrs["backend"], root.attrs["keras_version"] = b"tensorflow", b"2.15.0"
    compression = {"compression": "gzip", "shuffle": True, "fletcher32": True} if name == "chunks.h5" else {}
    for layer, leaves in TREE.items():
        group = root.create_group(layer)
        group.attrs["weight_names"] = [f"{layer}/{leaf}:0".encode() for leaf in leaves]
        for leaf, values in leaves.items():
            group.create_dataset(f"{layer}/{leaf}:0", data=values, **compression)


def keras_v3(folder: Path) -> list[Sample]:
    """Write Keras 3's layout: `.weights.h5`, and `.keras` archives, stored as Keras writes them and compressed."""
    with h5py.File(folder / "k.weights.h5", "w") as file:
        for number, (layer, leaves) in enumerate(TREE.items()):
            group = file.create_group(f"layers/conv2d_{number}/vars")
            group.attrs["name"] = layer
            for index, values in enumerate(leaves.values()):
                group.create_dataset(str(index), data=values)
        file.create_group("optimizer/vars").create_dataset("0", data=np.zeros(3, np.float32))
    members = {
        "metadata.json": b'{"keras_version": "3.12.0"}',
        "config.json": b'{"module": "keras", "class_name": "Functional"}',
        "model.weights.h5": (folder / "k.weights.h5").read_bytes(),
    }
    for name, method in (("stored.keras", zipfile.ZIP_STORED), ("deflated.keras", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(folder / name, "w", method) as archive:
            for member, content in members.items():
                archive.writestr(zipfile.ZipInfo(member), content, method)  # ZipInfo: no time of writing
    return [Sample(folder, (name,), _load) for name in ("k.weights.h5", "stored.keras", "deflated.keras")]


def safetensors(folder: Path) -> list[Sample]:
    """Write flaxtl's own format in three precisions, and one with PyTorch's names."""
    own = [f"{precision}.safetensors" for precision in ("float32", "bfloat16", "int8")]
    for name in own:
        safetensors_io.write_safetensors(folder / name, TREE, {"architecture": "tiny"}, Path(name).stem)
    torch = {
        "features.0": {"weight": np.zeros((4, 3, 3, 3), np.float32), "bias": np.zeros(4, np.float32)},
        "classifier.3": {"weight": np.zeros((2, 4), np.float32), "bias": np.zeros(2, np.float32)},
    }
    file = folder / "torch.safetensors"
    safetensors_io.write_safetensors(file, torch, {"format": "pt"})
    file.write_bytes(file.read_bytes().replace(b"features.0/", b"features.0.").replace(b"r.3/", b"r.3."))
    return [*(Sample(folder, (name,), _load) for name in own), Sample(folder, (file.name,), _load_timm)]


def onnx(folder: Path) -> list[Sample]:
    """Write the initializers of a graph in three precisions: float32 as packed floats, the others as raw bytes."""
    from onnx import TensorProto, helper

    precisions = (TensorProto.FLOAT, np.float32), (TensorProto.FLOAT16, np.float16), (TensorProto.BFLOAT16, bfloat16)
    tensors = []
    for (layer, leaves), (onnx_type, dtype) in zip(CAFFE_SHAPES.items(), precisions, strict=True):
        for leaf, suffix in (("kernel", "w"), ("bias", "b")):
            values = np.full(leaves[leaf][::-1], 0.5, dtype)
            raw = onnx_type != TensorProto.FLOAT
            content = values.tobytes() if raw else values.ravel()
            tensors.append(helper.make_tensor(f"{layer}_{suffix}_0", onnx_type, values.shape, content, raw=raw))
    model = helper.make_model(helper.make_graph([], "graph", [], [], tensors), producer_name="onnx-caffe2")
    (folder / "tiny.onnx").write_bytes(model.SerializeToString())
    return [Sample(folder, ("tiny.onnx",), _load_caffe)]


def _load(folder: Path, file: str) -> None:
    load_weights(folder / file, SHAPES, SHAPES.keys())


def _load_caffe(folder: Path, file: str) -> None:
    # `trusted`: otherwise each file would first be read in another process, which imports onnx every time.
    load_weights(folder / file, CAFFE_SHAPES, CAFFE_SHAPES.keys(), trusted=True)


def _load_timm(folder: Path, file: str) -> None:
    load_timm_weights(folder / file, "vgg16", VGG_SHAPES, VGG_SHAPES.keys())
