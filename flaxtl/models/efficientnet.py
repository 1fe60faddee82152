"""EfficientNetB0 to EfficientNetB7: Tan and Le 2019, arXiv:1905.11946.

The layers are those of Keras' efficientnet.py: B0 is a table of inverted residual blocks with squeeze-and-excite
(`mbconv`); the others are wider, deeper and for larger images. Keras' first layers, which compute
(x / 255 - mean) / std from seven stored numbers, are preprocessing here.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from math import ceil
from string import ascii_lowercase
from typing import NamedTuple

from flaxtl.models.blocks import round_channels, strided_depthwise
from flaxtl.models.net import Net
from flaxtl.models.spec import ModelSpec, WeightsFile, default_groups, keras_weights
from flaxtl.models.tracer import Value

DROP_CONNECT_RATE = 0.2
"""DropConnect rate that the rates of the blocks increase to, linearly from 0."""


class Stage(NamedTuple):
    """A sequence of equal blocks; only the first has the stride. `features`: channels of their outputs."""

    kernel_size: int
    repeats: int
    features: int
    expansion: int
    strides: int


class Block(NamedTuple):
    """One block; `inputs` and `features` are its input and output channels, inside it has `inputs * expansion`."""

    stage: int
    name: str
    kernel_size: int
    inputs: int
    features: int
    expansion: int
    strides: int
    drop_rate: float


STAGES = (
    Stage(3, 1, 16, 1, 1),
    Stage(3, 2, 24, 6, 2),
    Stage(5, 2, 40, 6, 2),
    Stage(3, 3, 80, 6, 2),
    Stage(5, 3, 112, 6, 1),
    Stage(5, 4, 192, 6, 2),
    Stage(3, 1, 320, 6, 1),
)
"""Stages of B0."""


def efficientnet(net: Net, x: Value, include_top: bool, *, width: float, depth: float, dropout: float) -> Value:
    """Stem, seven stages and a 1x1 convolution, `width` times as wide and `depth` times as deep as B0."""
    stages = [
        stage._replace(repeats=ceil(depth * stage.repeats), features=round_channels(width * stage.features))
        for stage in STAGES
    ]
    stem = round_channels(width * 32)
    x = net.correct_pad(x, 3, name="stem_conv_pad")
    x = conv_bn_swish(net, x, stem, 3, strides=2, padding="valid", name="stem")
    for block in list_blocks(stages, stem, total=sum(stage.repeats for stage in stages)):
        x = mbconv(net, x, block)
    x = conv_bn_swish(net, x, round_channels(width * 1280), 1, name="top")
    return efficientnet_top(net, x, dropout) if include_top else x


def list_blocks(stages: Iterable[Stage], inputs: int, total: int) -> Iterator[Block]:
    """Yield the blocks of `stages`.

    Args:
      inputs: input channels of the first block.
      total: number of blocks at which the DropConnect rate would reach DROP_CONNECT_RATE.
    """
    number = 0
    for index, (kernel_size, repeats, features, expansion, strides) in enumerate(stages, start=1):
        for letter in ascii_lowercase[:repeats]:
            drop_rate = DROP_CONNECT_RATE * number / total
            yield Block(index, f"block{index}{letter}", kernel_size, inputs, features, expansion, strides, drop_rate)
            inputs, strides = features, 1
            number += 1


def mbconv(net: Net, x: Value, block: Block) -> Value:
    """Inverted residual: 1x1 convolution to more channels, depthwise convolution, squeeze-and-excite, linear 1x1."""
    name, shortcut = block.name, x
    if block.expansion > 1:
        x = conv_bn_swish(net, x, block.inputs * block.expansion, 1, name=f"{name}_expand")
    pad_name = f"{name}_dwconv_pad"
    x = strided_depthwise(net, x, block.kernel_size, block.strides, pad_name=pad_name, name=f"{name}_dwconv")
    x = net.batch_norm(x, name=f"{name}_bn")
    x = net.activation(x, "swish", name=f"{name}_activation")
    x = squeeze_excite(net, x, block)
    x = conv_bn_swish(net, x, block.features, 1, act=False, name=f"{name}_project")
    return add_residual(net, x, shortcut, block)


def conv_bn_swish(
    net: Net,
    x: Value,
    features: int,
    kernel_size: int,
    *,
    name: str,
    strides: int = 1,
    padding: str = "same",
    momentum: float = 0.99,
    act: bool = True,
) -> Value:
    """Convolution without bias, batch norm, and swish if `act`."""
    x = net.conv(x, features, kernel_size, strides=strides, padding=padding, use_bias=False, name=f"{name}_conv")
    x = net.batch_norm(x, momentum=momentum, name=f"{name}_bn")
    return net.activation(x, "swish", name=f"{name}_activation") if act else x


def squeeze_excite(net: Net, x: Value, block: Block) -> Value:
    """Multiply each channel by a gate in [0, 1], computed from the means of all channels.

    The bottleneck has a quarter of the input channels of the block, not of the channels inside it.
    """
    name, channels = block.name, block.inputs * block.expansion
    gate = net.global_average_pool(x, name=f"{name}_se_squeeze")
    gate = net.reshape(gate, (1, 1, channels), name=f"{name}_se_reshape")
    gate = net.conv(gate, block.inputs // 4, 1, act="swish", name=f"{name}_se_reduce")
    gate = net.conv(gate, channels, 1, act="sigmoid", name=f"{name}_se_expand")
    return net.multiply([x, gate], name=f"{name}_se_excite")


def add_residual(net: Net, x: Value, shortcut: Value, block: Block) -> Value:
    """Add `x`, under DropConnect, to the input of the block if the shapes are equal."""
    if block.strides > 1 or block.inputs != block.features:
        return x
    if block.drop_rate:
        x = net.dropout(x, block.drop_rate, per_example=True, name=f"{block.name}_drop")
    return net.add([x, shortcut], name=f"{block.name}_add")


def efficientnet_top(net: Net, x: Value, dropout: float) -> Value:
    """Global average pool, dropout and a softmax over the 1,000 ImageNet classes."""
    x = net.global_average_pool(x, name="avg_pool")
    x = net.dropout(x, dropout, name="top_dropout")
    return net.dense(x, 1000, act="softmax", name="predictions")


_efficientnet_spec = partial(
    ModelSpec,
    preprocessing="torch",
    blocks=r"block\d+[a-z]",
    groups=default_groups(last_block="block7", layers="block7.*|top_.*"),
    license="Apache 2.0 (Google)",
    paper="arXiv:1905.11946",
)


def _weights(path: str, md5: str) -> WeightsFile:
    return keras_weights(path, md5=md5, root="https://storage.googleapis.com/keras-applications")


# Input sizes, counts (including the seven numbers of Keras' Normalization layer), files and hashes: Keras'
# efficientnet.py. Accuracies: README of keras-applications.
MODELS = (
    _efficientnet_spec(
        name="efficientnet_b0",
        build=partial(efficientnet, width=1.0, depth=1.0, dropout=0.2),
        weights=_weights("efficientnetb0.h5", md5="902e53a9f72be733fc0bcb005b3ebbac"),
        weights_no_top=_weights("efficientnetb0_notop.h5", md5="50bc09e76180e00e4465e1a485ddc09d"),
        num_params=5_330_571,
        num_params_no_top=4_049_571,
        top1=77.190,
        top5=93.492,
    ),
    _efficientnet_spec(
        name="efficientnet_b1",
        build=partial(efficientnet, width=1.0, depth=1.1, dropout=0.2),
        weights=_weights("efficientnetb1.h5", md5="1d254153d4ab51201f1646940f018540"),
        weights_no_top=_weights("efficientnetb1_notop.h5", md5="74c4e6b3e1f6a1eea24c589628592432"),
        num_params=7_856_239,
        num_params_no_top=6_575_239,
        top1=79.134,
        top5=94.448,
        input_size=240,
    ),
    _efficientnet_spec(
        name="efficientnet_b2",
        build=partial(efficientnet, width=1.1, depth=1.2, dropout=0.3),
        weights=_weights("efficientnetb2.h5", md5="b15cce36ff4dcbd00b6dd88e7857a6ad"),
        weights_no_top=_weights("efficientnetb2_notop.h5", md5="111f8e2ac8aa800a7a99e3239f7bfb39"),
        num_params=9_177_569,
        num_params_no_top=7_768_569,
        top1=80.180,
        top5=94.946,
        input_size=260,
    ),
    _efficientnet_spec(
        name="efficientnet_b3",
        build=partial(efficientnet, width=1.2, depth=1.4, dropout=0.3),
        weights=_weights("efficientnetb3.h5", md5="ffd1fdc53d0ce67064dc6a9c7960ede0"),
        weights_no_top=_weights("efficientnetb3_notop.h5", md5="af6d107764bb5b1abb91932881670226"),
        num_params=12_320_535,
        num_params_no_top=10_783_535,
        top1=81.578,
        top5=95.676,
        input_size=300,
    ),
    _efficientnet_spec(
        name="efficientnet_b4",
        build=partial(efficientnet, width=1.4, depth=1.8, dropout=0.4),
        weights=_weights("efficientnetb4.h5", md5="18c95ad55216b8f92d7e70b3a046e2fc"),
        weights_no_top=_weights("efficientnetb4_notop.h5", md5="ebc24e6d6c33eaebbd558eafbeedf1ba"),
        num_params=19_466_823,
        num_params_no_top=17_673_823,
        top1=82.960,
        top5=96.260,
        input_size=380,
    ),
    _efficientnet_spec(
        name="efficientnet_b5",
        build=partial(efficientnet, width=1.6, depth=2.2, dropout=0.4),
        weights=_weights("efficientnetb5.h5", md5="ace28f2a6363774853a83a0b21b9421a"),
        weights_no_top=_weights("efficientnetb5_notop.h5", md5="38879255a25d3c92d5e44e04ae6cec6f"),
        num_params=30_562_527,
        num_params_no_top=28_513_527,
        top1=83.702,
        top5=96.710,
        input_size=456,
    ),
    _efficientnet_spec(
        name="efficientnet_b6",
        build=partial(efficientnet, width=1.8, depth=2.6, dropout=0.5),
        weights=_weights("efficientnetb6.h5", md5="165f6e37dce68623721b423839de8be5"),
        weights_no_top=_weights("efficientnetb6_notop.h5", md5="9ecce42647a20130c1f39a5d4cb75743"),
        num_params=43_265_143,
        num_params_no_top=40_960_143,
        top1=84.082,
        top5=96.898,
        input_size=528,
    ),
    _efficientnet_spec(
        name="efficientnet_b7",
        build=partial(efficientnet, width=2.0, depth=3.1, dropout=0.5),
        weights=_weights("efficientnetb7.h5", md5="8c03f828fec3ef71311cd463b6759d99"),
        weights_no_top=_weights("efficientnetb7_notop.h5", md5="cbcfe4450ddf6f3ad90b1b398090fe4a"),
        num_params=66_658_687,
        num_params_no_top=64_097_687,
        top1=84.430,
        top5=96.840,
        input_size=600,
    ),
)
