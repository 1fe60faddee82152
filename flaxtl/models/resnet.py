"""ResNet50, ResNet101 and ResNet152: He et al. 2015, arXiv:1512.03385, table 1.

Layer by layer as in Keras' resnet.py, which follows the authors' Caffe networks: the stride of a stage is on the first
1x1 convolution of its first block, convolutions have biases although a batch norm follows, borders are explicit.
"""

from functools import partial

from flaxtl.models.net import Net
from flaxtl.models.spec import ModelSpec, default_groups, keras_weights, row
from flaxtl.models.tracer import Value

EPSILON = 1.001e-5
"""Of the batch norms of ResNet, ResNetV2 and DenseNet in Keras' files."""

BORDER_3 = ((3, 3), (3, 3))
BORDER_1 = ((1, 1), (1, 1))


def resnet(net: Net, x: Value, top: bool, *, depths: tuple[int, ...]) -> Value:
    """A stem that divides the size by four, then four stages of bottleneck blocks, each but the first halving it."""
    x = net.pad(x, BORDER_3, name="conv1_pad")
    x = net.conv(x, 64, 7, strides=2, padding="valid", name="conv1_conv")
    x = net.batch_norm(x, epsilon=EPSILON, name="conv1_bn")
    x = net.activation(x, "relu", name="conv1_relu")
    x = net.pad(x, BORDER_1, name="pool1_pad")
    x = net.max_pool(x, 3, strides=2, name="pool1_pool")
    for stage, depth in enumerate(depths, start=2):
        width = 64 * 2 ** (stage - 2)
        x = block(net, x, width, strides=1 if stage == 2 else 2, project=True, name=f"conv{stage}_block1")
        for number in range(2, depth + 1):
            x = block(net, x, width, strides=1, project=False, name=f"conv{stage}_block{number}")
    if top:
        x = net.global_average_pool(x, name="avg_pool")
        x = net.dense(x, 1000, act="softmax", name="predictions")
    return x


def block(net: Net, x: Value, width: int, *, strides: int, project: bool, name: str) -> Value:
    """Bottleneck: 1x1 to `width` channels, 3x3, 1x1 to 4 * `width`, beside the input or its projection."""
    shortcut = x
    if project:
        shortcut = net.conv(x, 4 * width, 1, strides=strides, name=f"{name}_0_conv")
        shortcut = net.batch_norm(shortcut, epsilon=EPSILON, name=f"{name}_0_bn")
    x = net.conv(x, width, 1, strides=strides, name=f"{name}_1_conv")
    x = net.batch_norm(x, epsilon=EPSILON, name=f"{name}_1_bn")
    x = net.activation(x, "relu", name=f"{name}_1_relu")
    x = net.conv(x, width, 3, name=f"{name}_2_conv")
    x = net.batch_norm(x, epsilon=EPSILON, name=f"{name}_2_bn")
    x = net.activation(x, "relu", name=f"{name}_2_relu")
    x = net.conv(x, 4 * width, 1, name=f"{name}_3_conv")
    x = net.batch_norm(x, epsilon=EPSILON, name=f"{name}_3_bn")
    x = net.add([shortcut, x], name=f"{name}_add")
    return net.activation(x, "relu", name=f"{name}_out")


def _row(
    layers: int,
    depths: tuple[int, ...],
    parameters: tuple[int, int],
    accuracy: tuple[float, float],
    md5s: tuple[str, str],
) -> ModelSpec:
    name = f"resnet{layers}"
    files = keras_weights("resnet", f"{name}_weights_tf_dim_ordering_tf_kernels", *md5s)
    return row(
        name,
        partial(resnet, depths=depths),
        files,
        parameters,
        accuracy,
        preprocessing="caffe",
        license="MIT (K. He)",
        paper="arXiv:1512.03385",
        groups=default_groups("conv5", "conv5_.*"),
    )


# Sizes, counts, files and hashes: Keras' resnet.py. Accuracies: keras-applications' README.
NETWORKS_V1 = (
    _row(
        50,
        (3, 4, 6, 3),
        (25_636_712, 23_587_712),
        (74.928, 92.060),
        ("2cb95161c43110f7111970584f804107", "4d473c1dd8becc155b73f8504c6f6626"),
    ),
    _row(
        101,
        (3, 4, 23, 3),
        (44_707_176, 42_658_176),
        (76.420, 92.786),
        ("f1aeb4b969a6efcfb50fad2f0c20cfc5", "88cf7a10940856eca736dc7b7e228a21"),
    ),
    _row(
        152,
        (3, 8, 36, 3),
        (60_419_944, 58_370_944),
        (76.604, 93.118),
        ("100835be76be38e30d865e96f2aaae62", "ee4c566cf9a93f14d82f913c2dc6dd0c"),
    ),
)


