"""Models as Flax modules: variables, training mode of some groups, captured layers, features, optimizer."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import keras_zoo

import flaxtl
from flaxtl.errors import UserError
from flaxtl.models import registry
from flaxtl.models.classifier import (
    Classifier,
    flatten_params,
    forward,
    init_params,
    param_shapes,
    to_variables,
    unflatten_params,
)
from flaxtl.models.head import Head
from flaxtl.models.image_classifier import ImageClassifier
from flaxtl.train.param_groups import is_batch_stat, layers_in_train_mode

NAME = "mobilenet_025"


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)


def create_abstractly(*arguments, **options):
    """Return a model and the shapes of its variables; nothing is compiled."""
    models = []

    def create():
        model, variables = flaxtl.create_model(*arguments, **options)
        models.append(model)
        return variables

    variables = jax.eval_shape(create)
    return models[0], variables


@pytest.fixture(scope="module")
def created():
    """Return a model and its variables. NumPy draws them: compiling the initializers of all layers takes seconds."""
    model, variables = create_abstractly(NAME, 3, None, input_size=32, units=(8,), dropout=0.5)
    random = np.random.default_rng(0)

    def draw(leaf):  # He's kernels, scales and variances around 1
        if len(leaf.shape) == 1:
            return random.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        return random.standard_normal(leaf.shape, np.float32) * np.float32(np.sqrt(2 / np.prod(leaf.shape[:-1])))

    return model, jax.tree.map(draw, variables)


def shapes(model, variables, images, **arguments):
    return jax.eval_shape(lambda variables, images: model.apply(variables, images, **arguments), variables, images)


def test_create_model_optimizer_has_no_state_for_unlisted_groups(created, images):
    model, variables = created
    logits = shapes(model, variables, images)
    assert (logits.shape, logits.dtype) == ((4, 3), np.float32)
    assert set(variables) == {"params", "batch_stats"}
    groups = flaxtl.param_groups(variables["params"], model.default_groups)
    assert jax.tree.structure(groups) == jax.tree.structure(variables["params"])
    tx = flaxtl.make_optimizer(groups, {"head": 1e-3}, optax.adam)

    state = jax.eval_shape(tx.init, variables["params"])
    state_size = sum(leaf.size for leaf in jax.tree.leaves(state))
    assert state_size == 1 + 2 * sum(leaf.size for leaf in jax.tree.leaves(variables["params"]["head"]))


def test_create_model_is_a_plain_flax_module(created, images):
    model, variables = created
    assert jax.tree.structure(jax.eval_shape(model.init, jax.random.key(0), images)) == jax.tree.structure(variables)
    mapped = jax.eval_shape(jax.vmap(lambda image: model.apply(variables, image[None])[0]), images)
    assert mapped.shape == (4, 3)


def test_image_classifier_trains_what_is_named_as_the_train_step_does(images):
    """Frozen batch norms keep their statistics; the others change as in flaxtl's own forward pass."""
    network = Classifier(registry.get_spec(NAME), Head(3, units=(), dropout=0.0), output_layer="conv_pw_1_relu")
    params = init_params(network, 32, 32, jax.random.key(0), head_only=False)
    model, variables = ImageClassifier(network, (32, 32)), to_variables(params)
    flat = flatten_params(params)
    named = {"head", "conv_pw_1", "conv_pw_1_bn"}
    active = [path for path in flat if named & set(path.split("/"))]

    @jax.jit
    def run(variables, images):
        by_default, by_name = (
            model.apply(variables, images, train=True, trainable=trainable, mutable="batch_stats")[1]["batch_stats"]
            for trainable in (None, named)
        )
        layers = layers_in_train_mode(active, flat.keys() - set(active))
        keys = jax.random.split(jax.random.key(0), 4)
        own = forward(network, unflatten_params(flat), images, train_layers=layers, dropout_keys=keys)
        return [flatten_params(stats) for stats in (by_default, by_name, own.batch_stats)]

    by_default, by_name, own = run(variables, images)
    before = flatten_params(variables["batch_stats"])
    moved = {path for path in before if not np.array_equal(before[path], by_name[path])}
    assert moved == {path for path in active if is_batch_stat(path)}
    assert len(moved) == 2
    assert not any(np.array_equal(before[path], by_default[path]) for path in before)
    for path in before:
        np.testing.assert_array_equal(by_name[path], own[path])


