"""Keras' own networks with random weights, and flaxtl's with the same weights."""

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import h5py
import jax
import keras
import numpy as np
import pytest
from flax import linen as nn
from keras.src.applications import convnext as keras_convnext
from keras.src.applications import densenet as keras_densenet
from keras.src.applications import efficientnet as keras_efficientnet
from keras.src.applications import efficientnet_v2 as keras_v2
from keras.src.applications import nasnet as keras_nasnet
from keras.src.applications import resnet as keras_resnet
from keras.src.legacy.saving import legacy_h5_format

from flaxtl.models import classifier, efficientnet_v2, registry
from flaxtl.models.classifier import Classifier, forward
from flaxtl.models.head import Head
from flaxtl.models.net import Net
from flaxtl.pretrained.keras_layers import PUBLISHED_NORMALIZATION
from flaxtl.pretrained.loader import load_weights
from helpers import compiling

KERAS_MODELS = {
    "vgg16": keras.applications.VGG16,
    "vgg19": keras.applications.VGG19,
    "resnet50": keras.applications.ResNet50,
    "resnet101": keras.applications.ResNet101,
    "resnet152": keras.applications.ResNet152,
    "resnet50_v2": keras.applications.ResNet50V2,
    "resnet101_v2": keras.applications.ResNet101V2,
    "resnet152_v2": keras.applications.ResNet152V2,
    "densenet121": keras.applications.DenseNet121,
    "densenet169": keras.applications.DenseNet169,
    "densenet201": keras.applications.DenseNet201,
    "inception_v3": keras.applications.InceptionV3,
    "inception_resnet_v2": keras.applications.InceptionResNetV2,
    "xception": keras.applications.Xception,
    "mobilenet_100": keras.applications.MobileNet,
    "mobilenet_075": partial(keras.applications.MobileNet, alpha=0.75),
    "mobilenet_050": partial(keras.applications.MobileNet, alpha=0.5),
    "mobilenet_025": partial(keras.applications.MobileNet, alpha=0.25),
    "mobilenet_v2_100": keras.applications.MobileNetV2,
    "mobilenet_v2_035": partial(keras.applications.MobileNetV2, alpha=0.35),
    "mobilenet_v2_050": partial(keras.applications.MobileNetV2, alpha=0.5),
    "mobilenet_v2_075": partial(keras.applications.MobileNetV2, alpha=0.75),
    "mobilenet_v2_130": partial(keras.applications.MobileNetV2, alpha=1.3),
    "mobilenet_v2_140": partial(keras.applications.MobileNetV2, alpha=1.4),
    "mobilenet_v3_small_100": keras.applications.MobileNetV3Small,
    "mobilenet_v3_large_100": keras.applications.MobileNetV3Large,
    "nasnet_mobile": keras.applications.NASNetMobile,
    "nasnet_large": keras.applications.NASNetLarge,
    **{f"efficientnet_b{number}": getattr(keras.applications, f"EfficientNetB{number}") for number in range(8)},
    **{
        f"efficientnet_v2_{variant.lower()}": getattr(keras.applications, f"EfficientNetV2{variant}")
        for variant in ("B0", "B1", "B2", "B3", "S", "M", "L")
    },
    **{
        f"convnext_{variant.lower()}": getattr(keras.applications, f"ConvNeXt{variant}")
        for variant in ("Tiny", "Small", "Base", "Large", "XLarge")
    },
}
"""Name in the registry -> Keras' builder."""


class Short(NamedTuple):
    """A network of a family with fewer blocks than any published one.

    Attributes:
      published: name of a published network with the same preprocessing.
      keras: Keras' builder.
      settings: arguments of flaxtl's builder.
    """

    published: str
    keras: Callable[..., keras.Model]
    settings: dict[str, Any]


