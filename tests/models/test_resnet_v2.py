"""ResNet50V2, ResNet101V2 and ResNet152V2 against Keras' own, with the same random weights.

Largest deviation measured on CPU, of the largest output: 1.4e-6, from float32 sums in another order, one after another
through 53 to 155 convolutions. The bound is three times that.
"""

import numpy as np
import pytest
from helpers import keras_zoo
from keras.applications.resnet_v2 import preprocess_input

from flaxtl.models import classifier, registry
from flaxtl.models.classifier import Classifier
from flaxtl.pretrained.backbone import expected_shapes

NETWORKS = ("resnet50v2", "resnet101v2", "resnet152v2")
BOUND = 4e-6
ODD, EVEN = 75, 64  # pixels; 75 meets both parities on its way down: 38, 19, 10, 5, 3

# What is wrong where the first deviation is:
TAPS = (
    "conv1_conv",  # a batch norm or relu behind it
    "pool1_pool",  # the border of the pool: its zeros win over what is negative
    "conv2_block1_out",  # the projection is of the activated input
    "conv2_block2_out",  # the identity of the raw one
    "conv2_block3_out",  # the strided identity
    "conv5_block3_out",
    "post_relu",
)

first_is_fast = pytest.mark.parametrize(
    "name", [NETWORKS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS[1:])]
)


@first_is_fast
def test_base_equals_keras(name, tmp_path):
    network = keras_zoo.keras_network(name, ODD, top=False)
    keras_zoo.shrink(network, "_3_conv")
    both, again = (
        keras_zoo.pair(name, network, save(network, tmp_path / "weights.h5"), top=False)
        for save in (keras_zoo.save_legacy, keras_zoo.save_keras3)
    )
    np.testing.assert_equal(again.parameters, both.parameters)
    theirs, ours = keras_zoo.outputs(both, preprocess_input, TAPS)
    assert (theirs["conv1_conv"] < 0).any()
    keras_zoo.assert_equal(theirs, ours, BOUND)


@first_is_fast
def test_top_equals_keras(name, tmp_path):
    network = keras_zoo.keras_network(name, EVEN, top=True, classifier_activation=None)
    keras_zoo.shrink(network, "_3_conv")
    both = keras_zoo.pair(name, network, keras_zoo.save_legacy(network, tmp_path / "weights.h5"), top=True)
    theirs, ours = keras_zoo.logits(both, preprocess_input)
    keras_zoo.assert_equal(theirs, ours, BOUND)


@first_is_fast
def test_layers_and_counts_are_those_of_keras(name):
    network = keras_zoo.keras_network(name, 224, top=True)
    assert keras_zoo.our_names(name, 224, top=True) == keras_zoo.names(network)
    assert keras_zoo.our_batch_norms(name, 224) == keras_zoo.batch_norms(network)
    row = registry.get_spec(name)
    assert keras_zoo.count(name, top=True) == row.num_params == network.count_params()
    assert keras_zoo.count(name, top=False) == row.num_params_no_top


def test_every_layer_computes_in_bfloat16_when_asked():
    """But for the border around the pixels, which are float32 up to the first convolution."""
    found = keras_zoo.dtypes("resnet50v2", ODD, "bfloat16")
    assert found.pop("conv1_pad") == "float32"
    assert set(found.values()) == {"bfloat16"}


def test_the_stride_is_on_the_3x3_convolution_of_the_last_block():
    found = classifier.list_layers(Classifier(registry.get_spec("resnet50v2")), EVEN, EVEN)
    sides = {layer.name: layer.shape[0] for layer in found if len(layer.shape) == 3}
    last = [f"{block}_{layer}_conv" for block in ("conv2_block3", "conv3_block4", "conv4_block6") for layer in (1, 2)]
    assert [sides[name] for name in last] == [16, 8, 8, 4, 4, 2]
    assert sides["conv5_block3_1_conv"] == sides["conv5_block3_2_conv"] == 2


def test_convolutions_before_a_batch_norm_have_no_bias():
    shapes = expected_shapes(Classifier(registry.get_spec("resnet50v2")))
    for name, leaves in shapes.items():
        if "kernel" in leaves:
            assert ("bias" in leaves) is not name.endswith(("_1_conv", "_2_conv")), name
