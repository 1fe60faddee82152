"""MobileNetV3 small and large: Howard et al. 2019, arXiv:1905.02244, tables 1 and 2.

The layers are those of Keras' mobilenet_v3.py, at full width. Keras' first layer, x / 127.5 - 1, is preprocessing here.
"""

from functools import partial
from typing import NamedTuple

from flaxtl.models.blocks import round_channels, strided_depthwise
from flaxtl.models.mobilenet_v2 import MOMENTUM
from flaxtl.models.net import Net
from flaxtl.models.spec import ModelSpec, default_groups, keras_weights
from flaxtl.models.tracer import Value


class Block(NamedTuple):
    """A row of the paper's tables.

    Attributes:
      kernel_size: of the depthwise convolution.
      expanded: channels inside the block.
      outputs: channels of its output.
      squeeze_excite: whether it has a squeeze-and-excite block.
      act: activation.
      strides: of the depthwise convolution.
    """

    kernel_size: int
    expanded: int
    outputs: int
    squeeze_excite: bool
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
STEM_CHANNELS = 16
"""Channels of the first convolution."""


def mobilenet_v3(net: Net, x: Value, include_top: bool, *, blocks: tuple[Block, ...], hidden: int) -> Value:
    """Convolution of stride 2, inverted residual blocks, 1x1 convolution; the top has `hidden` channels."""
    x = net.conv(x, STEM_CHANNELS, 3, strides=2, use_bias=False, name="conv")
    x = net.batch_norm(x, momentum=MOMENTUM, name="conv_bn")
    x = net.activation(x, "hard_swish")
    inputs = STEM_CHANNELS
    for number, block in enumerate(blocks):
        x = _inverted_residual(net, x, block, inputs, number)
        inputs = block.outputs
    x = net.conv(x, 6 * inputs, 1, use_bias=False, name="conv_1")
    x = net.batch_norm(x, momentum=MOMENTUM, name="conv_1_bn")
    x = net.activation(x, "hard_swish")
    if include_top:
        x = net.global_average_pool(x, keepdims=True)
        x = net.conv(x, hidden, 1, name="conv_2")
        x = net.activation(x, "hard_swish")
        x = net.dropout(x, 0.2)
        x = net.conv(x, 1000, 1, name="logits")
        x = net.flatten(x)
        x = net.activation(x, "softmax", name="predictions")
    return x


def _inverted_residual(net: Net, x: Value, block: Block, inputs: int, number: int) -> Value:
    """1x1 convolution to the expanded channels (not in block 0), depthwise, squeeze-and-excite, linear 1x1."""
    shortcut = x
    name = f"expanded_conv_{number}" if number else "expanded_conv"
    if number:
        x = net.conv(x, block.expanded, 1, use_bias=False, name=f"{name}_expand")
        x = net.batch_norm(x, momentum=MOMENTUM, name=f"{name}_expand_bn")
        x = _unnamed_activation(net, x, block.act)
    pad_name = f"{name}_depthwise_pad"
    x = strided_depthwise(net, x, block.kernel_size, block.strides, pad_name=pad_name, name=f"{name}_depthwise")
    x = net.batch_norm(x, momentum=MOMENTUM, name=f"{name}_depthwise_bn")
    x = _unnamed_activation(net, x, block.act)
    if block.squeeze_excite:
        x = _squeeze_excite(net, x, block.expanded, f"{name}_squeeze_excite")
    x = net.conv(x, block.outputs, 1, use_bias=False, name=f"{name}_project")
    x = net.batch_norm(x, momentum=MOMENTUM, name=f"{name}_project_bn")
    return net.add([shortcut, x], name=f"{name}_add") if (inputs, block.strides) == (block.outputs, 1) else x


def _squeeze_excite(net: Net, x: Value, channels: int, name: str) -> Value:
    """Multiply each channel by a gate in [0, 1], computed from the means of all channels."""
    gate = net.global_average_pool(x, keepdims=True, name=f"{name}_avg_pool")
    gate = net.conv(gate, round_channels(channels / 4), 1, name=f"{name}_conv")
    gate = net.relu(gate, name=f"{name}_relu")
    gate = net.conv(gate, channels, 1, name=f"{name}_conv_1")
    gate = net.operation(lambda gate: gate + 3, gate)  # a hard sigmoid, of which only the relu is a layer in Keras
    gate = net.relu(gate, max_value=6)
    gate = net.operation(lambda gate: gate * (1 / 6), gate)
    return net.multiply([x, gate], name=f"{name}_mul")


def _unnamed_activation(net: Net, x: Value, act: str) -> Value:
    """Activation with Keras' automatic name: relu is the layer class ReLU there, hard_swish an Activation."""
    return net.relu(x) if act == "relu" else net.activation(x, act)


_mobilenet_v3_spec = partial(
    ModelSpec,
    preprocessing="tf",
    blocks=r"expanded_conv(?:_\d+)?(?=_)|conv_1",
    license="Apache 2.0 (Google)",
    paper="arXiv:1905.02244",
)

# Files and hashes: Keras' mobilenet_v3.py. Counts: count_params. Accuracies: README of keras-applications.
MODELS = (
    _mobilenet_v3_spec(
        name="mobilenet_v3_small_100",
        build=partial(mobilenet_v3, blocks=SMALL, hidden=1024),
        weights=keras_weights(
            "mobilenet_v3/weights_mobilenet_v3_small_224_1.0_float.h5", md5="8768d4c2e7dee89b9d02b2d03d65d862"
        ),
        weights_no_top=keras_weights(
            "mobilenet_v3/weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5", md5="d3e8ec802a04aa4fc771ee12a9a9b836"
        ),
        num_params=2_554_968,
        num_params_no_top=939_120,
        top1=68.076,
        top5=87.800,
        groups=default_groups(last_block="last_stage", layers="expanded_conv_(?:8|9|10)_.*|conv_1.*"),
    ),
    _mobilenet_v3_spec(
        name="mobilenet_v3_large_100",
        build=partial(mobilenet_v3, blocks=LARGE, hidden=1280),
        weights=keras_weights(
            "mobilenet_v3/weights_mobilenet_v3_large_224_1.0_float.h5", md5="59e551e166be033d707958cf9e29a6a7"
        ),
        weights_no_top=keras_weights(
            "mobilenet_v3/weights_mobilenet_v3_large_224_1.0_float_no_top_v2.h5", md5="07fb09a5933dd0c8eaafa16978110389"
        ),
        num_params=5_507_432,
        num_params_no_top=2_996_352,
        top1=75.556,
        top5=92.708,
        groups=default_groups(last_block="last_stage", layers="expanded_conv_(?:12|13|14)_.*|conv_1.*"),
    ),
)
