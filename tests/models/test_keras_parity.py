"""Every model that Keras has, compared with Keras' own network with the same random weights.

Both run the same float32 convolutions, but XLA orders the sums of the two programs differently, and the errors, a few
units of the last place (2**-24 = 6e-8) of the largest values, add up from layer to layer. `bound` is relative to the
largest value of an output: three times the largest deviation measured on CPU. It is larger for MobileNetV2 and V3,
where random activations grow to 40 and 1,000 and relu6 keeps 6 of that, with the rounding errors of the whole.
"""

import gc
import math
from typing import NamedTuple

import jax
import keras
import numpy as np
import pytest
from helpers import keras_zoo

from flaxtl.models import classifier, registry
from flaxtl.models.classifier import Classifier
from flaxtl.pretrained import keras_layers
from flaxtl.pretrained.loader import load_weights


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
        (43, 43),  # 22, 11, 6, 3, 2
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
        (43, 43),
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
        (43, 43),  # 22, 11, 5, 2, 1
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
        (43, 43),  # 22, 11, 6, 3
        (
            "conv_dw_2",  # zeros at the bottom and right of an even size
            "conv_dw_4",  # and of an odd size
            "conv_pw_13",  # a relu without the limit of 6
        ),
    ),
    "mobilenet_v2": Family(
        6e-5,
        (43, 43),
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
        (43, 43),
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
        (43, 43),  # 21, 11, 6, 3
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
        (43, 43),  # 22, 11, 6, 3
        ("stem_conv", "block3a_se_excite", "block6b_add", "top_activation"),
        r"block\d[b-z]_project_bn",
        0.2,
    ),
    "efficientnet_v2": Family(
        6e-6,
        (43, 43),
        ("stem_conv", "block1a_project_activation", "block3b_add", "block5a_se_excite", "top_activation"),
        r"(stem|block\d[b-z]_project)_bn",
        0.2,
    ),
    "convnext": Family(
        4e-6,
        (75, 75),  # 18, 9, 4, 2
        (
            "short_stage_0_block_0_depthwise_conv",  # preprocessing; the border of a 7x7 window
            "short_stage_0_block_0_gelu",  # the approximation by tanh
            "short_stage_0_block_1_depthwise_conv",  # the sum at the end of a block
            "short_stage_2_block_0_layer_scale",
            "short_head_layernorm",
            "convnext_tiny_stage_0_block_0_gelu",
            "convnext_tiny_stage_3_block_2_layer_scale",
        ),
    ),
}


class Case(NamedTuple):
    """A network, at the image size of its family unless another is given.

    Attributes:
      end: its last layer; '' for the whole network.
    """

    name: str
    end: str = ""
    size: tuple[int, int] = ()

    def __str__(self):
        return "-".join(map(str, filter(None, (self.name, self.end, *self.size))))


FAST = (
    Case("vgg16"),
    Case("mobilenet_025"),
    Case("short_resnet", "conv4_block1_out"),
    Case("short_resnet_v2", "conv3_block2_out"),
    Case("short_densenet", "conv4_block1_concat"),
    Case("short_efficientnet", "block4b_add"),
    Case("short_efficientnet_v2", "block5a_se_excite"),
    Case("short_convnext", "short_stage_2_block_0_layer_scale"),
    Case("short_nasnet", "reduction_concat_stem_1"),
    Case("mobilenet_v2_035", "block_4_add"),
    Case("mobilenet_v3_small_100", "expanded_conv_4_add"),
    Case("inception_v3", "mixed4", (75, 75)),
    Case("xception", "add_3"),
)
SLOW = tuple(
    map(
        Case,
        (
            *("vgg19", "resnet50", "resnet50_v2", "densenet121", "inception_v3", "inception_resnet_v2", "xception"),
            *("mobilenet_100", "mobilenet_v2_035", "mobilenet_v3_small_100", "nasnet_mobile", "efficientnet_b0"),
            *("efficientnet_v2_b0", "convnext_tiny"),
        ),
    )
)
EXHAUSTIVE = (
    *(Case(name) for name in keras_zoo.KERAS_MODELS if not {Case(name)} & {*FAST, *SLOW}),
    *(
        Case(name, size=(registry.get_spec(name).input_size,) * 2)
        for name in ("vgg16", "vgg19", *(f"efficientnet_b{number}" for number in range(8)), "efficientnet_v2_b0")
    ),
)

