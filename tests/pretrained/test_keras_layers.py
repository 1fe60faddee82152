"""Layers with automatic names and Normalization, in files written by Keras itself.

The model here has two branches of equal shapes, built in another order than that of the graph: swapped layers would
not be noticed by their shapes.
"""

import re

import h5py
import keras
import numpy as np
import pytest
from helpers import keras_zoo
from keras import layers

from flaxtl.errors import UserError
from flaxtl.models.imagenet import MEAN_RGB, STD_RGB, TORCH
from flaxtl.pretrained import keras_layers
from flaxtl.pretrained.keras_layers import PUBLISHED_NORMALIZATION
from flaxtl.pretrained.loader import load_weights

# Keras' order of the model below; the numbers are the order of the calls.
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
WITH_TOP = BASE | {"dense": {"kernel": (4, 2), "bias": (2,)}}


def two_branches():
    """The Keras model of WITH_TOP with random values."""
    with pytest.MonkeyPatch.context() as patch:
        keras_zoo.without_initializers(patch)
        x = inputs = keras.Input((4, 4, 3))
        x = layers.Conv2D(4, 1, use_bias=False)(x)
        short = layers.BatchNormalization()(layers.Conv2D(4, 1, use_bias=False)(x))
        long = layers.BatchNormalization()(layers.Conv2D(4, 1, use_bias=False)(x))
        long = layers.BatchNormalization()(layers.Conv2D(4, 1, use_bias=False)(long))
        x = layers.Add()([short, long])
        x = layers.SeparableConv2D(4, 3, padding="same", use_bias=False)(x)
        for _ in range(2):
            x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
        model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(layers.GlobalAveragePooling2D()(x))))
    keras_zoo.randomize(model)
    return model


@pytest.fixture(scope="module")
def third_model():
    """The model, built after two others: its layers have higher numbers than WITH_TOP."""
    keras.backend.clear_session(free_memory=False)
    two_branches(), two_branches()
    return two_branches()


def values(model):
    """layer -> leaf -> array with the names of WITH_TOP, taken from Keras' layers in their order."""
    weighted = [layer for layer in model.layers if layer.weights]
    return {
        name: {leaf: array.reshape(leaves[leaf]) for leaf, array in zip(leaves, layer.get_weights(), strict=True)}
        for (name, leaves), layer in zip(WITH_TOP.items(), weighted, strict=True)
    }


def assert_loaded(path, model, expected, optional=()):
    params, wanted = load_weights(path, expected, optional, trusted=True).params, values(model)
    assert params.keys() == expected.keys()
    for layer, leaves in params.items():
        for leaf, array in leaves.items():
            np.testing.assert_array_equal(array, wanted[layer][leaf], err_msg=f"{layer}/{leaf}")


def save_archive(model, file):
    model.save(file.with_suffix(".keras"))
    return file.with_suffix(".keras")


every_layout = pytest.mark.parametrize("save", [keras_zoo.save_legacy, keras_zoo.save_keras3, save_archive])


def test_first_model_has_the_names_assumed_here():
    keras.backend.clear_session(free_memory=False)
    assert [layer.name for layer in two_branches().layers if layer.weights] == list(WITH_TOP)


@every_layout
def test_load_third_model_matches_its_layers(save, third_model, tmp_path):
    assert [layer.name for layer in third_model.layers if layer.weights][:3] == [
        "conv2d_8",
        "conv2d_10",
        "batch_normalization_7",
    ]
    file = save(third_model, tmp_path / "weights.h5")
    assert_loaded(file, third_model, WITH_TOP)
    assert_loaded(file, third_model, BASE, optional=WITH_TOP)


@every_layout
def test_load_leaves_out_another_head_with_automatic_names(save, third_model, tmp_path):
    file = save(third_model, tmp_path / "weights.h5")
    params = load_weights(file, BASE, skip_layers="(layers/)?dense.*", trusted=True).params
    np.testing.assert_equal(params, {name: leaves for name, leaves in values(third_model).items() if name in BASE})


@every_layout
def test_load_part_from_whole_file_uses_ranks_of_the_whole(save, third_model, tmp_path):
    part = {name: BASE[name] for name in ("conv2d", "conv2d_1", "batch_normalization")}
    assert_loaded(save(third_model, tmp_path / "weights.h5"), third_model, part, optional=WITH_TOP)


