"""DenseNet121, DenseNet169 and DenseNet201: Huang et al. 2016, arXiv:1608.06993, DenseNet-BC of table 1.

Layer by layer as in Keras' densenet.py, which follows the authors' Torch networks.
"""

from functools import partial

from flaxtl.models.net import Net
from flaxtl.models.resnet import BORDER_1, BORDER_3, EPSILON
from flaxtl.models.spec import ModelSpec, default_groups, keras_weights, row
from flaxtl.models.tracer import Value

GROWTH = 32
"""Channels that every block adds."""


def densenet(net: Net, x: Value, top: bool, *, depths: tuple[int, ...]) -> Value:
    """ResNet's stem, then four stages of blocks; a transition between two halves the channels and the size."""
    channels = 64
    x = net.pad(x, BORDER_3)
    x = net.conv(x, channels, 7, strides=2, padding="valid", use_bias=False, name="conv1_conv")
    x = activated(net, x, "conv1_bn", "conv1_relu")
    x = net.pad(x, BORDER_1)
    x = net.max_pool(x, 3, strides=2, name="pool1")
    for stage, depth in enumerate(depths, start=2):
        if stage > 2:
            channels //= 2
            x = transition(net, x, channels, name=f"pool{stage - 1}")
        for number in range(1, depth + 1):
            x = block(net, x, name=f"conv{stage}_block{number}")
        channels += depth * GROWTH
    x = activated(net, x, "bn", "relu")
    if top:
        x = net.global_average_pool(x, name="avg_pool")
        x = net.dense(x, 1000, act="softmax", name="predictions")
    return x


def block(net: Net, x: Value, *, name: str) -> Value:
    """1x1 to four times the growth, 3x3 to the growth, each behind batch norm and relu; appended to the input."""
    new = activated(net, x, f"{name}_0_bn", f"{name}_0_relu")
    new = net.conv(new, 4 * GROWTH, 1, use_bias=False, name=f"{name}_1_conv")
    new = activated(net, new, f"{name}_1_bn", f"{name}_1_relu")
    new = net.conv(new, GROWTH, 3, use_bias=False, name=f"{name}_2_conv")
    return net.concat([x, new], name=f"{name}_concat")


def transition(net: Net, x: Value, channels: int, *, name: str) -> Value:
    """1x1 convolution to `channels`, then 2x2 average; an odd last row or column is left out."""
    x = activated(net, x, f"{name}_bn", f"{name}_relu")
    x = net.conv(x, channels, 1, use_bias=False, name=f"{name}_conv")
    return net.average_pool(x, 2, name=f"{name}_pool")


def activated(net: Net, x: Value, norm: str, relu: str) -> Value:
    """Batch norm and relu, under these names."""
    x = net.batch_norm(x, epsilon=EPSILON, name=norm)
    return net.activation(x, "relu", name=relu)


def _row(
    layers: int,
    depths: tuple[int, ...],
    parameters: tuple[int, int],
    accuracy: tuple[float, float],
    md5s: tuple[str, str],
) -> ModelSpec:
    name = f"densenet{layers}"
    files = keras_weights("densenet", f"{name}_weights_tf_dim_ordering_tf_kernels", *md5s)
    return row(
        name,
        partial(densenet, depths=depths),
        files,
        parameters,
        accuracy,
        preprocessing="torch",
        license="BSD-3-Clause (Z. Liu)",
        paper="arXiv:1608.06993",
        groups=default_groups("conv5", "conv5_.*|bn"),
    )


# Sizes, counts, files and hashes: Keras' densenet.py. Accuracies: keras-applications' README.
NETWORKS = (
    _row(
        121,
        (6, 12, 24, 16),
        (8_062_504, 7_037_504),
        (74.972, 92.258),
        ("9d60b8095a5708f2dcce2bca79d332c7", "30ee3e1110167f948a6b9946edeeb738"),
    ),
    _row(
        169,
        (6, 12, 32, 32),
        (14_307_880, 12_642_880),
        (76.176, 93.176),
        ("d699b8f76981ab1b30698df4c175e90b", "b8c4d4c20dd625c148057b9ff1c1176b"),
    ),
    _row(
        201,
        (6, 12, 48, 32),
        (20_242_984, 18_321_984),
        (77.320, 93.620),
        ("1ceb130c1ea1b78c3bf6114dbdfd8807", "c13680b51ded0fb44dff2d8f86ac8bb1"),
    ),
)