def test_create_model_trainable_name_is_a_group_or_a_layer(created, images):
    model, variables = created
    updated = shapes(model, variables, images, train=True, trainable=("head",), rngs={"dropout": jax.random.key(0)})
    assert updated.shape == (4, 3)  # without mutable=["batch_stats"], as all batch norms are frozen
    with pytest.raises(UserError, match=r"'haed'.*'head'"):
        shapes(model, variables, images, train=True, trainable=("haed",), rngs={"dropout": jax.random.key(0)})
    with pytest.raises(UserError, match=r"'head'.*trainable=\('head',\)"):
        shapes(model, variables, images, train=True, trainable="head")
    with pytest.raises(UserError, match=r"trainable is 3\. Give a sequence of names"):
        shapes(model, variables, images, train=True, trainable=3)


def test_create_model_names_may_come_from_an_iterator(created, images):
    model, variables = created
    with pytest.raises(UserError, match=r"'dropout_1' is in train mode"):
        shapes(model, variables, images, train=True, trainable=iter(["head"]))
    _, captured = shapes(model, variables, images, capture=iter(["conv1", "conv_dw_1"]))
    assert sorted(captured) == ["conv1", "conv_dw_1"]
    groups = flaxtl.param_groups(variables["params"], iter(model.default_groups))
    assert groups == flaxtl.param_groups(variables["params"], model.default_groups)
    with pytest.raises(UserError, match=r"'other'.*matches no parameter"):
        flaxtl.param_groups(variables["params"], iter([("all", ".*"), ("other", ".*")]))


def test_create_model_train_mode_drops_out(created, images):
    model, variables = created

    @jax.jit
    def run(key):
        return model.apply(variables, images, train=True, trainable=("head",), rngs={"dropout": key})

    once, again = run(jax.random.key(0)), run(jax.random.key(1))
    assert np.isfinite(once).all()
    assert not np.array_equal(once, again)
    assert shapes(model, variables, images, train=True, trainable=("predictions",)).shape == (4, 3)  # no dropout trains


@pytest.mark.parametrize("units", [(), (8,)])
def test_create_model_without_dropout_trains_without_a_key(images, units):
    model, variables = create_abstractly(NAME, 3, None, input_size=32, units=units)
    assert shapes(model, variables, images, train=True, trainable=("head",)).shape == (4, 3)


@pytest.mark.parametrize("units", [(), (8,)])
def test_create_model_dropout_needs_a_key(images, units):
    model, variables = create_abstractly(NAME, 3, None, input_size=32, units=units, dropout=0.5)
    with pytest.raises(Exception, match="dropout"):
        shapes(model, variables, images, train=True, trainable=("head",))


def test_create_model_dropout_is_active_if_its_dense_layer_trains(images):
    """Also if the dense layer is named and not its group; never silently without a key."""
    model, variables = create_abstractly(NAME, 3, None, input_size=32, dropout=0.5)
    train = {"train": True, "trainable": ("predictions",)}
    with pytest.raises(UserError, match=r"'dropout'.*rngs=\{'dropout': key\}"):
        shapes(model, variables, images, **train)
    assert shapes(model, variables, images, **train, rngs={"dropout": jax.random.key(0)}).shape == (4, 3)
    assert shapes(model, variables, images, train=True, trainable=("conv_pw_13",)).shape == (4, 3)


def test_create_model_start_above_dropout_needs_no_key():
    model, variables = create_abstractly("efficientnet_b0", 3, None, input_size=32)
    arguments = {"train": True, "mutable": ["batch_stats"]}
    with pytest.raises(UserError, match=r"'block2b_drop'.*rngs"):
        shapes(model, variables, np.zeros((2, 32, 32, 3), np.uint8), **arguments)
    features = np.zeros((2, 1, 1, 1280), np.float32)
    assert shapes(model, variables, features, start="top_activation", **arguments)[0].shape == (2, 3)