@every_layout
def test_load_part_from_its_own_file_uses_ranks_of_the_part(save, third_model, tmp_path):
    last = next(layer for layer in third_model.layers if isinstance(layer, layers.BatchNormalization))
    part = {name: BASE[name] for name in ("conv2d", "conv2d_2", "batch_normalization_1")}
    file = save(keras.Model(third_model.input, last.output), tmp_path / "weights.h5")
    assert_loaded(file, third_model, part, optional=WITH_TOP)


def without_names(path):
    """Remove the names of the layers, as older versions of Keras 3 wrote files."""
    with h5py.File(path, "r+") as file:
        file.visititems(lambda _, member: member.attrs.clear())
    return path


def test_load_keras3_file_without_names_uses_positions(third_model, tmp_path):
    path = without_names(keras_zoo.save_keras3(third_model, tmp_path / "weights.h5"))
    assert_loaded(path, third_model, WITH_TOP)


def test_load_legacy_file_prefers_group_over_array_name(third_model, tmp_path):
    path = keras_zoo.save_legacy(third_model, tmp_path / "weights.h5")
    with h5py.File(path, "r+") as file:
        group = file["conv2d_11"]
        group.move("conv2d_11", "conv2d_1")
        group.attrs["weight_names"] = ["conv2d_1/kernel"]
    assert_loaded(path, third_model, WITH_TOP)


def nested(model):
    return keras.Sequential([keras.Input((4, 4, 3)), model, layers.Activation("softmax")])


def test_load_nested_model_matches_its_layers(third_model, tmp_path):
    assert_loaded(keras_zoo.save_legacy(nested(third_model), tmp_path / "weights.h5"), third_model, WITH_TOP)


def test_load_partly_frozen_nested_legacy_file_is_refused(third_model, tmp_path):
    """Its legacy file lists trainable layers first, so positions are no guide. The Keras 3 layout is not affected."""
    for layer in third_model.layers[:4]:
        layer.trainable = False
    try:
        legacy = keras_zoo.save_legacy(nested(third_model), tmp_path / "weights.h5")
        keras3 = keras_zoo.save_keras3(nested(third_model), tmp_path / "weights.h5")
    finally:
        third_model.trainable = True
    with pytest.raises(UserError, match=rf"{re.escape(str(legacy))}.*model\.trainable = True"):
        load_weights(legacy, WITH_TOP, trusted=True)
    assert_loaded(keras3, third_model, WITH_TOP)


ORDER = ("conv2d", "conv2d_2", "block_conv", "batch_normalization", "conv2d_1")


@pytest.mark.parametrize(
    "stored",
    [
        ("conv2d", "conv2d_2", "block_conv", "batch_normalization", "conv2d_1"),
        ("conv2d_1", "conv2d_3", "block_conv", "batch_normalization_1", "conv2d_2"),
        ("convolution2d_1", "convolution2d_3", "block_conv", "batchnormalization_1", "convolution2d_2"),
        ("conv2d_94", "conv2d_101", "block_conv", "batch_normalization_v1_9", "conv2d_100"),  # 94, 100, 101 in rank
        ("conv2d_8", "conv2d_10", "block_conv", "batch_normalization_v1", "conv2d_9"),  # by number, not alphabetically
    ],
)
def test_rename_automatic_layers_handles_names_of_every_version(stored):
    renamed = keras_layers.rename_automatic_layers({name: [i] for i, name in enumerate(stored)}, [ORDER], "w.h5")
    assert renamed == {name: [i] for i, name in enumerate(ORDER)}


def test_rename_automatic_layers_refuses_contradicting_rank_and_position():
    stored = {"conv2d_5": [], "conv2d_6": [], "conv2d_7": []}
    with pytest.raises(UserError, match=r"\bw\.h5\b.*'conv2d_6'.*'conv2d_1'.*'conv2d_2'"):
        keras_layers.rename_automatic_layers(stored, [ORDER], "w.h5")


