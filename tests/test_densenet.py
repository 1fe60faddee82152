"""DenseNet121, DenseNet169 and DenseNet201 against Keras' own, with the same random weights.

Largest deviation measured on CPU, of the largest output: 1.2e-6, from float32 sums in another order, one after another
through 120 to 200 convolutions. The bound is three times that.
"""

import h5py
import numpy as np
import pytest
import zoo
from keras.applications.densenet import preprocess_input

from flaxtl.models import catalog
from flaxtl.models.classifier import Classifier
from flaxtl.train.pretrained import expected_shapes
from flaxtl.weights.load import load

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
    network = zoo.keras_network(name, ODD, top=False)
    both, again = (
        zoo.pair(name, network, save(network, tmp_path / "weights.h5"), top=False)
        for save in (zoo.save_legacy, zoo.save_keras3)
    )
    np.testing.assert_equal(again.parameters, both.parameters)
    theirs, ours = zoo.outputs(both, preprocess_input, TAPS)
    zoo.assert_equal(theirs, ours, BOUND)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_top_equals_keras(name, tmp_path):
    network = zoo.keras_network(name, EVEN, top=True, classifier_activation=None)
    both = zoo.pair(name, network, zoo.save_legacy(network, tmp_path / "weights.h5"), top=True)
    theirs, ours = zoo.logits(both, preprocess_input)
    zoo.assert_equal(theirs, ours, BOUND)


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
    network = zoo.keras_network("densenet121", EVEN, top=True)
    file = zoo.save_legacy(network, tmp_path / "weights.h5")
    expected = expected_shapes(Classifier(catalog.find("densenet121")))
    tree = load(file, expected).tree
    give_former_names(file)
    np.testing.assert_equal(load(file, expected).tree, tree)


@first_is_fast
def test_layers_and_counts_are_those_of_keras(name):
    network = zoo.keras_network(name, 224, top=True)
    assert zoo.our_names(name, 224, top=True) == zoo.names(network)
    assert zoo.our_batch_norms(name, 224) == zoo.batch_norms(network)
    row = catalog.find(name)
    assert zoo.count(name, top=True) == row.parameters_with_top == network.count_params()
    assert zoo.count(name, top=False) == row.parameters_base


def test_every_layer_computes_in_bfloat16_when_asked():
    """But for the border around the pixels, which are float32 up to the first convolution."""
    found = zoo.dtypes("densenet121", ODD, "bfloat16")
    assert found.pop("zero_padding2d") == "float32"
    assert set(found.values()) == {"bfloat16"}


def test_no_convolution_has_a_bias():
    shapes = expected_shapes(Classifier(catalog.find("densenet121")))
    assert [name for name, leaves in shapes.items() if "kernel" in leaves and "bias" in leaves] == ["predictions"]