def _resnet_blocks(stack, strides, *depths):
    """Return Keras' function from the output of the stem to that of the last block."""

    def run(x):
        for stage, depth in enumerate(depths, start=2):
            x = stack(x, 32 * 2 ** (stage - 1), depth, name=f"conv{stage}", **strides.get(stage, {}))
        return x

    return run


def _repeat(stages, repeats):
    return tuple(stage._replace(repeats=count) for stage, count in zip(stages, repeats, strict=True))


_RESNET = _resnet_blocks(keras_resnet.stack_residual_blocks_v1, {2: {"stride1": 1}}, 2, 1, 1, 1)
_RESNET_V2 = _resnet_blocks(keras_resnet.stack_residual_blocks_v2, {5: {"stride1": 1}}, 3, 2, 2, 2)
_V2_REPEATS = (1, 2, 1, 1, 2, 1)
_V2_STAGES = [
    {**stage, "num_repeat": count}
    for stage, count in zip(keras_v2.DEFAULT_BLOCKS_ARGS["efficientnetv2-b0"], _V2_REPEATS, strict=True)
]
SHORT_MODELS = {
    "short_resnet": Short(
        "resnet50", partial(keras_resnet.ResNet, _RESNET, preact=False, use_bias=True), {"depths": (2, 1, 1, 1)}
    ),
    "short_resnet_v2": Short(
        "resnet50_v2", partial(keras_resnet.ResNet, _RESNET_V2, preact=True, use_bias=True), {"depths": (3, 2, 2, 2)}
    ),
    "short_densenet": Short("densenet121", partial(keras_densenet.DenseNet, [2, 1, 1, 1]), {"depths": (2, 1, 1, 1)}),
    "short_nasnet": Short(
        "nasnet_mobile",
        partial(
            keras_nasnet.NASNet,
            penultimate_filters=192,
            num_blocks=1,
            stem_block_filters=8,
            skip_reduction=False,
            default_size=224,
        ),
        {"stem": 8, "channels": 8, "cells": 1, "skip": False},
    ),
    "short_efficientnet": Short(  # one or two blocks a stage
        "efficientnet_b0",
        partial(keras_efficientnet.EfficientNet, 0.5, 0.5, 224, weights_name="b0", name="short"),
        {"width": 0.5, "depth": 0.5, "dropout": 0.2},
    ),
    "short_efficientnet_v2": Short(
        "efficientnet_v2_b0",
        partial(keras_v2.EfficientNetV2, 1.0, 1.0, 224, blocks_args=_V2_STAGES, name="efficientnetv2-b0"),
        {"stages": _repeat(efficientnet_v2.B0, _V2_REPEATS), "stem": 32},
    ),
    "short_convnext": Short(
        "convnext_tiny",
        partial(keras_convnext.ConvNeXt, [2, 1, 1, 1], [16, 24, 32, 40], name="short"),
        {"name": "short", "widths": (16, 24, 32, 40), "depths": (2, 1, 1, 1)},
    ),
}


def get_spec(name):
    """Return the record of a model of the registry, or of a short one."""
    if name not in SHORT_MODELS:
        return registry.get_spec(name)
    short = SHORT_MODELS[name]
    spec = registry.get_spec(short.published)
    return replace(spec, name=name, build=partial(spec.build.func, **short.settings))


def family(name):
    """Return the name of the function that builds the network: 'resnet', 'resnet_v2', ..."""
    build = get_spec(name).build
    return getattr(build, "func", build).__name__


class Pair(NamedTuple):
    """Keras' network and flaxtl's, with the same weights, and images for both."""

    keras: keras.Model
    model: Classifier
    params: dict
    images: np.ndarray


