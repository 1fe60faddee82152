"""Files of every format; the Keras files are written here by Keras itself."""

import os
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from flaxtl.errors import UserError
from flaxtl.pretrained import merge, safetensors_io
from flaxtl.pretrained.loader import load_weights, load_weights_with_head

EXPECTED = {
    "block1_conv1": {"kernel": (3, 3, 3, 4), "bias": (4,)},
    "block1_conv2": {"kernel": (3, 3, 4, 5), "bias": (5,)},
}
HEAD = {"predictions": {"kernel": (80, 3), "bias": (3,)}}
VGG16 = Path(__file__).parents[3] / "shared/weights/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"


@pytest.fixture(scope="module")
def keras():
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    return keras


def make_base(keras, dtype=None):
    """Two convolutions with random weights (drawn by numpy: Keras would compile its initializers)."""
    layers = keras.layers
    inputs = layers.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="block1_conv1", kernel_initializer="zeros", dtype=dtype)(inputs)
    x = layers.Conv2D(5, 3, name="block1_conv2", kernel_initializer="zeros", dtype=dtype)(x)
    return randomized(keras.Model(inputs, layers.Flatten()(x), name="vgg"))


@pytest.fixture(scope="module", params=[(True, True), (False, True), (False, False)], ids=["open", "partly", "frozen"])
def nested(keras, request):
    return make_nested(keras, request.param)


def make_nested(keras, trainable):
    """The base inside a Sequential, its two convolutions frozen or not, under a new head; with an optimizer's state."""
    layers = keras.layers
    base = make_base(keras)
    for name, is_trainable in zip(EXPECTED, trainable, strict=True):
        base.get_layer(name).trainable = is_trainable
    head = layers.Dense(3, name="predictions", kernel_initializer="zeros")
    model = keras.Sequential([layers.Input((8, 8, 3)), base, layers.Dropout(0.4, seed=1), head])
    model.compile("nadam", "mse")
    model.optimizer.build(model.trainable_variables)
    return randomized(model)


def randomized(model):
    generator = np.random.default_rng(0)
    model.set_weights([generator.normal(size=array.shape).astype(array.dtype) for array in model.get_weights()])
    return model


def save_legacy_weights(model, path):
    from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group  # what Keras 2's save_weights did

    with h5py.File(path, "w") as file:
        save_weights_to_hdf5_group(file, model)


WRITERS = {
    "legacy weights": (save_legacy_weights, "x.h5", "legacy Keras HDF5"),
    "legacy model": (lambda model, path: model.save(path), "x.h5", "legacy Keras HDF5"),
    "Keras 3 weights": (lambda model, path: model.save_weights(path), "x.weights.h5", "Keras 3 .weights.h5"),
    "Keras 3 model": (lambda model, path: model.save(path), "x.keras", "Keras 3 .keras archive"),
}
written_by = pytest.mark.parametrize(("write", "filename", "file_format"), WRITERS.values(), ids=WRITERS.keys())


def assert_holds(params, *layers):
    assert list(params) == [layer.name for layer in layers]
    for layer in layers:
        kernel, bias = layer.get_weights()
        np.testing.assert_array_equal(params[layer.name]["kernel"], kernel, strict=True)
        np.testing.assert_array_equal(params[layer.name]["bias"], bias, strict=True)


@written_by
def test_load_flat_model_returns_its_weights(keras, tmp_path, write, filename, file_format):
    base = make_base(keras)
    write(base, tmp_path / filename)
    loaded = load_weights(tmp_path / filename, EXPECTED)
    assert_holds(loaded.params, *(base.get_layer(name) for name in EXPECTED))
    assert loaded.format.startswith(file_format)
    assert [row.status for row in loaded.rows] == ["loaded"] * 4


