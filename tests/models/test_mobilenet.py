"""MobileNet, MobileNetV2 and MobileNetV3 against Keras' own, with the same random weights.

Largest deviations measured on CPU, of the largest output, from float32 sums in another order: 1.3e-6 in MobileNet;
1.9e-5 in MobileNetV2, which has random activations grow to 40 between its blocks and keeps 6 of that inside them, with
the rounding errors of the 40; 2.3e-5 in MobileNetV3, where they grow to 1,000 and the range of a gate is 6 as well. The
bounds are three times that.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import keras_zoo

from flaxtl.models import classifier, registry
from flaxtl.models.classifier import Classifier
from flaxtl.models.head import Head

BOUNDS = {"mobilenet": 4e-6, "mobilenet_v2": 6e-5, "mobilenet_v3": 7e-5}
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

QUICK = ("mobilenet_0.25", "mobilenet_v2_0.35", "mobilenet_v3_small")
SLOW = [name for name in keras_zoo.KERAS if name.startswith("mobilenet") and name not in QUICK]

each = pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])


def family(name):
    return re.match("mobilenet(_v[23])?", name)[0]


@each
def test_base_equals_keras(name, tmp_path):
    network = keras_zoo.keras_network(name, SIDE, top=False)
    both, again = (
        keras_zoo.pair(name, network, save(network, tmp_path / "weights.h5"), top=False)
        for save in (keras_zoo.save_legacy, keras_zoo.save_keras3)
    )
    np.testing.assert_equal(again.parameters, both.parameters)
    theirs, ours = keras_zoo.outputs(both, keras_zoo.preprocessing(name), TAPS[family(name)])
    keras_zoo.assert_equal(theirs, ours, BOUNDS[family(name)])


@pytest.mark.slow
@pytest.mark.parametrize("name", [*QUICK, *SLOW])
def test_top_equals_keras(name, tmp_path):
    network = keras_zoo.keras_network(name, 64, top=True, classifier_activation=None)
    both = keras_zoo.pair(name, network, keras_zoo.save_legacy(network, tmp_path / "weights.h5"), top=True)
    theirs, ours = keras_zoo.logits(both, keras_zoo.preprocessing(name))
    keras_zoo.assert_equal(theirs, ours, BOUNDS[family(name)])


@each
def test_layers_and_counts_are_those_of_keras(name):
    network = keras_zoo.keras_network(name, 224, top=True)
    assert keras_zoo.our_names(name, 224, top=True) == keras_zoo.names(network)
    assert keras_zoo.our_batch_norms(name, 224) == keras_zoo.batch_norms(network)
    assert keras_zoo.our_dropouts(name, 224) == keras_zoo.dropouts(network)
    row = registry.get_spec(name)
    assert keras_zoo.count(name, top=True) == row.num_params == network.count_params()
    assert keras_zoo.count(name, top=False) == row.num_params_no_top


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        ("mobilenet_0.25", "conv_pw_6_relu"),
        ("mobilenet_v2_0.35", "block_6_project_BN"),
        ("mobilenet_v3_small", "expanded_conv_3_project_bn"),
    ],
)
def test_widths_are_known_where_the_layers_below_are_skipped(name, cut):
    """In bfloat16, which reaches the last layer but one; the logits are float32, although a convolution makes them."""
    model = Classifier(registry.get_spec(name), dtype=jnp.bfloat16)
    images = jax.ShapeDtypeStruct((1, 45, 45, 3), jnp.uint8)
    whole, variables = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x, taps=(cut,)), images)
    rest = jax.eval_shape(lambda variables, x: model.apply(variables, x, start=cut), variables, whole.taps[cut])
    assert whole.taps[cut].dtype == jnp.bfloat16
    assert rest.logits == whole.logits
    assert (rest.logits.shape, rest.logits.dtype) == ((1, 1000), jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("mobilenet", "conv_dw_12"),
        ("mobilenet_v2", "block_13_expand"),
        ("mobilenet_v3_small", "expanded_conv_8_expand"),
        ("mobilenet_v3_large", "expanded_conv_12_expand"),
    ],
)
def test_the_last_stage_is_what_halves_the_size_for_the_last_time_and_what_follows(name, first):
    row = registry.get_spec(name)
    layers = list(classifier.param_shapes(Classifier(row, Head(num_classes=2)), 64, 64)["backbone"])
    chosen = [layer for layer in layers if re.fullmatch(dict(row.groups)["last_stage"], f"backbone/{layer}/kernel")]
    assert chosen == layers[layers.index(first) :]
