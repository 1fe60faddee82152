"""ResNet and ResNetV2 with 50, 101 and 152 layers: He et al. 2015, arXiv:1512.03385, and 2016, arXiv:1603.05027.

The layers are those of Keras' resnet.py. ResNet follows the authors' Caffe networks: the stride of a stage is on the
first 1x1 convolution of its first block, and convolutions have biases although a batch norm follows. ResNetV2 follows
the Torch networks: batch norm and relu come before the convolutions, and the stride is on the 3x3 convolution of the
last block of a stage.
"""

from functools import partial

from flaxtl.models.blocks import BORDER_1, BORDER_3, RESNET_EPSILON, imagenet_top, resnet_stem_pool
from flaxtl.models.net import Net
from flaxtl.models.spec import TF_KERNELS, ModelSpec, default_groups, keras_weights
from flaxtl.models.tracer import Value

DEPTHS_50 = (3, 4, 6, 3)
DEPTHS_101 = (3, 4, 23, 3)
DEPTHS_152 = (3, 8, 36, 3)
"""Blocks of the four stages: table 1 of the first paper."""

WIDTHS = (64, 128, 256, 512)
"""Channels inside the blocks of the four stages; the blocks' outputs have four times as many."""


def resnet(net: Net, x: Value, include_top: bool, *, depths: tuple[int, ...]) -> Value:
    """Stem of stride 4, then four stages of bottleneck blocks; all but the first have stride 2."""
    x = net.pad(x, BORDER_3, name="conv1_pad")
    x = net.conv(x, 64, 7, strides=2, padding="valid", name="conv1_conv")
    x = _norm_relu(net, x, "conv1")
    x = resnet_stem_pool(net, x, pad_name="pool1_pad", name="pool1_pool")
    for stage, (depth, width) in enumerate(zip(depths, WIDTHS, strict=True), start=2):
        for block in range(1, depth + 1):
            strides = 2 if block == 1 and stage > 2 else 1
            x = _bottleneck(net, x, width, strides=strides, project=block == 1, name=f"conv{stage}_block{block}")
    return imagenet_top(net, x, pool_name="avg_pool") if include_top else x


def _bottleneck(net: Net, x: Value, width: int, *, strides: int, project: bool, name: str) -> Value:
    """1x1 convolution to `width` channels, 3x3, and 1x1 to 4 * `width`, added to the input or its projection."""
    shortcut = x
    if project:
        shortcut = net.conv(x, 4 * width, 1, strides=strides, name=f"{name}_0_conv")
        shortcut = net.batch_norm(shortcut, epsilon=RESNET_EPSILON, name=f"{name}_0_bn")
    x = net.conv(x, width, 1, strides=strides, name=f"{name}_1_conv")
    x = _norm_relu(net, x, f"{name}_1")
    x = net.conv(x, width, 3, name=f"{name}_2_conv")
    x = _norm_relu(net, x, f"{name}_2")
    x = net.conv(x, 4 * width, 1, name=f"{name}_3_conv")
    x = net.batch_norm(x, epsilon=RESNET_EPSILON, name=f"{name}_3_bn")
    x = net.add([shortcut, x], name=f"{name}_add")
    return net.activation(x, "relu", name=f"{name}_out")


def resnet_v2(net: Net, x: Value, include_top: bool, *, depths: tuple[int, ...]) -> Value:
    """Stem of stride 4 without activation, then four stages of pre-activation blocks; the last has stride 1."""
    x = net.pad(x, BORDER_3, name="conv1_pad")
    x = net.conv(x, 64, 7, strides=2, padding="valid", name="conv1_conv")
    x = resnet_stem_pool(net, x, pad_name="pool1_pad", name="pool1_pool")
    for stage, (depth, width) in enumerate(zip(depths, WIDTHS, strict=True), start=2):
        for block in range(1, depth + 1):
            strides = 2 if block == depth and stage < 5 else 1
            x = _bottleneck_v2(net, x, width, strides=strides, project=block == 1, name=f"conv{stage}_block{block}")
    x = _norm_relu(net, x, "post")
    return imagenet_top(net, x, pool_name="avg_pool") if include_top else x


def _bottleneck_v2(net: Net, x: Value, width: int, *, strides: int, project: bool, name: str) -> Value:
    """Batch norm and relu, then a bottleneck, added to the raw input or to the projection of the activated input."""
    activated = _norm_relu(net, x, f"{name}_preact")
    if project:
        shortcut = net.conv(activated, 4 * width, 1, name=f"{name}_0_conv")
    else:
        shortcut = x if strides == 1 else net.max_pool(x, 1, strides=strides)
    x = net.conv(activated, width, 1, use_bias=False, name=f"{name}_1_conv")
    x = _norm_relu(net, x, f"{name}_1")
    x = net.pad(x, BORDER_1, name=f"{name}_2_pad")
    x = net.conv(x, width, 3, strides=strides, padding="valid", use_bias=False, name=f"{name}_2_conv")
    x = _norm_relu(net, x, f"{name}_2")
    x = net.conv(x, 4 * width, 1, name=f"{name}_3_conv")
    return net.add([shortcut, x], name=f"{name}_out")


