"""EfficientNetB0 to EfficientNetB7: Tan and Le 2019, arXiv:1905.11946.

Layer by layer as in Keras' efficientnet.py: B0 is a table of inverted residual blocks with squeeze and excitation
(`mbconv`), the others are B0 made wider, deeper and for larger images. What Keras' model begins with, layers that
make (x / 255 - mean) / deviation with seven numbers of their own, is preprocessing here.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from math import ceil
from string import ascii_lowercase
from typing import NamedTuple

from flaxtl.models.net import Net
from flaxtl.models.spec import ModelSpec, default_groups, keras_weights, row
from flaxtl.models.tracer import Value

DROP_CONNECT = 0.2
"""Rate of DropConnect that the blocks' own rates grow to, from 0, with their depth."""


class Stage(NamedTuple):
    """Equal blocks in a row: window of their convolution, how many, channels, expansion, stride of the first."""

    kernel_size: int
    repeats: int
    features: int
    expansion: int
    strides: int


class Block(NamedTuple):
    """One block: its stage, name, window, channels before and after it, expansion, stride, rate of DropConnect."""

    stage: int
    name: str
    kernel_size: int
    inputs: int
    features: int
    expansion: int
    strides: int
    drop: float


STAGES = (
    Stage(3, 1, 16, 1, 1),
    Stage(3, 2, 24, 6, 2),
    Stage(5, 2, 40, 6, 2),
    Stage(3, 3, 80, 6, 2),
    Stage(5, 3, 112, 6, 1),
    Stage(5, 4, 192, 6, 2),
    Stage(3, 1, 320, 6, 1),
)
"""Of B0."""


def efficientnet(net: Net, x: Value, top: bool, *, width: float, depth: float, dropout: float) -> Value:
    """Stem, seven stages and 1x1 convolution, `width` times as wide and `depth` times as deep as B0."""
    stages = [
        stage._replace(repeats=ceil(depth * stage.repeats), features=rounded(width * stage.features))
        for stage in STAGES
    ]
    stem = rounded(width * 32)
    x = net.correct_pad(x, 3, name="stem_conv_pad")
    x = convolve(net, x, stem, 3, strides=2, padding="valid", name="stem")
    for block in blocks(stages, stem, total=sum(stage.repeats for stage in stages)):
        x = mbconv(net, x, block)
    x = convolve(net, x, rounded(width * 1280), 1, name="top")
    return classify(net, x, dropout) if top else x


