"""Xception against Keras' own, with the same random weights.

Largest deviation measured on CPU, of the largest output: 1.5e-6, from float32 sums in another order, one after another
through 40 convolutions. The bound is three times that.
"""

import numpy as np
import pytest
from helpers import keras_zoo
from keras.applications.xception import preprocess_input

from flaxtl.models import registry

BOUND = 5e-6
ODD, EVEN = 75, 128  # pixels

# What is wrong where the first deviation is:
TAPS = (
    "block2_pool",  # the border of the pool: zeros would win over what is negative
    "add",  # a sum that is cut off at zero
    "block3_pool",  # no relu before a separable convolution
    "add_10",  # the same in the middle blocks
    "block14_sepconv1",  # a relu before this one
    "block14_sepconv2_act",  # none at the end
)


def test_base_equals_keras(tmp_path):
    network = keras_zoo.keras_network("xception", ODD, top=False)
    both, again = (
        keras_zoo.pair("xception", network, save(network, tmp_path / "weights.h5"), top=False)
        for save in (keras_zoo.save_legacy, keras_zoo.save_keras3)
    )
    np.testing.assert_equal(again.parameters, both.parameters)
    theirs, ours = keras_zoo.outputs(both, preprocess_input, TAPS)
    keras_zoo.assert_equal(theirs, ours, BOUND)


@pytest.mark.slow
def test_top_equals_keras(tmp_path):
    network = keras_zoo.keras_network("xception", EVEN, top=True)
    predictions = network.get_layer("predictions")
    # Residual blocks let random activations grow to thousands: the logits are brought back to where softmax tells.
    predictions.set_weights([array / 1000 for array in predictions.get_weights()])
    both = keras_zoo.pair("xception", network, keras_zoo.save_legacy(network, tmp_path / "weights.h5"), top=True)
    theirs, ours = keras_zoo.outputs(both, preprocess_input, ["avg_pool", "predictions"])
    assert theirs["predictions"].max() < 0.1
    keras_zoo.assert_equal(theirs, ours, BOUND)


def test_layers_and_counts_are_those_of_keras():
    """Pins, too: block2 has no relu before its first separable convolution, where it would change nothing."""
    network = keras_zoo.keras_network("xception", 299, top=True)
    assert keras_zoo.our_names("xception", 299, top=True) == keras_zoo.names(network)
    row = registry.get_spec("xception")
    assert keras_zoo.count("xception", top=True) == row.num_params == network.count_params()
    assert keras_zoo.count("xception", top=False) == row.num_params_no_top
