"""The head: layers, shapes, errors, and outputs compared with Keras' layers."""

from functools import partial

import jax
import keras
import numpy as np
import pytest

from flaxtl.errors import UserError
from flaxtl.models import classifier, registry
from flaxtl.models.classifier import Classifier, forward
from flaxtl.models.head import POOLINGS, Head

VGG16 = registry.get_spec("vgg16")


def model_with(**settings):
    return Classifier(VGG16, Head(num_classes=5, **settings))


def draw(model, features):
    """Return random parameters of the head for features in place of VGG16's last pool."""
    shapes = jax.eval_shape(partial(model.init, start="block5_pool"), jax.random.key(0), features)["params"]
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: 0.05 * random.standard_normal(leaf.shape, np.float32), shapes)


def run(model, tree, features, *taps):
    """Return what the head computes from the features, in one program."""
    return jax.jit(lambda tree, features: forward(model, tree, features, start="block5_pool", taps=taps))(
        tree, features
    )


def layers(height=224, width=224, **settings):
    head_layers = classifier.list_layers(model_with(**settings), height, width)
    return [(layer.name, layer.shape) for layer in head_layers if layer.section == "head"]


def param_shapes(**settings):
    shapes = classifier.param_shapes(model_with(**settings), 200, 200)["head"]
    return {f"{layer}/{leaf}": shape for layer, leaves in shapes.items() for leaf, shape in leaves.items()}


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ("none", [("flatten", (25088,))]),
        ("average_2x2", [("pool", (3, 3, 512)), ("flatten", (4608,))]),
        ("global_average", [("pool", (512,)), ("flatten", (512,))]),
        ("global_max", [("pool", (512,)), ("flatten", (512,))]),
    ],
)
def test_pooling_layers_and_shapes(pooling, expected):
    assert layers(pooling=pooling, units=()) == [*expected, ("dropout", expected[-1][1]), ("predictions", (5,))]


def test_head_without_dropout_has_no_dropout_layers():
    assert layers(pooling="global_max", units=(), dropout=0.0)[1:] == [("flatten", (512,)), ("predictions", (5,))]
    names = [name for name, _ in layers(pooling="global_max", units=(8, 4), dropout=0.0)]
    assert names == ["pool", "flatten", "dense_1", "dense_2", "predictions"]


def test_hidden_layers_are_numbered_from_one():
    assert [name for name, _ in layers(pooling="global_max", units=(8, 4))] == [
        *("pool", "flatten", "dense_1", "dropout_1", "dense_2", "dropout_2", "predictions")
    ]


def test_lecture_head_has_590_597_params():
    shapes = param_shapes(pooling="average_2x2", units=(128,))
    assert shapes == {
        "dense_1/kernel": (4608, 128),
        "dense_1/bias": (128,),
        "predictions/kernel": (128, 5),
        "predictions/bias": (5,),
    }
    assert sum(np.prod(shape) for shape in shapes.values()) == 590_597


@pytest.mark.parametrize("pooling", POOLINGS)
def test_head_equals_keras_layers(pooling):
    """From 5x4 features: a 2x2 pool drops a row. Float32 sums of up to 640 products may differ in their order."""
    model = model_with(pooling=pooling, units=(7,))
    features = np.random.default_rng(0).uniform(0, 2, (3, 5, 4, 32)).astype(np.float32)
    tree = draw(model, features)
    result = run(model, tree, features, "flatten")

    pools = {
        "none": [],
        "average_2x2": [keras.layers.AveragePooling2D(2)],
        "global_average": [keras.layers.GlobalAveragePooling2D()],
        "global_max": [keras.layers.GlobalMaxPooling2D()],
    }
    flat = keras.Sequential([*pools[pooling], keras.layers.Flatten()])
    np.testing.assert_allclose(result.taps["flatten"], flat(features), rtol=1e-6)  # means of at most 20 values
    dense = {name: keras.layers.Dense(units, activation) for name, units, activation in DENSE}
    x = flat(features)
    for name, layer in dense.items():
        layer.build(x.shape)
        layer.set_weights([tree["head"][name]["kernel"], tree["head"][name]["bias"]])
        x = layer(x)
    np.testing.assert_allclose(result.output, x, rtol=1e-5)


def test_normalize_layer_comes_before_the_dense_layers():
    names = [name for name, _ in layers(pooling="global_average", units=(8,), normalize="layer_norm")]
    assert names == ["pool", "flatten", "normalize", "dense_1", "dropout_1", "predictions"]