@written_by
def test_load_nested_model_with_and_without_head(nested, tmp_path, write, filename, file_format):
    model = nested
    write(model, tmp_path / filename)
    head = model.get_layer("predictions")
    convolutions = [model.get_layer("vgg").get_layer(name) for name in EXPECTED]
    assert_holds(load_weights(tmp_path / filename, EXPECTED | HEAD, trusted=True).params, *convolutions, head)
    base_only = load_weights(tmp_path / filename, EXPECTED, optional={"predictions"}, trusted=True)
    assert_holds(base_only.params, *convolutions)
    assert {(row.layer, row.leaf) for row in base_only.rows if row.status == "skipped"} == {
        ("predictions", "kernel"),
        ("predictions", "bias"),
    }
    with pytest.raises(UserError, match=r"skip_layers='predictions'[\s\S]*\+ predictions/kernel \(80, 3\)"):
        load_weights(tmp_path / filename, EXPECTED, trusted=True)
    skipped = load_weights(tmp_path / filename, EXPECTED, skip_layers="pred.*", trusted=True)
    assert_holds(skipped.params, *convolutions)
    published = EXPECTED | {"predictions": {"kernel": (80, 1000), "bias": (1000,)}}
    with_head = load_weights_with_head(tmp_path / filename, EXPECTED, HEAD, published=published, trusted=True)
    assert_holds(with_head, *convolutions, head)
    with pytest.raises(UserError, match=r"3 classes \(predictions \(80, 3\)\).*none.*skip_layers='predictions'"):
        load_weights_with_head(tmp_path / filename, EXPECTED, {}, published=published, trusted=True)


@written_by
def test_load_bfloat16_widens_exactly(keras, tmp_path, write, filename, file_format):
    base = make_base(keras, dtype="bfloat16")
    write(base, tmp_path / filename)
    loaded = load_weights(tmp_path / filename, EXPECTED, trusted=True)
    for name in EXPECTED:
        kernel, _ = base.get_layer(name).get_weights()
        np.testing.assert_array_equal(loaded.params[name]["kernel"], kernel.astype(np.float32))
    assert {row.dtype for row in loaded.rows} == {"bfloat16"}


def test_load_invalid_skip_layers_raises(tmp_path):
    layers = {name: {leaf: np.zeros(shape) for leaf, shape in leaves.items()} for name, leaves in EXPECTED.items()}
    safetensors_io.write_safetensors(tmp_path / "x", layers, {})
    for pattern, reason in (("(", "not a regular expression"), ("block1_conv", "Did you mean 'block1_conv[12]'")):
        with pytest.raises(UserError, match=reason):
            load_weights(tmp_path / "x", EXPECTED, skip_layers=pattern)
    with pytest.raises(UserError, match=r"- block1_conv2/kernel"):  # the model's own layers are needed
        load_weights(tmp_path / "x", EXPECTED, skip_layers="block1_conv2")


def test_load_detects_format_by_content(keras, tmp_path):
    base = make_base(keras)
    save_legacy_weights(base, tmp_path / "legacy.weights.h5")  # Keras itself cannot load this one
    base.save_weights(tmp_path / "new.weights.h5")
    shutil.move(tmp_path / "new.weights.h5", tmp_path / "new.bin")
    first = load_weights(tmp_path / "legacy.weights.h5", EXPECTED, trusted=True)
    second = load_weights(tmp_path / "new.bin", EXPECTED, trusted=True)
    assert first.format.startswith("legacy")
    assert second.format == "Keras 3 .weights.h5"
    for layer, leaves in EXPECTED.items():
        for leaf in leaves:
            np.testing.assert_array_equal(first.params[layer][leaf], second.params[layer][leaf])


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_load_safetensors_of_every_precision(tmp_path, precision):
    params = {"fc": {"kernel": np.array([[1.0, -127.0]], np.float32), "bias": np.array([0.1, 0.2], np.float32)}}
    safetensors_io.write_safetensors(tmp_path / "x", params, {}, precision)
    loaded = load_weights(tmp_path / "x", {"fc": {"kernel": (1, 2), "bias": (2,)}})
    np.testing.assert_array_equal(loaded.params["fc"]["kernel"], params["fc"]["kernel"])  # exact in all three
    np.testing.assert_array_equal(loaded.params["fc"]["bias"], params["fc"]["bias"])
    assert loaded.format == f"safetensors ({precision})"
    assert {row.leaf: row.dtype for row in loaded.rows} == {"kernel": precision, "bias": "float32"}


