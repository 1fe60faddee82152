"""NASNet-A, mobile and large: Zoph et al. 2017, arXiv:1707.07012, figure 4.

Layer by layer as in Keras' nasnet.py. A cell has two inputs: the output of the cell before, and a `previous` one, of
the cell before that, brought to the cell's size and channels. `cell` is the end of the names of a cell's layers.
"""

from functools import partial

from flaxtl.models.net import Net
from flaxtl.models.spec import KERAS, ModelSpec, WeightsFile, default_groups, row
from flaxtl.models.tracer import Value


def nasnet(net: Net, x: Value, top: bool, *, stem: int, channels: int, cells: int, skip: bool) -> Value:
    """A convolution to `stem` channels, two reduction cells, then three stages of normal cells, a reduction between.

    A stage has `cells` cells of `channels` channels, twice as many in each later stage. With `skip` the first cell of
    a stage looks past the reduction: its `previous` input is the one that the reduction had.
    """
    x = net.conv(x, stem, 3, strides=2, padding="valid", use_bias=False, name="stem_conv1")
    x = batch_norm(net, x, "stem_bn1")
    previous, x = x, reduction_cell(net, x, x, channels // 4, "stem_1")
    previous, x = x, reduction_cell(net, x, halved(net, previous, channels // 2, "stem_2"), channels // 2, "stem_2")
    for stage in range(3):
        width, first = channels * 2**stage, stage * cells
        if stage:
            cell, passed = f"reduce_{first}", previous if skip else x
            x = reduction_cell(net, x, projected(net, previous, width, cell), width, cell)
            previous, first = passed, first + 1
        for number in range(first, first + cells):
            fitted = halved if number == first else projected
            previous, x = x, normal_cell(net, x, fitted(net, previous, width, f"{number}"), width, f"{number}")
    x = net.activation(x, "relu")
    if top:
        x = net.global_average_pool(x)
        x = net.dense(x, 1000, act="softmax", name="predictions")
    return x


def normal_cell(net: Net, x: Value, previous: Value, channels: int, cell: str) -> Value:
    """Five sums of two, each as large as the cell's inputs; with `previous` 6 * `channels` in all."""
    x = squeezed(net, x, channels, "normal", cell)
    left = separable(net, x, channels, 5, f"normal_left1_{cell}")
    right = separable(net, previous, channels, 3, f"normal_right1_{cell}")
    first = net.add([left, right], name=f"normal_add_1_{cell}")
    left = separable(net, previous, channels, 5, f"normal_left2_{cell}")
    right = separable(net, previous, channels, 3, f"normal_right2_{cell}")
    second = net.add([left, right], name=f"normal_add_2_{cell}")
    left = net.average_pool(x, 3, strides=1, padding="same", name=f"normal_left3_{cell}")
    third = net.add([left, previous], name=f"normal_add_3_{cell}")
    left = net.average_pool(previous, 3, strides=1, padding="same", name=f"normal_left4_{cell}")
    right = net.average_pool(previous, 3, strides=1, padding="same", name=f"normal_right4_{cell}")
    fourth = net.add([left, right], name=f"normal_add_4_{cell}")
    left = separable(net, x, channels, 3, f"normal_left5_{cell}")
    fifth = net.add([left, x], name=f"normal_add_5_{cell}")
    return net.concat([previous, first, second, third, fourth, fifth], name=f"normal_concat_{cell}")


def reduction_cell(net: Net, x: Value, previous: Value, channels: int, cell: str) -> Value:
    """Five sums of two, half as large as the cell's inputs; the four that no other sum uses up, 4 * `channels`."""
    x = squeezed(net, x, channels, "reduction", cell)
    padded = net.correct_pad(x, 3, name=f"reduction_pad_1_{cell}")
    left = separable(net, x, channels, 5, f"reduction_left1_{cell}", strides=2)
    right = separable(net, previous, channels, 7, f"reduction_right1_{cell}", strides=2)
    first = net.add([left, right], name=f"reduction_add_1_{cell}")
    left = net.max_pool(padded, 3, strides=2, name=f"reduction_left2_{cell}")
    right = separable(net, previous, channels, 7, f"reduction_right2_{cell}", strides=2)
    second = net.add([left, right], name=f"reduction_add_2_{cell}")
    left = net.average_pool(padded, 3, strides=2, name=f"reduction_left3_{cell}")
    right = separable(net, previous, channels, 5, f"reduction_right3_{cell}", strides=2)
    third = net.add([left, right], name=f"reduction_add3_{cell}")
    left = net.average_pool(first, 3, strides=1, padding="same", name=f"reduction_left4_{cell}")
    fourth = net.add([second, left])
    left = separable(net, first, channels, 3, f"reduction_left4_{cell}")
    right = net.max_pool(padded, 3, strides=2, name=f"reduction_right5_{cell}")
    fifth = net.add([left, right], name=f"reduction_add4_{cell}")
    return net.concat([second, third, fourth, fifth], name=f"reduction_concat_{cell}")


def halved(net: Net, x: Value, channels: int, cell: str) -> Value:
    """Every second pixel, and beside it its neighbour below and right: a `previous` input of twice the cell's size."""
    x = net.activation(x, "relu", name=f"adjust_relu_1_{cell}")
    here = net.average_pool(x, 1, strides=2, name=f"adjust_avg_pool_1_{cell}")
    here = net.conv(here, channels // 2, 1, use_bias=False, name=f"adjust_conv_1_{cell}")
    beside = net.pad(x, ((0, 1), (0, 1)))
    beside = net.crop(beside, ((1, 0), (1, 0)))
    beside = net.average_pool(beside, 1, strides=2, name=f"adjust_avg_pool_2_{cell}")
    beside = net.conv(beside, channels // 2, 1, use_bias=False, name=f"adjust_conv_2_{cell}")
    return batch_norm(net, net.concat([here, beside]), f"adjust_bn_{cell}")


def projected(net: Net, x: Value, channels: int, cell: str) -> Value:
    """A `previous` input of the cell's size, brought to its channels."""
    x = net.activation(x, "relu")
    x = net.conv(x, channels, 1, use_bias=False, name=f"adjust_conv_projection_{cell}")
    return batch_norm(net, x, f"adjust_bn_{cell}")


def separable(net: Net, x: Value, channels: int, size: int, name: str, *, strides: int = 1) -> Value:
    """relu, separable convolution and batch norm, twice; the stride is that of the first."""
    x = net.activation(x, "relu")
    if strides == 2:
        x = net.correct_pad(x, size, name=f"separable_conv_1_pad_{name}")
    padding = "same" if strides == 1 else "valid"
    x = net.separable_conv(x, channels, size, strides=strides, padding=padding, name=f"separable_conv_1_{name}")
    x = batch_norm(net, x, f"separable_conv_1_bn_{name}")
    x = net.activation(x, "relu")
    x = net.separable_conv(x, channels, size, name=f"separable_conv_2_{name}")
    return batch_norm(net, x, f"separable_conv_2_bn_{name}")


def squeezed(net: Net, x: Value, channels: int, kind: str, cell: str) -> Value:
    """The first input of a cell, brought to its channels."""
    x = net.activation(x, "relu")
    x = net.conv(x, channels, 1, use_bias=False, name=f"{kind}_conv_1_{cell}")
    return batch_norm(net, x, f"{kind}_bn_1_{cell}")


def batch_norm(net: Net, x: Value, name: str) -> Value:
    """With the momentum that all of NASNet has."""
    return net.batch_norm(x, momentum=0.9997, name=name)


def _row(
    kind: str,
    size: int,
    build: tuple[int, int, int, bool],
    parameters: tuple[int, int],
    accuracy: tuple[float, float],
    md5s: tuple[str, str],
    last_stage: str,
) -> ModelSpec:
    stem, channels, cells, skip = build
    name, address = f"nasnet_{kind}", f"{KERAS}/nasnet/NASNet-{kind}"  # Keras keeps them under other names
    files = (
        WeightsFile(f"{name}.h5", f"{address}.h5", md5s[0]),
        WeightsFile(f"{name}_no_top.h5", f"{address}-no-top.h5", md5s[1]),
    )
    return row(
        name,
        partial(nasnet, stem=stem, channels=channels, cells=cells, skip=skip),
        files,
        parameters,
        accuracy,
        preprocessing="tf",
        license="Apache 2.0 (Google)",
        paper="arXiv:1707.07012",
        groups=default_groups("last_stage", f".*_(?:{last_stage})"),
        size=size,
    )


# Sizes, counts, files and hashes: Keras' nasnet.py. Accuracies: keras-applications' README.
NETWORKS = (
    _row(
        "mobile",
        224,
        (32, 44, 4, False),
        (5_326_716, 4_269_716),
        (74.366, 91.854),
        ("020fb642bf7360b370c678b08e0adf61", "1ed92395b5b598bdda52abe5c0dbfd63"),
        "reduce_8|9|1[0-2]",
    ),
    _row(
        "large",
        331,
        (96, 168, 6, True),
        (88_949_818, 84_916_818),
        (82.498, 96.004),
        ("11577c9a518f0070763c2b964a382f17", "d81d89dc07e6e56530c4e77faddd61b5"),
        "reduce_12|1[3-8]",
    ),
)
