"""What is particular about EfficientNet and V2; they are compared with Keras in test_keras_parity.py."""

import jax
import keras
import numpy as np
import pytest
from flax import linen as nn
from helpers import keras_zoo

from flaxtl.models import efficientnet, registry
from flaxtl.models.efficientnet import Block
from flaxtl.models.net import Net
from flaxtl.pretrained.keras_layers import PUBLISHED_NORMALIZATION

BOUND = 6e-6  # see test_keras_parity.py; measured up to 2e-6 (B7 at its full size)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*(f"efficientnetb{number}" for number in range(8)), "efficientnetv2-b0"])
def test_efficientnet_equals_keras_at_input_size(name, tmp_path, monkeypatch):
    side = registry.get_spec(name).input_size
    pattern = r"block\d[b-z]_project_bn" if "v2" not in name else r"(stem|block\d[b-z]_project)_bn"
    settings = {"include_top": True, "classifier_activation": None}
    network = keras_zoo.keras_network(name, side, **settings)
    path = tmp_path / "weights.h5"
    if "v2" not in name:  # with these weights Keras changes its preprocessing
        network.get_layer("normalization").set_weights([*map(np.float32, PUBLISHED_NORMALIZATION), np.int32(0)])
        keras_zoo.save_legacy(network, path)
        monkeypatch.setattr(keras.src.utils.file_utils, "get_file", lambda *_, **__: str(path))
        network = keras_zoo.keras_network(name, side, weights="imagenet", **settings)
    keras_zoo.scale_weights(network, pattern, 0.2)
    params = keras_zoo.load_params(name, keras_zoo.save_legacy(network, path), side, include_top=True)
    model = keras_zoo.flaxtl_model(name, include_top=True)
    pair = keras_zoo.Pair(network, model, params, keras_zoo.random_images(side, side))
    keras_zoo.compare_outputs(pair, ("top_activation",), BOUND)


class OneBlock(nn.Module):
    """A residual block with a DropConnect rate of 0.5."""

    @nn.compact
    def __call__(self, net, x):
        net.begin_section("backbone")
        return efficientnet.mbconv(net, x, Block(1, "block", 3, 4, 4, 6, 1, drop_rate=0.5))


def test_drop_connect_drops_whole_examples_in_train_mode_only():
    x = np.random.default_rng(0).normal(size=(32, 5, 5, 4)).astype(np.float32)
    variables = OneBlock().init(jax.random.key(0), Net(), x)

    def run(*train_layers):
        keys = jax.random.split(jax.random.key(1), len(x))
        net = Net(train_layers=frozenset(train_layers), dropout_keys=keys, taps=("block_project_bn",))
        y, _ = OneBlock().apply(variables, net, x, mutable=["batch_stats"])
        return np.asarray(y), np.asarray(net.tapped["block_project_bn"])

    frozen, inside = run("head")
    np.testing.assert_array_equal(frozen, x + inside)
    trained, inside = run("block_project_bn")
    dropped = np.all(trained == x, axis=(1, 2, 3))
    assert 4 < dropped.sum() < 28  # of 32 at a rate of 0.5; one random key in 50,000 is beyond
    np.testing.assert_array_equal(trained[~dropped], x[~dropped] + 2 * inside[~dropped])


def test_efficientnetv2_b3_exceeds_the_drop_connect_rate():
    """Keras divides by the number of B0's blocks in B1 to B3 too."""
    _, dropouts = keras_zoo.batch_norms_and_dropouts("efficientnetv2-b3", 91)
    assert max(rate for rate, per_example in dropouts.values() if per_example) > efficientnet.DROP_CONNECT_RATE


def test_efficientnetv2_preprocessing_depends_on_the_variant():
    variants = ("b0", "b1", "b2", "b3", "s", "m", "l")
    preprocessings = [registry.get_spec(f"efficientnetv2-{variant}").preprocessing for variant in variants]
    assert preprocessings == ["torch"] * 4 + ["tf_128"] * 3
