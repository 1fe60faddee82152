"""Xception: Chollet 2016, arXiv:1610.02357, figure 5.

The layers are those of Keras' xception.py, where the shortcut convolutions of the strided blocks are unnamed.
"""

from flaxtl.models.blocks import imagenet_top
from flaxtl.models.net import Net
from flaxtl.models.spec import TF_KERNELS, ModelSpec, default_groups, keras_weights
from flaxtl.models.tracer import Value


def xception(net: Net, x: Value, include_top: bool) -> Value:
    """Two convolutions, three strided blocks, eight residual blocks, one more strided block, two convolutions."""
    x = net.conv(x, 32, 3, strides=2, padding="valid", use_bias=False, name="block1_conv1")
    x = _norm_relu(net, x, "block1_conv1")
    x = net.conv(x, 64, 3, padding="valid", use_bias=False, name="block1_conv2")
    x = _norm_relu(net, x, "block1_conv2")
    for block, width in ((2, 128), (3, 256), (4, 728)):
        x = _strided_block(net, x, block, (width, width))
    for block in range(5, 13):
        x = _middle_block(net, x, block)
    x = _strided_block(net, x, 13, (728, 1024))
    for number, width in ((1, 1536), (2, 2048)):
        x = net.separable_conv(x, width, 3, name=f"block14_sepconv{number}")
        x = _norm_relu(net, x, f"block14_sepconv{number}")
    return imagenet_top(net, x, pool_name="avg_pool") if include_top else x


def _norm_relu(net: Net, x: Value, name: str) -> Value:
    """Batch norm and relu after layer `name`."""
    x = net.batch_norm(x, name=f"{name}_bn")
    return net.activation(x, "relu", name=f"{name}_act")


def _relu_separable(net: Net, x: Value, width: int, name: str) -> Value:
    """Relu, separable convolution, batch norm; the sum of a residual block is therefore not cut off at zero."""
    x = net.activation(x, "relu", name=f"{name}_act")
    x = net.separable_conv(x, width, 3, name=name)
    return net.batch_norm(x, name=f"{name}_bn")


def _strided_block(net: Net, x: Value, block: int, widths: tuple[int, int]) -> Value:
    """Two separable convolutions and a pool of stride 2, added to a 1x1 convolution of stride 2."""
    shortcut = net.conv(x, widths[1], 1, strides=2, use_bias=False)
    shortcut = net.batch_norm(shortcut)
    first = f"block{block}_sepconv1"
    if block == 2:  # its input is the output of a relu
        x = net.separable_conv(x, widths[0], 3, name=first)
        x = net.batch_norm(x, name=f"{first}_bn")
    else:
        x = _relu_separable(net, x, widths[0], first)
    x = _relu_separable(net, x, widths[1], f"block{block}_sepconv2")
    x = net.max_pool(x, 3, strides=2, padding="same", name=f"block{block}_pool")
    return net.add([x, shortcut])


def _middle_block(net: Net, x: Value, block: int) -> Value:
    """Three separable convolutions, added to the input."""
    shortcut = x
    for number in range(1, 4):
        x = _relu_separable(net, x, 728, f"block{block}_sepconv{number}")
    return net.add([x, shortcut])


# Counts, files and hashes: Keras' xception.py. Accuracies: README of keras-applications.
MODELS = (
    ModelSpec(
        name="xception",
        build=xception,
        preprocessing="tf",
        weights=keras_weights(f"xception/xception_{TF_KERNELS}.h5", md5="0a58e3b7378bc2990ea3b43d5981f1f6"),
        weights_no_top=keras_weights(
            f"xception/xception_{TF_KERNELS}_notop.h5", md5="b0042744bf5b25fce3cb969f33bebb97"
        ),
        num_params=22_910_480,
        num_params_no_top=20_861_480,
        top1=79.006,
        top5=94.452,
        blocks=r"block\d+",
        groups=default_groups(last_block="exit", layers=r"block1[34]_.*|(conv2d|batch_normalization)_3"),
        license="MIT (F. Chollet)",
        paper="arXiv:1610.02357",
        input_size=299,
        min_input_size=71,
    ),
)