@pytest.mark.parametrize(
    ("normalize", "params"),
    [
        ("l2", []),
        ("layer_norm", []),
        ("standardize", ["mean", "var"]),
        ("batch_norm", ["scale", "bias", "mean", "var"]),
    ],
)
def test_normalize_equals_keras_layer(normalize, params):
    """Float32 sums of 32 squares in another order: a few units in the last place."""
    settings = {"pooling": "global_average", "units": (), "normalize": normalize}
    shapes = param_shapes(**settings)
    assert [path for path in shapes if path.startswith("normalize/")] == [f"normalize/{leaf}" for leaf in params]
    features = np.random.default_rng(0).uniform(0, 4, (3, 5, 4, 32)).astype(np.float32)
    features[0] = 0  # an image without any activation
    values = {"scale": 1.5, "bias": 0.5, "mean": np.linspace(0, 4, 32), "var": np.linspace(0, 2, 32)}
    weights = {leaf: np.broadcast_to(values[leaf], 32).astype(np.float32) for leaf in params}
    tree = {"head": {"predictions": {"kernel": np.zeros((32, 5), np.float32), "bias": np.zeros(5, np.float32)}}}
    if params:
        tree["head"]["normalize"] = weights
    result = run(model_with(**settings), tree, features, "flatten", "normalize")
    norm = {
        "l2": keras.layers.UnitNormalization(),
        "layer_norm": keras.layers.LayerNormalization(center=False, scale=False),
        "standardize": keras.layers.BatchNormalization(center=False, scale=False),
        "batch_norm": keras.layers.BatchNormalization(),
    }[normalize]
    norm.build((None, 32))
    norm.set_weights(list(weights.values()))
    np.testing.assert_allclose(result.taps["normalize"], norm(result.taps["flatten"]), rtol=2e-6, atol=1e-6)


DENSE = (("dense_1", 7, "relu"), ("predictions", 5, "softmax"))


def test_init_params_are_glorot_uniform_with_zero_bias():
    """Bounded by sqrt(6 / (inputs + outputs)) and of a uniform distribution's variance, bound**2 / 3."""
    model = model_with(pooling="average_2x2", units=(128,))
    head = classifier.init_params(model, 200, 200, jax.random.key(0), head_only=True)["head"]
    kernel = np.asarray(head["dense_1"]["kernel"])
    bound = np.sqrt(6 / (4608 + 128))
    assert 0.999 * bound < np.abs(kernel).max() <= bound
    np.testing.assert_allclose(kernel.var(), bound**2 / 3, rtol=0.01)  # 589,824 draws: about 0.1 % by chance
    assert not np.any(head["dense_1"]["bias"])
    assert not np.any(head["predictions"]["bias"])


@pytest.mark.parametrize(
    ("units", "layer", "trained", "other"),
    [((1000,), "dropout_1", "dense_1", "predictions"), ((), "dropout", "predictions", "block5_conv3")],
)
def test_dropout_zeroes_and_scales_in_train_mode_only(units, layer, trained, other):
    model = model_with(pooling="global_average", units=units, dropout=0.4)
    features = np.ones((8, 1, 1, 4 if units else 1000), np.float32)
    tree = draw(model, features)
    if units:
        tree["head"]["dense_1"] = {"kernel": np.zeros((4, 1000), np.float32), "bias": np.ones(1000, np.float32)}

    def dropped(key, *train_layers):
        keys = None if key is None else jax.random.split(key, len(features))
        options = {"taps": (layer,), "train_layers": frozenset(train_layers), "dropout_keys": keys}
        return jax.jit(lambda tree: forward(model, tree, features, start="block5_pool", **options).taps[layer])(tree)

    np.testing.assert_array_equal(dropped(None), np.ones((8, 1000)))
    np.testing.assert_array_equal(dropped(jax.random.key(1), other), np.ones((8, 1000)))
    values = np.asarray(dropped(jax.random.key(1), trained))
    np.testing.assert_array_equal(np.unique(values), [0, np.float32(1) / np.float32(0.6)])
    assert (values == 0).mean() == pytest.approx(0.4, abs=0.02)  # 8,000 draws: standard deviation 0.0055
    assert np.any(values != dropped(jax.random.key(2), trained))


def test_too_few_features_to_pool_suggests_a_fix():
    with pytest.raises(UserError, match=r"\b1x3\b.*\baverage_2x2\b.*\bglobal_average\b.*\bdata\.height\b"):
        layers(height=63, width=96)


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        ({"pooling": "global_avg"}, r"\bpooling\b.*'global_avg'.*'global_average'"),
        ({"normalize": "layernorm"}, r"\bhead\.normalize\b.*'layernorm'.*'layer_norm'"),
        ({"dropout": 1.0}, r"\bhead\.dropout\b.*\b1\.0\b"),
        ({"dropout": -0.1}, r"\bhead\.dropout\b.*-0\.1\b"),
        ({"units": (8, 0)}, r"\bhead\.units\b.*\(8, 0\)"),
        ({"units": (1.5,)}, r"\bhead\.units\b.*\(1\.5,\)"),
        ({"units": ("a",)}, r"\bhead\.units\b.*\('a',\)"),
    ],
)
def test_invalid_head_is_an_error(settings, facts):
    with pytest.raises(UserError, match=facts):
        Head(num_classes=5, **settings)