def save_safetensors(model, path):
    safetensors_io.write_safetensors(
        path, {name: {"kernel": model.get_layer(name).get_weights()[0]} for name in EXPECTED}, {}
    )


@pytest.mark.parametrize(
    ("write", "filename"),
    [*((write, filename) for write, filename, _ in WRITERS.values()), (save_safetensors, "x.safetensors")],
    ids=[*WRITERS, "safetensors"],
)
def test_load_truncated_file_is_refused(keras, tmp_path, write, filename):
    path = tmp_path / filename
    write(make_base(keras), path)
    content = path.read_bytes()
    for size in (0, 1, 8, 9, 100, 600, len(content) // 4, len(content) // 2, len(content) * 9 // 10, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(UserError) as caught:
            load_weights(path, EXPECTED, trusted=size != len(content) // 2)  # a trial takes most of the time
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (b"", "empty"),
        (b"\n<!DOCTYPE html><html>", "web page|HTML"),
        (b"<HTML><body>404", "web page|HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (b"\x93NUMPY", r"^(?!.*(web page|HTML|LFS|pickle)).*\.safetensors\b.*\.onnx"),
        (b"\x80\x04\x95pickle", r"a pickle.*safetensors\.torch\.save_file"),
        (b"PK\x03\x04" + bytes(22) + b"\x10\0\0\0" + b"archive/data.pkl", r"a pickle.*safetensors\.torch\.save_file"),
        (b"PK\x03\x04 not really", "damaged|corrupt|truncated"),
        (b"\x89HDF\r\n\x1a\n not really", "damaged|corrupt|truncated"),
    ],
)
def test_load_other_content_names_what_it_is(tmp_path, content, fact):
    path = tmp_path / "vgg16.h5"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"(?i)(?=.*vgg16\.h5\b).*({fact})"):
        load_weights(path, EXPECTED)


def test_load_file_larger_than_any_model_is_refused(tmp_path, monkeypatch):
    safetensors_io.write_safetensors(tmp_path / "x", {"a": {"kernel": np.zeros(64, np.float32)}}, {})
    monkeypatch.setattr(merge, "MAX_BYTES", 10)
    with pytest.raises(UserError, match=rf"/x takes {(tmp_path / 'x').stat().st_size} bytes\b"):
        load_weights(tmp_path / "x", EXPECTED)


def test_load_missing_file_or_directory_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"x\.h5\b") as caught:
        load_weights(tmp_path / "x.h5", EXPECTED)
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    with pytest.raises(UserError, match=f"{re.escape(str(tmp_path))}.*(directory|folder)"):
        load_weights(tmp_path, EXPECTED)


def test_load_hdf5_of_another_program_is_refused(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["images"] = np.zeros(3)
    with pytest.raises(UserError, match=r"x\.h5\b.*HDF5.*Keras"):
        load_weights(tmp_path / "x.h5", EXPECTED)


@pytest.mark.skipif(not VGG16.exists(), reason="needs the real VGG16 file")
def test_load_real_vgg16_matches_known_values():
    with h5py.File(VGG16) as file:
        expected = {
            layer: {"kernel": group[f"{layer}_W_1:0"].shape, "bias": group[f"{layer}_b_1:0"].shape}
            for layer, group in file.items()
            if "conv" in layer
        }
    params = load_weights(VGG16, expected).params
    assert len(params) == 13
    assert sum(leaf.size for leaves in params.values() for leaf in leaves.values()) == 14_714_688
    assert params["block1_conv1"]["kernel"][0, 0, 0, 0] == np.float32(0.42947057)
    assert params["block5_conv3"]["bias"][0] == np.float32(0.18837857)
    without_last = {layer: expected[layer] for layer in sorted(expected)[:-1]}
    with pytest.raises(UserError, match=r"\bVGG16\b.*\bblock5_conv3\b"):
        load_weights(VGG16, without_last)
