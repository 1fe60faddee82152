"""EfficientNetV2 B0 to B3, S, M and L against Keras' own with weights drawn at random.

XLA orders the sums of the two graphs differently. Measured, relative to the largest output: up to 2e-6 (L at its full
size).
"""

import jax
import keras
import numpy as np
import pytest
from helpers import keras_zoo

from flaxtl.models import registry
from flaxtl.models.imagenet import PREPROCESSING

NETWORKS = [row.name for row in registry.MODELS.values() if row.name.startswith("efficientnetv2")]
SIDE = 91  # layers of stride 2 see odd and even sizes: 91, 46, 23, 12, 6
BOUND = 6e-6
LAYERS = ("stem_conv", "block1a_project_activation", "block3b_add", "block5a_se_excite", "top_activation")

first_is_fast = pytest.mark.parametrize(
    "name", [NETWORKS[0], *(pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS[1:])]
)


def drawn(name, side, *, top):
    """Keras' network with random weights that do not grow its outputs a thousandfold, as dozens of blocks else do."""
    return keras_zoo.quietened(keras_zoo.keras_network(name, side, top=top), r"(stem|block\d[b-z]_project)_bn")


@first_is_fast
def test_base_equals_keras(name, tmp_path):
    network = drawn(name, SIDE, top=False)
    both = keras_zoo.pair(name, network, keras_zoo.save_legacy(network, tmp_path / "weights.h5"), top=False)
    theirs, ours = keras_zoo.outputs(both, lambda x: x, LAYERS)
    keras_zoo.assert_equal(theirs, ours, BOUND)
    again = keras_zoo.pair(name, network, keras_zoo.save_keras3(network, tmp_path / "again"), top=False)
    jax.tree.map(np.testing.assert_array_equal, again.parameters, both.parameters)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_top_equals_keras(name, tmp_path):
    network = drawn(
        name, registry.get_spec(name).input_size if name == NETWORKS[0] else SIDE, top=True
    )  # the top fits every size
    both = keras_zoo.pair(name, network, keras_zoo.save_legacy(network, tmp_path / "weights.h5"), top=True)
    theirs, ours = keras_zoo.outputs(both, lambda x: x, ("top_activation", "predictions"))
    keras_zoo.assert_equal(theirs, ours, BOUND)


@first_is_fast
def test_layers_and_counts_are_those_of_keras(name):
    row = registry.get_spec(name)
    network = keras_zoo.keras_network(name, row.input_size, top=True)
    assert keras_zoo.our_names(name, row.input_size, top=True) == keras_zoo.names(network)
    assert keras_zoo.batch_norms(network) == keras_zoo.our_batch_norms(name, row.input_size)
    assert keras_zoo.dropouts(network) == keras_zoo.our_dropouts(name, row.input_size)
    assert keras_zoo.count(name, top=True) == row.num_params == network.count_params()
    assert keras_zoo.count(name, top=False) == row.num_params_no_top


def test_a_deeper_network_goes_beyond_the_full_rate_of_drop_connect():
    """Keras divides by the number of B0's blocks in B1 to B3 too."""
    rates = [rate for rate, whole in keras_zoo.our_dropouts("efficientnetv2-b3", SIDE).values() if whole]
    assert max(rates) > 0.2


def test_small_networks_are_fed_by_mean_and_deviation_the_others_from_minus_one_to_one():
    assert [registry.get_spec(name).preprocessing for name in NETWORKS] == ["torch"] * 4 + ["tf_128"] * 3
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3)).astype(np.uint8)
    expected = keras.layers.Rescaling(1 / 128, offset=-1)(images.astype(np.float32))
    np.testing.assert_array_equal(PREPROCESSING["tf_128"](images), expected)  # exact: 128 is a power of 2
