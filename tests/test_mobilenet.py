"""MobileNet, MobileNetV2 and MobileNetV3 against Keras' own, with the same random weights.

Largest deviations measured on CPU, of the largest output, from float32 sums in another order one after another: XX in
MobileNet, XX in MobileNetV2. In MobileNetV3 XX: activations grow to hundreds on the way, and their rounding errors are
not small beside the range of a gate, which is 6 wide. The bounds are three times that.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

from flaxtl.models import catalog
from flaxtl.models.classifier import Classifier, forward

BOUNDS = {"mobilenet": 5e-6, "mobilenet_v2": 2e-5, "mobilenet_v3": 1e-4}
SIDE = 75  # pixels; layers of stride 2 see 75, 38, 19, 10 and 5: the zeros of an odd size and of an even one

# What is wrong where the first deviation is:
TAPS = {
    "mobilenet": (
        "conv_dw_2",  # zeros below and right of an even size
        "conv_dw_4",  # and of an odd one
        "conv_pw_13",  # a relu that does not end at 6
    ),
    "mobilenet_v2": (
        "expanded_conv_project_BN",
        "block_1_depthwise",  # zeros below and right of an even size
        "block_3_depthwise",  # and all around an odd one
        "block_9_add",  # a relu behind the project convolution
        "Conv_1_bn",
    ),
    "mobilenet_v3": (
        "conv",  # preprocessing, which Keras has inside the network
        "expanded_conv_3_depthwise_bn",
        "expanded_conv_4_squeeze_excite_mul",  # the gate
        "expanded_conv_7_project_bn",
        "conv_1_bn",
    ),
}
LOGITS = {"mobilenet": "conv_preds", "mobilenet_v2": "predictions", "mobilenet_v3": "logits"}
"""The layer of the top's last weights."""

QUICK = ("mobilenet_0.25", "mobilenet_v2_0.35", "mobilenet_v3_small")
SLOW = [name for name in zoo.KERAS if name.startswith("mobilenet") and name not in QUICK]

each = pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])


def family(name):
    return re.match("mobilenet(_v[23])?", name)[0]


@each
def test_base_equals_keras(name, tmp_path):
    network = zoo.keras_network(name, SIDE, top=False)
    both, again = (
        zoo.pair(name, network, save(network, tmp_path / "weights.h5"), top=False)
        for save in (zoo.save_legacy, zoo.save_keras3)
    )
    np.testing.assert_equal(again.parameters, both.parameters)
    theirs, ours = zoo.outputs(both, zoo.preprocessing(name), TAPS[family(name)])
    zoo.assert_equal(theirs, ours, BOUNDS[family(name)])


@each
def test_top_equals_keras(name, tmp_path):
    network = zoo.keras_network(name, 64, top=True)
    last = network.get_layer(LOGITS[family(name)])
    if family(name) != "mobilenet":
        # Random logits of some hundred would saturate the softmax.
        last.set_weights([array / 100 for array in last.get_weights()])
    both = zoo.pair(name, network, zoo.save_legacy(network, tmp_path / "weights.h5"), top=True)
    theirs, ours = zoo.outputs(both, zoo.preprocessing(name), [last.name, "predictions"])
    for k in theirs:
        print("FIG", name, k, theirs[k].max(), np.abs(theirs[k] - ours[k]).max() / np.abs(theirs[k]).max())
    assert 0.001 < theirs["predictions"].max() < 0.1
    zoo.assert_equal(theirs, ours, BOUNDS[family(name)])


@each
def test_layers_and_counts_are_those_of_keras(name):
    network = zoo.keras_network(name, 224, top=True)
    assert zoo.our_names(name, 224, top=True) == zoo.names(network)
    assert zoo.our_batch_norms(name, 224) == zoo.batch_norms(network)
    assert zoo.our_dropouts(name, 224) == zoo.dropouts(network)
    row = catalog.find(name)
    assert zoo.count(name, top=True) == row.parameters_with_top == network.count_params()
    assert zoo.count(name, top=False) == row.parameters_base


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        ("mobilenet_0.25", "conv_pw_6_relu"),
        ("mobilenet_v2_0.35", "block_6_project_BN"),
        ("mobilenet_v3_small", "expanded_conv_3_project_bn"),
    ],
)
def test_what_a_layer_is_does_not_depend_on_where_the_pass_starts(name, cut):
    """Widths are known, and sizes asked for, without the layers that are skipped."""
    model = Classifier(catalog.find(name))
    parameters = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 32, 32, 3), np.uint8))
