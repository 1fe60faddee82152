"""DenseNet121, DenseNet169 and DenseNet201: Huang et al. 2016, arXiv:1608.06993, DenseNet-BC of table 1.

The layers are those of Keras' densenet.py, which follows the authors' Torch networks.
"""

from functools import partial

from flaxtl.models.blocks import BORDER_3, RESNET_EPSILON, imagenet_top, resnet_stem_pool
from flaxtl.models.net import Net
from flaxtl.models.spec import TF_KERNELS, ModelSpec, default_groups, keras_weights
from flaxtl.models.tracer import Value

GROWTH_RATE = 32
"""Channels that each block adds."""


def densenet(net: Net, x: Value, include_top: bool, *, depths: tuple[int, ...]) -> Value:
    """ResNet's stem, then four stages of blocks; a transition between two stages halves channels and size."""
    channels = 64
    x = net.pad(x, BORDER_3)
    x = net.conv(x, channels, 7, strides=2, padding="valid", use_bias=False, name="conv1_conv")
    x = _norm_relu(net, x, "conv1_bn", "conv1_relu")
    x = resnet_stem_pool(net, x, pad_name="", name="pool1")
    for stage, depth in enumerate(depths, start=2):
        if stage > 2:
            channels //= 2
            x = _transition(net, x, channels, name=f"pool{stage - 1}")
        for number in range(1, depth + 1):
            x = _block(net, x, name=f"conv{stage}_block{number}")
        channels += depth * GROWTH_RATE
    x = _norm_relu(net, x, "bn", "relu")
    return imagenet_top(net, x, pool_name="avg_pool") if include_top else x


def _block(net: Net, x: Value, *, name: str) -> Value:
    """Append GROWTH_RATE channels to the input: a 1x1 and a 3x3 convolution, each after batch norm and relu."""
    new = _norm_relu(net, x, f"{name}_0_bn", f"{name}_0_relu")
    new = net.conv(new, 4 * GROWTH_RATE, 1, use_bias=False, name=f"{name}_1_conv")
    new = _norm_relu(net, new, f"{name}_1_bn", f"{name}_1_relu")
    new = net.conv(new, GROWTH_RATE, 3, use_bias=False, name=f"{name}_2_conv")
    return net.concat([x, new], name=f"{name}_concat")


def _transition(net: Net, x: Value, channels: int, *, name: str) -> Value:
    """1x1 convolution to `channels`, then a 2x2 average pool that drops an odd last row or column."""
    x = _norm_relu(net, x, f"{name}_bn", f"{name}_relu")
    x = net.conv(x, channels, 1, use_bias=False, name=f"{name}_conv")
    return net.average_pool(x, 2, name=f"{name}_pool")


def _norm_relu(net: Net, x: Value, bn_name: str, relu_name: str) -> Value:
    x = net.batch_norm(x, epsilon=RESNET_EPSILON, name=bn_name)
    return net.activation(x, "relu", name=relu_name)


_densenet_spec = partial(
    ModelSpec,
    preprocessing="torch",
    blocks=r"conv\d+_block\d+|pool\d+",
    groups=default_groups(last_block="conv5", layers="conv5_.*|bn"),
    license="BSD-3-Clause (Z. Liu)",
    paper="arXiv:1608.06993",
)

# Counts, files and hashes: Keras' densenet.py. Accuracies: README of keras-applications.
MODELS = (
    _densenet_spec(
        name="densenet121",
        build=partial(densenet, depths=(6, 12, 24, 16)),
        weights=keras_weights(f"densenet/densenet121_{TF_KERNELS}.h5", md5="9d60b8095a5708f2dcce2bca79d332c7"),
        weights_no_top=keras_weights(
            f"densenet/densenet121_{TF_KERNELS}_notop.h5", md5="30ee3e1110167f948a6b9946edeeb738"
        ),
        num_params=8_062_504,
        num_params_no_top=7_037_504,
        top1=74.972,
        top5=92.258,
    ),
    _densenet_spec(
        name="densenet169",
        build=partial(densenet, depths=(6, 12, 32, 32)),
        weights=keras_weights(f"densenet/densenet169_{TF_KERNELS}.h5", md5="d699b8f76981ab1b30698df4c175e90b"),
        weights_no_top=keras_weights(
            f"densenet/densenet169_{TF_KERNELS}_notop.h5", md5="b8c4d4c20dd625c148057b9ff1c1176b"
        ),
        num_params=14_307_880,
        num_params_no_top=12_642_880,
        top1=76.176,
        top5=93.176,
    ),
    _densenet_spec(
        name="densenet201",
        build=partial(densenet, depths=(6, 12, 48, 32)),
        weights=keras_weights(f"densenet/densenet201_{TF_KERNELS}.h5", md5="1ceb130c1ea1b78c3bf6114dbdfd8807"),
        weights_no_top=keras_weights(
            f"densenet/densenet201_{TF_KERNELS}_notop.h5", md5="c13680b51ded0fb44dff2d8f86ac8bb1"
        ),
        num_params=20_242_984,
        num_params_no_top=18_321_984,
        top1=77.320,
        top5=93.620,
    ),
)
