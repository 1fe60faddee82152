"""Xception: Chollet 2016, arXiv:1610.02357, figure 5.

Layer by layer as in Keras' xception.py, where the convolutions beside the strided blocks have no names.
"""

from flaxtl.models.net import Net
from flaxtl.models.spec import ModelSpec, default_groups, keras_weights
from flaxtl.models.tracer import Value


def xception(net: Net, x: Value, top: bool) -> Value:
    """Two convolutions, three strided blocks, eight residual blocks, one more strided block, two convolutions."""
    x = net.conv(x, 32, 3, strides=2, padding="valid", use_bias=False, name="block1_conv1")
    x = norm(net, x, "block1_conv1")
    x = net.conv(x, 64, 3, padding="valid", use_bias=False, name="block1_conv2")
    x = norm(net, x, "block1_conv2")
    for block, width in ((2, 128), (3, 256), (4, 728)):
        x = strided(net, x, block, (width, width))
    for block in range(5, 13):
        x = middle(net, x, block)
    x = strided(net, x, 13, (728, 1024))
    for number, width in ((1, 1536), (2, 2048)):
        x = net.separable_conv(x, width, 3, name=f"block14_sepconv{number}")
        x = norm(net, x, f"block14_sepconv{number}")
    if top:
        x = net.global_average_pool(x, name="avg_pool")
        x = net.dense(x, 1000, act="softmax", name="predictions")
    return x


def norm(net: Net, x: Value, name: str) -> Value:
    """Batch norm and relu behind the layer `name`."""
    x = net.batch_norm(x, name=f"{name}_bn")
    return net.activation(x, "relu", name=f"{name}_act")


def separable(net: Net, x: Value, width: int, name: str) -> Value:
    """Relu, separable convolution, batch norm: a block is made of these, so its sums are not cut off at zero."""
    x = net.activation(x, "relu", name=f"{name}_act")
    x = net.separable_conv(x, width, 3, name=name)
    return net.batch_norm(x, name=f"{name}_bn")


def strided(net: Net, x: Value, block: int, widths: tuple[int, int]) -> Value:
    """Two separable convolutions and a pool that halves the size, beside a 1x1 convolution that does."""
    shortcut = net.conv(x, widths[1], 1, strides=2, use_bias=False)
    shortcut = net.batch_norm(shortcut)
    first = f"block{block}_sepconv1"
    if block == 2:  # its input has been through a relu already
        x = net.separable_conv(x, widths[0], 3, name=first)
        x = net.batch_norm(x, name=f"{first}_bn")
    else:
        x = separable(net, x, widths[0], first)
    x = separable(net, x, widths[1], f"block{block}_sepconv2")
    x = net.max_pool(x, 3, strides=2, padding="same", name=f"block{block}_pool")
    return net.add([x, shortcut])


def middle(net: Net, x: Value, block: int) -> Value:
    """Three separable convolutions beside the input."""
    shortcut = x
    for number in range(1, 4):
        x = separable(net, x, 728, f"block{block}_sepconv{number}")
    return net.add([x, shortcut])


# Size, counts, files and hashes: Keras' xception.py. Accuracies: keras-applications' README.
FILES = keras_weights(
    "xception",
    "xception_weights_tf_dim_ordering_tf_kernels",
    "0a58e3b7378bc2990ea3b43d5981f1f6",
    "b0042744bf5b25fce3cb969f33bebb97",
)
NETWORKS = (
    ModelSpec(
        name="xception",
        build=xception,
        input_size=299,
        min_input_size=71,
        preprocessing="tf",
        num_params=22_910_480,
        num_params_no_top=20_861_480,
        top1=79.006,
        top5=94.452,
        license="MIT (F. Chollet)",
        paper="arXiv:1610.02357",
        weights=FILES[0],
        weights_no_top=FILES[1],
        groups=default_groups("exit", r"block1[34]_.*|(conv2d|batch_normalization)_3"),
    ),
)
