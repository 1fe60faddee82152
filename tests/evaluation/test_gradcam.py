"""Grad-CAM against Keras' own networks on JAX, and against results derived by hand.

The references differ by the order of float32 sums, one after another through the layers below the map: up to
1e-6 of the largest value of a map was measured on CPU. The bound is four times that.
"""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from helpers import keras_zoo

from flaxtl.errors import UserError
from flaxtl.evaluation.gradcam import check_layer, default_layer, gradcam_maps
from flaxtl.models import classifier, registry
from flaxtl.models.classifier import Classifier, forward
from flaxtl.models.head import Head

BOUND = 4e-6
CLASSES = 3
UNITS = 8
SIDE = 64
CLASS_PAIRS = np.array([[0, 1], [2, 2]], np.int32)  # classes to explain in each of two images


@pytest.fixture(scope="module")
def images():
    """Images without a unit so close to zero that rounding, which differs between processors, decides its gradient.

    With noise of 3e-7 on all parameters, heat maps change by at most 6e-6; those of seeds 1 and 4 by 9e-5 and 5e-3.
    """
    return np.random.default_rng(2).integers(0, 256, (2, SIDE, SIDE, 3)).astype(np.uint8)


def flaxtl_maps(model, params, images, layer, class_indices=CLASS_PAIRS):
    target = check_layer(classifier.list_layers(model, *images.shape[1:3]), layer)
    run = jax.jit(lambda params, x, class_indices: gradcam_maps(model, params, x, class_indices, target))
    return np.asarray(run(params, images, class_indices))


def with_head(base, last, params):
    """Keras' base up to a layer under the head that `params` are of; without the softmax."""
    x = keras.layers.GlobalAveragePooling2D()(base.get_layer(last).output)
    hidden, logits = keras.layers.Dense(UNITS, activation="relu"), keras.layers.Dense(CLASSES)
    network = keras.Model(base.input, logits(hidden(x)))
    for layer, name in ((hidden, "dense_1"), (logits, "predictions")):
        layer.set_weights([params["head"][name]["kernel"], params["head"][name]["bias"]])
    return network


def keras_maps(network, inputs, preprocessed, class_indices=CLASS_PAIRS):
    """Grad-CAM as in the paper, at the first of the layers `inputs`; the Keras model is split after these layers.

    `preprocessed` are preprocessed images.
    """
    below = keras.Model(network.input, [network.get_layer(name).output for name in inputs])
    above = keras.Model([network.get_layer(name).output for name in inputs], network.output)
    first, *others = (jnp.asarray(array) for array in _as_list(below.predict(preprocessed, verbose=0)))
    variables = [
        [variable.value for variable in part] for part in (above.trainable_variables, above.non_trainable_variables)
    ]

    def score(tapped, rest, row, class_index):
        logits, _ = above.stateless_call(*variables, [tapped, *rest], training=False)
        return logits[row, class_index]

    gradient = jax.jit(jax.grad(score))
    maps = np.zeros((*class_indices.shape, *first.shape[1:3]), np.float32)
    for row, column in np.ndindex(class_indices.shape):
        weights = np.asarray(gradient(first, others, row, class_indices[row, column]))[row].mean((0, 1))
        maps[row, column] = np.maximum(np.asarray(first)[row] @ weights, 0)
    peaks = maps.max((2, 3), keepdims=True)
    return maps / np.where(peaks > 0, peaks, 1)  # a class without evidence has a map of zeros


def _as_list(outputs):
    return outputs if isinstance(outputs, list) else [outputs]


def params_of(base, model):
    """Keras' base and a drawn head, as our params."""
    random = np.random.default_rng(2)
    params = classifier.init_params(model, SIDE, SIDE, jax.random.key(0), head_only=True)
    head = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), params["head"])
    leaves = {4: ("scale", "bias", "mean", "var"), 2: ("kernel", "bias")}
    weights = {layer.name: layer.get_weights() for layer in base.layers if layer.weights}
    wanted = classifier.param_shapes(model, SIDE, SIDE)["backbone"]
    tree = {name: dict(zip(leaves[len(weights[name])], weights[name], strict=True)) for name in wanted}
    return {"backbone": tree, "head": head}


@pytest.fixture(scope="module")
def vgg16():
    base = keras_zoo.keras_network("vgg16", SIDE, include_top=False)
    model = Classifier(registry.get_spec("vgg16"), Head(CLASSES, "global_average", (UNITS,)))
    params = params_of(base, model)
    return model, params, with_head(base, "block5_pool", params)


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["block5_conv3", "block4_conv1"])
def test_gradcam_maps_vgg16_equal_keras(vgg16, images, layer):
    model, params, network = vgg16
    preprocessed = keras.applications.vgg16.preprocess_input(images.astype("float32"))
    expected = keras_maps(network, [layer], preprocessed)
    heatmaps = flaxtl_maps(model, params, images, layer)
    assert heatmaps.shape == (2, 2, *{"block5_conv3": (4, 4), "block4_conv1": (8, 8)}[layer])
    np.testing.assert_allclose(heatmaps, expected, rtol=0, atol=BOUND)
    assert abs(heatmaps[0, 0].max() - 1) < 2**-23  # XLA may multiply by the rounded reciprocal of the maximum
    np.testing.assert_array_equal(heatmaps[1, 0], heatmaps[1, 1])  # the same class twice
    assert np.abs(heatmaps[0, 0] - heatmaps[0, 1]).max() > 0.1


