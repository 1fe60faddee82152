"""Building blocks that several families share."""

from flaxtl.models.net import Net
from flaxtl.models.tracer import Value

BORDER_1 = ((1, 1), (1, 1))
BORDER_3 = ((3, 3), (3, 3))

RESNET_EPSILON = 1.001e-5
"""Epsilon of the batch norms in Keras' resnet.py and densenet.py."""


def resnet_stem_pool(net: Net, x: Value, *, pad_name: str, name: str) -> Value:
    """3x3 max pool of stride 2 over the image with a border of zeros, which take part in the maximum."""
    return net.max_pool(net.pad(x, BORDER_1, name=pad_name), 3, strides=2, name=name)


def imagenet_top(net: Net, x: Value, *, pool_name: str = "") -> Value:
    """Global average pool and a softmax over the 1,000 ImageNet classes."""
    x = net.global_average_pool(x, name=pool_name)
    return net.dense(x, 1000, act="softmax", name="predictions")


def strided_depthwise(net: Net, x: Value, kernel_size: int, strides: int, *, pad_name: str, name: str) -> Value:
    """Depthwise convolution; with stride 2 its border of zeros is a separate layer."""
    if strides == 2:
        x = net.correct_pad(x, kernel_size, name=pad_name)
    return net.depthwise_conv(x, kernel_size, strides=strides, padding="valid" if strides == 2 else "same", name=name)


def round_to_8(channels: float) -> int:
    """Return the nearest multiple of 8, at least 8."""
    return max(8, int(channels + 4) // 8 * 8)


def round_channels(channels: float) -> int:
    """Round to a multiple of 8 that is at least 90 % of `channels` (`_make_divisible` in Keras' mobilenet_v2.py)."""
    rounded = round_to_8(channels)
    return rounded if rounded >= 0.9 * channels else rounded + 8
