"""The classifier as a whole: its cut base, its fresh parameters, its precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
def parameters():
    return classifier.init_params(SMALL, 32, 32, jax.random.key(0), head_only=False)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)


def names(model):
    return [layer.name for layer in classifier.list_layers(model, 32, 32)]


def test_a_base_cut_by_its_last_layer_has_nothing_above():
    assert names(SMALL) == [
        *("block1_conv1", "block1_conv2", "block1_pool"),
        *("pool", "flatten", "dense_1", "dropout_1", "predictions"),
    ]
    shapes = classifier.param_shapes(SMALL, 32, 32)
    assert list(shapes["backbone"]) == ["block1_conv1", "block1_conv2"]
    assert shapes["head"]["dense_1"]["kernel"] == (64, 8)


def test_the_cut_base_gives_the_head_what_the_whole_base_has_there(parameters, images):
    """Outside of jit, operation by operation, so bit for bit."""
    features = forward(SMALL, parameters, images, stop="block1_pool").output
    result = forward(SMALL, parameters, images, taps=("pool",))
    np.testing.assert_array_equal(result.taps["pool"], features.mean((1, 2)))
    np.testing.assert_array_equal(result.logits, forward_logits(SMALL, parameters, features, start="block1_pool"))


@pytest.mark.parametrize("cut", ["start", "stop", "taps"])
def test_layers_above_the_cut_base_are_not_part_of_the_network(parameters, images, cut):
    wanted = {cut: ("block3_pool",) if cut == "taps" else "block3_pool"}
    with pytest.raises(UserError, match=r"(?=.*'block3_pool')(?=.*\bblock1_pool\b)"):
        jax.eval_shape(lambda: forward(SMALL, parameters, images, **wanted))


def test_a_misspelt_last_layer_is_suggested():
    with pytest.raises(UserError, match=r"'block3_pol'.*'block3_pool'"):
        classifier.param_shapes(Classifier(VGG16, HEAD, output_layer="block3_pol"), 32, 32)


def test_a_stop_in_the_head_and_in_the_base(parameters, images):
    result = forward(SMALL, parameters, images, stop="dense_1")
    assert result.output.shape == (3, 8)
    assert result.logits is None
    assert forward(SMALL, parameters, images, stop="block1_conv2").output.shape == (3, 32, 32, 64)


def test_a_stop_in_the_base_asks_nothing_of_the_head():
    """32x32 images end in 1x1 features, too few for this head; but it does not run."""
    model = Classifier(VGG16, Head(num_classes=5, pooling="average_2x2"))
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.uint8)
    tree = jax.eval_shape(lambda key, x: model.init(key, x, stop="block5_pool"), jax.random.key(0), images)
    assert "head" not in tree["params"]


def test_preprocessing_is_part_of_the_network(parameters, images):
    first = parameters["backbone"]["block1_conv1"]
    result = forward(SMALL, parameters, images, stop="block1_conv1").output
    corner = np.einsum("byxc,yxcf->bf", CAFFE(images)[:, :2, :2], first["kernel"][1:, 1:]) + first["bias"]
    np.testing.assert_allclose(result[:, 0, 0], np.maximum(corner, 0), rtol=1e-5, atol=1e-4)  # sums of 12, up to 600


def test_uint8_and_float_images_are_the_same(parameters, images):
    expected = forward(SMALL, parameters, images).logits
    np.testing.assert_array_equal(forward(SMALL, parameters, images.astype(np.float32)).logits, expected)


def test_fresh_head_alone_has_the_heads_parameters_only():
    made = classifier.init_params(SMALL, 32, 32, jax.random.key(1), head_only=True)
    assert list(made) == ["head"]
    assert jax.tree.map(jnp.shape, made["head"]) == classifier.param_shapes(SMALL, 32, 32)["head"]


def test_the_same_key_gives_the_same_parameters(parameters):
    again = classifier.init_params(SMALL, 32, 32, jax.random.key(0), head_only=False)
    other = classifier.init_params(SMALL, 32, 32, jax.random.key(1), head_only=False)
    jax.tree.map(np.testing.assert_array_equal, again, parameters)
    assert np.any(other["head"]["dense_1"]["kernel"] != parameters["head"]["dense_1"]["kernel"])


def test_shapes_are_those_of_the_parameters(parameters):
    assert jax.tree.map(jnp.shape, parameters) == classifier.param_shapes(SMALL, 32, 32)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(parameters)} == {"float32"}


def test_bfloat16_computes_in_bfloat16_and_answers_in_float32(parameters, images):
    """Eight bits of mantissa: pixels, weights and outputs are each rounded by up to 2**-9 of their size, 0.2 %."""
    model = Classifier(VGG16, HEAD, output_layer="block1_pool", dtype=jnp.bfloat16)
    made = classifier.init_params(model, 32, 32, jax.random.key(0), head_only=True)
    assert made["head"]["dense_1"]["kernel"].dtype == jnp.float32
    result = forward(model, parameters, images, taps=("block1_pool",))
    assert result.taps["block1_pool"].dtype == jnp.bfloat16
    assert result.logits.dtype == result.output.dtype == jnp.float32
    expected = forward(SMALL, parameters, images, taps=("block1_pool",))
    got, wanted = (np.asarray(found.taps["block1_pool"], np.float32) for found in (result, expected))
    assert 0 < np.abs(got - wanted).max() < 0.01 * np.abs(wanted).max()
    above = forward(model, parameters, wanted, start="block1_pool", taps=("pool",))
    assert above.taps["pool"].dtype == jnp.bfloat16  # features that are kept in float32 do not change the precision


@pytest.mark.parametrize(("height", "width"), [(31, 32), (200, 16)])
def test_images_too_small_for_the_network(height, width):
    for function in (classifier.list_layers, classifier.param_shapes):
        with pytest.raises(UserError, match=rf"(?=.*\b{height}x{width}\b)(?=.*\bvgg16\b)(?=.*\b32\b)"):
            function(SMALL, height, width)


def test_without_a_head_it_is_the_published_network():
    found = classifier.list_layers(Classifier(VGG16), 224, 224)
    assert {layer.section for layer in found} == {"backbone"}
    assert [(layer.name, layer.shape) for layer in found[-3:]] == [
        ("fc1", (4096,)),
        ("fc2", (4096,)),
        ("predictions", (1000,)),
    ]
