"""Legacy HDF5 dialects that today's Keras no longer writes. What it still writes is tested in test_loader.py."""

import h5py
import numpy as np
import pytest

from flaxtl.errors import UserError
from flaxtl.pretrained import keras_legacy
from flaxtl.pretrained.hdf5 import open_h5

KERNEL = np.arange(24, dtype=np.float32).reshape(2, 2, 2, 3)
BIAS = np.array([0.5, -1.0, 2.0], np.float32)


def add_layer(group, name, arrays, as_bytes=True):
    """One layer group with its arrays {dataset path: values} and its `weight_names`."""
    layer = group.create_group(name)
    layer.attrs["weight_names"] = [path.encode() if as_bytes else path for path in arrays]
    for path, values in arrays.items():
        layer[path] = values


def read(path, known=()):
    with open_h5(path, path) as file:
        assert keras_legacy.is_legacy_h5(file)
        return keras_legacy.read_legacy_h5(file, known)


def names(layers):
    return {layer: [array.name for array in arrays] for layer, arrays in layers.items()}


def test_read_keras_1_file(tmp_path):
    path = tmp_path / "old.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"input_1", b"block1_conv1"]
        add_layer(file, "input_1", {})
        add_layer(file, "block1_conv1", {"block1_conv1_W_1:0": KERNEL, "block1_conv1_b_1:0": BIAS})
    layers = read(path)
    assert names(layers) == {"block1_conv1": ["block1_conv1/block1_conv1_W_1:0", "block1_conv1/block1_conv1_b_1:0"]}
    np.testing.assert_array_equal(layers["block1_conv1"][0].values, KERNEL)
    np.testing.assert_array_equal(layers["block1_conv1"][1].values, BIAS)
    assert layers["block1_conv1"][0].dtype == "float32"


@pytest.mark.parametrize("as_bytes", [True, False])
def test_read_keras_2_file_of_a_whole_model(tmp_path, as_bytes):
    path = tmp_path / "whole.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [b"conv"] if as_bytes else ["conv"]
        group.attrs["backend"] = "tensorflow"
        group.attrs["keras_version"] = b"2.2.4"
        add_layer(group, "conv", {"conv/kernel:0": KERNEL, "conv/bias:0": BIAS}, as_bytes)
    assert names(read(path)) == {"conv": ["model_weights/conv/conv/kernel:0", "model_weights/conv/conv/bias:0"]}
    with open_h5(path, path) as file:
        described = keras_legacy.describe_h5(file)
    assert all(fact in described for fact in ("HDF5", "Keras 2.2.4", "tensorflow"))


def test_read_follows_the_order_of_the_lists(tmp_path):
    path = tmp_path / "order.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = ["z", "a"]
        add_layer(file, "a", {"a/kernel:0": KERNEL, "a/bias:0": BIAS})
        add_layer(file, "z", {"z/kernel:0": KERNEL, "z/bias:0": BIAS})
    layers = read(path)
    assert list(layers) == ["z", "a"]
    assert [array.values.ndim for array in layers["a"]] == [4, 1]


def test_read_joins_lists_split_over_attributes(tmp_path):
    path = tmp_path / "split.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names0"] = [b"first"]
        file.attrs["layer_names1"] = [b"second", b"third"]
        add_layer(file, "first", {"first/kernel:0": KERNEL})
        add_layer(file, "second", {"second/kernel:0": KERNEL})
        third = file.create_group("third")
        third.attrs["weight_names0"] = [b"third/kernel:0"]
        third.attrs["weight_names1"] = [b"third/bias:0"]
        third["third/kernel:0"] = KERNEL
        third["third/bias:0"] = BIAS
    layers = read(path)
    assert {layer: len(arrays) for layer, arrays in layers.items()} == {"first": 1, "second": 1, "third": 2}


NESTED = {
    "unfrozen": ["one/kernel:0", "one/bias:0", "two/kernel:0", "two/bias:0"],
    "frozen first": ["two/kernel:0", "two/bias:0", "one/kernel:0", "one/bias:0"],
    "scoped": ["vgg/one/kernel:0", "vgg/one/bias:0", "vgg/two/kernel:0", "vgg/two/bias:0"],
    "keras 3": ["one/kernel", "one/bias", "two/kernel", "two/bias"],
    "keras 1": ["one_W:0", "one_b:0", "two_W_1:0", "two_b_1:0"],
}


