"""MobileNetV2 at six widths: Sandler et al. 2018, arXiv:1801.04381, table 2.

The layers are those of Keras' mobilenet_v2.py. `alpha` is the paper's width multiplier: the number of channels of
every layer is multiplied by it and rounded to a multiple of 8.
"""

from functools import partial

from flaxtl.models.blocks import imagenet_top, round_channels, strided_depthwise
from flaxtl.models.net import Net
from flaxtl.models.spec import TF_KERNELS, ModelSpec, default_groups, keras_weights
from flaxtl.models.tracer import Value

STAGES = ((16, 1, 1), (24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
"""Stages: (channels, number of blocks, stride of the first block)."""

EXPANSION = 6
"""Channels inside a block, as a multiple of its input channels."""

MOMENTUM = 0.999
"""Momentum of the batch norms of MobileNetV2 and MobileNetV3 in Keras."""


def mobilenet_v2(net: Net, x: Value, include_top: bool, *, alpha: float) -> Value:
    """Convolution of stride 2, seventeen blocks, and a 1x1 convolution that is not narrower for a small `alpha`."""
    inputs = round_channels(32 * alpha)
    x = net.conv(x, inputs, 3, strides=2, use_bias=False, name="Conv1")
    x = net.batch_norm(x, momentum=MOMENTUM, name="bn_Conv1")
    x = net.relu(x, max_value=6, name="Conv1_relu")
    number = 0
    for channels, depth, stride in STAGES:
        outputs = round_channels(int(channels * alpha))
        for strides in (stride, *[1] * (depth - 1)):
            x = _inverted_residual(net, x, inputs, outputs, strides, number)
            inputs, number = outputs, number + 1
    x = net.conv(x, round_channels(1280 * max(alpha, 1)), 1, use_bias=False, name="Conv_1")
    x = net.batch_norm(x, momentum=MOMENTUM, name="Conv_1_bn")
    x = net.relu(x, max_value=6, name="out_relu")
    return imagenet_top(net, x) if include_top else x


def _inverted_residual(net: Net, x: Value, inputs: int, outputs: int, strides: int, number: int) -> Value:
    """1x1 convolution to EXPANSION times the channels (not in block 0), depthwise 3x3, linear 1x1 to `outputs`."""
    shortcut = x
    name = f"block_{number}" if number else "expanded_conv"
    if number:
        x = net.conv(x, EXPANSION * inputs, 1, use_bias=False, name=f"{name}_expand")
        x = net.batch_norm(x, momentum=MOMENTUM, name=f"{name}_expand_BN")
        x = net.relu(x, max_value=6, name=f"{name}_expand_relu")
    x = strided_depthwise(net, x, 3, strides, pad_name=f"{name}_pad", name=f"{name}_depthwise")
    x = net.batch_norm(x, momentum=MOMENTUM, name=f"{name}_depthwise_BN")
    x = net.relu(x, max_value=6, name=f"{name}_depthwise_relu")
    x = net.conv(x, outputs, 1, use_bias=False, name=f"{name}_project")
    x = net.batch_norm(x, momentum=MOMENTUM, name=f"{name}_project_BN")
    return net.add([shortcut, x], name=f"{name}_add") if (inputs, strides) == (outputs, 1) else x


_mobilenet_v2_spec = partial(
    ModelSpec,
    preprocessing="tf",
    blocks=r"expanded_conv|block_\d+|Conv_1",
    groups=default_groups(last_block="last_stage", layers="block_1[3-6]_.*|Conv_1.*"),
    license="Apache 2.0 (Google)",
    paper="arXiv:1801.04381",
)

# Files: Keras' mobilenet_v2.py, which has files for five image sizes (here: 224) and no hashes. Counts: count_params.
# Accuracies: README of keras-applications.
MODELS = (
    _mobilenet_v2_spec(
        name="mobilenet_v2_100",
        build=partial(mobilenet_v2, alpha=1.0),
        weights=keras_weights(f"mobilenet_v2/mobilenet_v2_{TF_KERNELS}_1.0_224.h5"),
        weights_no_top=keras_weights(f"mobilenet_v2/mobilenet_v2_{TF_KERNELS}_1.0_224_no_top.h5"),
        num_params=3_538_984,
        num_params_no_top=2_257_984,
        top1=71.336,
        top5=90.142,
    ),
    _mobilenet_v2_spec(
        name="mobilenet_v2_035",
        build=partial(mobilenet_v2, alpha=0.35),
        weights=keras_weights(f"mobilenet_v2/mobilenet_v2_{TF_KERNELS}_0.35_224.h5"),
        weights_no_top=keras_weights(f"mobilenet_v2/mobilenet_v2_{TF_KERNELS}_0.35_224_no_top.h5"),
        num_params=1_691_208,
        num_params_no_top=410_208,
        top1=60.086,
        top5=82.432,
    ),
    _mobilenet_v2_spec(
        name="mobilenet_v2_050",
        build=partial(mobilenet_v2, alpha=0.5),
        weights=keras_weights(f"mobilenet_v2/mobilenet_v2_{TF_KERNELS}_0.5_224.h5"),
        weights_no_top=keras_weights(f"mobilenet_v2/mobilenet_v2_{TF_KERNELS}_0.5_224_no_top.h5"),
        num_params=1_987_224,
        num_params_no_top=706_224,
        top1=65.194,
        top5=86.062,
    ),
    _mobilenet_v2_spec(
        name="mobilenet_v2_075",
        build=partial(mobilenet_v2, alpha=0.75),
        weights=keras_weights(f"mobilenet_v2/mobilenet_v2_{TF_KERNELS}_0.75_224.h5"),
        weights_no_top=keras_weights(f"mobilenet_v2/mobilenet_v2_{TF_KERNELS}_0.75_224_no_top.h5"),
        num_params=2_663_064,
        num_params_no_top=1_382_064,
        top1=69.532,
        top5=89.176,
    ),
    _mobilenet_v2_spec(
        name="mobilenet_v2_130",
        build=partial(mobilenet_v2, alpha=1.3),
        weights=keras_weights(f"mobilenet_v2/mobilenet_v2_{TF_KERNELS}_1.3_224.h5"),
        weights_no_top=keras_weights(f"mobilenet_v2/mobilenet_v2_{TF_KERNELS}_1.3_224_no_top.h5"),
        num_params=5_431_048,
        num_params_no_top=3_766_048,
        top1=74.680,
        top5=92.122,
    ),
    _mobilenet_v2_spec(
        name="mobilenet_v2_140",
        build=partial(mobilenet_v2, alpha=1.4),
        weights=keras_weights(f"mobilenet_v2/mobilenet_v2_{TF_KERNELS}_1.4_224.h5"),
        weights_no_top=keras_weights(f"mobilenet_v2/mobilenet_v2_{TF_KERNELS}_1.4_224_no_top.h5"),
        num_params=6_156_712,
        num_params_no_top=4_363_712,
        top1=75.230,
        top5=92.422,
    ),
)
