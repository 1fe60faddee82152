"""NASNet-A, mobile and large: Zoph et al. 2017, arXiv:1707.07012, figure 4.

The layers are those of Keras' nasnet.py. A cell has two inputs: `x`, the output of the cell before it, and `previous`,
that of the cell before that, adjusted to the size and channels of the cell. `cell` is the suffix of its layers' names.
"""

from functools import partial

from flaxtl.models.blocks import imagenet_top
from flaxtl.models.net import Net
from flaxtl.models.spec import KERAS_APPLICATIONS, ModelSpec, WeightsFile, default_groups
from flaxtl.models.tracer import Value


def nasnet(net: Net, x: Value, include_top: bool, *, stem: int, channels: int, cells: int, skip: bool) -> Value:
    """Convolution, two reduction cells, then three stages of normal cells with a reduction cell between two stages.

    Args:
      stem: channels of the convolution.
      channels: of the cells of the first stage; each later stage has twice as many.
      cells: number of normal cells per stage.
      skip: whether the first cell after a reduction cell has the same `previous` input as that; otherwise it is the
        reduction cell's input `x`.
    """
    x = net.conv(x, stem, 3, strides=2, padding="valid", use_bias=False, name="stem_conv1")
    x = _batch_norm(net, x, "stem_bn1")
    previous, x = x, _reduction_cell(net, x, x, channels // 4, "stem_1")
    adjusted = _adjust_size(net, previous, channels // 2, "stem_2")
    previous, x = x, _reduction_cell(net, x, adjusted, channels // 2, "stem_2")
    for stage in range(3):
        width, first = channels * 2**stage, stage * cells
        if stage:
            cell, next_previous = f"reduce_{first}", previous if skip else x
            x = _reduction_cell(net, x, _adjust_channels(net, previous, width, cell), width, cell)
            previous, first = next_previous, first + 1
        for number in range(first, first + cells):
            adjust = _adjust_size if number == first else _adjust_channels
            adjusted = adjust(net, previous, width, f"{number}")
            previous, x = x, _normal_cell(net, x, adjusted, width, f"{number}")
    x = net.activation(x, "relu")
    return imagenet_top(net, x) if include_top else x


def _normal_cell(net: Net, x: Value, previous: Value, channels: int, cell: str) -> Value:
    """Concatenate `previous` and five pairwise sums: 6 * `channels` channels; the image size stays."""
    x = _squeeze(net, x, channels, "normal", cell)
    left = _separable(net, x, channels, 5, f"normal_left1_{cell}")
    right = _separable(net, previous, channels, 3, f"normal_right1_{cell}")
    first = net.add([left, right], name=f"normal_add_1_{cell}")
    left = _separable(net, previous, channels, 5, f"normal_left2_{cell}")
    right = _separable(net, previous, channels, 3, f"normal_right2_{cell}")
    second = net.add([left, right], name=f"normal_add_2_{cell}")
    left = net.average_pool(x, 3, strides=1, padding="same", name=f"normal_left3_{cell}")
    third = net.add([left, previous], name=f"normal_add_3_{cell}")
    left = net.average_pool(previous, 3, strides=1, padding="same", name=f"normal_left4_{cell}")
    right = net.average_pool(previous, 3, strides=1, padding="same", name=f"normal_right4_{cell}")
    fourth = net.add([left, right], name=f"normal_add_4_{cell}")
    left = _separable(net, x, channels, 3, f"normal_left5_{cell}")
    fifth = net.add([left, x], name=f"normal_add_5_{cell}")
    return net.concat([previous, first, second, third, fourth, fifth], name=f"normal_concat_{cell}")


def _reduction_cell(net: Net, x: Value, previous: Value, channels: int, cell: str) -> Value:
    """Pairwise sums at half the image size; concatenate the four that no other sum uses: 4 * `channels` channels."""
    x = _squeeze(net, x, channels, "reduction", cell)
    padded = net.correct_pad(x, 3, name=f"reduction_pad_1_{cell}")
    left = _separable(net, x, channels, 5, f"reduction_left1_{cell}", strides=2)
    right = _separable(net, previous, channels, 7, f"reduction_right1_{cell}", strides=2)
    first = net.add([left, right], name=f"reduction_add_1_{cell}")
    left = net.max_pool(padded, 3, strides=2, name=f"reduction_left2_{cell}")
    right = _separable(net, previous, channels, 7, f"reduction_right2_{cell}", strides=2)
    second = net.add([left, right], name=f"reduction_add_2_{cell}")
    left = net.average_pool(padded, 3, strides=2, name=f"reduction_left3_{cell}")
    right = _separable(net, previous, channels, 5, f"reduction_right3_{cell}", strides=2)
    third = net.add([left, right], name=f"reduction_add3_{cell}")
    left = net.average_pool(first, 3, strides=1, padding="same", name=f"reduction_left4_{cell}")
    fourth = net.add([second, left])
    left = _separable(net, first, channels, 3, f"reduction_left4_{cell}")
    right = net.max_pool(padded, 3, strides=2, name=f"reduction_right5_{cell}")
    fifth = net.add([left, right], name=f"reduction_add4_{cell}")
    return net.concat([second, third, fourth, fifth], name=f"reduction_concat_{cell}")


def _adjust_size(net: Net, x: Value, channels: int, cell: str) -> Value:
    """Halve the size of a `previous` input: every second pixel, concatenated with its lower right neighbor."""
    x = net.activation(x, "relu", name=f"adjust_relu_1_{cell}")
    pixels = net.average_pool(x, 1, strides=2, name=f"adjust_avg_pool_1_{cell}")
    pixels = net.conv(pixels, channels // 2, 1, use_bias=False, name=f"adjust_conv_1_{cell}")
    neighbors = net.pad(x, ((0, 1), (0, 1)))
    neighbors = net.crop(neighbors, ((1, 0), (1, 0)))
    neighbors = net.average_pool(neighbors, 1, strides=2, name=f"adjust_avg_pool_2_{cell}")
    neighbors = net.conv(neighbors, channels // 2, 1, use_bias=False, name=f"adjust_conv_2_{cell}")
    return _batch_norm(net, net.concat([pixels, neighbors]), f"adjust_bn_{cell}")


def _adjust_channels(net: Net, x: Value, channels: int, cell: str) -> Value:
    """Adjust the channels of a `previous` input that has the size of the cell."""
    x = net.activation(x, "relu")
    x = net.conv(x, channels, 1, use_bias=False, name=f"adjust_conv_projection_{cell}")
    return _batch_norm(net, x, f"adjust_bn_{cell}")


def _separable(net: Net, x: Value, channels: int, kernel_size: int, name: str, *, strides: int = 1) -> Value:
    """Relu, separable convolution and batch norm, twice; the first has the stride."""
    x = net.activation(x, "relu")
    if strides == 2:
        x = net.correct_pad(x, kernel_size, name=f"separable_conv_1_pad_{name}")
    padding = "same" if strides == 1 else "valid"
    x = net.separable_conv(x, channels, kernel_size, strides=strides, padding=padding, name=f"separable_conv_1_{name}")
    x = _batch_norm(net, x, f"separable_conv_1_bn_{name}")
    x = net.activation(x, "relu")
    x = net.separable_conv(x, channels, kernel_size, name=f"separable_conv_2_{name}")
    return _batch_norm(net, x, f"separable_conv_2_bn_{name}")


def _squeeze(net: Net, x: Value, channels: int, kind: str, cell: str) -> Value:
    """Adjust the channels of the input `x` of a cell."""
    x = net.activation(x, "relu")
    x = net.conv(x, channels, 1, use_bias=False, name=f"{kind}_conv_1_{cell}")
    return _batch_norm(net, x, f"{kind}_bn_1_{cell}")


def _batch_norm(net: Net, x: Value, name: str) -> Value:
    """Batch norm with NASNet's momentum."""
    return net.batch_norm(x, momentum=0.9997, name=name)


_nasnet_spec = partial(
    ModelSpec,
    preprocessing="tf",
    blocks=r"(?!activation).*?_(stem_\d|reduce_\d+|\d+)$",
    license="Apache 2.0 (Google)",
    paper="arXiv:1707.07012",
)
_URL = f"{KERAS_APPLICATIONS}/nasnet"

# Input sizes, counts, files and hashes: Keras' nasnet.py. Accuracies: README of keras-applications.
MODELS = (
    _nasnet_spec(
        name="nasnet_mobile",
        build=partial(nasnet, stem=32, channels=44, cells=4, skip=False),
        weights=WeightsFile("nasnet_mobile.h5", f"{_URL}/NASNet-mobile.h5", "020fb642bf7360b370c678b08e0adf61"),
        weights_no_top=WeightsFile(
            "nasnet_mobile_no_top.h5", f"{_URL}/NASNet-mobile-no-top.h5", "1ed92395b5b598bdda52abe5c0dbfd63"
        ),
        num_params=5_326_716,
        num_params_no_top=4_269_716,
        top1=74.366,
        top5=91.854,
        groups=default_groups(last_block="last_stage", layers=".*_(?:reduce_8|9|1[0-2])"),
    ),
    _nasnet_spec(
        name="nasnet_large",
        build=partial(nasnet, stem=96, channels=168, cells=6, skip=True),
        weights=WeightsFile("nasnet_large.h5", f"{_URL}/NASNet-large.h5", "11577c9a518f0070763c2b964a382f17"),
        weights_no_top=WeightsFile(
            "nasnet_large_no_top.h5", f"{_URL}/NASNet-large-no-top.h5", "d81d89dc07e6e56530c4e77faddd61b5"
        ),
        num_params=88_949_818,
        num_params_no_top=84_916_818,
        top1=82.498,
        top5=96.004,
        groups=default_groups(last_block="last_stage", layers=".*_(?:reduce_12|1[3-8])"),
        input_size=331,
    ),
)