@pytest.mark.slow
def test_gradcam_maps_inside_residual_block_equal_keras(images):
    """The model cannot be split there: the other branch is a second, constant input of the Keras model."""
    base = keras_zoo.keras_network("resnet50", SIDE, include_top=False)
    keras_zoo.scale_weights(base, ".*_3_bn", 0.25)
    last = "conv2_block3_out"
    model = Classifier(registry.get_spec("resnet50"), Head(CLASSES, "global_average", (UNITS,)), last)
    params = params_of(base, model)
    layer, other = "conv2_block2_2_relu", "conv2_block1_out"
    with pytest.raises(UserError, match=f"'{layer}'.*'conv2_block2_add'"):
        jax.eval_shape(lambda: forward(model, params, np.zeros((1, 16, 16, 64), np.float32), start=layer))
    preprocessed = keras.applications.resnet.preprocess_input(images.astype("float32"))
    expected = keras_maps(with_head(base, last, params), [layer, other], preprocessed)
    assert (expected.max((2, 3)) == 1).any()
    np.testing.assert_allclose(flaxtl_maps(model, params, images, layer), expected, rtol=0, atol=BOUND)


@pytest.fixture(scope="module")
def linear():
    """One convolution, the mean over the image, and a matrix: everything after the convolution is linear."""
    model = Classifier(registry.get_spec("vgg16"), Head(CLASSES, "global_average", units=()), "block1_conv1")
    params = classifier.init_params(model, 32, 32, jax.random.key(0), head_only=False)
    kernel = np.random.default_rng(3).normal(size=(64, CLASSES)).astype(np.float32)
    kernel[:, 2] = -1  # no evidence for the last class
    params["head"]["predictions"]["kernel"] = jnp.asarray(kernel)
    return model, params, kernel


def test_gradcam_maps_linear_model_match_closed_form(linear, images):
    """The gradient of every place is kernel / places, so the map is features @ kernel where that is positive."""
    model, params, kernel = linear
    images = images[:, :32, :32]
    features = np.asarray(forward(model, params, images, stop="block1_conv1").output)
    evidence = np.maximum(features @ kernel, 0).transpose(0, 3, 1, 2)
    class_indices = np.array([[0, 1, 2]] * 2, np.int32)
    heatmaps = flaxtl_maps(model, params, images, "block1_conv1", class_indices)
    np.testing.assert_allclose(
        heatmaps[:, :2], evidence[:, :2] / evidence[:, :2].max((2, 3), keepdims=True), atol=BOUND
    )
    np.testing.assert_array_equal(heatmaps[:, 2], 0)


def test_gradcam_maps_bfloat16_model_equal_float32(linear, images):
    model, params, _ = linear
    exact = flaxtl_maps(model, params, images, "block1_conv1")
    assert exact.dtype == np.float32
    np.testing.assert_array_equal(flaxtl_maps(model.clone(dtype=jnp.bfloat16), params, images, "block1_conv1"), exact)


def test_gradcam_maps_with_x64_are_float32(linear, images):
    model, params, _ = linear
    with jax.enable_x64(True):
        assert flaxtl_maps(model, params, images[:, :32, :32], "block1_conv1").dtype == np.float32


@pytest.mark.parametrize(
    ("name", "last", "expected"),
    [
        ("vgg16", None, "block5_conv3"),  # as in the paper
        ("vgg16", "block3_pool", "block3_conv3"),
        ("alexnet", None, "conv5"),
        ("googlenet", None, "inception_5b_output"),
        pytest.param("mobilenet_v2_100", None, "out_relu", marks=pytest.mark.slow),
        pytest.param("resnet50", None, "conv5_block3_out", marks=pytest.mark.slow),
        pytest.param("inception_v3", None, "mixed10", marks=pytest.mark.slow),
        pytest.param("xception", None, "block14_sepconv2_act", marks=pytest.mark.slow),
    ],
)
def test_default_layer_is_last_spatial_feature_layer(name, last, expected):
    architecture = registry.get_spec(name)
    layers = classifier.list_layers(Classifier(architecture, Head(CLASSES, "global_average"), last), 224, 224)
    assert default_layer(layers) == check_layer(layers, expected).name == expected


def test_default_layer_small_images_chooses_earlier_layer():
    resnet50 = Classifier(registry.get_spec("resnet50"), Head(CLASSES, "global_average"))
    assert default_layer(classifier.list_layers(resnet50, 32, 32)) == "conv4_block6_out"


@pytest.mark.parametrize(
    ("name", "layer", "facts"),
    [
        ("vgg16", "block5_conv33", "'block5_conv33'.*'block5_conv3'"),
        ("vgg16", "dense_1", r"'dense_1'.*\b128\b.*'block5_conv3'"),
        pytest.param(
            "efficientnet_b0",
            "block1a_se_expand",
            r"'block1a_se_expand'.*\b1x1x32\b.*'top_activation'",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_check_layer_unsuitable_layer_names_alternative(name, layer, facts):
    layers = classifier.list_layers(Classifier(registry.get_spec(name), Head(CLASSES, "global_average")), 64, 64)
    with pytest.raises(UserError, match=facts):
        check_layer(layers, layer)
