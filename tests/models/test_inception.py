"""InceptionV3 and InceptionResNetV2 against Keras' own, with the same random weights.

Largest deviation measured on CPU, of the largest output: 0.9e-6 in InceptionV3 and 1.0e-6 in InceptionResNetV2, from
float32 sums in another order, one after another through 94 and 244 convolutions. The bound is three times that.
"""

import re

import keras
import numpy as np
import pytest
from helpers import keras_zoo
from keras.applications.inception_v3 import preprocess_input

from flaxtl.models import registry
from flaxtl.models.classifier import Classifier
from flaxtl.models.head import Head
from flaxtl.pretrained.backbone import expected_shapes

BOUND = 3e-6
ODD, EVEN = 107, 128  # pixels, both with more than one feature at the end

# What is wrong where the first deviation is:
TAPS = {
    "inception_v3": (
        "mixed0",  # an average pool that counts the zeros beyond the border
        "mixed3",  # a reduction
        "mixed4",  # rows for columns
        "mixed9_0",  # the two halves of a fan
        "mixed10",
    ),
    "inception_resnet_v2": (
        "mixed_5b",
        "custom_scale_layer",  # the scale of block35, 0.17
        "custom_scale_layer_10",  # of block17, 0.1
        "custom_scale_layer_30",  # of block8, 0.2
        "custom_scale_layer_39",  # of the last block8, 1
        "conv_7b",  # a relu behind that
        "conv_7b_ac",
    ),
}

each = pytest.mark.parametrize("name", ["inception_v3", pytest.param("inception_resnet_v2", marks=pytest.mark.slow)])


@each
def test_base_equals_keras(name, tmp_path):
    assert_base_equals(name, keras_zoo.keras_network(name, ODD, top=False), tmp_path / "weights.h5")


def assert_base_equals(name, network, file):
    """Both of Keras' layouts give the same parameters, and these the outputs of `network`."""
    both, again = (
        keras_zoo.pair(name, network, save(network, file), top=False)
        for save in (keras_zoo.save_legacy, keras_zoo.save_keras3)
    )
    np.testing.assert_equal(again.parameters, both.parameters)
    theirs, ours = keras_zoo.outputs(both, preprocess_input, TAPS[name])
    keras_zoo.assert_equal(theirs, ours, BOUND)


@pytest.mark.slow
@pytest.mark.parametrize("name", TAPS)
def test_top_equals_keras(name, tmp_path):
    network = keras_zoo.keras_network(name, EVEN, top=True)
    predictions = network.get_layer("predictions")
    # Random logits of some ten would saturate the softmax, or have their rounding errors stretched by it.
    predictions.set_weights([array / 10 for array in predictions.get_weights()])
    both = keras_zoo.pair(name, network, keras_zoo.save_legacy(network, tmp_path / "weights.h5"), top=True)
    theirs, ours = keras_zoo.outputs(both, preprocess_input, ["avg_pool", "predictions"])
    assert theirs["predictions"].max() < 0.1
    keras_zoo.assert_equal(theirs, ours, BOUND)


@pytest.mark.slow
def test_a_network_made_after_others(tmp_path, monkeypatch):
    keras.backend.clear_session()
    monkeypatch.setattr(keras.backend, "clear_session", lambda: None)
    others = "inception_v3", "xception"
    *_, network = (keras_zoo.keras_network(name, ODD, top=False) for name in (*others, "inception_v3"))
    assert {"conv2d_98", "batch_normalization_98"} <= set(keras_zoo.names(network)[:3])
    assert_base_equals("inception_v3", network, tmp_path / "weights.h5")


@each
def test_layers_and_counts_are_those_of_keras(name):
    """Pins, too: no gain in batch norms, no bias in convolutions but `_conv`, no relu behind block8_10."""
    network = keras_zoo.keras_network(name, 299, top=True)
    assert keras_zoo.our_names(name, 299, top=True) == keras_zoo.names(network)
    row = registry.get_spec(name)
    assert keras_zoo.count(name, top=True) == row.num_params == network.count_params()
    assert keras_zoo.count(name, top=False) == row.num_params_no_top


@pytest.mark.parametrize(
    ("name", "below"), [("inception_v3", "mixed8"), ("inception_resnet_v2", "mixed_7a"), ("xception", "add_10")]
)
def test_the_top_group_is_all_above_a_layer(name, below):
    row = registry.get_spec(name)
    head = Head(num_classes=2, pooling="global_average")
    whole = expected_shapes(Classifier(row, head))
    above = whole.keys() - expected_shapes(Classifier(row, head, output_layer=below)).keys()
    rule = row.groups[1][1]
    assert {layer for layer in whole if re.fullmatch(rule, f"backbone/{layer}/kernel")} == above
