"""EfficientNetB0 to B7 against Keras' own, as it builds them for ImageNet's weights, from a file drawn at random.

XLA orders the sums of the two graphs differently. Measured, relative to the largest output: up to 2e-6 (B7 at its full
size).
"""

import re

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import linen as nn
from helpers import keras_zoo

from flaxtl.models import efficientnet, registry
from flaxtl.models.classifier import Classifier
from flaxtl.models.efficientnet import Block
from flaxtl.models.net import Net
from flaxtl.pretrained.keras_layers import PUBLISHED_NORMALIZATION

NETWORKS = [f"efficientnetb{number}" for number in range(8)]
SIDE = 91  # in both sizes of windows the layers of stride 2 see odd and even sizes: 91, 46, 23, 12, 6
BOUND = 6e-6
LAYERS = ("stem_conv", "block3a_se_excite", "block6b_add", "top_activation")

first_is_fast = pytest.mark.parametrize(
    "name", [NETWORKS[0], *(pytest.param(n, marks=pytest.mark.slow) for n in NETWORKS[1:])]
)


RESIDUAL = r"block\d[b-z]_project_bn"
"""What a residual block adds. Dozens of random ones would make outputs a thousand times as large, and the sigmoids of
squeeze and excitation either 0 or 1."""


def published(name, side, file, monkeypatch, *, top):
    """Keras' network as weights='imagenet' builds it, with what it does to pixels; `file` is what it downloads."""
    network = keras_zoo.quietened(keras_zoo.keras_network(name, side, top=top), RESIDUAL)
    network.get_layer("normalization").set_weights([*map(np.float32, PUBLISHED_NORMALIZATION), np.int32(0)])
    keras_zoo.save_legacy(network, file)
    monkeypatch.setattr(keras.src.utils.file_utils, "get_file", lambda *_, **__: str(file))
    return keras_zoo.quietened(keras_zoo.keras_network(name, side, top=top, weights="imagenet"), RESIDUAL)


@first_is_fast
def test_base_equals_keras(name, tmp_path, monkeypatch):
    file = tmp_path / "weights.h5"
    network = published(name, SIDE, file, monkeypatch, top=False)
    both = keras_zoo.pair(name, network, file, top=False)
    theirs, ours = keras_zoo.outputs(both, lambda x: x, LAYERS)
    keras_zoo.assert_equal(theirs, ours, BOUND)
    again = keras_zoo.pair(name, network, keras_zoo.save_keras3(network, tmp_path / "again"), top=False)
    jax.tree.map(np.testing.assert_array_equal, again.parameters, both.parameters)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_top_equals_keras(name, tmp_path, monkeypatch):
    file = tmp_path / "weights.h5"
    network = published(name, registry.get_spec(name).input_size, file, monkeypatch, top=True)
    both = keras_zoo.pair(name, network, file, top=True)
    theirs, ours = keras_zoo.outputs(both, lambda x: x, ("top_activation", "predictions"))
    keras_zoo.assert_equal(theirs, ours, BOUND)


@first_is_fast
def test_layers_and_counts_are_those_of_keras(name):
    row = registry.get_spec(name)
    network = keras_zoo.keras_network(name, row.input_size, top=True)
    assert keras_zoo.our_names(name, row.input_size, top=True) == keras_zoo.names(network)
    assert keras_zoo.batch_norms(network) == keras_zoo.our_batch_norms(name, row.input_size)
    assert keras_zoo.dropouts(network) == keras_zoo.our_dropouts(name, row.input_size)
    normalization = 7  # of Keras' numbers: mean, variance and count of a layer that is preprocessing here
    assert keras_zoo.count(name, top=True) + normalization == row.num_params == network.count_params()
    assert keras_zoo.count(name, top=False) + normalization == row.num_params_no_top


class OneBlock(nn.Module):
    """One residual block that is dropped half the time."""

    @nn.compact
    def __call__(self, net, x):
        net.begin_section("backbone")
        return efficientnet.mbconv(net, x, Block(1, "block", 3, 4, 4, 6, 1, drop=0.5))


def test_drop_connect_acts_on_whole_examples_and_only_where_the_block_learns():
    x = np.random.default_rng(0).normal(size=(32, 5, 5, 4)).astype(np.float32)
    variables = OneBlock().init(jax.random.key(0), Net(), x)

    def run(*learning):
        keys = jax.random.split(jax.random.key(1), len(x))
        net = Net(train_layers=frozenset(learning), dropout_keys=keys, taps=("block_project_bn",))
        y, _ = OneBlock().apply(variables, net, x, mutable=["batch_stats"])
        return np.asarray(y), np.asarray(net.tapped["block_project_bn"])

    frozen, inside = run("head")
    np.testing.assert_array_equal(frozen, x + inside)
    learnt, inside = run("block_project_bn")
    dropped = np.all(learnt == x, axis=(1, 2, 3))
    assert 4 < dropped.sum() < 28  # of 32 at a rate of 0.5; one random key in 50,000 is beyond
    np.testing.assert_array_equal(learnt[~dropped], x[~dropped] + 2 * inside[~dropped])


def test_bfloat16_reaches_the_last_layer_and_spares_parameters():
    model = Classifier(registry.get_spec("efficientnetb0"), dtype=jnp.bfloat16)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.uint8)
    result, variables = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x, taps=LAYERS), images)
    assert {tap.dtype for tap in result.taps.values()} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_the_top_group_is_the_last_stage_and_what_follows_it():
    groups = registry.get_spec("efficientnetb0").groups
    layers = ("block6d_project_bn", "block7a_expand_conv", "top_conv", "top_bn")
    chosen = [next(group for group, rule in groups if re.fullmatch(rule, f"backbone/{name}/x")) for name in layers]
    assert chosen == ["base", "block7", "block7", "block7"]
