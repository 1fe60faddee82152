"""Every model that Keras has, compared with Keras' own network with the same random weights.

Both run the same float32 convolutions, but XLA orders the sums of the two programs differently, and the errors, a few
units of the last place (2**-24 = 6e-8) of the largest values, add up from layer to layer. `bound` is relative to the
largest value of an output: three times the largest deviation measured on CPU. It is larger for MobileNetV2 and V3,
where random activations grow to 40 and 1,000 and relu6 keeps 6 of that, with the rounding errors of the whole.
"""

from typing import NamedTuple

import keras
import numpy as np
import pytest
from helpers import keras_zoo

from flaxtl.models import registry
from flaxtl.pretrained.keras_layers import PUBLISHED_NORMALIZATION


class Family(NamedTuple):
    """What the networks of a family are compared at.

    Attributes:
      bound: largest deviation, relative to the largest output.
      size: of the images. Layers of stride 2 must see odd and even sizes.
      taps: layers that are compared; the comments name what is wrong where the first deviation is.
      damped: pattern of the layers whose scale or kernel is multiplied by `factor`, so that sums do not grow.
    """

    bound: float
    size: tuple[int, int]
    taps: tuple[str, ...]
    damped: str = "none"
    factor: float = 1.0


FAMILIES = {
    "vgg": Family(5e-6, (75, 53), ("block1_conv2", "block2_pool", "block4_conv1", "block5_conv3", "block5_pool")),
    "resnet": Family(
        4e-6,
        (75, 75),  # 38, 19, 10, 5, 3
        (
            "conv1_bn",  # the border of the first convolution; epsilon
            "pool1_pool",  # the border of the pool
            "conv2_block1_out",  # projection
            "conv3_block1_1_bn",  # the position of the stride
            "conv3_block1_out",
            "conv5_block3_out",
        ),
        ".*_3_bn",
        0.25,
    ),
    "resnet_v2": Family(
        4e-6,
        (75, 75),
        (
            "conv1_conv",  # a batch norm or relu after it
            "pool1_pool",  # the border of the pool: its zeros win over negative values
            "conv2_block1_out",  # the projection is of the activated input
            "conv2_block2_out",  # the shortcut is the raw input
            "conv2_block3_out",  # the strided shortcut
            "conv5_block3_out",
            "post_relu",
        ),
        ".*_3_conv",
        0.25,
    ),
    "densenet": Family(
        4e-6,
        (75, 75),  # 38, 19, 9, 4, 2
        (
            "conv1_bn",  # the border of the first convolution
            "pool1",  # the border of the pool
            "conv2_block1_concat",  # the order of old and new channels
            "conv2_block6_concat",
            "pool2_pool",  # an odd last row is dropped
            "conv5_block1_concat",
            "relu",
        ),
    ),
    "inception_v3": Family(
        3e-6,
        (107, 107),
        (
            "mixed0",  # an average pool that counts the zeros outside the border
            "mixed3",  # a reduction
            "mixed4",  # rows and columns exchanged
            "mixed9_0",  # the two halves of a split branch
            "mixed10",
        ),
    ),
    "inception_resnet_v2": Family(
        3e-6,
        (107, 107),
        (
            "mixed_5b",
            "custom_scale_layer",  # the scale of block35, 0.17
            "custom_scale_layer_10",  # of block17, 0.1
            "custom_scale_layer_30",  # of block8, 0.2
            "custom_scale_layer_39",  # of the last block8, 1
            "conv_7b",  # a relu before it
            "conv_7b_ac",
        ),
    ),
    "xception": Family(
        5e-6,
        (75, 75),
        (
            "block2_pool",  # the border of the pool: zeros would win over negative values
            "add",  # a sum that is cut off at zero
            "block3_pool",  # no relu before a separable convolution
            "add_10",  # the same in the middle blocks
            "block14_sepconv1",  # a relu before this layer
            "block14_sepconv2_act",  # none at the end
        ),
    ),
    "mobilenet": Family(
        4e-6,
        (75, 75),  # 38, 19, 10, 5
        (
            "conv_dw_2",  # zeros at the bottom and right of an even size
            "conv_dw_4",  # and of an odd size
            "conv_pw_13",  # a relu without the limit of 6
        ),
    ),
    "mobilenet_v2": Family(
        6e-5,
        (75, 75),
        (
            "expanded_conv_project_BN",
            "block_1_depthwise",  # zeros at the bottom and right of an even size
            "block_3_depthwise",  # and on all sides of an odd size
            "block_9_add",  # a relu after the projection
            "Conv_1_bn",
        ),
    ),
    "mobilenet_v3": Family(
        7e-5,
        (75, 75),
        (
            "conv",  # preprocessing, which is part of Keras' network
            "expanded_conv_3_depthwise_bn",
            "expanded_conv_4_squeeze_excite_mul",  # the gate
            "expanded_conv_7_project_bn",
            "conv_1_bn",
        ),
    ),
    "nasnet": Family(
        2.4e-6,
        (75, 75),  # 37, 19, 10, 5
        (
            "stem_bn1",  # a border around the first convolution
            "reduction_left3_stem_1",  # an average pool that does not count the zeros of the layer before it
            "reduction_concat_stem_1",
            "adjust_bn_stem_2",  # the path that is shifted by one pixel
            "normal_left3_0",  # an average pool that counts the zeros outside the border
            "normal_concat_0",
            "normal_concat_5",
            "normal_concat_12",
        ),
    ),
    "efficientnet": Family(
        6e-6,
        (91, 91),  # 46, 23, 12, 6
        ("stem_conv", "block3a_se_excite", "block6b_add", "top_activation"),
        r"block\d[b-z]_project_bn",
        0.2,
    ),
    "efficientnet_v2": Family(
        6e-6,
        (91, 91),
        ("stem_conv", "block1a_project_activation", "block3b_add", "block5a_se_excite", "top_activation"),
        r"(stem|block\d[b-z]_project)_bn",
        0.2,
    ),
}

