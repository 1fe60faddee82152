"""The light models of the `onnx` package with random weights, and flaxtl's AlexNet and GoogLeNet with the same weights.

A light model is a file of the ONNX model zoo in which ConstantOfShape nodes replace the larger arrays. Here they are
initializers again, as in the zoo's file.
"""

from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import onnx
import onnx.backend.test
import onnxruntime
from onnx import helper, numpy_helper

from flaxtl.models.classifier import Classifier, forward
from flaxtl.models.imagenet import CAFFE
from helpers import keras_zoo

LIGHT_MODELS = Path(onnx.backend.test.__file__).parent / "data/light"
FLOAT = onnx.TensorProto.FLOAT


class Pair(NamedTuple):
    """The ONNX model and flaxtl's, with the same weights, and images for both."""

    onnx: onnx.ModelProto
    model: Classifier
    params: dict
    images: np.ndarray


def make_pair(name, light_name, path, height, width, *, include_top):
    """Save a light model with random weights to `path` and read flaxtl's weights from there."""
    reference = fill_light_model(light_name, height, width, include_top=include_top)
    onnx.save(reference, path)
    model = keras_zoo.flaxtl_model(name, include_top=include_top)
    side = model.spec.input_size
    params = keras_zoo.load_params(name, path, side, include_top=include_top)
    return Pair(reference, model, params, keras_zoo.random_images(height, width))


def fill_light_model(light_name, height, width, *, include_top):
    """Return the light model for two images of that size, with random arrays; without its top, up to the flattening."""
    model, rng = onnx.load(LIGHT_MODELS / f"light_{light_name}.onnx"), np.random.default_rng(0)
    graph = model.graph
    if not include_top:
        top = next(number for number, node in enumerate(graph.node) if node.op_type in ("Reshape", "Gemm"))
        del graph.node[top:]
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "ConstantOfShape":
            arrays[node.output[0]] = np.empty(arrays.pop(node.input[0]), np.float32)
    used = {name for node in graph.node for name in node.input}
    initializers = [
        numpy_helper.from_array(
            random_weights(rng, array.shape) if array.dtype == np.float32 else any_batch_size(array), name
        )
        for name, array in arrays.items()
        if name in used
    ]
    nodes = [node for node in graph.node if node.op_type != "ConstantOfShape"]
    image = helper.make_tensor_value_info("data_0", FLOAT, [2, 3, height, width])
    model.graph.CopyFrom(helper.make_graph(nodes, graph.name, [image], [], initializers))
    model.ir_version = 8  # from version 4 on, initializers need not be inputs as well
    return model


def random_weights(rng, shape):
    """He's kernels, which keep the scale of activations; a small last one, so that no probability is close to 1."""
    if len(shape) == 1:
        return 0.1 * rng.standard_normal(shape, np.float32)
    inputs = shape[-1] if shape[:2] == (1, 1) else np.prod(shape[1:])
    scale = 0.01 if 1000 in shape else 1
    return rng.standard_normal(shape, np.float32) * np.float32(scale * np.sqrt(2 / inputs))


def any_batch_size(shape):
    """Target of a Reshape, which is for a batch of one in the light models."""
    return np.where(shape == 1, -1, shape)


def onnx_outputs(pair, outputs):
    """Return layer -> output of the ONNX model under the name `outputs[layer]`, channels last."""
    model = onnx.ModelProto()
    model.CopyFrom(pair.onnx)
    last = max(number for number, node in enumerate(model.graph.node) if node.output[0] in outputs.values())
    del model.graph.node[last + 1 :]
    model.graph.output.extend(helper.make_tensor_value_info(name, FLOAT, None) for name in outputs.values())
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # no warnings about unused initializers
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    arrays = session.run(list(outputs.values()), {"data_0": np.asarray(CAFFE(pair.images)).transpose(0, 3, 1, 2)})
    return {layer: np.moveaxis(array, 1, -1) for layer, array in zip(outputs, arrays, strict=True)}


def flaxtl_outputs(pair, layers):
    """Return layer -> flaxtl's output, running up to the last of `layers`."""
    taps = tuple(layers)
    run = jax.jit(lambda params, x: forward(pair.model, params, x, taps=taps, stop=taps[-1]).taps)
    return run(pair.params, pair.images)
