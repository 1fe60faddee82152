"""DenseNet121, DenseNet169 and DenseNet201 against Keras' own, with the same random weights.

Largest deviation measured on CPU, of the largest output: 1.2e-6, from float32 sums in another order, one after another
through 120 to 200 convolutions. The bound is three times that.
"""

import h5py
import numpy as np
import pytest
from helpers import keras_zoo
from keras.applications.densenet import preprocess_input

from flaxtl.models import registry
from flaxtl.models.classifier import Classifier
from flaxtl.pretrained.backbone import expected_shapes
from flaxtl.pretrained.loader import load_weights

NETWORKS = ("densenet121", "densenet169", "densenet201")
BOUND = 4e-6
ODD, EVEN = 75, 64  # pixels; 75 meets both parities on its way down: 38, 19, 9, 4, 2

# What is wrong where the first deviation is:
TAPS = (
    "conv1_bn",  # the border of the first convolution
    "pool1",  # the border of the pool
    "conv2_block1_concat",  # the order of old and new channels
    "conv2_block6_concat",
    "pool2_pool",  # an odd last row, which is left out
    "conv5_block1_concat",
    "relu",
)

first_is_fast = pytest.mark.parametrize(
    "name", [NETWORKS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS[1:])]
)


@first_is_fast
def test_base_equals_keras(name, tmp_path):
    network = keras_zoo.keras_network(name, ODD, top=False)
    both, again = (
        keras_zoo.pair(name, network, save(network, tmp_path / "weights.h5"), top=False)
        for save in (keras_zoo.save_legacy, keras_zoo.save_keras3)
    )
    np.testing.assert_equal(again.parameters, both.parameters)
    theirs, ours = keras_zoo.outputs(both, preprocess_input, TAPS)
    keras_zoo.assert_equal(theirs, ours, BOUND)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_top_equals_keras(name, tmp_path):
    network = keras_zoo.keras_network(name, EVEN, top=True, classifier_activation=None)
    both = keras_zoo.pair(name, network, keras_zoo.save_legacy(network, tmp_path / "weights.h5"), top=True)
    theirs, ours = keras_zoo.logits(both, preprocess_input)
    keras_zoo.assert_equal(theirs, ours, BOUND)


FORMERLY = {"conv1_conv": "conv1/conv", "conv1_bn": "conv1/bn", "predictions": "fc1000"}
"""Today's name -> that in the files that Keras downloads."""


def give_former_names(file):
    """In a file that Keras wrote today; a slash in the name of a layer makes groups of groups."""
    with h5py.File(file, "r+") as stream:
        for today, then in FORMERLY.items():
            group = stream[today]
            group.move(today, then)
            group.attrs["weight_names"] = [name.replace(today, then) for name in group.attrs["weight_names"]]
            stream.move(today, then)
        stream.attrs["layer_names"] = [FORMERLY.get(name, name) for name in stream.attrs["layer_names"]]


def test_a_file_with_former_names(tmp_path):
    network = keras_zoo.keras_network("densenet121", EVEN, top=True)
    file = keras_zoo.save_legacy(network, tmp_path / "weights.h5")
    expected = expected_shapes(Classifier(registry.get_spec("densenet121")))
    tree = load_weights(file, expected).params
    give_former_names(file)
    np.testing.assert_equal(load_weights(file, expected).params, tree)


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
    found = keras_zoo.dtypes("densenet121", ODD, "bfloat16")
    assert found.pop("zero_padding2d") == "float32"
    assert set(found.values()) == {"bfloat16"}


def test_no_convolution_has_a_bias():
    shapes = expected_shapes(Classifier(registry.get_spec("densenet121")))
    assert [name for name, leaves in shapes.items() if "kernel" in leaves and "bias" in leaves] == ["predictions"]
