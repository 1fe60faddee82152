"""Kernels of libraries that put channels first, PyTorch and ONNX after Caffe, as Flax has them."""

from typing import Any

from numpy.typing import NDArray

FLATTENED = {"fc1": 512, "fc6": 256}
"""Layers that read a flattened picture -> its channels: of VGG, of AlexNet."""


def kernel(layer: str, values: NDArray[Any]) -> NDArray[Any]:
    """(out, in, height, width) -> (height, width, in, out), and (out, in) -> (in, out); anything else as it is.

    Where the inputs are a flattened picture, their order changes from channel, row, column to row, column, channel.
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