@pytest.mark.parametrize("name", ["vgg16", NAME, "vit_tiny_patch16_224"])
def test_create_model_batch_without_images_has_no_logits(name):
    model, variables = create_abstractly(name, 3, None, input_size=32)
    assert shapes(model, variables, np.zeros((0, 32, 32, 3), np.uint8)).shape == (0, 3)


@pytest.mark.parametrize("name", [NAME, "xception", "convnext_tiny", "vit_tiny_patch16_224"])
def test_create_model_params_are_float32_with_x64(name):
    with jax.enable_x64(True):
        _, variables = create_abstractly(name, 3, None, units=(8,), normalize="standardize")
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}


def test_create_model_captures_layers_and_their_gradients(created, images):
    model, variables = created
    logits, captured = shapes(model, variables, images, capture=("conv_pw_13", "pool"))
    assert logits.shape == (4, 3)
    assert {name: value.shape for name, value in captured.items()} == {
        "conv_pw_13": (4, 1, 1, 256),
        "pool": (4, 256),
    }

    @jax.jit
    def gradient(zeros):
        return jax.grad(lambda added: model.apply(variables, images, perturbations={"pool": added})[:, 0].sum())(zeros)

    assert np.any(gradient(jnp.zeros((4, 256))))
    with pytest.raises(UserError, match=r"'conv_pw_14'.*'conv_pw_"):
        shapes(model, variables, images, capture=("conv_pw_14",))
    with pytest.raises(UserError, match=r"'pool'.*capture=\('pool',\)"):
        shapes(model, variables, images, capture="pool")


@pytest.mark.parametrize(
    ("shape", "fact"),
    [((1, 16, 16, 3), "16x16.* 32"), ((32, 32, 3), "32x32x3"), ((1, 3, 32, 32), "1x3x32x32"), ((1, 32, 32, 4), "x4")],
)
def test_create_model_images_of_another_shape_are_refused(created, shape, fact):
    model, variables = created
    with pytest.raises(UserError, match=fact):
        shapes(model, variables, np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    ("pooling", "shape", "expected"),
    [
        ("global_average", (4, 1, 1, 7), "batch, 1, 1, 256"),
        ("global_average", (4, 256), "batch, 1, 1, 256"),
        ("none", (4, 2, 2, 256), "batch, 1, 1, 256"),
    ],
)
def test_create_model_features_of_another_shape_are_refused(pooling, shape, expected):
    model, variables = create_abstractly(NAME, 3, None, input_size=32, pooling=pooling)
    facts = ("'conv_pw_13_relu'", f"[{expected}]", "32x32", f"features is {list(shape)}")
    with pytest.raises(UserError, match=".*".join(map(re.escape, facts))):
        shapes(model, variables, np.zeros(shape, np.float32), start="conv_pw_13_relu")


def test_create_model_features_of_larger_images_fit_a_global_head(created):
    model, variables = created
    features = np.zeros((4, 2, 3, 256), np.float32)
    assert shapes(model, variables, features, start="conv_pw_13_relu").shape == (4, 3)


def test_create_model_start_needs_only_parameters_above_the_layer(created, images):
    model, variables = created
    whole, captured = jax.jit(lambda x: model.apply(variables, x, capture=("conv_pw_13_relu",)))(images)
    features, above = captured["conv_pw_13_relu"], {"params": {"head": variables["params"]["head"]}}
    logits = jax.jit(lambda x: model.apply(above, x, start="conv_pw_13_relu"))(features)
    np.testing.assert_allclose(logits, whole, rtol=1e-6, atol=1e-6)  # float32, fused in another way
    key = {"dropout": jax.random.key(0)}
    arguments = {"start": "conv_pw_13_relu", "train": True, "trainable": ("head",), "rngs": key}
    assert shapes(model, above, features, **arguments).shape == (4, 3)
    with pytest.raises(UserError, match=r"'conv_pw_14_relu'.*'conv_pw_"):
        shapes(model, above, features, start="conv_pw_14_relu")


