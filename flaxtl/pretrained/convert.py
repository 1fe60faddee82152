"""Convert stored arrays to Flax's layout: leaf names, kernel axes, and the preprocessing of the first layer."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flaxtl.pretrained.merge import ExpectedShapes, LoadedLayers, ParamTree, StoredLayers, StoredTensor

FLATTENED_CHANNELS = {"fc1": 512, "fc6": 256}
"""Dense layers that read a flattened feature map (fc1 of VGG, fc6 of AlexNet) -> channels of that map."""

_DEFAULT_LEAVES = ("kernel", "bias")
"""Leaf names of a layer that the model does not have."""


def name_leaves(layers: StoredLayers, expected: ExpectedShapes) -> LoadedLayers:
    """Name the arrays of Keras layers by position, in the order of the leaves in `expected`.

    Names in the file are unreliable: a kernel is `W`, `kernel` or just a number, depending on the version, and Keras 1
    calls a variance `running_std`. Arrays beyond the expected leaves are named by their index.

    Keras' kernel layouts, HWIO and (in, out), are Flax's own. Only depthwise kernels differ: Keras'
    [height, width, channels, multiplier] is reshaped to [height, width, 1, channels * multiplier].
    """
    named: dict[str, dict[str, StoredTensor]] = {}
    for layer, tensors in layers.items():
        shapes = expected.get(layer, dict.fromkeys(_DEFAULT_LEAVES, ()))
        if tensors:
            named[layer] = _name_layer(tensors, shapes)
    return named


def _name_layer(tensors: list[StoredTensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, StoredTensor]:
    names = [*shapes, *map(str, range(len(shapes), len(tensors)))]
    return {
        name: _to_flax_depthwise(tensor, shapes.get(name, ())) for name, tensor in zip(names, tensors, strict=False)
    }


def _to_flax_depthwise(tensor: StoredTensor, shape: tuple[int, ...]) -> StoredTensor:
    """Reshape a depthwise kernel; return every other array unchanged."""
    kernel = tensor.values
    if len(shape) == kernel.ndim == 4 and shape[2] == 1 and kernel.shape[2] > 1:
        height, width, channels, multiplier = kernel.shape
        return replace(tensor, values=kernel.reshape(height, width, 1, channels * multiplier))
    return tensor


def channels_last_kernel(layer: str, values: NDArray[Any]) -> NDArray[Any]:
    """Transpose a kernel of PyTorch or Caffe: OIHW -> HWIO, and (out, in) -> (in, out).

    Arrays of other ranks are returned unchanged. Where the inputs are a flattened feature map, their order changes
    from (channel, row, column) to (row, column, channel).
    """
    if values.ndim == 4:
        return values.transpose(2, 3, 1, 0)
    if values.ndim != 2:
        return values
    outputs, inputs = values.shape
    channels = FLATTENED_CHANNELS.get(layer, 0)
    if not channels or inputs % channels:
        return values.T
    return values.reshape(outputs, channels, inputs // channels).transpose(2, 1, 0).reshape(inputs, outputs)


def adapt_preprocessing(params: ParamTree, source: str, target: str) -> ParamTree:
    """Change the first layer, a convolution with a bias, so that weights trained with one preprocessing fit another.

    The change is exact up to rounding, except at the border of the first layer: its padding is zero after either
    preprocessing, which stands for two slightly different grays.

    Args:
      params: the parameters of a model, first layer first.
      source: the preprocessing that the weights were trained with. Both must map colors linearly.
      target: the preprocessing that they will be used with.
    """
    if source == target:
        return params
    source_matrix, source_offset = _linear_map(source)
    target_matrix, target_offset = _linear_map(target)
    matrix = np.linalg.solve(target_matrix, source_matrix)
    offset = source_offset - target_offset @ matrix  # source color = target color @ matrix + offset
    first, leaves = next(iter(params.items()))
    kernel = leaves["kernel"].astype(np.float64)
    bias = leaves["bias"] + np.einsum("i,hwio->o", offset, kernel)
    kernel = np.einsum("ci,hwio->hwco", matrix, kernel)
    return {**params, first: {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}}


def _linear_map(preprocessing: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (matrix [3, 3], offset [3]) with which the preprocessing maps an RGB color: color @ matrix + offset."""
    import jax.numpy as jnp  # here, because the trial process of an untrusted file must not load jax

    from flaxtl.models.imagenet import PREPROCESSING

    colors = np.concatenate([np.zeros((1, 3)), 255 * np.eye(3)]).reshape(4, 1, 1, 3)
    black, *primaries = np.asarray(PREPROCESSING[preprocessing](jnp.asarray(colors)), np.float64).reshape(4, 3)
    return (np.stack(primaries) - black) / 255, black
