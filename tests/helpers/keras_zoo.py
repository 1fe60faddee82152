"""Keras' own networks with weights drawn at random, and ours with the same: what every family is compared by."""

import re
import sys
from functools import partial
from typing import NamedTuple

import h5py
import jax
import keras
import numpy as np
import pytest
from flax import linen as nn
from keras.src.legacy.saving import legacy_h5_format

from flaxtl.models import classifier, registry
from flaxtl.models.classifier import Classifier, forward
from flaxtl.models.head import Head
from flaxtl.models.net import Net
from flaxtl.pretrained.backbone import expected_shapes, optional_layers
from flaxtl.pretrained.loader import load_weights
from helpers import tiny_run

V2 = ("B0", "B1", "B2", "B3", "S", "M", "L")

KERAS = {
    "vgg16": keras.applications.VGG16,
    "vgg19": keras.applications.VGG19,
    "resnet50": keras.applications.ResNet50,
    "resnet101": keras.applications.ResNet101,
    "resnet152": keras.applications.ResNet152,
    "resnet50v2": keras.applications.ResNet50V2,
    "resnet101v2": keras.applications.ResNet101V2,
    "resnet152v2": keras.applications.ResNet152V2,
    "densenet121": keras.applications.DenseNet121,
    "densenet169": keras.applications.DenseNet169,
    "densenet201": keras.applications.DenseNet201,
    "inception_v3": keras.applications.InceptionV3,
    "inception_resnet_v2": keras.applications.InceptionResNetV2,
    "xception": keras.applications.Xception,
    "mobilenet": keras.applications.MobileNet,
    "mobilenet_0.75": partial(keras.applications.MobileNet, alpha=0.75),
    "mobilenet_0.50": partial(keras.applications.MobileNet, alpha=0.5),
    "mobilenet_0.25": partial(keras.applications.MobileNet, alpha=0.25),
    "mobilenet_v2": keras.applications.MobileNetV2,
    "mobilenet_v2_0.35": partial(keras.applications.MobileNetV2, alpha=0.35),
    "mobilenet_v2_0.50": partial(keras.applications.MobileNetV2, alpha=0.5),
    "mobilenet_v2_0.75": partial(keras.applications.MobileNetV2, alpha=0.75),
    "mobilenet_v2_1.3": partial(keras.applications.MobileNetV2, alpha=1.3),
    "mobilenet_v2_1.4": partial(keras.applications.MobileNetV2, alpha=1.4),
    "mobilenet_v3_small": keras.applications.MobileNetV3Small,
    "mobilenet_v3_large": keras.applications.MobileNetV3Large,
    "nasnet_mobile": keras.applications.NASNetMobile,
    "nasnet_large": keras.applications.NASNetLarge,
    **{f"efficientnetb{number}": getattr(keras.applications, f"EfficientNetB{number}") for number in range(8)},
    **{f"efficientnetv2-{kind.lower()}": getattr(keras.applications, f"EfficientNetV2{kind}") for kind in V2},
}
"""Our name -> Keras' builder."""


class Pair(NamedTuple):
    """Keras' network and ours, with the same weights, for images of one size."""

    keras: keras.Model
    model: Classifier
    parameters: dict
    images: np.ndarray


def keras_network(name, side, *, top, **settings):
    """A network of keras.applications with random weights, batch statistics too; names as in a fresh session.

    What a Normalization layer holds stays as Keras' `settings` made it.
    """
    settings = {"weights": None, "include_top": top, "input_shape": (side, side, 3)} | settings
    keras.backend.clear_session()
    with pytest.MonkeyPatch.context() as patch:
        # All is drawn anew below; of its own accord Keras compiles a generator for every shape.
        patch.setattr(keras.initializers.VarianceScaling, "__call__", _zeros)
        network = KERAS[name](**settings)
    randomise(network)
    return network


def _zeros(initializer, shape, dtype=None):
    return np.zeros(shape, dtype)


def preprocessing(name):
    """`preprocess_input` of the module that Keras has the network in."""
    builder = KERAS[name]
    return sys.modules[getattr(builder, "func", builder).__module__].preprocess_input


def randomise(network, seed=0):
    """Every array drawn so that activations keep their size: He's kernels, gains and variances about 1."""
    random = np.random.default_rng(seed)

    def draw(layer, variable):
        shape, kind = variable.shape, variable.path.rsplit("/", 1)[1]
        if kind in ("gamma", "moving_variance"):
            return random.uniform(0.5, 1.5, shape)
        if len(shape) < 2:
            return 0.1 * random.standard_normal(shape)
        depthwise = kind == "depthwise_kernel" or isinstance(layer, keras.layers.DepthwiseConv2D)
        fan_in = np.prod(shape[:-2]) if depthwise else np.prod(shape[:-1])
        gain = 1 if kind == "depthwise_kernel" else 2  # no relu halves what is between the kernels of a SeparableConv2D
        return random.standard_normal(shape) * np.sqrt(gain / fan_in)

    for layer in network.layers:
        if layer.weights and not isinstance(layer, keras.layers.Normalization):
            layer.set_weights([draw(layer, variable).astype("float32") for variable in layer.weights])


def shrink(network, ending):
    """Divide the kernel or the gain of all layers with names that end so by four.

    Of the last layers of residual branches, that is: else their sums grow to millions, and biases drown in them.
    """
    for layer in network.layers:
        if layer.name.endswith(ending):
            first, *others = layer.get_weights()
            layer.set_weights([first / 4, *others])