FAST = {
    *("vgg16", "vgg19", "resnet50", "resnet50v2", "densenet121", "inception_v3", "xception", "mobilenet_0.25"),
    *("mobilenet_v2_0.35", "mobilenet_v3_small", "efficientnetb0", "efficientnetv2-b0"),
}

IN_KERAS_ONLY = {"efficientnet": 7}
"""Numbers in Keras' Normalization layer (mean, variance, count), which is preprocessing in flaxtl."""


def family_of(name):
    if name.startswith("efficientnet"):
        return "efficientnet_v2" if "v2" in name else "efficientnet"
    if name.startswith("resnet"):
        return "resnet_v2" if name.endswith("v2") else "resnet"
    return max((family for family in FAMILIES if name.startswith(family)), key=len)


@pytest.fixture(
    scope="module",
    params=[name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in keras_zoo.KERAS_MODELS],
)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def network(name):
    """Keras' whole network, without softmax."""
    family = FAMILIES[family_of(name)]
    network = keras_zoo.keras_network(name, *family.size, include_top=True, classifier_activation=None)
    return keras_zoo.scale_weights(network, family.damped, family.factor)


def test_layers_and_param_counts_equal_keras(name, network):
    family, spec = family_of(name), registry.get_spec(name)
    size = FAMILIES[family].size
    assert keras_zoo.layer_names(name, *size, include_top=True) == keras_zoo.keras_layer_names(network)
    norms, dropouts = keras_zoo.batch_norms_and_dropouts(name, size[0])
    assert norms == keras_zoo.keras_batch_norms(network)
    assert dropouts == keras_zoo.keras_dropouts(network)
    extra = IN_KERAS_ONLY.get(family, 0)
    assert keras_zoo.count_params(name, *size, include_top=True) + extra == network.count_params()
    assert keras_zoo.count_params(name, include_top=True) + extra == spec.num_params
    assert keras_zoo.count_params(name, include_top=False) + extra == spec.num_params_no_top


def test_outputs_equal_keras(name, network, tmp_path, monkeypatch):
    """Weights are read from files with and without top, in both of Keras' layouts."""
    family, size = FAMILIES[family_of(name)], FAMILIES[family_of(name)].size
    preprocess = keras_zoo.preprocessing(name)
    path = tmp_path / "whole.h5"
    if family_of(name) == "efficientnet":
        network = imagenet_efficientnet(name, network, path, monkeypatch)
    else:
        keras_zoo.save_legacy(network, path)
    params = keras_zoo.load_params(name, path, *size, include_top=True)

    last = keras_zoo.layer_names(name, *size, include_top=False)[-1]
    backbone = keras.Model(network.input, network.get_layer(last).output)
    for save in (keras_zoo.save_legacy, keras_zoo.save_keras3):
        tree = keras_zoo.load_params(name, save(backbone, tmp_path / "base.h5"), *size, include_top=False)["backbone"]
        np.testing.assert_equal(tree, {layer: params["backbone"][layer] for layer in tree})

    model = keras_zoo.flaxtl_model(name, include_top=True)
    pair = keras_zoo.Pair(network, model, params, keras_zoo.random_images(*size))
    keras_zoo.compare_outputs(pair, family.taps, family.bound, preprocess)


def imagenet_efficientnet(name, network, path, monkeypatch):
    """Rebuild an EfficientNet as weights='imagenet' does, which changes its preprocessing; `path` is its download."""
    family = FAMILIES["efficientnet"]
    network.get_layer("normalization").set_weights([*map(np.float32, PUBLISHED_NORMALIZATION), np.int32(0)])
    keras_zoo.save_legacy(network, path)
    monkeypatch.setattr(keras.src.utils.file_utils, "get_file", lambda *_, **__: str(path))
    # Keras accepts only the published image size together with these weights.
    monkeypatch.setattr(keras.src.applications.imagenet_utils, "obtain_input_shape", lambda shape, **_: shape)
    settings = {"include_top": True, "weights": "imagenet", "classifier_activation": None}
    published = keras_zoo.keras_network(name, *family.size, **settings)
    return keras_zoo.scale_weights(published, family.damped, family.factor)
