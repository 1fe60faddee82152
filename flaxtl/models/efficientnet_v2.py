"""EfficientNetV2 B0 to B3, S, M and L: Tan and Le 2021, arXiv:2104.00298.

The layers are those of Keras' efficientnet_v2.py. Differences from EfficientNet: the blocks of early stages are fused,
with one full convolution instead of a 1x1 and a depthwise convolution; there are no separate layers for borders; batch
norms have a smaller momentum.
"""

from functools import partial
from math import ceil

from flaxtl.models import efficientnet
from flaxtl.models.blocks import round_to_8
from flaxtl.models.efficientnet import Block, Stage, add_residual, efficientnet_top, list_blocks, squeeze_excite
from flaxtl.models.net import Net
from flaxtl.models.spec import ModelSpec, default_groups, keras_weights
from flaxtl.models.tracer import Value

MOMENTUM = 0.9
"""Momentum of the batch norms."""

DROPOUT = 0.2
"""Dropout rate of the top."""

FUSED_STAGES = 3
"""Number of stages with fused blocks; they are the first ones."""

conv_bn_swish = partial(efficientnet.conv_bn_swish, momentum=MOMENTUM)

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
"""Stages of the models; B1 to B3 are B0 scaled in width and depth."""


def efficientnet_v2(
    net: Net,
    x: Value,
    include_top: bool,
    *,
    stages: tuple[Stage, ...],
    stem: int,
    width: float = 1.0,
    depth: float = 1.0,
) -> Value:
    """Stem, stages and a 1x1 convolution, `width` times as wide and `depth` times as deep as `stages`."""
    scaled = [
        stage._replace(repeats=ceil(depth * stage.repeats), features=round_to_8(width * stage.features))
        for stage in stages
    ]
    x = conv_bn_swish(net, x, round_to_8(width * stem), 3, strides=2, name="stem")
    # Keras divides by the number of blocks in the table, so a deeper network exceeds DROP_CONNECT_RATE.
    total = sum(stage.repeats for stage in stages)
    for block in list_blocks(scaled, round_to_8(width * stem), total):
        run = _fused_mbconv if block.stage <= FUSED_STAGES else _mbconv
        x = run(net, x, block)
    x = conv_bn_swish(net, x, round_to_8(width * 1280), 1, name="top")
    return efficientnet_top(net, x, DROPOUT) if include_top else x


def _mbconv(net: Net, x: Value, block: Block) -> Value:
    """Inverted residual: 1x1 convolution to more channels, depthwise convolution, squeeze-and-excite, linear 1x1."""
    name, shortcut = block.name, x
    x = conv_bn_swish(net, x, block.inputs * block.expansion, 1, name=f"{name}_expand")
    x = net.depthwise_conv(x, block.kernel_size, strides=block.strides, name=f"{name}_dwconv2")
    x = net.batch_norm(x, momentum=MOMENTUM, name=f"{name}_bn")
    x = net.activation(x, "swish", name=f"{name}_activation")
    x = squeeze_excite(net, x, block)
    x = conv_bn_swish(net, x, block.features, 1, act=False, name=f"{name}_project")
    return add_residual(net, x, shortcut, block)


def _fused_mbconv(net: Net, x: Value, block: Block) -> Value:
    """Inverted residual with a full convolution, followed by a linear 1x1; without expansion one full convolution."""
    name, shortcut, strides = block.name, x, block.strides
    if block.expansion > 1:
        x = conv_bn_swish(
            net, x, block.inputs * block.expansion, block.kernel_size, strides=strides, name=f"{name}_expand"
        )
        x = conv_bn_swish(net, x, block.features, 1, act=False, name=f"{name}_project")
    else:
        x = conv_bn_swish(net, x, block.features, block.kernel_size, strides=strides, name=f"{name}_project")
    return add_residual(net, x, shortcut, block)


_b_spec = partial(
    ModelSpec,
    preprocessing="torch",
    blocks=r"block\d+[a-z]",
    groups=default_groups(last_block="block6", layers="block6.*|top_.*"),
    license="Apache 2.0 (Google)",
    paper="arXiv:2104.00298",
)
_s_spec = partial(_b_spec, preprocessing="tf_128")
_m_l_spec = partial(_s_spec, groups=default_groups(last_block="block7", layers="block7.*|top_.*"))

