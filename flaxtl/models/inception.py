"""InceptionV3 and InceptionResNetV2: Szegedy et al. 2015, arXiv:1512.00567, and 2016, arXiv:1602.07261.

The layers are those of Keras' inception_v3.py and inception_resnet_v2.py. Most of them are unnamed: their automatic
names, and so the assignment of weights, follow from the order of the calls.
"""

from functools import partial

from flaxtl.models.blocks import imagenet_top
from flaxtl.models.net import Net, Size
from flaxtl.models.spec import TF_KERNELS, ModelSpec, default_groups, keras_weights
from flaxtl.models.tracer import Value

Branch = tuple[tuple[int, Size], ...]
"""Sequence of convolutions: (channels, kernel size)."""

ROW_7, COLUMN_7 = (1, 7), (7, 1)
ROW_3, COLUMN_3 = (1, 3), (3, 1)

BRANCHES_5X5: tuple[Branch, ...] = (((64, 1),), ((48, 1), (64, 5)), ((64, 1), (96, 3), (96, 3)))

RESIDUALS: dict[str, tuple[int, tuple[Branch, ...]]] = {
    "block35": (320, (((32, 1),), ((32, 1), (32, 3)), ((32, 1), (48, 3), (64, 3)))),
    "block17": (1088, (((192, 1),), ((128, 1), (160, ROW_7), (192, COLUMN_7)))),
    "block8": (2080, (((192, 1),), ((192, 1), (224, ROW_3), (256, COLUMN_3)))),
}
"""Residual block of InceptionResNetV2 -> channels of its input, branches."""


def inception_v3(net: Net, x: Value, include_top: bool) -> Value:
    """Stem of stride 8, then modules of parallel branches; an image of 299 pixels has 35, 17 and 8 pixels there."""
    x = _stem(net, x)
    for number, pooled in enumerate((32, 64, 64)):
        x = _module(net, x, BRANCHES_5X5, pooled, name=f"mixed{number}")
    x = _reduction(net, x, ((384, 3),), ((64, 1), (96, 3), (96, 3)), name="mixed3")
    for number, width in enumerate((128, 160, 160, 192), start=4):
        x = _module(net, x, _branches_7x7(width), 192, name=f"mixed{number}")
    long = ((192, 1), (192, ROW_7), (192, COLUMN_7), (192, 3))
    x = _reduction(net, x, ((192, 1), (320, 3)), long, name="mixed8")
    for number in range(2):
        x = _split_module(net, x, number)
    return imagenet_top(net, x, pool_name="avg_pool") if include_top else x


def inception_resnet_v2(net: Net, x: Value, include_top: bool) -> Value:
    """The stem and one module as in InceptionV3, then 40 residual blocks; 299 pixels are 35, 17 and 8 there."""
    x = _stem(net, x)
    x = _module(net, x, (((96, 1),), *BRANCHES_5X5[1:]), 64, name="mixed_5b")
    for number in range(1, 11):
        x = _residual(net, x, "block35", number, scale=0.17)
    x = _reduction(net, x, ((384, 3),), ((256, 1), (256, 3), (384, 3)), name="mixed_6a")
    for number in range(1, 21):
        x = _residual(net, x, "block17", number, scale=0.1)
    x = _reduction(net, x, ((256, 1), (384, 3)), ((256, 1), (288, 3)), ((256, 1), (288, 3), (320, 3)), name="mixed_7a")
    for number in range(1, 10):
        x = _residual(net, x, "block8", number, scale=0.2)
    x = _residual(net, x, "block8", 10, scale=1.0, act=False)
    x = net.conv(x, 1536, 1, use_bias=False, name="conv_7b")
    x = net.batch_norm(x, use_scale=False, name="conv_7b_bn")
    x = net.activation(x, "relu", name="conv_7b_ac")
    return imagenet_top(net, x, pool_name="avg_pool") if include_top else x


def _conv(net: Net, x: Value, features: int, kernel_size: Size, *, strides: int = 1, padding: str = "same") -> Value:
    """Convolution, batch norm without scale, relu; all unnamed."""
    x = net.conv(x, features, kernel_size, strides=strides, padding=padding, use_bias=False)
    x = net.batch_norm(x, use_scale=False)
    return net.activation(x, "relu")


def _stem(net: Net, x: Value) -> Value:
    """Stem of stride 8: 299 pixels -> 35."""
    x = _conv(net, x, 32, 3, strides=2, padding="valid")
    x = _conv(net, x, 32, 3, padding="valid")
    x = _conv(net, x, 64, 3)
    x = net.max_pool(x, 3, strides=2)
    x = _conv(net, x, 80, 1)
    x = _conv(net, x, 192, 3, padding="valid")
    return net.max_pool(x, 3, strides=2)


def _run_branch(net: Net, x: Value, branch: Branch) -> Value:
    """Run the convolutions of a branch; the image size stays."""
    for features, kernel_size in branch:
        x = _conv(net, x, features, kernel_size)
    return x