def test_rename_automatic_layers_keeps_names_if_counts_differ():
    """So that the error of the merge lists what the file really holds."""
    stored = {"conv2d_5": [], "batch_normalization_4": []}
    assert list(keras_layers.rename_automatic_layers(stored, [ORDER], "w.h5")) == ["conv2d_5", "batch_normalization"]


@pytest.mark.parametrize("name", ["conv2d_transpose", "conv2d_", "xconv2d", "dense_block", "normalization", "conv_1"])
def test_is_automatic_name_rejects_other_names(name):
    assert not keras_layers.is_automatic_name(name)


STEM = {"stem_conv": {"kernel": (3, 3, 3, 4), "bias": (4,)}}


def efficientnet_stem(mean, variance, name=None):
    """The first layers of an EfficientNet."""
    keras.backend.clear_session(free_memory=False)
    inputs = keras.Input((8, 8, 3))
    normalization = layers.Normalization(name=name)
    x = normalization(layers.Rescaling(1 / 255)(inputs))
    normalization.set_weights([np.float32(mean), np.float32(variance), np.int32(0)])
    return keras.Model(inputs, layers.Conv2D(4, 3, kernel_initializer="zeros", name="stem_conv")(x))


@pytest.mark.parametrize("save", [keras_zoo.save_legacy, keras_zoo.save_keras3])
@pytest.mark.parametrize("name", ["normalization", "normalization_3"])
def test_load_published_normalization_drops_it(save, name, tmp_path):
    file = save(efficientnet_stem(*PUBLISHED_NORMALIZATION, name), tmp_path / "x.h5")
    assert [row.layer for row in load_weights(file, STEM, trusted=True).rows] == ["stem_conv", "stem_conv"]


@pytest.mark.parametrize("is_nested", [False, True])
def test_load_normalization_of_a_file_without_names_checks_it(is_nested, tmp_path):
    paths = []
    for number, mean in enumerate((PUBLISHED_NORMALIZATION[0], np.zeros(3))):
        stem = efficientnet_stem(mean, PUBLISHED_NORMALIZATION[1])
        model = keras.Sequential([keras.Input((8, 8, 3)), stem]) if is_nested else stem
        paths.append(without_names(keras_zoo.save_keras3(model, tmp_path / f"{number}.h5")))
    assert [row.layer for row in load_weights(paths[0], STEM, trusted=True).rows] == ["stem_conv", "stem_conv"]
    with pytest.raises(UserError, match=r"1\.weights\.h5 was trained with another preprocessing.*/normalization"):
        load_weights(paths[1], STEM, trusted=True)


@pytest.mark.parametrize("save", [keras_zoo.save_legacy, keras_zoo.save_keras3])
@pytest.mark.parametrize(
    "statistics",
    [
        (np.zeros(3), np.ones(3)),
        (PUBLISHED_NORMALIZATION[0], tuple(std**2 for std in STD_RGB)),
        (PUBLISHED_NORMALIZATION[0][::-1], PUBLISHED_NORMALIZATION[1]),
    ],
    ids=["not adapted", "true variances", "channels reversed"],
)
def test_load_other_normalization_is_refused(save, statistics, tmp_path):
    file = save(efficientnet_stem(*statistics), tmp_path / "x.h5")
    published = ".*".join(re.escape(str(list(part))) for part in PUBLISHED_NORMALIZATION)
    with pytest.raises(UserError, match=rf"{re.escape(file.name)}\b.*'normalization(_\d+)?'.*{published}"):
        load_weights(file, STEM, trusted=True)


def test_torch_preprocessing_equals_keras_layers_with_published_values():
    """Keras has three layers: the last compensates that the second divides by the root of a standard deviation."""
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3)).astype(np.uint8)
    compensate = layers.Rescaling([1 / std**0.5 for std in STD_RGB])
    normalize = layers.Normalization(mean=PUBLISHED_NORMALIZATION[0], variance=PUBLISHED_NORMALIZATION[1])
    expected = compensate(normalize(layers.Rescaling(1 / 255)(images.astype(np.float32))))
    # Five roundings there, three here, of values up to 1, divided by 0.22.
    np.testing.assert_allclose(TORCH(images), expected, rtol=0, atol=8 * 2**-24 / 0.22)
    assert PUBLISHED_NORMALIZATION == (MEAN_RGB, STD_RGB)