def keras_network(name, height, width=None, *, include_top, **settings):
    """Build a network of keras.applications with random weights and layer names as in a fresh session.

    Preprocessing inside the network is that of the published weights.
    """
    shape = (height, width or height, 3)
    settings = {"weights": None, "include_top": include_top, "input_shape": shape} | settings
    keras.backend.clear_session(free_memory=False)  # collecting garbage takes half a second
    with pytest.MonkeyPatch.context() as patch:
        without_initializers(patch)
        if family(name) == "efficientnet":
            _without_download(patch)  # Keras adds a layer to the preprocessing if the weights are the published ones
            settings["weights"] = "imagenet"
        network = _keras_builder(name)(**settings)
    for layer in network.layers:
        if isinstance(layer, keras.layers.Normalization) and layer.weights:
            layer.set_weights([*map(np.float32, PUBLISHED_NORMALIZATION), np.int32(0)])
            layer.finalize_state()
    randomize(network)
    return network


def without_top(name, network, height, width=None):
    """Return Keras' `network` without its top, as include_top=False builds it, with the same weights."""
    last = layer_names(name, height, width, include_top=False)[-1]
    if family(name) != "convnext":
        return keras.Model(network.input, network.get_layer(last).output)
    pool, norm, _ = network.layers[-3:]
    last_norm = keras.layers.LayerNormalization(epsilon=norm.epsilon, name=last)
    base = keras.Model(network.input, last_norm(pool.input))
    last_norm.set_weights(norm.get_weights())
    return base


def without_initializers(patch):
    """Make all variables zero: Keras compiles its initializers for every shape."""
    for kind in (keras.initializers.VarianceScaling, keras.initializers.Zeros, keras.initializers.Ones):
        patch.setattr(kind, "__call__", _zeros)


def _zeros(initializer, shape, dtype=None):
    return jax.device_put(np.zeros(shape, dtype))  # Keras would compile a copy of NumPy's for every shape


def _without_download(patch):
    """Let weights='imagenet' load nothing, at any image size."""
    patch.setattr(keras.src.utils.file_utils, "get_file", lambda *_, **__: "")
    patch.setattr(keras.Model, "load_weights", lambda *_: None)
    patch.setattr(keras.src.applications.imagenet_utils, "obtain_input_shape", lambda shape, **_: shape)


def _keras_builder(name):
    return SHORT_MODELS[name].keras if name in SHORT_MODELS else KERAS_MODELS[name]


def preprocessing(name):
    """Return `preprocess_input` of the Keras module that contains the network."""
    builder = KERAS_MODELS[SHORT_MODELS[name].published if name in SHORT_MODELS else name]
    return sys.modules[getattr(builder, "func", builder).__module__].preprocess_input


def randomize(network, seed=0):
    """Draw all weights so that activations keep their scale: He's kernels, scales and variances around 1."""
    rng = np.random.default_rng(seed)

    def draw(layer, variable):
        shape, kind = variable.shape, variable.path.rsplit("/", 1)[1]
        if kind in ("gamma", "moving_variance"):
            return 0.5 + rng.random(shape, np.float32)
        if len(shape) < 2:
            return 0.1 * rng.standard_normal(shape, np.float32)
        depthwise = kind == "depthwise_kernel" or isinstance(layer, keras.layers.DepthwiseConv2D)
        fan_in = np.prod(shape[:-2]) if depthwise else np.prod(shape[:-1])
        gain = 1 if kind == "depthwise_kernel" else 2  # there is no relu between the kernels of a SeparableConv2D
        return rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(gain / fan_in))

    for layer in all_layers(network):
        if layer.weights and not isinstance(layer, keras.layers.Normalization):
            layer.set_weights([draw(layer, variable) for variable in layer.weights])


def scale_weights(network, pattern, factor):
    """Scale the kernels or batch norm scales of all layers whose names match; returns the network.

    For the last layers of residual branches: otherwise the sums grow to millions, in which biases are lost.
    """
    for layer in all_layers(network):
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
    return Classifier(get_spec(name), None if include_top else Head(2, "global_average"), dtype=np.dtype(dtype))