# Input sizes, counts, files and hashes: Keras' efficientnet_v2.py. Accuracies: keras.io/api/applications.
MODELS = (
    _b_spec(
        name="efficientnet_v2_b0",
        build=partial(efficientnet_v2, stages=B0, stem=32),
        weights=keras_weights("efficientnet_v2/efficientnetv2-b0.h5", md5="21ecbf6da12460d5c40bb2f29ceb2188"),
        weights_no_top=keras_weights(
            "efficientnet_v2/efficientnetv2-b0_notop.h5", md5="893217f2bb855e2983157299931e43ff"
        ),
        num_params=7_200_312,
        num_params_no_top=5_919_312,
        top1=78.7,
        top5=94.3,
    ),
    _b_spec(
        name="efficientnet_v2_b1",
        build=partial(efficientnet_v2, stages=B0, stem=32, depth=1.1),
        weights=keras_weights("efficientnet_v2/efficientnetv2-b1.h5", md5="069f0534ff22adf035c89e2d9547a9dc"),
        weights_no_top=keras_weights(
            "efficientnet_v2/efficientnetv2-b1_notop.h5", md5="0e80663031ca32d657f9caa404b6ec37"
        ),
        num_params=8_212_124,
        num_params_no_top=6_931_124,
        top1=79.8,
        top5=95.0,
        input_size=240,
    ),
    _b_spec(
        name="efficientnet_v2_b2",
        build=partial(efficientnet_v2, stages=B0, stem=32, width=1.1, depth=1.2),
        weights=keras_weights("efficientnet_v2/efficientnetv2-b2.h5", md5="424e49f28180edbde1e94797771950a7"),
        weights_no_top=keras_weights(
            "efficientnet_v2/efficientnetv2-b2_notop.h5", md5="1dfe2e7a5d45b6632553a8961ea609eb"
        ),
        num_params=10_178_374,
        num_params_no_top=8_769_374,
        top1=80.5,
        top5=95.1,
        input_size=260,
    ),
    _b_spec(
        name="efficientnet_v2_b3",
        build=partial(efficientnet_v2, stages=B0, stem=32, width=1.2, depth=1.4),
        weights=keras_weights("efficientnet_v2/efficientnetv2-b3.h5", md5="1f1fc43bd98a6e4fd8fdfd551e02c7a0"),
        weights_no_top=keras_weights(
            "efficientnet_v2/efficientnetv2-b3_notop.h5", md5="f6abf7b5849ac99a89b50dd3fd532856"
        ),
        num_params=14_467_622,
        num_params_no_top=12_930_622,
        top1=82.0,
        top5=95.8,
        input_size=300,
    ),
    _s_spec(
        name="efficientnet_v2_s",
        build=partial(efficientnet_v2, stages=S, stem=24),
        weights=keras_weights("efficientnet_v2/efficientnetv2-s.h5", md5="e1d88a8495beba45748fedd0cecbe016"),
        weights_no_top=keras_weights(
            "efficientnet_v2/efficientnetv2-s_notop.h5", md5="af0682fb74e8c54910f2d4393339c070"
        ),
        num_params=21_612_360,
        num_params_no_top=20_331_360,
        top1=83.9,
        top5=96.7,
        input_size=384,
    ),
    _m_l_spec(
        name="efficientnet_v2_m",
        build=partial(efficientnet_v2, stages=M, stem=24),
        weights=keras_weights("efficientnet_v2/efficientnetv2-m.h5", md5="a3bf6aa3276309f4fc6a34aa114c95cd"),
        weights_no_top=keras_weights(
            "efficientnet_v2/efficientnetv2-m_notop.h5", md5="1b8dc055df72dde80d614482840fe342"
        ),
        num_params=54_431_388,
        num_params_no_top=53_150_388,
        top1=85.3,
        top5=97.4,
        input_size=480,
    ),
    _m_l_spec(
        name="efficientnet_v2_l",
        build=partial(efficientnet_v2, stages=L, stem=32),
        weights=keras_weights("efficientnet_v2/efficientnetv2-l.h5", md5="27e6d408b53c7ebc868fefa357689935"),
        weights_no_top=keras_weights(
            "efficientnet_v2/efficientnetv2-l_notop.h5", md5="b0b66b5c863aef5b46e8608fe1711615"
        ),
        num_params=119_027_848,
        num_params_no_top=117_746_848,
        top1=85.7,
        top5=97.5,
        input_size=480,
    ),
)
