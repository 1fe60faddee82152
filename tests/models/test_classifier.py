"""Classifier: its output layer, new parameters, precision."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import keras_zoo

from flaxtl.errors import UserError
from flaxtl.models import classifier, registry
from flaxtl.models.classifier import Classifier, forward, forward_logits
from flaxtl.models.head import Head
from flaxtl.models.imagenet import CAFFE

VGG16 = registry.get_spec("vgg16")
HEAD = Head(num_classes=5, pooling="global_average", units=(8,))
SMALL = Classifier(VGG16, HEAD, output_layer="block1_pool")
"""Two convolutions and a pool under a head."""


@pytest.fixture(scope="module")
def params():
    return classifier.init_params(SMALL, 32, 32, jax.random.key(0), head_only=False)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)


def names(model):
    return [layer.name for layer in classifier.list_layers(model, 32, 32)]


def test_output_layer_ends_the_backbone():
    assert names(SMALL) == [
        *("block1_conv1", "block1_conv2", "block1_pool"),
        *("pool", "flatten", "dense_1", "dropout_1", "predictions"),
    ]
    shapes = classifier.param_shapes(SMALL, 32, 32)
    assert list(shapes["backbone"]) == ["block1_conv1", "block1_conv2"]
    assert shapes["head"]["dense_1"]["kernel"] == (64, 8)


def test_head_reads_the_output_layer(params, images):
    """Outside of jit, operation by operation, so bit for bit."""
    features = forward(SMALL, params, images, stop="block1_pool").output
    result = forward(SMALL, params, images, taps=("pool",))
    np.testing.assert_array_equal(result.taps["pool"], features.mean((1, 2)))
    np.testing.assert_array_equal(result.logits, forward_logits(SMALL, params, features, start="block1_pool"))


@pytest.mark.parametrize("cut", ["start", "stop", "taps"])
def test_layer_above_the_output_layer_is_an_error(params, images, cut):
    settings = {cut: ("block3_pool",) if cut == "taps" else "block3_pool"}
    with pytest.raises(UserError, match=r"(?=.*'block3_pool')(?=.*\bblock1_pool\b)"):
        jax.eval_shape(lambda: forward(SMALL, params, images, **settings))


@pytest.mark.parametrize(
    ("output_layer", "facts"),
    [("block3_pol", r"'block3_pol'.*'block3_pool'"), ("predictions", r"'predictions'.*\bblock1_conv1\b")],
)
def test_output_layer_that_is_not_in_the_backbone_is_an_error(output_layer, facts):
    with pytest.raises(UserError, match=facts):
        classifier.param_shapes(Classifier(VGG16, HEAD, output_layer=output_layer), 32, 32)


def test_output_layer_below_the_first_parameter_is_an_error():
    model = Classifier(registry.get_spec("resnet50"), HEAD, output_layer="conv1_pad")
    with pytest.raises(UserError, match=r"'conv1_pad'.*\bmodel\.output_layer\b"):
        classifier.param_shapes(model, 32, 32)


def test_stop_in_head_and_backbone(params, images):
    result = forward(SMALL, params, images, stop="dense_1")
    assert result.output.shape == (3, 8)
    assert result.logits is None
    assert forward(SMALL, params, images, stop="block1_conv2").output.shape == (3, 32, 32, 64)


def test_stop_in_backbone_skips_the_head():
    """32x32 images end in 1x1 features, too few for this head; but it does not run."""
    model = Classifier(VGG16, Head(num_classes=5, pooling="average_2x2"))
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.uint8)
    tree = jax.eval_shape(lambda key, x: model.init(key, x, stop="block5_pool"), jax.random.key(0), images)
    assert "head" not in tree["params"]


def test_preprocessing_is_part_of_the_model(params, images):
    first = params["backbone"]["block1_conv1"]
    result = forward(SMALL, params, images, stop="block1_conv1").output
    corner = np.einsum("byxc,yxcf->bf", CAFFE(images)[:, :2, :2], first["kernel"][1:, 1:]) + first["bias"]
    np.testing.assert_allclose(result[:, 0, 0], np.maximum(corner, 0), rtol=1e-5, atol=1e-4)  # 12 products


def test_uint8_and_float_images_give_equal_logits(params, images):
    expected = forward(SMALL, params, images).logits
    np.testing.assert_array_equal(forward(SMALL, params, images.astype(np.float32)).logits, expected)


def test_init_params_head_only_has_no_backbone():
    fresh = classifier.init_params(SMALL, 32, 32, jax.random.key(1), head_only=True)
    assert list(fresh) == ["head"]
    assert jax.tree.map(jnp.shape, fresh["head"]) == classifier.param_shapes(SMALL, 32, 32)["head"]


def test_init_params_depends_on_the_key_only(params):
    again = classifier.init_params(SMALL, 32, 32, jax.random.key(0), head_only=False)
    other = classifier.init_params(SMALL, 32, 32, jax.random.key(1), head_only=False)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    assert np.any(other["head"]["dense_1"]["kernel"] != params["head"]["dense_1"]["kernel"])


@pytest.mark.parametrize("head_only", [False, True])
def test_init_params_compiles_an_equal_model_once(head_only):
    model = Classifier(VGG16, Head(num_classes=4, pooling="global_average", units=()), output_layer="block1_pool")
    first = classifier.init_params(model, 32, 32, jax.random.key(0), head_only=head_only)
    compiled = classifier._make_init.cache_info().misses
    again = classifier.init_params(model.copy(), 32, 32, jax.random.key(0), head_only=head_only)
    assert classifier._make_init.cache_info().misses == compiled
    init = classifier._make_init(*([model, "block1_pool"] if head_only else [model]))
    assert init._cache_size() == 1
    expected = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 32, 32, 3), np.uint8))["params"]["head"]
    jax.tree.map(np.testing.assert_array_equal, again["head"], expected)
    jax.tree.map(np.testing.assert_array_equal, first, again)


def test_param_shapes_match_init_params(params):
    assert jax.tree.map(jnp.shape, params) == classifier.param_shapes(SMALL, 32, 32)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {"float32"}


def test_bfloat16_model_returns_float32_logits(params, images):
    """Eight bits of mantissa: pixels, weights and outputs are each rounded by up to 2**-9 of their size, 0.2 %."""
    model = Classifier(VGG16, HEAD, output_layer="block1_pool", dtype=jnp.bfloat16)
    fresh = classifier.init_params(model, 32, 32, jax.random.key(0), head_only=True)
    assert fresh["head"]["dense_1"]["kernel"].dtype == jnp.float32
    result = forward(model, params, images, taps=("block1_pool",))
    assert result.taps["block1_pool"].dtype == jnp.bfloat16
    assert result.logits.dtype == result.output.dtype == jnp.float32
    expected = forward(SMALL, params, images, taps=("block1_pool",))
    values, exact = (np.asarray(output.taps["block1_pool"], np.float32) for output in (result, expected))
    assert 0 < np.abs(values - exact).max() < 0.01 * np.abs(exact).max()
    above = forward(model, params, exact, start="block1_pool", taps=("pool",))
    assert above.taps["pool"].dtype == jnp.bfloat16  # float32 features do not change the precision


@pytest.mark.parametrize(("height", "width"), [(31, 32), (200, 16)])
def test_images_too_small_are_an_error(height, width):
    for function in (classifier.list_layers, classifier.param_shapes):
        with pytest.raises(UserError, match=rf"(?=.*\b{height}x{width}\b)(?=.*\bvgg16\b)(?=.*\b32\b)"):
            function(SMALL, height, width)


def test_classifier_without_head_is_the_published_network():
    layers = classifier.list_layers(Classifier(VGG16), 224, 224)
    assert {layer.section for layer in layers} == {"backbone"}
    assert [(layer.name, layer.shape) for layer in layers[-3:]] == [
        ("fc1", (4096,)),
        ("fc2", (4096,)),
        ("predictions", (1000,)),
    ]


@pytest.mark.parametrize(
    "name",
    [
        "short_resnet",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("short_resnet_v2", "short_densenet", "short_efficientnet")
        ),
    ],
)
def test_bfloat16_reaches_every_layer(name):
    """Except a border around the pixels, which are float32 up to the first convolution. Parameters stay float32."""
    model = Classifier(keras_zoo.get_spec(name), Head(2, "global_average"), dtype=jnp.bfloat16)
    layers = [layer for layer in classifier.list_layers(model, 64, 64) if layer.section == "backbone"]
    run = partial(model.init_with_output, taps=tuple(layer.name for layer in layers))
    result, variables = jax.eval_shape(run, jax.random.key(0), np.zeros((1, 64, 64, 3), np.uint8))
    float32 = [name for name, tap in result.taps.items() if tap.dtype != jnp.bfloat16]
    assert float32 == ([layers[0].name] if layers[0].kind == "pad" else [])
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("mobilenet_025", "conv_pw_6_relu"),
        pytest.param("mobilenet_v2_035", "block_6_project_BN", marks=pytest.mark.slow),
        pytest.param("mobilenet_v3_small_100", "expanded_conv_3_project_bn", marks=pytest.mark.slow),
        pytest.param("nasnet_mobile", "stem_bn1", marks=pytest.mark.slow),
    ],
)
def test_start_gives_the_same_shapes_as_the_whole(name, start):
    """The sizes of layers do not depend on skipped ones. In bfloat16; the logits are float32 even of a convolution."""
    model = Classifier(registry.get_spec(name), dtype=jnp.bfloat16)
    images = jax.ShapeDtypeStruct((1, 45, 45, 3), jnp.uint8)
    whole, variables = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x, taps=(start,)), images)
    rest = jax.eval_shape(lambda variables, x: model.apply(variables, x, start=start), variables, whole.taps[start])
    assert whole.taps[start].dtype == jnp.bfloat16
    assert rest.logits == whole.logits
    assert (rest.logits.shape, rest.logits.dtype) == ((1, 1000), jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("name", "last", "norm"),
    [("resnet50", "conv2_block1_out", "_bn/"), ("convnext_tiny", "convnext_tiny_downsampling_conv_0", "_layernorm")],
)
def test_cast_for_compute_leaves_norms_and_last_layer(name, last, norm):
    model = Classifier(registry.get_spec(name), HEAD, output_layer=last, dtype=jnp.bfloat16)
    shapes = classifier.flatten_params(classifier.param_shapes(model, 32, 32))
    params = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}
    cast = jax.eval_shape(lambda params: classifier.cast_for_compute(params, model), params)
    in_float32 = {path for path, value in cast.items() if value.dtype == jnp.float32}
    assert in_float32 == {path for path in shapes if norm in path or path.startswith("head/predictions/")}
    assert {value.dtype for path, value in cast.items() if path not in in_float32} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(("precision", "printed"), [("default", "None"), ("high", "HIGH"), ("highest", "HIGHEST")])
def test_precision_is_that_of_all_products_and_their_gradients(params, images, precision, printed):
    model = SMALL.clone(precision=precision)
    gradient = jax.grad(lambda params: forward(model, params, images).logits.sum())
    found = re.findall(r"precision=\(?(?:Precision\.)?(\w+)", str(jax.make_jaxpr(gradient)(params)))
    assert len(found) > 4
    assert set(found) == {printed}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_cast_for_compute_does_not_change_logits(params, images, dtype):
    model = SMALL.clone(dtype=dtype)
    cast = classifier.unflatten_params(classifier.cast_for_compute(classifier.flatten_params(params), model))
    assert np.array_equal(forward_logits(model, cast, images), forward_logits(model, params, images))
