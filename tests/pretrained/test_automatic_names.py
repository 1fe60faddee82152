"""Weight files of networks whose layers Keras named, written by Keras itself after other models were built.

The network here has two branches of equal shapes, made in the order that the graph does not have: to take one layer
for another would go unnoticed by shapes.
"""

import re

import h5py
import keras
import numpy as np
import pytest
from helpers import keras_zoo
from keras import layers

from flaxtl.errors import UserError
from flaxtl.pretrained import keras_layers
from flaxtl.pretrained.loader import load_weights

# Keras' order of the twin below; numbers are the order of the calls.
CONV, NORM = {"kernel": (1, 1, 4, 4)}, {"scale": (4,), "bias": (4,), "mean": (4,), "var": (4,)}
BASE = {
    "conv2d": {"kernel": (1, 1, 3, 4)},
    "conv2d_2": CONV,
    "batch_normalization_1": NORM,
    "conv2d_1": CONV,
    "conv2d_3": CONV,
    "batch_normalization": NORM,
    "batch_normalization_2": NORM,
    "separable_conv2d": {"depthwise_kernel": (3, 3, 1, 4), "pointwise_kernel": (1, 1, 4, 4)},
    "depthwise_conv2d": {"kernel": (3, 3, 1, 4)},
    "depthwise_conv2d_1": {"kernel": (3, 3, 1, 4)},
}
WHOLE = BASE | {"dense": {"kernel": (4, 2), "bias": (2,)}}


def branches():
    """The network of WHOLE, all values drawn."""
    x = inputs = keras.Input((4, 4, 3))
    x = layers.Conv2D(4, 1, use_bias=False)(x)
    short = layers.BatchNormalization()(layers.Conv2D(4, 1, use_bias=False)(x))
    long = layers.BatchNormalization()(layers.Conv2D(4, 1, use_bias=False)(x))
    long = layers.BatchNormalization()(layers.Conv2D(4, 1, use_bias=False)(long))
    x = layers.Add()([short, long])
    x = layers.SeparableConv2D(4, 3, padding="same", use_bias=False)(x)
    for _ in range(2):
        x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    network = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(layers.GlobalAveragePooling2D()(x))))
    keras_zoo.randomise(network)
    return network


@pytest.fixture(scope="module")
def later():
    """The network, made after two others."""
    keras.backend.clear_session()
    branches(), branches()
    return branches()


def values(network):
    """layer -> leaf -> array of the network of WHOLE, taken from Keras' layers in their order."""
    weighted = [layer for layer in network.layers if layer.weights]
    return {
        name: {leaf: array.reshape(leaves[leaf]) for leaf, array in zip(leaves, layer.get_weights(), strict=True)}
        for (name, leaves), layer in zip(WHOLE.items(), weighted, strict=True)
    }


def assert_loaded(path, network, expected, optional=()):
    tree, wanted = load_weights(path, expected, optional).params, values(network)
    assert tree.keys() == expected.keys()
    for layer, leaves in tree.items():
        for leaf, array in leaves.items():
            np.testing.assert_array_equal(array, wanted[layer][leaf], err_msg=f"{layer}/{leaf}")


def save_archive(network, file):
    network.save(file.with_suffix(".keras"))
    return file.with_suffix(".keras")


every_layout = pytest.mark.parametrize("save", [keras_zoo.save_legacy, keras_zoo.save_keras3, save_archive])


def test_the_network_is_called_as_assumed():
    keras.backend.clear_session()
    assert [layer.name for layer in branches().layers if layer.weights] == list(WHOLE)


@every_layout
def test_numbers_from_elsewhere(save, later, tmp_path):
    assert [layer.name for layer in later.layers if layer.weights][:3] == [
        "conv2d_8",
        "conv2d_10",
        "batch_normalization_7",
    ]
    file = save(later, tmp_path / "weights.h5")
    assert_loaded(file, later, WHOLE)
    assert_loaded(file, later, BASE, optional=WHOLE)


@every_layout
def test_a_part_out_of_the_whole_file(save, later, tmp_path):
    """A cut network has fewer layers than its file: the ranks are those in the whole."""
    part = {name: BASE[name] for name in ("conv2d", "conv2d_1", "batch_normalization")}
    assert_loaded(save(later, tmp_path / "weights.h5"), later, part, optional=WHOLE)


