"""EfficientNetV2 B0 to B3, S, M and L: Tan and Le 2021, arXiv:2104.00298.

Layer by layer as in Keras' efficientnet_v2.py. Against the first EfficientNet: early stages are `fused`, with one full
convolution in place of a 1x1 and a depthwise one; no explicit borders; batch norms remember less.
"""

from functools import partial
from math import ceil

from flaxtl.models import efficientnet
from flaxtl.models.efficientnet import Block, Stage, blocks, classify, residual, squeeze_excite
from flaxtl.models.net import Net
from flaxtl.models.spec import ModelSpec, default_groups, keras_weights, row
from flaxtl.models.tracer import Value

MOMENTUM = 0.9
"""Of the batch norms."""

DROPOUT = 0.2

FUSED = 3
"""So many stages at the start have fused blocks."""

convolve = partial(efficientnet.convolve, momentum=MOMENTUM)

B0 = (
    Stage(3, 1, 16, 1, 1),
    Stage(3, 2, 32, 4, 2),
    Stage(3, 2, 48, 4, 2),
    Stage(3, 3, 96, 4, 2),
    Stage(3, 5, 112, 6, 1),
    Stage(3, 8, 192, 6, 2),
)
S = (
    Stage(3, 2, 24, 1, 1),
    Stage(3, 4, 48, 4, 2),
    Stage(3, 4, 64, 4, 2),
    Stage(3, 6, 128, 4, 2),
    Stage(3, 9, 160, 6, 1),
    Stage(3, 15, 256, 6, 2),
)
M = (
    Stage(3, 3, 24, 1, 1),
    Stage(3, 5, 48, 4, 2),
    Stage(3, 5, 80, 4, 2),
    Stage(3, 7, 160, 4, 2),
    Stage(3, 14, 176, 6, 1),
    Stage(3, 18, 304, 6, 2),
    Stage(3, 5, 512, 6, 1),
)
L = (
    Stage(3, 4, 32, 1, 1),
    Stage(3, 7, 64, 4, 2),
    Stage(3, 7, 96, 4, 2),
    Stage(3, 10, 192, 4, 2),
    Stage(3, 19, 224, 6, 1),
    Stage(3, 25, 384, 6, 2),
    Stage(3, 7, 640, 6, 1),
)
"""B1 to B3 are B0 made wider and deeper; S, M and L have tables of their own."""


def efficientnet_v2(
    net: Net, x: Value, top: bool, *, stages: tuple[Stage, ...], stem: int, width: float = 1.0, depth: float = 1.0
) -> Value:
    """Stem, stages and 1x1 convolution, `width` times as wide and `depth` times as deep as the table says."""
    scaled = [
        stage._replace(repeats=ceil(depth * stage.repeats), features=rounded(width * stage.features))
        for stage in stages
    ]
    x = convolve(net, x, rounded(width * stem), 3, strides=2, name="stem")
    # Keras measures the rate of DropConnect by the table's blocks: a deeper network goes beyond it.
    total = sum(stage.repeats for stage in stages)
    for block in blocks(scaled, rounded(width * stem), total):
        run = fused if block.stage <= FUSED else mbconv
        x = run(net, x, block)
    x = convolve(net, x, rounded(width * 1280), 1, name="top")
    return classify(net, x, DROPOUT) if top else x