@pytest.mark.parametrize(
    ("pooling", "shape"),
    [
        ("global_average", (4, 256)),
        pytest.param("global_max", (4, 256), marks=pytest.mark.slow),
        pytest.param("none", (4, 2, 2, 256), marks=pytest.mark.slow),
        pytest.param("average_2x2", (4, 1, 1, 256), marks=pytest.mark.slow),
    ],
)
def test_create_model_without_classes_returns_features(pooling, shape):
    images = np.zeros((4, 64, 64, 3), np.uint8)
    model, variables = create_abstractly(NAME, weights=None, input_size=64, pooling=pooling, dtype=jnp.bfloat16)
    features = shapes(model, variables, images)
    assert (features.shape, features.dtype) == (shape, np.float32)
    assert set(variables["params"]) == {"backbone"}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    assert [group for group, _ in model.default_groups] == [model.classifier.spec.last_block, "base"]
    flaxtl.param_groups(variables["params"], model.default_groups)


@pytest.mark.parametrize("name", ["head", "predictions"])
def test_create_model_without_head_refuses_to_train_it(images, name):
    model, variables = create_abstractly(NAME, weights=None, input_size=32)
    with pytest.raises(UserError, match=rf"Unknown group or layer '{name}'\. Available: base, last_stage\b"):
        shapes(model, variables, images, train=True, trainable=(name,))
    assert shapes(model, variables, images, train=True, trainable=()).shape == (4, 256)


def test_create_model_include_top_is_the_published_network():
    model, variables = create_abstractly(NAME, weights=None, include_top=True)
    assert model.input_size == (224, 224)
    assert shapes(model, variables, np.zeros((1, 224, 224, 3), np.uint8)).shape == (1, 1000)
    counted = jax.tree.reduce(lambda total, leaf: total + leaf.size, variables, 0)
    assert counted == model.classifier.spec.num_params
    expected = flatten_params(param_shapes(model.classifier, 224, 224))
    params = flatten_params(variables["params"]) | flatten_params(variables["batch_stats"])
    assert {path: value.shape for path, value in params.items()} == expected


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (("vgg61",), ("'vgg61'", "'vgg19'")),
        (("vgg16", 0), ("num_classes", "0")),
        (("vgg16", 5, "no/file.h5"), ("no/file.h5",)),
        (("vgg16", 5, None, {"dtype": "float16"}), ("float16", "bfloat16")),
        (("vgg16", 5, None, {"dtype": None}), ("None", "float32", "bfloat16")),
        (("vgg16", 5, None, {"pooling": "avg"}), ("'avg'", "global_average")),
        (("vgg16", 5, None, {"input_size": 31}), ("31x31", "32")),
        (("vgg16", 5, None, {"include_top": True}), ("1,000", "5")),
        (("vgg16", None, None, {"include_top": True, "input_size": 256}), ("vgg16", "224x224")),
        ((None,), ("'None'",)),
        (("vgg16", "5"), ("num_classes is '5'", "integer")),
        (("vgg16", 5.0), ("num_classes is 5.0", "integer")),
        (("vgg16", 5, "builtin", {"skip_layers": 3}), ("skip_layers=3", "regular expression")),
        (("vgg16", 5, None, {"skip_layers": "fc.*"}), ("skip_layers='fc.*'", "weight file")),
        (("vgg16", 5, None, {"units": 128}), ("units is 128", "(128,)")),
        (("vgg16", 5, None, {"units": (8.0,)}), ("units is (8.0,)", "(128,)")),
        (("vgg16", 5, None, {"pooling": None}), ("pooling 'None'", "'none'")),
        (("vgg16", 5, None, {"normalize": None}), ("normalize 'None'", "'none'")),
        (("vgg16", 5, None, {"dropout": "0.5"}), ("dropout is '0.5'", "number")),
        (("vgg16", 5, None, {"input_size": 64.0}), ("input_size is 64.0", "(height, width)")),
        (("vgg16", 5, None, {"input_size": (64, 64, 3)}), ("input_size is (64, 64, 3)", "(height, width)")),
        (("vgg16", 5, None, {"input_size": (64, 16)}), ("64x16", "data.height", "32")),
        (("vgg16", 5, None, {"seed": 0.5}), ("seed is 0.5", "integer")),
        (("vgg16", 5, None, {"seed": -1}), ("seed is -1", "0 to 2**63 - 1")),
        (("vgg16", 5, None, {"seed": 2**63}), ("seed is 9223372036854775808", "0 to 2**63 - 1")),
        (("vgg16", None, None, {"units": (8,)}), ("units=(8,)", "head", "num_classes")),
        (("vgg16", None, None, {"dropout": 0.5}), ("dropout=0.5", "head", "num_classes")),
        (("vgg16", 1000, None, {"include_top": True, "normalize": "l2"}), ("normalize='l2'", "head", "include_top")),
        (("vgg16", None, None, {"include_top": True, "pooling": "none"}), ("pooling='none'", "head", "include_top")),
    ],
)
def test_create_model_mistake_is_a_user_error(arguments, facts):
    options = arguments[-1] if isinstance(arguments[-1], dict) else {}
    with pytest.raises(UserError, match=".*".join(map(re.escape, facts))):
        flaxtl.create_model(*(value for value in arguments if not isinstance(value, dict)), **options)