def load_params(name, path, height, width=None, *, include_top):
    """Read the weights of a network from a file, as flaxtl does."""
    shapes = param_shapes(name, height, width, include_top=include_top)
    optional = param_shapes(name, height, width, include_top=True).keys()
    return {"backbone": load_weights(path, shapes, optional, trusted=True).params}


def random_images(height, width):
    return np.random.default_rng(1).integers(0, 256, (2, height, width, 3)).astype(np.uint8)


@compiling.compiled_quickly()
def compare_outputs(pair, layers, bound, preprocess=lambda x: x):
    """Assert that the outputs of `layers` are equal, and the logits of a network with them; Keras' has no softmax."""
    tensors = {layer: pair.keras.get_layer(layer).output for layer in layers}
    run = jax.jit(lambda params, x: forward(pair.model, params, x, taps=tuple(layers)))
    result = run(pair.params, pair.images)
    outputs = dict(result.taps)
    if result.logits is not None:
        tensors["logits"], outputs["logits"] = pair.keras.output, result.logits
        np.testing.assert_allclose(result.output, jax.nn.softmax(result.logits), rtol=1e-5)
    # `predict` compiles the network as one program; calling it would compile every layer separately.
    expected = keras.Model(pair.keras.input, tensors).predict(preprocess(pair.images.astype("float32")), verbose=0)
    assert_outputs_close(outputs, expected, bound)


def assert_outputs_close(outputs, expected, bound):
    """Assert that every output is within `bound`, relative to the largest expected value."""
    assert outputs.keys() == expected.keys()
    for name, values in expected.items():
        atol = bound * np.abs(values).max()
        np.testing.assert_allclose(outputs[name], values, rtol=0, atol=atol, err_msg=name)


def keras_layers(network):
    """Return the (name, output shape) of Keras' layers in order, without the input and what preprocesses it."""
    first = (keras.layers.InputLayer, keras.layers.Rescaling, keras.layers.Normalization)
    return [(layer.name, layer.output.shape[1:]) for layer in all_layers(network) if not isinstance(layer, first)]


def all_layers(network):
    """Return the layers of a network, those of nested models in place of them."""
    nested = (all_layers(layer) if isinstance(layer, keras.Model) else [layer] for layer in network.layers)
    return [layer for layers in nested for layer in layers]


def layer_names(name, height, width=None, *, include_top):
    """Return the names of flaxtl's layers in order, without those of the head."""
    layers = classifier.list_layers(flaxtl_model(name, include_top=include_top), height, width or height)
    return [layer.name for layer in layers if layer.section == "backbone"]


def param_shapes(name, height, width=None, *, include_top):
    """Return layer -> leaf -> shape of the backbone."""
    model = flaxtl_model(name, include_top=include_top)
    return classifier.param_shapes(model, height, width or height)["backbone"]


def count_params(name, height=None, width=None, *, include_top):
    """Return the number of parameters and batch statistics, at the published size unless another is given."""
    shapes = param_shapes(name, height or get_spec(name).input_size, width, include_top=include_top)
    return sum(int(np.prod(shape)) for leaves in shapes.values() for shape in leaves.values())


def keras_batch_norms(network):
    """Return layer -> (epsilon, momentum) of Keras' batch norms."""
    layers = (layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization))
    return {layer.name: (layer.epsilon, layer.momentum) for layer in layers}


def keras_dropouts(network):
    """Return layer -> (rate, whether an example is dropped as a whole) of Keras' dropouts."""
    layers = (layer for layer in network.layers if isinstance(layer, keras.layers.Dropout))
    return {layer.name: (layer.rate, layer.noise_shape == (None, 1, 1, 1)) for layer in layers}


def batch_norms_and_dropouts(model, height, width):
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
        classifier._trace.cache_clear()  # a cached result would not show the calls
        layers = classifier.list_layers(model, height, width)
    existing = {layer.name for layer in layers}  # Net.dropout is called for layers after the last one as well
    return batch_norms, {name: dropouts[name] for name in dropouts if name in existing}