@pytest.mark.parametrize("weights", NESTED.values(), ids=NESTED.keys())
@pytest.mark.parametrize("known", [(), ("one", "two")], ids=["unknown", "known"])
def test_read_nested_model_assigns_arrays_by_their_names(tmp_path, weights, known):
    path = tmp_path / "nested.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"vgg", b"dropout"]
        add_layer(file, "vgg", {weight: np.full((1,), i, np.float32) for i, weight in enumerate(weights)})
        add_layer(file, "dropout", {})
    layers = read(path, known)
    values = {layer: [array.values.item() for array in arrays] for layer, arrays in layers.items()}
    first, second = ("two", "one") if weights[0].startswith("two") else ("one", "two")
    assert values == {first: [0, 1], second: [2, 3]}


def test_read_nested_model_with_one_layer_needs_its_known_name(tmp_path):
    path = tmp_path / "single.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"head"]
        add_layer(file, "head", {"dense/kernel:0": KERNEL, "dense/bias:0": BIAS})
    assert list(read(path, {"dense"})) == ["dense"]
    assert list(read(path)) == ["head"]


def test_read_ignores_scope_that_tensorflow_made_unique(tmp_path):
    path = tmp_path / "scope.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"conv"]
        add_layer(file, "conv", {"conv_1/kernel:0": KERNEL, "conv_1/bias:0": BIAS})
    assert list(read(path, {"conv"})) == list(read(path)) == ["conv"]


@pytest.mark.parametrize("scope", ["", "densenet121/"])
def test_read_maps_former_names_of_densenet(tmp_path, scope):
    """The first batch norm was conv1/bn; the last one is bn."""
    path = tmp_path / "densenet.h5"
    names_then = ["conv1/conv", "conv1/bn", "bn", "fc1000"]
    with h5py.File(path, "w") as file:
        if scope:
            file.attrs["layer_names"] = [b"densenet121"]
            add_layer(file, "densenet121", {f"{scope}{name}/kernel:0": BIAS for name in names_then})
        else:
            file.attrs["layer_names"] = names_then
            for name in names_then:
                add_layer(file, name, {f"{name}/kernel:0": BIAS})
    today = ["conv1_conv", "conv1_bn", "bn", "predictions"]
    assert list(read(path, today)) == list(read(path)) == today


def test_read_maps_keras_2_names_of_mobilenet_v3(tmp_path):
    then = ["Conv", "Conv/BatchNorm", "expanded_conv/depthwise/BatchNorm", "expanded_conv_1/squeeze_excite/Conv_1"]
    today = ["conv", "conv_bn", "expanded_conv_depthwise_bn", "expanded_conv_1_squeeze_excite_conv_1"]
    path = tmp_path / "mobilenet_v3.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = then
        for name in then:
            add_layer(file, name, {f"{name}/kernel:0": BIAS})
    assert list(read(path, today)) == today


def test_read_includes_arrays_of_the_model_itself(tmp_path):
    path = tmp_path / "top.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"conv"]
        add_layer(file, "conv", {"conv/kernel": KERNEL})
        add_layer(file, "top_level_model_weights", {"temperature": BIAS})
    assert names(read(path)) == {
        "conv": ["conv/conv/kernel"],
        "top_level_model_weights": ["top_level_model_weights/temperature"],
    }


@pytest.mark.parametrize("backend", ["theano", b"theano"])
def test_read_theano_file_is_refused(tmp_path, backend):
    path = tmp_path / "theano.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"conv"]
        file.attrs["backend"] = backend
        add_layer(file, "conv", {"conv_W": KERNEL})
    with pytest.raises(UserError, match="Theano"):
        read(path)


def test_read_listed_but_missing_array_is_refused(tmp_path):
    path = tmp_path / "gap.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"conv"]
        file.create_group("conv").attrs["weight_names"] = [b"conv/kernel:0"]
    with pytest.raises(UserError, match=r"(?=.*/gap\.h5\b)(?=.*\bconv/kernel:0)"):
        read(path)


def test_read_layer_without_weight_names_is_refused(tmp_path):
    path = tmp_path / "list.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"conv"]
        file.create_group("conv")
    with pytest.raises(UserError, match="'weight_names'"):
        read(path)