def resnet_v2(net: Net, x: Value, top: bool, *, depths: tuple[int, ...]) -> Value:
    """A linear stem that divides the size by four, then four stages, each but the last halving it at its end."""
    x = net.pad(x, BORDER_3, name="conv1_pad")
    x = net.conv(x, 64, 7, strides=2, padding="valid", name="conv1_conv")
    x = net.pad(x, BORDER_1, name="pool1_pad")
    x = net.max_pool(x, 3, strides=2, name="pool1_pool")
    for stage, depth in enumerate(depths, start=2):
        for number in range(1, depth + 1):
            strides = 2 if number == depth and stage < 5 else 1
            width = 64 * 2 ** (stage - 2)
            x = block_v2(net, x, width, strides=strides, project=number == 1, name=f"conv{stage}_block{number}")
    x = net.batch_norm(x, epsilon=EPSILON, name="post_bn")
    x = net.activation(x, "relu", name="post_relu")
    if top:
        x = net.global_average_pool(x, name="avg_pool")
        x = net.dense(x, 1000, act="softmax", name="predictions")
    return x


def block_v2(net: Net, x: Value, width: int, *, strides: int, project: bool, name: str) -> Value:
    """Batch norm and relu, then a bottleneck as in ResNet, beside the raw input or the projection of the activated."""
    active = net.batch_norm(x, epsilon=EPSILON, name=f"{name}_preact_bn")
    active = net.activation(active, "relu", name=f"{name}_preact_relu")
    if project:
        shortcut = net.conv(active, 4 * width, 1, name=f"{name}_0_conv")
    else:
        shortcut = x if strides == 1 else net.max_pool(x, 1, strides=strides)
    x = net.conv(active, width, 1, use_bias=False, name=f"{name}_1_conv")
    x = net.batch_norm(x, epsilon=EPSILON, name=f"{name}_1_bn")
    x = net.activation(x, "relu", name=f"{name}_1_relu")
    x = net.pad(x, BORDER_1, name=f"{name}_2_pad")
    x = net.conv(x, width, 3, strides=strides, padding="valid", use_bias=False, name=f"{name}_2_conv")
    x = net.batch_norm(x, epsilon=EPSILON, name=f"{name}_2_bn")
    x = net.activation(x, "relu", name=f"{name}_2_relu")
    x = net.conv(x, 4 * width, 1, name=f"{name}_3_conv")
    return net.add([shortcut, x], name=f"{name}_out")


def _row_v2(
    layers: int,
    depths: tuple[int, ...],
    parameters: tuple[int, int],
    accuracy: tuple[float, float],
    md5s: tuple[str, str],
) -> ModelSpec:
    name = f"resnet{layers}v2"
    files = keras_weights("resnet", f"{name}_weights_tf_dim_ordering_tf_kernels", *md5s)
    return row(
        name,
        partial(resnet_v2, depths=depths),
        files,
        parameters,
        accuracy,
        preprocessing="tf",
        license="BSD-3-Clause (Facebook)",
        paper="arXiv:1603.05027",
        groups=default_groups("conv5", "conv5_.*|post_bn"),
    )


# Sizes, counts, files and hashes: Keras' resnet.py. Accuracies: keras-applications' README, on images of 299 pixels.
NETWORKS_V2 = (
    _row_v2(
        50,
        (3, 4, 6, 3),
        (25_613_800, 23_564_800),
        (75.960, 93.034),
        ("3ef43a0b657b3be2300d5770ece849e0", "fac2f116257151a9d068a22e544a4917"),
    ),
    _row_v2(
        101,
        (3, 4, 23, 3),
        (44_675_560, 42_626_560),
        (77.234, 93.816),
        ("6343647c601c52e1368623803854d971", "c0ed64b8031c3730f411d2eb4eea35b5"),
    ),
    _row_v2(
        152,
        (3, 8, 36, 3),
        (60_380_648, 58_331_648),
        (78.032, 94.162),
        ("a49b44d1979771252814e80f8ec446f9", "ed17cf2e0169df9d443503ef94b23b33"),
    ),
)
NETWORKS = (*NETWORKS_V1, *NETWORKS_V2)
