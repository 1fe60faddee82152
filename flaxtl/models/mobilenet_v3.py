"""MobileNetV3 small and large: Howard et al. 2019, arXiv:1905.02244, tables 1 and 2.

Layer by layer as in Keras' mobilenet_v3.py, at full width. Its first layer there, x / 127.5 - 1, is preprocessing here.
"""

from functools import partial
from typing import NamedTuple

from flaxtl.models.mobilenet_v2 import MOMENTUM, whole_eights
from flaxtl.models.net import Net
from flaxtl.models.spec import ModelSpec, default_groups, keras_weights, row
from flaxtl.models.tracer import Value


class Block(NamedTuple):
    """A row of the paper's tables: the depthwise kernel's size, channels inside and out, and so on."""

    kernel_size: int
    expanded: int
    outputs: int
    squeeze: bool
    act: str
    strides: int


SMALL = (
    Block(3, 16, 16, True, "relu", 2),
    Block(3, 72, 24, False, "relu", 2),
    Block(3, 88, 24, False, "relu", 1),
    Block(5, 96, 40, True, "hard_swish", 2),
    Block(5, 240, 40, True, "hard_swish", 1),
    Block(5, 240, 40, True, "hard_swish", 1),
    Block(5, 120, 48, True, "hard_swish", 1),
    Block(5, 144, 48, True, "hard_swish", 1),
    Block(5, 288, 96, True, "hard_swish", 2),
    Block(5, 576, 96, True, "hard_swish", 1),
    Block(5, 576, 96, True, "hard_swish", 1),
)
LARGE = (
    Block(3, 16, 16, False, "relu", 1),
    Block(3, 64, 24, False, "relu", 2),
    Block(3, 72, 24, False, "relu", 1),
    Block(5, 72, 40, True, "relu", 2),
    Block(5, 120, 40, True, "relu", 1),
    Block(5, 120, 40, True, "relu", 1),
    Block(3, 240, 80, False, "hard_swish", 2),
    Block(3, 200, 80, False, "hard_swish", 1),
    Block(3, 184, 80, False, "hard_swish", 1),
    Block(3, 184, 80, False, "hard_swish", 1),
    Block(3, 480, 112, True, "hard_swish", 1),
    Block(3, 672, 112, True, "hard_swish", 1),
    Block(5, 672, 160, True, "hard_swish", 2),
    Block(5, 960, 160, True, "hard_swish", 1),
    Block(5, 960, 160, True, "hard_swish", 1),
)
STEM = 16
"""Channels of the first convolution."""


def mobilenet_v3(net: Net, x: Value, top: bool, *, blocks: tuple[Block, ...], hidden: int) -> Value:
    """A convolution that halves the size, inverted residual blocks, a 1x1 convolution; `hidden` channels in the top."""
    x = net.conv(x, STEM, 3, strides=2, use_bias=False, name="conv")
    x = net.batch_norm(x, momentum=MOMENTUM, name="conv_bn")
    x = net.activation(x, "hard_swish")
    inputs = STEM
    for number, block in enumerate(blocks):
        x = inverted_residual(net, x, block, inputs, number)
        inputs = block.outputs
    x = net.conv(x, 6 * inputs, 1, use_bias=False, name="conv_1")
    x = net.batch_norm(x, momentum=MOMENTUM, name="conv_1_bn")
    x = net.activation(x, "hard_swish")
    if top:
        x = net.global_average_pool(x, keepdims=True)
        x = net.conv(x, hidden, 1, name="conv_2")
        x = net.activation(x, "hard_swish")
        x = net.dropout(x, 0.2)
        x = net.conv(x, 1000, 1, name="logits")
        x = net.flatten(x)
        x = net.activation(x, "softmax", name="predictions")
    return x


