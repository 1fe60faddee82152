"""Keras' own networks with random weights, and flaxtl's with the same weights."""

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
from flaxtl.pretrained.backbone import optional_layers
from flaxtl.pretrained.loader import load_weights
from helpers import tiny_run

KERAS_MODELS = {
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
    **{
        f"efficientnetv2-{variant.lower()}": getattr(keras.applications, f"EfficientNetV2{variant}")
        for variant in ("B0", "B1", "B2", "B3", "S", "M", "L")
    },
}
"""Name in the registry -> Keras' builder."""


class Pair(NamedTuple):
    """Keras' network and flaxtl's, with the same weights, and images for both."""

    keras: keras.Model
    model: Classifier
    params: dict
    images: np.ndarray


def keras_network(name, height, width=None, *, include_top, **settings):
    """Build a network of keras.applications with random weights and layer names as in a fresh session.

    The values of Normalization layers stay as Keras' `settings` made them.
    """
    shape = (height, width or height, 3)
    settings = {"weights": None, "include_top": include_top, "input_shape": shape} | settings
    keras.backend.clear_session()
    with pytest.MonkeyPatch.context() as patch:
        # All weights are drawn below; Keras would compile a random generator for every shape.
        patch.setattr(keras.initializers.VarianceScaling, "__call__", _zeros)
        network = KERAS_MODELS[name](**settings)
    randomize(network)
    return network


def _zeros(initializer, shape, dtype=None):
    return np.zeros(shape, dtype)


def preprocessing(name):
    """Return `preprocess_input` of the Keras module that contains the network."""
    builder = KERAS_MODELS[name]
    return sys.modules[getattr(builder, "func", builder).__module__].preprocess_input


def randomize(network, seed=0):
    """Draw all weights so that activations keep their scale: He's kernels, scales and variances around 1."""
    rng = np.random.default_rng(seed)

    def draw(layer, variable):
        shape, kind = variable.shape, variable.path.rsplit("/", 1)[1]
        if kind in ("gamma", "moving_variance"):
            return rng.uniform(0.5, 1.5, shape)
        if len(shape) < 2:
            return 0.1 * rng.standard_normal(shape)
        depthwise = kind == "depthwise_kernel" or isinstance(layer, keras.layers.DepthwiseConv2D)
        fan_in = np.prod(shape[:-2]) if depthwise else np.prod(shape[:-1])
        gain = 1 if kind == "depthwise_kernel" else 2  # there is no relu between the kernels of a SeparableConv2D
        return rng.standard_normal(shape) * np.sqrt(gain / fan_in)

    for layer in network.layers:
        if layer.weights and not isinstance(layer, keras.layers.Normalization):
            layer.set_weights([draw(layer, variable).astype("float32") for variable in layer.weights])


def scale_weights(network, pattern, factor):
    """Scale the kernels or batch norm scales of all layers whose names match; returns the network.

    For the last layers of residual branches: otherwise the sums grow to millions, in which biases are lost.
    """
    for layer in network.layers:
        if re.fullmatch(pattern, layer.name):
            first, *others = layer.get_weights()
            layer.set_weights([np.float32(factor) * first, *others])
    return network


def save_legacy(network, path):
    """Save in Keras' legacy HDF5 layout, as `save_weights('x.h5')` of Keras 2 did."""
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, network)
    return path


def save_keras3(network, path):
    """Save in Keras 3's own layout."""
    path = path.with_suffix(".weights.h5")
    network.save_weights(path)
    return path


def flaxtl_model(name, *, include_top, dtype="float32"):
    """Return the published network, or its backbone under a small head."""
    return Classifier(
        registry.get_spec(name), None if include_top else Head(2, "global_average"), dtype=np.dtype(dtype)
    )


def load_params(name, path, height, width=None, *, include_top):
    """Read the weights of a network from a file, as flaxtl does."""
    model = flaxtl_model(name, include_top=include_top)
    shapes = classifier.param_shapes(model, height, width or height)["backbone"]
    return {"backbone": load_weights(path, shapes, optional_layers(model.spec)).params}


def random_images(height, width):
    return np.random.default_rng(1).integers(0, 256, (2, height, width, 3)).astype(np.uint8)


@tiny_run.compiled_quickly()
def compare_outputs(pair, layers, bound, preprocess=lambda x: x):
    """Assert that the outputs of `layers` and the logits are equal; the Keras network has no softmax."""
    tensors = {layer: pair.keras.get_layer(layer).output for layer in layers} | {"logits": pair.keras.output}
    # `predict` compiles the network as one program; calling it would compile every layer separately.
    expected = keras.Model(pair.keras.input, tensors).predict(preprocess(pair.images.astype("float32")), verbose=0)
    result = jax.jit(lambda params, x: forward(pair.model, params, x, taps=tuple(layers)))(pair.params, pair.images)
    np.testing.assert_allclose(result.output, jax.nn.softmax(result.logits), rtol=1e-5)
    assert_outputs_close(result.taps | {"logits": result.logits}, expected, bound)


def assert_outputs_close(outputs, expected, bound):
    """Assert that every output is within `bound`, relative to the largest expected value."""
    assert outputs.keys() == expected.keys()
    for name, values in expected.items():
        atol = bound * np.abs(values).max()
        np.testing.assert_allclose(outputs[name], values, rtol=0, atol=atol, err_msg=name)


def keras_layer_names(network):
    """Return the names of Keras' layers in order, without the input and what preprocesses it."""
    first = (keras.layers.InputLayer, keras.layers.Rescaling, keras.layers.Normalization)
    return [layer.name for layer in network.layers if not isinstance(layer, first)]


def layer_names(name, height, width=None, *, include_top):
    """Return the names of flaxtl's layers in order, without those of the head."""
    layers = classifier.list_layers(flaxtl_model(name, include_top=include_top), height, width or height)
    return [layer.name for layer in layers if layer.section == "backbone"]


def count_params(name, height=None, width=None, *, include_top):
    """Return the number of parameters and batch statistics, at the published size unless another is given."""
    model = flaxtl_model(name, include_top=include_top)
    side = model.spec.input_size
    shapes = classifier.param_shapes(model, height or side, width or side)["backbone"]
    return sum(int(np.prod(shape)) for leaves in shapes.values() for shape in leaves.values())


def keras_batch_norms(network):
    """Return layer -> (epsilon, momentum) of Keras' batch norms."""
    layers = (layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization))
    return {layer.name: (layer.epsilon, layer.momentum) for layer in layers}


def keras_dropouts(network):
    """Return layer -> (rate, whether an example is dropped as a whole) of Keras' dropouts."""
    layers = (layer for layer in network.layers if isinstance(layer, keras.layers.Dropout))
    return {layer.name: (layer.rate, layer.noise_shape == (None, 1, 1, 1)) for layer in layers}


def batch_norms_and_dropouts(name, side):
    """Return both tables, of batch norms and dropouts, for flaxtl's network, with the values passed to Flax."""
    batch_norms, dropouts = {}, {}
    run_dropout = Net.dropout

    def record_norm(run, args, settings, context):
        if isinstance(context.module, nn.BatchNorm):
            batch_norms[context.module.name] = (context.module.epsilon, context.module.momentum)
        return run(*args, **settings)

    def record_dropout(net, x, rate, *, name="", per_example=False):
        name = name or net._auto_name("dropout")
        dropouts[name] = (rate, per_example)
        return run_dropout(net, x, rate, name=name, per_example=per_example)

    with nn.intercept_methods(record_norm), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Net, "dropout", record_dropout)
        classifier.list_layers(flaxtl_model(name, include_top=True), side, side)
    return batch_norms, dropouts