def rounded(features: float) -> int:
    """The nearest multiple of 8, at least 8."""
    return max(8, int(features + 4) // 8 * 8)


def mbconv(net: Net, x: Value, block: Block) -> Value:
    """Inverted residual: more channels, a depthwise convolution, squeeze and excitation, fewer channels."""
    name, shortcut = block.name, x
    x = convolve(net, x, block.inputs * block.expansion, 1, name=f"{name}_expand")
    x = net.depthwise_conv(x, block.kernel_size, strides=block.strides, name=f"{name}_dwconv2")
    x = net.batch_norm(x, momentum=MOMENTUM, name=f"{name}_bn")
    x = net.activation(x, "swish", name=f"{name}_activation")
    x = squeeze_excite(net, x, block)
    x = convolve(net, x, block.features, 1, act=False, name=f"{name}_project")
    return residual(net, x, shortcut, block)


def fused(net: Net, x: Value, block: Block) -> Value:
    """Inverted residual whose convolution takes in all channels, and is the only one where it expands nothing."""
    name, shortcut, strides = block.name, x, block.strides
    if block.expansion > 1:
        x = convolve(net, x, block.inputs * block.expansion, block.kernel_size, strides=strides, name=f"{name}_expand")
        x = convolve(net, x, block.features, 1, act=False, name=f"{name}_project")
    else:
        x = convolve(net, x, block.features, block.kernel_size, strides=strides, name=f"{name}_project")
    return residual(net, x, shortcut, block)


def _row(
    variant: str,
    build: partial[Value],
    size: int,
    parameters: tuple[int, int],
    accuracy: tuple[float, float],
    md5s: tuple[str, str],
) -> ModelSpec:
    name = f"efficientnetv2-{variant}"
    files = keras_weights("efficientnet_v2", name, *md5s)
    last = len(build.keywords["stages"])
    return row(
        name,
        build,
        files,
        parameters,
        accuracy,
        preprocessing="torch" if variant.startswith("b") else "tf_128",
        license="Apache 2.0 (Google)",
        paper="arXiv:2104.00298",
        groups=default_groups(f"block{last}", f"block{last}.*|top_.*"),
        size=size,
    )


# Sizes, counts, files and hashes: Keras' efficientnet_v2.py. Accuracies: keras.io/api/applications.
NETWORKS = (
    _row(
        "b0",
        partial(efficientnet_v2, stages=B0, stem=32),
        224,
        (7_200_312, 5_919_312),
        (78.7, 94.3),
        ("21ecbf6da12460d5c40bb2f29ceb2188", "893217f2bb855e2983157299931e43ff"),
    ),
    _row(
        "b1",
        partial(efficientnet_v2, stages=B0, stem=32, depth=1.1),
        240,
        (8_212_124, 6_931_124),
        (79.8, 95.0),
        ("069f0534ff22adf035c89e2d9547a9dc", "0e80663031ca32d657f9caa404b6ec37"),
    ),
    _row(
        "b2",
        partial(efficientnet_v2, stages=B0, stem=32, width=1.1, depth=1.2),
        260,
        (10_178_374, 8_769_374),
        (80.5, 95.1),
        ("424e49f28180edbde1e94797771950a7", "1dfe2e7a5d45b6632553a8961ea609eb"),
    ),
    _row(
        "b3",
        partial(efficientnet_v2, stages=B0, stem=32, width=1.2, depth=1.4),
        300,
        (14_467_622, 12_930_622),
        (82.0, 95.8),
        ("1f1fc43bd98a6e4fd8fdfd551e02c7a0", "f6abf7b5849ac99a89b50dd3fd532856"),
    ),
    _row(
        "s",
        partial(efficientnet_v2, stages=S, stem=24),
        384,
        (21_612_360, 20_331_360),
        (83.9, 96.7),
        ("e1d88a8495beba45748fedd0cecbe016", "af0682fb74e8c54910f2d4393339c070"),
    ),
    _row(
        "m",
        partial(efficientnet_v2, stages=M, stem=24),
        480,
        (54_431_388, 53_150_388),
        (85.3, 97.4),
        ("a3bf6aa3276309f4fc6a34aa114c95cd", "1b8dc055df72dde80d614482840fe342"),
    ),
    _row(
        "l",
        partial(efficientnet_v2, stages=L, stem=32),
        480,
        (119_027_848, 117_746_848),
        (85.7, 97.5),
        ("27e6d408b53c7ebc868fefa357689935", "b0b66b5c863aef5b46e8608fe1711615"),
    ),
)