def _norm_relu(net: Net, x: Value, name: str) -> Value:
    x = net.batch_norm(x, epsilon=RESNET_EPSILON, name=f"{name}_bn")
    return net.activation(x, "relu", name=f"{name}_relu")


_resnet_spec = partial(
    ModelSpec,
    preprocessing="caffe",
    blocks=r"conv\d+_block\d+",
    groups=default_groups(last_block="conv5", layers="conv5_.*"),
    license="MIT (K. He)",
    paper="arXiv:1512.03385",
)
_resnet_v2_spec = partial(
    ModelSpec,
    preprocessing="tf",
    blocks=r"conv\d+_block\d+",
    groups=default_groups(last_block="conv5", layers="conv5_.*|post_bn"),
    license="BSD-3-Clause (Facebook)",
    paper="arXiv:1603.05027",
)

# Counts, files and hashes: Keras' resnet.py. Accuracies: README of keras-applications, those of V2 at 299 pixels.
MODELS = (
    _resnet_spec(
        name="resnet50",
        build=partial(resnet, depths=DEPTHS_50),
        weights=keras_weights(f"resnet/resnet50_{TF_KERNELS}.h5", md5="2cb95161c43110f7111970584f804107"),
        weights_no_top=keras_weights(f"resnet/resnet50_{TF_KERNELS}_notop.h5", md5="4d473c1dd8becc155b73f8504c6f6626"),
        num_params=25_636_712,
        num_params_no_top=23_587_712,
        top1=74.928,
        top5=92.060,
    ),
    _resnet_spec(
        name="resnet101",
        build=partial(resnet, depths=DEPTHS_101),
        weights=keras_weights(f"resnet/resnet101_{TF_KERNELS}.h5", md5="f1aeb4b969a6efcfb50fad2f0c20cfc5"),
        weights_no_top=keras_weights(f"resnet/resnet101_{TF_KERNELS}_notop.h5", md5="88cf7a10940856eca736dc7b7e228a21"),
        num_params=44_707_176,
        num_params_no_top=42_658_176,
        top1=76.420,
        top5=92.786,
    ),
    _resnet_spec(
        name="resnet152",
        build=partial(resnet, depths=DEPTHS_152),
        weights=keras_weights(f"resnet/resnet152_{TF_KERNELS}.h5", md5="100835be76be38e30d865e96f2aaae62"),
        weights_no_top=keras_weights(f"resnet/resnet152_{TF_KERNELS}_notop.h5", md5="ee4c566cf9a93f14d82f913c2dc6dd0c"),
        num_params=60_419_944,
        num_params_no_top=58_370_944,
        top1=76.604,
        top5=93.118,
    ),
    _resnet_v2_spec(
        name="resnet50_v2",
        build=partial(resnet_v2, depths=DEPTHS_50),
        weights=keras_weights(f"resnet/resnet50v2_{TF_KERNELS}.h5", md5="3ef43a0b657b3be2300d5770ece849e0"),
        weights_no_top=keras_weights(
            f"resnet/resnet50v2_{TF_KERNELS}_notop.h5", md5="fac2f116257151a9d068a22e544a4917"
        ),
        num_params=25_613_800,
        num_params_no_top=23_564_800,
        top1=75.960,
        top5=93.034,
    ),
    _resnet_v2_spec(
        name="resnet101_v2",
        build=partial(resnet_v2, depths=DEPTHS_101),
        weights=keras_weights(f"resnet/resnet101v2_{TF_KERNELS}.h5", md5="6343647c601c52e1368623803854d971"),
        weights_no_top=keras_weights(
            f"resnet/resnet101v2_{TF_KERNELS}_notop.h5", md5="c0ed64b8031c3730f411d2eb4eea35b5"
        ),
        num_params=44_675_560,
        num_params_no_top=42_626_560,
        top1=77.234,
        top5=93.816,
    ),
    _resnet_v2_spec(
        name="resnet152_v2",
        build=partial(resnet_v2, depths=DEPTHS_152),
        weights=keras_weights(f"resnet/resnet152v2_{TF_KERNELS}.h5", md5="a49b44d1979771252814e80f8ec446f9"),
        weights_no_top=keras_weights(
            f"resnet/resnet152v2_{TF_KERNELS}_notop.h5", md5="ed17cf2e0169df9d443503ef94b23b33"
        ),
        num_params=60_380_648,
        num_params_no_top=58_331_648,
        top1=78.032,
        top5=94.162,
    ),
)