IN_KERAS_ONLY = {"efficientnet": 7}
"""Numbers in Keras' Normalization layer (mean, variance, count), which is preprocessing in flaxtl."""


PUBLISHED = [
    *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW),
    *(pytest.param(case, marks=pytest.mark.exhaustive("networks")) for case in EXHAUSTIVE),
]

published_networks = pytest.mark.parametrize("case", PUBLISHED, ids=str, indirect=True)
all_networks = pytest.mark.parametrize("case", [*PUBLISHED, *FAST], ids=str, indirect=True)
# A network has the same number in both lists: pytest runs its tests one after the other, and builds it once.


@pytest.fixture(scope="module")
def case(request):
    family = FAMILIES[keras_zoo.family(request.param.name)]
    return request.param._replace(size=request.param.size or family.size)


@pytest.fixture(scope="module")
def network(case):
    """Keras' network without softmax."""
    family = FAMILIES[keras_zoo.family(case.name)]
    network = keras_zoo.keras_network(case.name, *case.size, include_top=True, classifier_activation=None)
    keras_zoo.scale_weights(network, family.damped, family.factor)
    yield keras.Model(network.input, network.get_layer(case.end).output) if case.end else network
    if not case.end:
        del network
        gc.collect()  # up to a gigabyte


@pytest.fixture(scope="module")
def model(case):
    return Classifier(keras_zoo.get_spec(case.name), output_layer=case.end or None)


@pytest.fixture(scope="module")
def params(case, network, model, tmp_path_factory):
    """The weights of `network`, read from a file in Keras' legacy layout."""
    path = keras_zoo.save_legacy(network, tmp_path_factory.mktemp("weights") / "whole.h5")
    shapes = classifier.param_shapes(model, *case.size)["backbone"]
    params = load_weights(path, shapes, trusted=True).params
    path.unlink()
    return {"backbone": params}


@all_networks
def test_layers_and_param_counts_equal_keras(case, network, model):
    norms, dropouts = keras_zoo.batch_norms_and_dropouts(model, *case.size)
    assert norms == keras_zoo.keras_batch_norms(network)
    assert dropouts == keras_zoo.keras_dropouts(network)
    layers = classifier.list_layers(model, *case.size)
    assert [(layer.name, layer.shape) for layer in layers] == keras_zoo.keras_layers(network)
    shapes = jax.tree.leaves(classifier.param_shapes(model, *case.size), is_leaf=lambda leaf: isinstance(leaf, tuple))
    extra = IN_KERAS_ONLY.get(keras_zoo.family(case.name), 0)
    assert sum(map(math.prod, shapes)) + extra == network.count_params()


@all_networks
def test_outputs_equal_keras(case, network, model, params):
    family = FAMILIES[keras_zoo.family(case.name)]
    existing = {layer.name for layer in classifier.list_layers(model, *case.size)}
    taps = [layer for layer in (*family.taps, case.end) if layer in existing]
    pair = keras_zoo.Pair(network, model, params, keras_zoo.random_images(*case.size))
    keras_zoo.compare_outputs(pair, taps, family.bound, keras_zoo.preprocessing(case.name))


@published_networks
def test_weight_files_without_top_equal_those_with_it(case, network, params, tmp_path):
    """In both of Keras' layouts."""
    backbone = keras_zoo.without_top(case.name, network, *case.size)
    for save in (keras_zoo.save_legacy, keras_zoo.save_keras3):
        file = save(backbone, tmp_path / "base.h5")
        tree = keras_zoo.load_params(case.name, file, *case.size, include_top=False)["backbone"]
        whole = keras_layers.rename_final_norm(params["backbone"], tree)
        np.testing.assert_equal(tree, {layer: whole[layer] for layer in tree})