def inverted_residual(net: Net, x: Value, block: Block, inputs: int, number: int) -> Value:
    """1x1 to the expanded channels (not in block 0), depthwise, squeeze-and-excite, linear 1x1 to the outputs."""
    shortcut = x
    name = f"expanded_conv_{number}" if number else "expanded_conv"
    if number:
        x = net.conv(x, block.expanded, 1, use_bias=False, name=f"{name}_expand")
        x = net.batch_norm(x, momentum=MOMENTUM, name=f"{name}_expand_bn")
        x = unnamed_activation(net, x, block.act)
    if block.strides == 2:
        x = net.correct_pad(x, block.kernel_size, name=f"{name}_depthwise_pad")
    padding = "same" if block.strides == 1 else "valid"
    x = net.depthwise_conv(x, block.kernel_size, strides=block.strides, padding=padding, name=f"{name}_depthwise")
    x = net.batch_norm(x, momentum=MOMENTUM, name=f"{name}_depthwise_bn")
    x = unnamed_activation(net, x, block.act)
    if block.squeeze:
        x = squeeze_excite(net, x, block.expanded, f"{name}_squeeze_excite")
    x = net.conv(x, block.outputs, 1, use_bias=False, name=f"{name}_project")
    x = net.batch_norm(x, momentum=MOMENTUM, name=f"{name}_project_bn")
    return net.add([shortcut, x], name=f"{name}_add") if (inputs, block.strides) == (block.outputs, 1) else x


def squeeze_excite(net: Net, x: Value, channels: int, name: str) -> Value:
    """Every channel times a gate between 0 and 1, which follows from the means of all channels."""
    gate = net.global_average_pool(x, keepdims=True, name=f"{name}_avg_pool")
    gate = net.conv(gate, whole_eights(channels / 4), 1, name=f"{name}_conv")
    gate = net.relu(gate, name=f"{name}_relu")
    gate = net.conv(gate, channels, 1, name=f"{name}_conv_1")
    gate = net.operation(lambda gate: gate + 3, gate)  # the hard sigmoid, in Keras partly without a layer
    gate = net.relu(gate, max_value=6)
    gate = net.operation(lambda gate: gate * (1 / 6), gate)
    return net.multiply([x, gate], name=f"{name}_mul")


def unnamed_activation(net: Net, x: Value, act: str) -> Value:
    """Keras has relu as a layer class of its own, hard_swish as an Activation: it makes up other names."""
    return net.relu(x) if act == "relu" else net.activation(x, act)


def _row(
    size: str,
    blocks: tuple[Block, ...],
    hidden: int,
    parameters: tuple[int, int],
    accuracy: tuple[float, float],
    md5s: tuple[str, str],
    last_stage: str,
) -> ModelSpec:
    stem = f"weights_mobilenet_v3_{size}_224_1.0_float"
    files = keras_weights("mobilenet_v3", stem, *md5s, base_ending="_no_top_v2")
    return row(
        f"mobilenet_v3_{size}",
        partial(mobilenet_v3, blocks=blocks, hidden=hidden),
        files,
        parameters,
        accuracy,
        preprocessing="tf",
        license="Apache 2.0 (Google)",
        paper="arXiv:1905.02244",
        groups=default_groups("last_stage", f"expanded_conv_(?:{last_stage})_.*|conv_1.*"),
    )


# Files and hashes: Keras' mobilenet_v3.py. Counts: count_params. Accuracies: keras-applications' README.
NETWORKS = (
    _row(
        "small",
        SMALL,
        1024,
        (2_554_968, 939_120),
        (68.076, 87.800),
        ("8768d4c2e7dee89b9d02b2d03d65d862", "d3e8ec802a04aa4fc771ee12a9a9b836"),
        "8|9|10",
    ),
    _row(
        "large",
        LARGE,
        1280,
        (5_507_432, 2_996_352),
        (75.556, 92.708),
        ("59e551e166be033d707958cf9e29a6a7", "07fb09a5933dd0c8eaafa16978110389"),
        "12|13|14",
    ),
)