@every_layout
def test_a_part_out_of_its_own_file(save, later, tmp_path):
    """The file of a cut network: the ranks are those in the part."""
    last = next(layer for layer in later.layers if isinstance(layer, layers.BatchNormalization))
    part = {name: BASE[name] for name in ("conv2d", "conv2d_2", "batch_normalization_1")}
    file = save(keras.Model(later.input, last.output), tmp_path / "weights.h5")
    assert_loaded(file, later, part, optional=WHOLE)


def test_a_keras_3_file_that_tells_no_names(later, tmp_path):
    """As older ones: place alone tells."""
    path = keras_zoo.save_keras3(later, tmp_path / "weights.h5")
    with h5py.File(path, "r+") as file:
        file.visititems(lambda _, member: member.attrs.clear())
    assert_loaded(path, later, WHOLE)


def test_arrays_may_be_called_after_another_layer(later, tmp_path):
    """The group of an array tells its layer, whatever else its own name says."""
    path = keras_zoo.save_legacy(later, tmp_path / "weights.h5")
    with h5py.File(path, "r+") as file:
        group = file["conv2d_11"]
        group.move("conv2d_11", "conv2d_1")
        group.attrs["weight_names"] = ["conv2d_1/kernel"]
    assert_loaded(path, later, WHOLE)


def nested(network):
    return keras.Sequential([keras.Input((4, 4, 3)), network, layers.Activation("softmax")])


def test_a_nested_model(later, tmp_path):
    assert_loaded(keras_zoo.save_legacy(nested(later), tmp_path / "weights.h5"), later, WHOLE)


def test_a_nested_model_partly_frozen(later, tmp_path):
    """Its legacy file lists the layers that learn first, so places say nothing; the Keras 3 layout does not mind."""
    for layer in later.layers[:4]:
        layer.trainable = False
    try:
        legacy = keras_zoo.save_legacy(nested(later), tmp_path / "weights.h5")
        keras3 = keras_zoo.save_keras3(nested(later), tmp_path / "weights.h5")
    finally:
        later.trainable = True
    with pytest.raises(UserError, match=rf"{re.escape(str(legacy))}.*model\.trainable = True"):
        load_weights(legacy, WHOLE)
    assert_loaded(keras3, later, WHOLE)


ORDER = ("conv2d", "conv2d_2", "block_conv", "batch_normalization", "conv2d_1")


@pytest.mark.parametrize(
    "stored",
    [
        ("conv2d", "conv2d_2", "block_conv", "batch_normalization", "conv2d_1"),
        ("conv2d_1", "conv2d_3", "block_conv", "batch_normalization_1", "conv2d_2"),
        ("convolution2d_1", "convolution2d_3", "block_conv", "batchnormalization_1", "convolution2d_2"),
        ("conv2d_94", "conv2d_101", "block_conv", "batch_normalization_v1_9", "conv2d_100"),  # 94, 100, 101 in rank
        ("conv2d_8", "conv2d_10", "block_conv", "batch_normalization_v1", "conv2d_9"),  # numbers, not letters
    ],
)
def test_names_of_every_vintage(stored):
    found = keras_layers.rename_automatic_layers(
        {name: [number] for number, name in enumerate(stored)}, [ORDER], "w.h5"
    )
    assert found == {name: [number] for number, name in enumerate(ORDER)}


def test_rank_and_place_must_agree():
    stored = {"conv2d_5": [], "conv2d_6": [], "conv2d_7": []}
    with pytest.raises(UserError, match=r"\bw\.h5\b.*'conv2d_6'.*'conv2d_1'.*'conv2d_2'"):
        keras_layers.rename_automatic_layers(stored, [ORDER], "w.h5")


def test_a_class_with_another_number_of_layers_keeps_its_names():
    """So that the error of merge tells what the file really holds."""
    stored = {"conv2d_5": [], "batch_normalization_4": []}
    assert list(keras_layers.rename_automatic_layers(stored, [ORDER], "w.h5")) == ["conv2d_5", "batch_normalization"]


@pytest.mark.parametrize("name", ["conv2d_transpose", "conv2d_", "xconv2d", "dense_block", "normalization", "conv_1"])
def test_other_names_are_not_automatic(name):
    assert not keras_layers.is_automatic_name(name)
