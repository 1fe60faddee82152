"""VGG16 and VGG19 equal Keras' own, layer by layer.

Both run the same float32 convolutions on the same device, but flaxtl's are compiled as one program, in which XLA may
order the sums (of up to 3 * 3 * 512 = 4,608 products, in fc1 of up to 25,088) differently. Each reordering costs a few
units of the last place (2**-24 = 6e-8) of the largest values, and the layers' errors add like a random walk: measured
are at most 6.5e-7 of the largest output in the bases and 1.4e-6 with the top. The bound is about three times that.
"""

from typing import NamedTuple

import jax
import keras
import numpy as np
import pytest
from PIL import Image

from flaxtl.models import classifier, registry
from flaxtl.models.classifier import Classifier, forward
from flaxtl.models.head import Head

BOUND = 5e-6
NETWORKS = {"vgg16": keras.applications.VGG16, "vgg19": keras.applications.VGG19}
CONVOLUTIONS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}


class Pair(NamedTuple):
    """Keras' network and ours, with the same weights."""

    keras: keras.Model
    model: Classifier
    parameters: dict


@pytest.fixture(scope="module", autouse=True)
def _quick_random_weights():
    """Weights drawn by numpy, biases too: Keras would compile an initializer for each shape and set biases to zero."""
    generator = np.random.default_rng(0)

    def draw(self, shape, dtype=None):
        scale = np.sqrt(2 / np.prod(shape[:-1])) if len(shape) > 1 else 1.0  # He: activations keep their size
        return generator.standard_normal(shape, "float32") * np.float32(scale)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.initializers.GlorotUniform, "__call__", draw)
        patch.setattr(keras.initializers.Zeros, "__call__", draw)
        yield


def pair(name, height, width, *, top=False, **settings):
    theirs = NETWORKS[name](weights=None, include_top=top, input_shape=(height, width, 3), **settings)
    ours = Classifier(registry.get_spec(name), None if top else Head(num_classes=2, pooling="global_average"))
    return Pair(theirs, ours, {"backbone": weights_of(theirs)})


def weights_of(network):
    layers = [layer for layer in network.layers if layer.weights]
    return {layer.name: dict(zip(("kernel", "bias"), layer.get_weights(), strict=True)) for layer in layers}


def images(height, width):
    return np.random.default_rng(1).integers(0, 256, (1, height, width, 3)).astype(np.uint8)


def theirs(network, x, layers):
    """The outputs of Keras' layers by name, in one pass."""
    outputs = keras.Model(network.input, {name: network.get_layer(name).output for name in layers})
    return outputs(keras.applications.vgg16.preprocess_input(x.astype("float32")))


def ours(both, x, layers, stop):
    run = jax.jit(lambda parameters, x: forward(both.model, parameters, x, taps=tuple(layers), stop=stop).taps)
    return run(both.parameters, x)


def assert_equal(got, expected):
    assert got.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(got[name], values, rtol=0, atol=BOUND * np.abs(values).max(), err_msg=name)


@pytest.mark.parametrize(
    ("name", "height", "width"),
    [
        ("vgg16", 75, 53),
        ("vgg16", 224, 224),
        ("vgg19", 75, 53),
        pytest.param("vgg19", 224, 224, marks=pytest.mark.slow),
    ],
)
def test_base_equals_keras(name, height, width):
    both, x = pair(name, height, width), images(height, width)
    layers = ["block1_conv2", "block2_pool", "block4_conv1", "block5_conv3", "block5_pool"]
    expected = theirs(both.keras, x, layers)
    assert_equal(ours(both, x, layers, "block5_pool"), expected)


@pytest.mark.parametrize(
    ("name", "size"), [("vgg16", 64), *(pytest.param(name, 224, marks=pytest.mark.slow) for name in NETWORKS)]
)
def test_top_equals_keras(name, size):
    """64x64 ends in 2x2x512, so that the order of `flatten` counts."""
    both, x = pair(name, size, size, top=True, classifier_activation=None), images(size, size)
    last = both.keras.get_layer("predictions")
    kernel, bias = last.get_weights()
    last.set_weights([kernel * 0.01, bias])  # logits of a few units: no probability swallows the others
    both = both._replace(parameters={"backbone": weights_of(both.keras)})
    expected = theirs(both.keras, x, ["fc1", "predictions"])
    result = jax.jit(lambda parameters, x: forward(both.model, parameters, x, taps=("fc1",)))(both.parameters, x)
    assert_equal({**result.taps, "predictions": result.logits}, expected)
    probabilities = np.asarray(keras.ops.softmax(expected["predictions"]))
    assert probabilities.max() < 0.9
    np.testing.assert_allclose(result.output, probabilities, rtol=BOUND * np.abs(expected["predictions"]).max())


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_are_those_of_keras(name):
    expected = pair(name, 64, 64, top=True).keras.layers[1:]
    found = classifier.list_layers(Classifier(registry.get_spec(name)), 64, 64)
    assert [(layer.name, layer.shape) for layer in found] == [
        (layer.name, layer.output.shape[1:]) for layer in expected
    ]
    assert sum(layer.kind == "conv" for layer in found) == sum(CONVOLUTIONS[name])


@pytest.mark.parametrize(
    ("name", "base", "with_top"), [("vgg16", 14_714_688, 138_357_544), ("vgg19", 20_024_384, 143_667_240)]
)
def test_parameter_counts_are_those_that_keras_prints(name, base, with_top):
    row = registry.get_spec(name)
    assert (row.num_params_no_top, row.num_params) == (base, with_top)
    assert count(Classifier(row)) == with_top
    assert count(Classifier(row, Head(num_classes=5))) == base


def count(model):
    layers = classifier.param_shapes(model, 224, 224)["backbone"].values()
    return sum(np.prod(shape) for leaves in layers for shape in leaves.values())


def test_real_weights_on_a_real_image(shared):
    both = pair("vgg16", 224, 224)
    both.keras.load_weights(shared / "weights/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5")
    both = both._replace(parameters={"backbone": weights_of(both.keras)})
    file = min((shared / "data/flowers/validation/daisy").iterdir())
    x = np.asarray(Image.open(file).convert("RGB").resize((224, 224)))[None]
    expected = theirs(both.keras, x, ["block5_pool"])
    assert expected["block5_pool"].max() > 10
    assert_equal(ours(both, x, ["block5_pool"], "block5_pool"), expected)