def rounded(features: float) -> int:
    """The nearest multiple of 8, at least 8, that is no more than a tenth smaller."""
    nearest = max(8, int(features + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * features else nearest + 8


def blocks(stages: Iterable[Stage], inputs: int, total: int) -> Iterator[Block]:
    """The blocks of `stages` after a layer of `inputs` channels; `total` of them would reach the full DROP_CONNECT."""
    number = 0
    for index, (size, repeats, features, expansion, strides) in enumerate(stages, start=1):
        for letter in ascii_lowercase[:repeats]:
            drop = DROP_CONNECT * number / total
            yield Block(index, f"block{index}{letter}", size, inputs, features, expansion, strides, drop)
            inputs, strides = features, 1
            number += 1


def mbconv(net: Net, x: Value, block: Block) -> Value:
    """Inverted residual: more channels, a depthwise convolution, squeeze and excitation, fewer channels."""
    name, shortcut, halved = block.name, x, block.strides == 2
    if block.expansion > 1:
        x = convolve(net, x, block.inputs * block.expansion, 1, name=f"{name}_expand")
    if halved:
        x = net.correct_pad(x, block.kernel_size, name=f"{name}_dwconv_pad")
    padding = "valid" if halved else "same"
    x = net.depthwise_conv(x, block.kernel_size, strides=block.strides, padding=padding, name=f"{name}_dwconv")
    x = net.batch_norm(x, name=f"{name}_bn")
    x = net.activation(x, "swish", name=f"{name}_activation")
    x = squeeze_excite(net, x, block)
    x = convolve(net, x, block.features, 1, act=False, name=f"{name}_project")
    return residual(net, x, shortcut, block)


def convolve(
    net: Net,
    x: Value,
    features: int,
    size: int,
    *,
    name: str,
    strides: int = 1,
    padding: str = "same",
    momentum: float = 0.99,
    act: bool = True,
) -> Value:
    """Convolution without bias, batch norm, and unless told otherwise swish."""
    x = net.conv(x, features, size, strides=strides, padding=padding, use_bias=False, name=f"{name}_conv")
    x = net.batch_norm(x, momentum=momentum, name=f"{name}_bn")
    return net.activation(x, "swish", name=f"{name}_activation") if act else x


def squeeze_excite(net: Net, x: Value, block: Block) -> Value:
    """Every channel times a factor that two dense layers make of all channels' means.

    The narrow one has a quarter of the channels that come into the block, not of those inside.
    """
    name, inside = block.name, block.inputs * block.expansion
    factors = net.global_average_pool(x, name=f"{name}_se_squeeze")
    factors = net.reshape(factors, (1, 1, inside), name=f"{name}_se_reshape")
    factors = net.conv(factors, block.inputs // 4, 1, act="swish", name=f"{name}_se_reduce")
    factors = net.conv(factors, inside, 1, act="sigmoid", name=f"{name}_se_expand")
    return net.multiply([x, factors], name=f"{name}_se_excite")


def residual(net: Net, x: Value, shortcut: Value, block: Block) -> Value:
    """`x`, dropped as a whole now and then, on top of what came into the block, if the shapes are alike."""
    if block.strides > 1 or block.inputs != block.features:
        return x
    if block.drop:
        x = net.dropout(x, block.drop, per_example=True, name=f"{block.name}_drop")
    return net.add([x, shortcut], name=f"{block.name}_add")


def classify(net: Net, x: Value, dropout: float) -> Value:
    """The published top: mean over the image, dropout, 1,000 classes."""
    x = net.global_average_pool(x, name="avg_pool")
    x = net.dropout(x, dropout, name="top_dropout")
    return net.dense(x, 1000, act="softmax", name="predictions")


def _row(
    number: int,
    scale: tuple[float, float, int, float],
    parameters: tuple[int, int],
    accuracy: tuple[float, float],
    md5s: tuple[str, str],
) -> ModelSpec:
    name = f"efficientnetb{number}"
    width, depth, size, dropout = scale
    files = keras_weights("keras-applications", name, *md5s, root="https://storage.googleapis.com")
    return row(
        name,
        partial(efficientnet, width=width, depth=depth, dropout=dropout),
        files,
        parameters,
        accuracy,
        preprocessing="torch",
        license="Apache 2.0 (Google)",
        paper="arXiv:1905.11946",
        groups=default_groups("block7", "block7.*|top_.*"),
        size=size,
    )


# Sizes, counts (with the seven numbers of the normalisation), files and hashes: Keras' efficientnet.py. Accuracies:
# keras-applications' README.
NETWORKS = (
    _row(
        0,
        (1.0, 1.0, 224, 0.2),
        (5_330_571, 4_049_571),
        (77.190, 93.492),
        ("902e53a9f72be733fc0bcb005b3ebbac", "50bc09e76180e00e4465e1a485ddc09d"),
    ),
    _row(
        1,
        (1.0, 1.1, 240, 0.2),
        (7_856_239, 6_575_239),
        (79.134, 94.448),
        ("1d254153d4ab51201f1646940f018540", "74c4e6b3e1f6a1eea24c589628592432"),
    ),
    _row(
        2,
        (1.1, 1.2, 260, 0.3),
        (9_177_569, 7_768_569),
        (80.180, 94.946),
        ("b15cce36ff4dcbd00b6dd88e7857a6ad", "111f8e2ac8aa800a7a99e3239f7bfb39"),
    ),
    _row(
        3,
        (1.2, 1.4, 300, 0.3),
        (12_320_535, 10_783_535),
        (81.578, 95.676),
        ("ffd1fdc53d0ce67064dc6a9c7960ede0", "af6d107764bb5b1abb91932881670226"),
    ),
    _row(
        4,
        (1.4, 1.8, 380, 0.4),
        (19_466_823, 17_673_823),
        (82.960, 96.260),
        ("18c95ad55216b8f92d7e70b3a046e2fc", "ebc24e6d6c33eaebbd558eafbeedf1ba"),
    ),
    _row(
        5,
        (1.6, 2.2, 456, 0.4),
        (30_562_527, 28_513_527),
        (83.702, 96.710),
        ("ace28f2a6363774853a83a0b21b9421a", "38879255a25d3c92d5e44e04ae6cec6f"),
    ),
    _row(
        6,
        (1.8, 2.6, 528, 0.5),
        (43_265_143, 40_960_143),
        (84.082, 96.898),
        ("165f6e37dce68623721b423839de8be5", "9ecce42647a20130c1f39a5d4cb75743"),
    ),
    _row(
        7,
        (2.0, 3.1, 600, 0.5),
        (66_658_687, 64_097_687),
        (84.430, 96.840),
        ("8c03f828fec3ef71311cd463b6759d99", "cbcfe4450ddf6f3ad90b1b398090fe4a"),
    ),
)