def quietened(network, layers):
    """The network; its batch norms that are called like the regular expression `layers` pass on a fifth."""
    for layer in network.layers:
        if re.fullmatch(layers, layer.name):
            layer.gamma.assign(0.2 * layer.gamma)
    return network


def save_legacy(network, file):
    """Keras' legacy HDF5 layout, as `save_weights('x.h5')` wrote it up to Keras 2."""
    with h5py.File(file, "w") as stream:
        legacy_h5_format.save_weights_to_hdf5_group(stream, network)
    return file


def save_keras3(network, file):
    """Keras 3's own layout."""
    file = file.with_suffix(".weights.h5")
    network.save_weights(file)
    return file


def pair(name, network, file, *, top):
    """Our network, its weights read from `file`, beside Keras'."""
    architecture = registry.get_spec(name)
    model = Classifier(architecture, None if top else Head(num_classes=2, pooling="global_average"))
    side = network.input_shape[1]
    expected = classifier.param_shapes(model, side, side)["backbone"] if top else expected_shapes(model)
    tree = load_weights(file, expected, optional_layers(architecture)).params
    images = np.random.default_rng(1).integers(0, 256, (2, side, side, 3)).astype(np.uint8)
    return Pair(network, model, {"backbone": tree}, images)


@tiny_run.compiled_quickly()
def outputs(both, preprocess, layers):
    """The outputs of the layers by name, (Keras', ours), each in one pass; the last is the network's own output."""
    outputs = {layer: both.keras.get_layer(layer).output for layer in layers}
    # `predict` compiles the network as one; called, it would compile every layer on its own.
    theirs = keras.Model(both.keras.input, outputs).predict(preprocess(both.images.astype("float32")), verbose=0)
    taps = tuple(layers)
    run = jax.jit(lambda parameters, x: forward(both.model, parameters, x, taps=taps, stop=taps[-1]).taps)
    return {layer: theirs[layer] for layer in layers}, run(both.parameters, both.images)  # Keras sorts the names


@tiny_run.compiled_quickly()
def logits(both, preprocess):
    """The logits, (Keras', ours); Keras' network is built with classifier_activation=None."""
    run = jax.jit(lambda parameters, x: forward(both.model, parameters, x).logits)
    theirs = both.keras.predict(preprocess(both.images.astype("float32")), verbose=0)
    return {"logits": theirs}, {"logits": run(both.parameters, both.images)}


def assert_equal(theirs, ours, bound):
    """Every output within `bound` of the largest value that Keras' has."""
    assert theirs.keys() == ours.keys()
    for name, values in theirs.items():
        np.testing.assert_allclose(ours[name], values, rtol=0, atol=bound * np.abs(values).max(), err_msg=name)


def names(network):
    """The names of Keras' layers in its order, without the input and what preprocesses it."""
    first = (keras.layers.InputLayer, keras.layers.Rescaling, keras.layers.Normalization)
    return [layer.name for layer in network.layers if not isinstance(layer, first)]


def our_names(name, side, *, top):
    """The names of our layers."""
    model = Classifier(registry.get_spec(name), None if top else Head(num_classes=2, pooling="global_average"))
    return [layer.name for layer in classifier.list_layers(model, side, side) if layer.section == "backbone"]


def count(name, *, top):
    """Numbers in all our parameters, at the published size."""
    architecture = registry.get_spec(name)
    model = Classifier(architecture, None if top else Head(num_classes=2, pooling="global_average"))
    shapes = expected_shapes(model)
    return sum(int(np.prod(shape)) for leaves in shapes.values() for shape in leaves.values())


def dtypes(name, side, dtype):
    """layer -> the kind of numbers that it gives out when our base computes in `dtype`; nothing is computed."""
    model = Classifier(registry.get_spec(name), Head(num_classes=2, pooling="global_average"), dtype=dtype)
    run = partial(model.init_with_output, taps=tuple(our_names(name, side, top=False)))
    result, _ = jax.eval_shape(run, jax.random.key(0), np.zeros((1, side, side, 3), np.uint8))
    return {layer: str(tap.dtype) for layer, tap in result.taps.items()}


def batch_norms(network):
    """layer -> (epsilon, momentum) of Keras' batch norms."""
    layers = (layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization))
    return {layer.name: (layer.epsilon, layer.momentum) for layer in layers}


def our_batch_norms(name, side):
    """The same of ours, as Flax was told them."""
    found = {}

    def note(run, args, settings, context):
        if isinstance(context.module, nn.BatchNorm):
            found[context.module.name] = (context.module.epsilon, context.module.momentum)
        return run(*args, **settings)

    with nn.intercept_methods(note):
        classifier.list_layers(Classifier(registry.get_spec(name)), side, side)
    return found


def dropouts(network):
    """layer -> (rate, whether an example is dropped as a whole) of Keras' dropouts."""
    layers = (layer for layer in network.layers if isinstance(layer, keras.layers.Dropout))
    return {layer.name: (layer.rate, layer.noise_shape == (None, 1, 1, 1)) for layer in layers}


def our_dropouts(name, side):
    """The same of ours."""
    found = {}

    def note(net, x, rate, *, name="", per_example=False):
        found[name or net._auto_name("dropout")] = (rate, per_example)
        return x

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Net, "dropout", note)
        classifier.list_layers(Classifier(registry.get_spec(name)), side, side)
    return found
