"""MobileNet at four widths: Howard et al. 2017, arXiv:1704.04861, table 1.

Layer by layer as in Keras' mobilenet.py. `alpha` is the paper's width multiplier: the share of the published channels
that every layer has.
"""

from functools import partial

from flaxtl.models.net import Net
from flaxtl.models.spec import ModelSpec, default_groups, keras_weights, row
from flaxtl.models.tracer import Value

CHANNELS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
"""Of the blocks, from number 1 on."""

HALVING = (2, 4, 6, 12)
"""Numbers of the blocks that halve the size."""


def mobilenet(net: Net, x: Value, top: bool, *, alpha: float) -> Value:
    """A convolution that halves the size, then thirteen blocks; with `top` the classifier, itself a convolution."""
    x = net.conv(x, int(32 * alpha), 3, strides=2, use_bias=False, name="conv1")
    x = net.batch_norm(x, name="conv1_bn")
    x = net.relu(x, max_value=6, name="conv1_relu")
    for number, channels in enumerate(CHANNELS, start=1):
        x = block(net, x, int(channels * alpha), number)
    if top:
        x = net.global_average_pool(x, keepdims=True)
        x = net.dropout(x, 0.001, name="dropout")
        x = net.conv(x, 1000, 1, name="conv_preds")
        x = net.reshape(x, (1000,), name="reshape_2")
        x = net.activation(x, "softmax", name="predictions")
    return x


def block(net: Net, x: Value, channels: int, number: int) -> Value:
    """Depthwise 3x3, then 1x1 to `channels`; where it halves, zeros are below and right, be the size even or odd."""
    if number in HALVING:
        x = net.pad(x, ((0, 1), (0, 1)), name=f"conv_pad_{number}")
        x = net.depthwise_conv(x, 3, strides=2, padding="valid", name=f"conv_dw_{number}")
    else:
        x = net.depthwise_conv(x, 3, name=f"conv_dw_{number}")
    x = net.batch_norm(x, name=f"conv_dw_{number}_bn")
    x = net.relu(x, max_value=6, name=f"conv_dw_{number}_relu")
    x = net.conv(x, channels, 1, use_bias=False, name=f"conv_pw_{number}")
    x = net.batch_norm(x, name=f"conv_pw_{number}_bn")
    return net.relu(x, max_value=6, name=f"conv_pw_{number}_relu")


def _row(name: str, alpha: float, stem: str, parameters: tuple[int, int], accuracy: tuple[float, float]) -> ModelSpec:
    files = keras_weights("mobilenet", stem, "", "", base_ending="_no_top")
    return row(
        name,
        partial(mobilenet, alpha=alpha),
        files,
        parameters,
        accuracy,
        preprocessing="tf",
        license="Apache 2.0 (Google)",
        paper="arXiv:1704.04861",
        groups=default_groups("last_stage", r"conv_[dp]w_1[23](?:_bn)?"),
    )


# Files: Keras' mobilenet.py, of those for four sizes each the ones for 224 x 224; it tells no hash of them.
# Counts: count_params. Accuracies: keras-applications' README.
NETWORKS = (
    _row("mobilenet", 1.0, "mobilenet_1_0_224_tf", (4_253_864, 3_228_864), (70.424, 89.504)),
    _row("mobilenet_0.75", 0.75, "mobilenet_7_5_224_tf", (2_601_976, 1_832_976), (68.412, 88.242)),
    _row("mobilenet_0.50", 0.50, "mobilenet_5_0_224_tf", (1_342_536, 829_536), (64.292, 85.624)),
    _row("mobilenet_0.25", 0.25, "mobilenet_2_5_224_tf", (475_544, 218_544), (51.582, 75.792)),
)