def _module(net: Net, x: Value, branches: tuple[Branch, ...], pooled: int, *, name: str) -> Value:
    """Concatenate branches and an average pool with a 1x1 convolution to `pooled` channels; the image size stays."""
    values = [_run_branch(net, x, branch) for branch in branches]
    pool = net.average_pool(x, 3, strides=1, padding="same")
    return net.concat([*values, _conv(net, pool, pooled, 1)], name=name)


def _branches_7x7(width: int) -> tuple[Branch, ...]:
    """Branches of a module with 7x7 convolutions, factorized into 1x7 and 7x1."""
    double: Branch = ((width, 1), (width, COLUMN_7), (width, ROW_7), (width, COLUMN_7), (192, ROW_7))
    return ((192, 1),), ((width, 1), (width, ROW_7), (192, COLUMN_7)), double


def _reduction(net: Net, x: Value, *branches: Branch, name: str) -> Value:
    """Concatenate branches whose last convolution has stride 2, and a max pool of stride 2."""
    values = []
    for *first, (features, kernel_size) in branches:
        y = _run_branch(net, x, tuple(first))
        values.append(_conv(net, y, features, kernel_size, strides=2, padding="valid"))
    return net.concat([*values, net.max_pool(x, 3, strides=2)], name=name)


def _split_module(net: Net, x: Value, number: int) -> Value:
    """The modules `mixed9` and `mixed10`: two of the branches end in a 1x3 and a 3x1 convolution in parallel."""
    single = _conv(net, x, 320, 1)
    short = _row_and_column(net, _conv(net, x, 384, 1), name=f"mixed9_{number}")
    long = _row_and_column(net, _run_branch(net, x, ((448, 1), (384, 3))), name="")
    pool = net.average_pool(x, 3, strides=1, padding="same")
    return net.concat([single, short, long, _conv(net, pool, 192, 1)], name=f"mixed{9 + number}")


def _row_and_column(net: Net, x: Value, *, name: str) -> Value:
    """Concatenate a 1x3 and a 3x1 convolution with 384 channels each."""
    return net.concat([_conv(net, x, 384, ROW_3), _conv(net, x, 384, COLUMN_3)], name=name)


def _residual(net: Net, x: Value, kind: str, number: int, *, scale: float, act: bool = True) -> Value:
    """x + scale * branches, with a 1x1 convolution of the branches to the channels of x."""
    channels, branches = RESIDUALS[kind]
    name = f"{kind}_{number}"
    mixed = net.concat([_run_branch(net, x, branch) for branch in branches], name=f"{name}_mixed")
    up = net.conv(mixed, channels, 1, name=f"{name}_conv")
    x = net.scaled_add(x, up, scale)
    return net.activation(x, "relu", name=f"{name}_ac") if act else x


_inception_spec = partial(
    ModelSpec, preprocessing="tf", license="Apache 2.0 (Google)", input_size=299, min_input_size=75
)

# Counts, files and hashes: Keras' inception_v3.py and inception_resnet_v2.py. Accuracies: README of keras-applications.
# The numbers in the groups are those of the unnamed layers from the last block on.
MODELS = (
    _inception_spec(
        name="inception_v3",
        build=inception_v3,
        weights=keras_weights(f"inception_v3/inception_v3_{TF_KERNELS}.h5", md5="9a0d58056eeedaa3f26cb7ebd46da564"),
        weights_no_top=keras_weights(
            f"inception_v3/inception_v3_{TF_KERNELS}_notop.h5", md5="bcbd6486424b2319ff4ef7d526e38f63"
        ),
        num_params=23_851_784,
        num_params_no_top=21_802_784,
        top1=77.898,
        top5=93.720,
        blocks=r"mixed\d+$",
        groups=default_groups(last_block="mixed9_10", layers=r"\w+_(7[6-9]|[89]\d)"),
        paper="arXiv:1512.00567",
    ),
    _inception_spec(
        name="inception_resnet_v2",
        build=inception_resnet_v2,
        weights=keras_weights(
            f"inception_resnet_v2/inception_resnet_v2_{TF_KERNELS}.h5", md5="e693bd0210a403b3192acc6073ad2e96"
        ),
        weights_no_top=keras_weights(
            f"inception_resnet_v2/inception_resnet_v2_{TF_KERNELS}_notop.h5", md5="d19885ff4a710c122648d3b5c3b684e4"
        ),
        num_params=55_873_736,
        num_params_no_top=54_336_736,
        top1=80.256,
        top5=95.252,
        blocks=r"mixed_\d[ab]$|block\d+_\d+_ac$",
        groups=default_groups(last_block="block8", layers=r"block8_.*|conv_7b.*|\w+_(16[3-9]|1[7-9]\d|20\d)"),
        paper="arXiv:1602.07261",
    ),
)
