"""Keras 3 layouts that today's Keras no longer writes, and hostile archives. The rest is tested in test_loader.py."""

import io
import zipfile

import h5py
import numpy as np
import pytest

from flaxtl.errors import UserError
from flaxtl.pretrained import keras_v3
from flaxtl.pretrained.hdf5 import open_h5


def numbered(number, *shape):
    return np.full(shape, number, np.float32)


def add_slot(file, path, *arrays, name=None):
    group = file.create_group(f"{path}/vars")
    for index, values in enumerate(arrays):
        group[str(index)] = values
    if name is not None:
        group.attrs["name"] = name


def read(path, expected=None):
    with open_h5(path, path) as file:
        assert keras_v3.is_keras_v3(file)
        layers = keras_v3.read_keras_v3(file, expected or {})
    return {layer: [array.values.flat[0] for array in arrays] for layer, arrays in layers.items()}


CONV = {"kernel": (1, 1, 1, 1), "bias": (1,)}
DENSE = {"kernel": (1, 1), "bias": (1,)}


@pytest.mark.parametrize("root", ["layers", "_layer_checkpoint_dependencies", "layers/functional/layers"])
def test_read_matches_unnamed_layers_by_rank_within_class(tmp_path, root):
    path = tmp_path / "nameless.weights.h5"
    with h5py.File(path, "w") as file:
        for i in range(11):  # conv2d_10 comes before conv2d_2 in the file's own, alphabetical order
            add_slot(file, f"{root}/conv2d_{i}" if i else f"{root}/conv2d", numbered(i, 1, 1, 1, 1), numbered(-i, 1))
        add_slot(file, f"{root}/dense", numbered(50, 1, 1), numbered(-50, 1))
        add_slot(file, f"{root}/dropout/seed_generator", np.zeros(2, np.uint32))
        add_slot(file, f"{root}/flatten")
        add_slot(file, "optimizer", numbered(99, 1))
    expected = {f"c{i}": CONV for i in range(6)} | {"fc": DENSE} | {f"d{i}": CONV for i in range(5)}
    convolutions = [f"c{i}" for i in range(6)] + [f"d{i}" for i in range(5)]
    assert read(path, expected) == {name: [i, -i] for i, name in enumerate(convolutions)} | {"fc": [50, -50]}


def test_read_keeps_group_name_of_unexpected_unnamed_layers(tmp_path):
    path = tmp_path / "more.weights.h5"
    with h5py.File(path, "w") as file:
        add_slot(file, "layers/dense", numbered(1, 1, 1))
        add_slot(file, "layers/dense_1", numbered(2, 1, 1))
    assert read(path, {"fc": DENSE}) == {"fc": [1], "layers/dense_1": [2]}


@pytest.mark.parametrize("name", ["block1_conv1", b"block1_conv1"])
def test_read_prefers_names_over_ranks(tmp_path, name):
    path = tmp_path / "named.weights.h5"
    with h5py.File(path, "w") as file:
        add_slot(file, "layers/conv2d", numbered(1, 1, 1, 1, 1), name="block1_conv2")
        add_slot(file, "layers/conv2d_1", numbered(2, 1, 1, 1, 1), name=name)
    assert read(path, {"block1_conv1": CONV, "block1_conv2": CONV}) == {"block1_conv2": [1], "block1_conv1": [2]}


def test_read_group_linked_into_itself_is_refused(tmp_path):
    path = tmp_path / "loop.weights.h5"
    with h5py.File(path, "w") as file:
        layers = file.create_group("layers")
        layers["again"] = layers
    with pytest.raises(UserError, match=r"loop\.weights\.h5\b.*'/layers.*(?i:link)"):
        read(path)


def archive(path, member, content, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr(member, content)
    return path


def test_archive_without_weights_is_refused(tmp_path):
    path = archive(tmp_path / "x.keras", "model.weights.npz", b"")
    with pytest.raises(UserError, match=r"x\.keras\b.*\bzip\b.*'model\.weights\.h5'"):
        keras_v3.open_archive(path)


def test_archive_with_extreme_compression_is_refused(tmp_path):
    path = archive(tmp_path / "bomb.keras", keras_v3.ARCHIVE_MEMBER, bytes(2**20), zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match=r"bomb\.keras\b.*'model\.weights\.h5'.*\b1,048,576\b"):
        keras_v3.open_archive(path)


def test_archive_larger_than_any_model_is_refused(tmp_path, monkeypatch):
    path = archive(tmp_path / "a.keras", keras_v3.ARCHIVE_MEMBER, bytes(1000))
    monkeypatch.setattr(keras_v3, "MAX_BYTES", 999)
    with pytest.raises(UserError, match=r"a\.keras\b.*\b1,000 bytes\b"):
        keras_v3.open_archive(path)


def test_archive_with_wrong_checksum_is_refused(tmp_path):
    path = archive(tmp_path / "x.keras", keras_v3.ARCHIVE_MEMBER, b"0123456789")
    path.write_bytes(path.read_bytes().replace(b"0123456789", b"0123456780"))
    with pytest.raises(UserError, match=r"x\.keras\b.*CRC-32"):
        keras_v3.open_archive(path)


def test_archive_that_is_compressed_is_read(tmp_path):
    content = np.random.default_rng(0).bytes(1000) * 5
    path = archive(tmp_path / "x.keras", keras_v3.ARCHIVE_MEMBER, content, zipfile.ZIP_DEFLATED)
    assert isinstance(keras_v3.open_archive(path), io.BytesIO)
    assert keras_v3.open_archive(path).read() == content
