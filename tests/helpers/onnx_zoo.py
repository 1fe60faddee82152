"""The light models of the package `onnx`, filled at random, run by onnxruntime: what AlexNet and GoogLeNet must equal.

A light model is a file of the ONNX model zoo in which nodes ConstantOfShape stand for the larger arrays; here they are
initialisers again, as in the zoo's file.
"""

from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import onnx
import onnx.backend.test
import onnxruntime
from onnx import helper, numpy_helper

from flaxtl.models import registry
from flaxtl.models.classifier import Classifier, forward
from flaxtl.models.head import Head
from flaxtl.models.imagenet import CAFFE
from flaxtl.pretrained.backbone import expected_shapes, optional_layers
from flaxtl.pretrained.loader import load_weights

LIGHT = Path(onnx.backend.test.__file__).parent / "data/light"
FLOAT = onnx.TensorProto.FLOAT


class Pair(NamedTuple):
    """The ONNX model and ours, with the same weights, and images for both."""

    onnx: onnx.ModelProto
    model: Classifier
    parameters: dict
    images: np.ndarray


def pair(name, light, file, height, width, *, top):
    """Our network `name` beside the light model `light`, which is saved to `file` and read from there."""
    reference = filled(light, height, width)
    onnx.save(reference, file)
    row = registry.get_spec(name)
    model = Classifier(row, None if top else Head(num_classes=2, pooling="global_average"))
    parameters = {"backbone": load_weights(file, expected_shapes(model), optional_layers(row)).params}
    images = np.random.default_rng(1).integers(0, 256, (2, height, width, 3)).astype(np.uint8)
    return Pair(reference, model, parameters, images)


def filled(light, height, width):
    """The light model for images of that size, every array drawn at random."""
    model, random = onnx.load(LIGHT / f"light_{light}.onnx"), np.random.default_rng(0)
    graph = model.graph
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "ConstantOfShape":
            held[node.output[0]] = np.empty(held.pop(node.input[0]), np.float32)
    initializers = [
        numpy_helper.from_array(drawn(random, array.shape) if array.dtype == np.float32 else batches(array), name)
        for name, array in held.items()
    ]
    nodes = [node for node in graph.node if node.op_type != "ConstantOfShape"]
    image = helper.make_tensor_value_info("data_0", FLOAT, [2, 3, height, width])
    model.graph.CopyFrom(helper.make_graph(nodes, graph.name, [image], [], initializers))
    model.ir_version = 8  # from 4 on, initialisers need not be inputs as well
    return model


def drawn(random, shape):
    """He's kernels, by which activations keep their size; the last one small, that no probability be nearly 1."""
    if len(shape) == 1:
        return 0.1 * random.standard_normal(shape, np.float32)
    inputs = shape[-1] if shape[:2] == (1, 1) else np.prod(shape[1:])
    scale = 0.01 if 1000 in shape else 1
    return random.standard_normal(shape, np.float32) * np.float32(scale * np.sqrt(2 / inputs))


def batches(shape):
    """The target of a Reshape, which is for one image in the light models, for any number of them."""
    return np.where(shape == 1, -1, shape)


def theirs(both, outputs):
    """layer -> what the ONNX model has under the name `outputs[layer]`, channels last; later nodes fall away."""
    model = onnx.ModelProto()
    model.CopyFrom(both.onnx)
    last = max(number for number, node in enumerate(model.graph.node) if node.output[0] in outputs.values())
    del model.graph.node[last + 1 :]
    model.graph.output.extend(helper.make_tensor_value_info(name, FLOAT, None) for name in outputs.values())
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3  # no word on initialisers that nothing reads
    session = onnxruntime.InferenceSession(model.SerializeToString(), quiet, providers=["CPUExecutionProvider"])
    arrays = session.run(list(outputs.values()), {"data_0": np.asarray(CAFFE(both.images)).transpose(0, 3, 1, 2)})
    return {layer: np.moveaxis(array, 1, -1) for layer, array in zip(outputs, arrays, strict=True)}


def ours(both, layers):
    """layer -> our output, in one pass up to the last of `layers`."""
    taps = tuple(layers)
    run = jax.jit(lambda parameters, x: forward(both.model, parameters, x, taps=taps, stop=taps[-1]).taps)
    return run(both.parameters, both.images)
