"""Kernels of libraries that put channels first, PyTorch and ONNX after Caffe, as Flax has them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from flaxtl.models.imagenet import PREPROCESSING
from flaxtl.pretrained.merge import ExpectedShapes, LoadedLayers, ParamTree, StoredLayers, StoredTensor

FLATTENED = {"fc1": 512, "fc6": 256}
"""Layers that read a flattened image -> its channels: of VGG, of AlexNet."""


def channels_last_kernel(layer: str, values: NDArray[Any]) -> NDArray[Any]:
    """(out, in, height, width) -> (height, width, in, out), and (out, in) -> (in, out); anything else as it is.

    Where the inputs are a flattened image, their order changes from channel, row, column to row, column, channel.
    """
    if values.ndim == 4:
        return values.transpose(2, 3, 1, 0)
    if values.ndim != 2:
        return values
    outputs, inputs = values.shape
    channels = FLATTENED.get(layer, 0)
    if not channels or inputs % channels:
        return values.T
    return values.reshape(outputs, channels, -1).transpose(2, 1, 0).reshape(inputs, outputs)


Colors = NDArray[np.float64]


def adapt_preprocessing(tree: ParamTree, made_for: str, used_with: str) -> ParamTree:
    """`tree` with its first layer, a convolution with a bias, changed so that it sees the colours it was `made_for`.

    Both names are of preprocessings that map every pixel's colour linearly. The change is exact up to rounding, but
    for the first layer's border: its padding, zero after either preprocessing, is two slightly different greys.
    """
    if made_for == used_with:
        return tree
    wanted, black = _linear(made_for)
    given, given_black = _linear(used_with)
    turn = np.linalg.solve(given, wanted)
    shift = black - given_black @ turn  # colour made_for = colour used_with @ turn + shift
    first, leaves = next(iter(tree.items()))
    kernel = leaves["kernel"].astype(np.float64)
    bias = leaves["bias"] + np.einsum("i,hwio->o", shift, kernel)
    kernel = np.einsum("ci,hwio->hwco", turn, kernel)
    return {**tree, first: {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}}


def _linear(preprocessing: str) -> tuple[Colors, Colors]:
    """(matrix [3, 3], black [3]): a pixel's colour RGB becomes colour @ matrix + black."""
    colours = np.concatenate([np.zeros((1, 3)), 255 * np.eye(3)]).reshape(4, 1, 1, 3)
    black, *full = np.asarray(PREPROCESSING[preprocessing](jnp.asarray(colours)), np.float64).reshape(4, 3)
    return (np.stack(full) - black) / 255, black


_USUAL = ("kernel", "bias")  # of a layer that the network does not have


def to_params(layers: StoredLayers, expected: ExpectedShapes) -> LoadedLayers:
    """Name the arrays of each layer by position, in the order in which `expected` has its leaves.

    The name in the file is no guide: a kernel is `W`, `kernel`, or just a number, by vintage, and Keras 1 calls a
    variance `running_std`. Arrays past the last leaf are named by their index. Kernel layouts, HWIO and (in, out), are
    Flax' own; only depthwise kernels, [height, width, channels, multiplier] in Keras, are [height, width, 1, channels
    * multiplier] here, in the same order of numbers.
    """
    return {
        layer: dict(_named(arrays, expected.get(layer, dict.fromkeys(_USUAL, ()))))
        for layer, arrays in layers.items()
        if arrays
    }


def _named(arrays: list[StoredTensor], shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[str, StoredTensor]]:
    names = [*shapes, *map(str, range(len(shapes), len(arrays)))]
    return [(name, _depthwise(array, shapes.get(name, ()))) for name, array in zip(names, arrays, strict=False)]


def _depthwise(array: StoredTensor, shape: tuple[int, ...]) -> StoredTensor:
    """A depthwise kernel as Flax has it; every other array as it is."""
    kernel = array.values
    if len(shape) == kernel.ndim == 4 and shape[2] == 1 and kernel.shape[2] > 1:
        return replace(array, values=kernel.reshape(*kernel.shape[:2], 1, -1))
    return array
