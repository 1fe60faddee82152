"""ResNet50, ResNet101 and ResNet152 against Keras' own, with the same random weights, batch statistics among them.

Largest deviation measured on CPU, of the largest output: 1.3e-6, from float32 sums in another order, one after another
through 53 to 155 convolutions. The bound is three times that.
"""

import h5py
import numpy as np
import pytest
from helpers import keras_zoo
from keras.applications.resnet import preprocess_input

from flaxtl.errors import UserError
from flaxtl.models import classifier, registry
from flaxtl.models.classifier import Classifier
from flaxtl.pretrained.backbone import expected_shapes
from flaxtl.pretrained.loader import load_weights

NETWORKS = ("resnet50", "resnet101", "resnet152")
BOUND = 4e-6
ODD, EVEN = 75, 64  # pixels; 75 meets both parities on its way down: 38, 19, 10, 5, 3

# What is wrong where the first deviation is:
TAPS = (
    "conv1_bn",  # the border of the first convolution; epsilon
    "pool1_pool",  # the border of the pool
    "conv2_block1_out",  # projection
    "conv3_block1_1_bn",  # the place of the stride
    "conv3_block1_out",
    "conv5_block3_out",
)

first_is_fast = pytest.mark.parametrize(
    "name", [NETWORKS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS[1:])]
)


@first_is_fast
def test_base_equals_keras(name, tmp_path):
    network = keras_zoo.keras_network(name, ODD, top=False)
    keras_zoo.shrink(network, "_3_bn")
    both, again = (
        keras_zoo.pair(name, network, save(network, tmp_path / "weights.h5"), top=False)
        for save in (keras_zoo.save_legacy, keras_zoo.save_keras3)
    )
    np.testing.assert_equal(again.parameters, both.parameters)
    theirs, ours = keras_zoo.outputs(both, preprocess_input, TAPS)
    keras_zoo.assert_equal(theirs, ours, BOUND)


@first_is_fast
def test_top_equals_keras(name, tmp_path):
    network = keras_zoo.keras_network(name, EVEN, top=True, classifier_activation=None)
    keras_zoo.shrink(network, "_3_bn")
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
    found = keras_zoo.dtypes("resnet50", ODD, "bfloat16")
    assert found.pop("conv1_pad") == "float32"
    assert set(found.values()) == {"bfloat16"}


def test_the_stride_is_on_the_first_convolution_of_a_stage():
    """Not on the 3x3, as in the networks that are called v1.5."""
    found = classifier.list_layers(Classifier(registry.get_spec("resnet50")), EVEN, EVEN)
    sides = {layer.name: layer.shape[0] for layer in found if len(layer.shape) == 3}
    first = [f"conv{stage}_block1_{layer}_conv" for stage in (2, 3, 4, 5) for layer in (1, 2)]
    assert [sides[name] for name in first] == [16, 16, 8, 8, 4, 4, 2, 2]


def test_every_convolution_has_a_bias():
    shapes = expected_shapes(Classifier(registry.get_spec("resnet50")))
    assert all(set(leaves) == {"kernel", "bias"} for leaves in shapes.values() if "kernel" in leaves)


def test_order_of_the_layers_of_a_block():
    """In a file, that is: by depth, the projection among the layers that it runs beside."""
    shapes = expected_shapes(Classifier(registry.get_spec("resnet50")))
    block = [name.removeprefix("conv3_block1_") for name in shapes if name.startswith("conv3_block1_")]
    assert block == ["1_conv", "1_bn", "2_conv", "2_bn", "0_conv", "3_conv", "0_bn", "3_bn"]


def test_the_old_resnet50_is_told_apart(tmp_path):
    """It has today's file name and shapes, other layer names and another epsilon."""
    file = tmp_path / "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
    kernels = {"conv1": (7, 7, 3, 64), "res2a_branch2a": (1, 1, 64, 64)}
    with h5py.File(file, "w") as stream:
        stream.attrs["layer_names"] = [name.encode() for name in kernels]
        for name, shape in kernels.items():
            group = stream.create_group(name)
            group.attrs["weight_names"] = [f"{name}_W:0".encode()]
            group[f"{name}_W:0"] = np.zeros(shape, np.float32)
    with pytest.raises(UserError, match=r"\bResNet50\b.*\b0\.001\b.*\bweights\.path=imagenet\b") as caught:
        load_weights(file, expected_shapes(Classifier(registry.get_spec("resnet50"))))
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