def test_create_model_accepts_integers_of_numpy():
    sizes = {"input_size": np.array([64, 32]), "units": np.array([8]), "seed": np.int32(0)}
    model, variables = create_abstractly(NAME, np.int64(3), None, **sizes)
    assert model.input_size == (64, 32)
    assert variables["params"]["head"]["dense_1"]["kernel"].shape == (256, 8)
    assert variables["params"]["head"]["predictions"]["kernel"].shape == (8, 3)
    assert create_abstractly(NAME, 3, None, input_size=np.int64(64), units=[8])[0].input_size == (64, 64)


def test_create_model_accepts_the_spec_of_an_unregistered_network():
    spec = keras_zoo.get_spec("short_resnet")
    assert spec.name not in flaxtl.list_models()
    model, variables = create_abstractly(spec, 3, None, input_size=64)
    assert variables["params"]["head"]["predictions"]["kernel"].shape[1] == 3
    expected = param_shapes(Classifier(spec, Head(3, "global_average", ())), 64, 64)["backbone"]
    leaves = flatten_params(variables["params"]) | flatten_params(variables["batch_stats"])
    backbone = {path: leaf.shape for path, leaf in leaves.items() if path.startswith("backbone/")}
    assert backbone == flatten_params({"backbone": expected})
    assert model.default_groups == spec.groups


def test_spec_of_an_own_network_with_a_mistake_is_a_user_error():
    spec = keras_zoo.get_spec("short_resnet")
    with pytest.raises(UserError, match=r"preprocessing 'cafe'. Did you mean 'caffe'\?"):
        replace(spec, preprocessing="cafe")
    model, _ = create_abstractly(replace(spec, groups=spec.groups[:1]), 3, None, input_size=64)
    with pytest.raises(UserError, match=r"'short_resnet' matches 'backbone/conv1_conv/'\. Add"):
        assert model.default_groups


@pytest.mark.parametrize(
    ("last", "groups"), [("block5_conv1", ("head", "block5", "base")), ("block4_pool", ("head", "base"))]
)
def test_image_classifier_default_groups_are_those_with_parameters(last, groups):
    network = Classifier(registry.get_spec("vgg16"), Head(3, "global_average", ()), output_layer=last)
    model = ImageClassifier(network, (32, 32))
    assert tuple(group for group, _ in model.default_groups) == groups
    params = param_shapes(network, 32, 32)
    assert set(flaxtl.partition(params, flaxtl.param_groups(params, model.default_groups))) == set(groups)


def test_list_models_pattern_selects_names():
    assert "vgg16" in flaxtl.list_models()
    assert flaxtl.list_models("VGG*") == ["vgg16", "vgg19"]
    assert flaxtl.list_models("EfficientNetV2_[SM]") == ["efficientnet_v2_s", "efficientnet_v2_m"]
