"""MobileNetV2 at six widths: Sandler et al. 2018, arXiv:1801.04381, table 2.

Layer by layer as in Keras' mobilenet_v2.py. `alpha` is the paper's width multiplier: the share of the published
channels that every layer has, in whole eights.
"""

from functools import partial

from flaxtl.models.net import Net
from flaxtl.models.spec import ModelSpec, default_groups, keras_weights, row
from flaxtl.models.tracer import Value

STAGES = ((16, 1, 1), (24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
"""Channels, number of blocks, stride of the first."""

EXPANSION = 6

MOMENTUM = 0.999
"""Of the batch norms of MobileNetV2 and MobileNetV3."""


def mobilenet_v2(net: Net, x: Value, top: bool, *, alpha: float) -> Value:
    """A convolution that halves the size, seventeen blocks, and a 1x1 convolution that a small `alpha` leaves wide."""
    inputs = whole_eights(32 * alpha)
    x = net.conv(x, inputs, 3, strides=2, use_bias=False, name="Conv1")
    x = net.batch_norm(x, momentum=MOMENTUM, name="bn_Conv1")
    x = net.relu(x, max_value=6, name="Conv1_relu")
    number = 0
    for channels, depth, stride in STAGES:
        outputs = whole_eights(int(channels * alpha))
        for strides in (stride, *[1] * (depth - 1)):
            x = block(net, x, inputs, outputs, strides, number)
            inputs, number = outputs, number + 1
    x = net.conv(x, whole_eights(1280 * max(alpha, 1)), 1, use_bias=False, name="Conv_1")
    x = net.batch_norm(x, momentum=MOMENTUM, name="Conv_1_bn")
    x = net.relu(x, max_value=6, name="out_relu")
    if top:
        x = net.global_average_pool(x)
        x = net.dense(x, 1000, act="softmax", name="predictions")
    return x


def block(net: Net, x: Value, inputs: int, outputs: int, strides: int, number: int) -> Value:
    """Inverted residual: 1x1 to six times the channels (not in block 0), depthwise 3x3, linear 1x1 to `outputs`."""
    shortcut = x
    name = f"block_{number}" if number else "expanded_conv"
    if number:
        x = net.conv(x, EXPANSION * inputs, 1, use_bias=False, name=f"{name}_expand")
        x = net.batch_norm(x, momentum=MOMENTUM, name=f"{name}_expand_BN")
        x = net.relu(x, max_value=6, name=f"{name}_expand_relu")
    if strides == 2:
        x = net.correct_pad(x, 3, name=f"{name}_pad")
    x = net.depthwise_conv(x, 3, strides=strides, padding="same" if strides == 1 else "valid", name=f"{name}_depthwise")
    x = net.batch_norm(x, momentum=MOMENTUM, name=f"{name}_depthwise_BN")
    x = net.relu(x, max_value=6, name=f"{name}_depthwise_relu")
    x = net.conv(x, outputs, 1, use_bias=False, name=f"{name}_project")
    x = net.batch_norm(x, momentum=MOMENTUM, name=f"{name}_project_BN")
    return net.add([shortcut, x], name=f"{name}_add") if (inputs, strides) == (outputs, 1) else x


def whole_eights(channels: float) -> int:
    """The nearest multiple of 8, or the next where that were less than nine tenths (Keras' _make_divisible)."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


def _row(name: str, alpha: float, parameters: tuple[int, int], accuracy: tuple[float, float]) -> ModelSpec:
    stem = f"mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{alpha}_224"
    files = keras_weights("mobilenet_v2", stem, "", "", base_ending="_no_top")
    return row(
        name,
        partial(mobilenet_v2, alpha=alpha),
        files,
        parameters,
        accuracy,
        preprocessing="tf",
        license="Apache 2.0 (Google)",
        paper="arXiv:1801.04381",
        groups=default_groups("last_stage", "block_1[3-6]_.*|Conv_1.*"),
    )


# Files: Keras' mobilenet_v2.py, of those for five sizes each the ones for 224 x 224; it tells no hash of them.
# Counts: count_params. Accuracies: keras-applications' README.
NETWORKS = (
    _row("mobilenet_v2", 1.0, (3_538_984, 2_257_984), (71.336, 90.142)),
    _row("mobilenet_v2_0.35", 0.35, (1_691_208, 410_208), (60.086, 82.432)),
    _row("mobilenet_v2_0.50", 0.5, (1_987_224, 706_224), (65.194, 86.062)),
    _row("mobilenet_v2_0.75", 0.75, (2_663_064, 1_382_064), (69.532, 89.176)),
    _row("mobilenet_v2_1.3", 1.3, (5_431_048, 3_766_048), (74.680, 92.122)),
    _row("mobilenet_v2_1.4", 1.4, (6_156_712, 4_363_712), (75.230, 92.422)),
)
