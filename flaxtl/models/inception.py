"""InceptionV3 and InceptionResNetV2: Szegedy et al. 2015, arXiv:1512.00567, and 2016, arXiv:1602.07261.

Layer by layer as in Keras' inception_v3.py and inception_resnet_v2.py. Most layers have no names of their own: what
they are called, and with it where their weights go, follows from the order of the calls.
"""

from flaxtl.models.net import Net, Size
from flaxtl.models.spec import ModelSpec, default_groups, keras_weights
from flaxtl.models.tracer import Value

Branch = tuple[tuple[int, Size], ...]
"""Convolutions one after another: (channels, window)."""

ROW_7, COLUMN_7 = (1, 7), (7, 1)
ROW_3, COLUMN_3 = (1, 3), (3, 1)

BRANCHES_5: tuple[Branch, ...] = (((64, 1),), ((48, 1), (64, 5)), ((64, 1), (96, 3), (96, 3)))

RESIDUALS: dict[str, tuple[int, tuple[Branch, ...]]] = {
    "block35": (320, (((32, 1),), ((32, 1), (32, 3)), ((32, 1), (48, 3), (64, 3)))),
    "block17": (1088, (((192, 1),), ((128, 1), (160, ROW_7), (192, COLUMN_7)))),
    "block8": (2080, (((192, 1),), ((192, 1), (224, ROW_3), (256, COLUMN_3)))),
}
"""Block of InceptionResNetV2 -> its channels, the branches of its residual."""


def inception_v3(net: Net, x: Value, top: bool) -> Value:
    """A stem that divides the size by eight, then modules of parallel branches, at 35, 17 and 8 pixels of 299."""
    x = stem(net, x)
    for number, pooled in enumerate((32, 64, 64)):
        x = module(net, x, BRANCHES_5, pooled, name=f"mixed{number}")
    x = reduction(net, x, ((384, 3),), ((64, 1), (96, 3), (96, 3)), name="mixed3")
    for number, width in enumerate((128, 160, 160, 192), start=4):
        x = module(net, x, branches_7(width), 192, name=f"mixed{number}")
    long = ((192, 1), (192, ROW_7), (192, COLUMN_7), (192, 3))
    x = reduction(net, x, ((192, 1), (320, 3)), long, name="mixed8")
    for number in range(2):
        x = fanned(net, x, number)
    return classify(net, x) if top else x


def inception_resnet_v2(net: Net, x: Value, top: bool) -> Value:
    """The stem and one module of InceptionV3's kind, then 40 residual blocks at 35, 17 and 8 pixels of 299."""
    x = stem(net, x)
    x = module(net, x, (((96, 1),), *BRANCHES_5[1:]), 64, name="mixed_5b")
    for number in range(1, 11):
        x = residual(net, x, "block35", number, scale=0.17)
    x = reduction(net, x, ((384, 3),), ((256, 1), (256, 3), (384, 3)), name="mixed_6a")
    for number in range(1, 21):
        x = residual(net, x, "block17", number, scale=0.1)
    x = reduction(net, x, ((256, 1), (384, 3)), ((256, 1), (288, 3)), ((256, 1), (288, 3), (320, 3)), name="mixed_7a")
    for number in range(1, 10):
        x = residual(net, x, "block8", number, scale=0.2)
    x = residual(net, x, "block8", 10, scale=1.0, act=False)
    x = net.conv(x, 1536, 1, use_bias=False, name="conv_7b")
    x = net.batch_norm(x, use_scale=False, name="conv_7b_bn")
    x = net.activation(x, "relu", name="conv_7b_ac")
    return classify(net, x) if top else x


def conv(net: Net, x: Value, features: int, size: Size, *, strides: int = 1, padding: str = "same") -> Value:
    """Convolution, batch norm without gain, relu; none has a name."""
    x = net.conv(x, features, size, strides=strides, padding=padding, use_bias=False)
    x = net.batch_norm(x, use_scale=False)
    return net.activation(x, "relu")


def stem(net: Net, x: Value) -> Value:
    """299 pixels -> 35."""
    x = conv(net, x, 32, 3, strides=2, padding="valid")
    x = conv(net, x, 32, 3, padding="valid")
    x = conv(net, x, 64, 3)
    x = net.max_pool(x, 3, strides=2)
    x = conv(net, x, 80, 1)
    x = conv(net, x, 192, 3, padding="valid")
    return net.max_pool(x, 3, strides=2)


def follow(net: Net, x: Value, branch: Branch) -> Value:
    """One branch; the size stays."""
    for features, size in branch:
        x = conv(net, x, features, size)
    return x


def module(net: Net, x: Value, branches: tuple[Branch, ...], pooled: int, *, name: str) -> Value:
    """Branches and an average pool, 1x1 to `pooled` channels, side by side; the size stays."""
    values = [follow(net, x, branch) for branch in branches]
    pool = net.average_pool(x, 3, strides=1, padding="same")
    return net.concat([*values, conv(net, pool, pooled, 1)], name=name)


def branches_7(width: int) -> tuple[Branch, ...]:
    """Of a module whose 7x7 windows are rows and columns in turn."""
    twice: Branch = ((width, 1), (width, COLUMN_7), (width, ROW_7), (width, COLUMN_7), (192, ROW_7))
    return ((192, 1),), ((width, 1), (width, ROW_7), (192, COLUMN_7)), twice


def reduction(net: Net, x: Value, *branches: Branch, name: str) -> Value:
    """Branches whose last convolution halves the size, beside a maximum pool."""
    values = []
    for *first, (features, size) in branches:
        inside = follow(net, x, tuple(first))
        values.append(conv(net, inside, features, size, strides=2, padding="valid"))
    return net.concat([*values, net.max_pool(x, 3, strides=2)], name=name)


def fanned(net: Net, x: Value, number: int) -> Value:
    """The modules `mixed9` and `mixed10`: two branches end in a row and a column side by side."""
    single = conv(net, x, 320, 1)
    short = fan(net, conv(net, x, 384, 1), name=f"mixed9_{number}")
    long = fan(net, follow(net, x, ((448, 1), (384, 3))), name="")
    pool = net.average_pool(x, 3, strides=1, padding="same")
    return net.concat([single, short, long, conv(net, pool, 192, 1)], name=f"mixed{9 + number}")


def fan(net: Net, x: Value, *, name: str) -> Value:
    """1x3 beside 3x1, 384 channels each."""
    return net.concat([conv(net, x, 384, ROW_3), conv(net, x, 384, COLUMN_3)], name=name)


def residual(net: Net, x: Value, kind: str, number: int, *, scale: float, act: bool = True) -> Value:
    """x + scale * branches, brought to the channels of x by a 1x1 convolution with a bias."""
    channels, branches = RESIDUALS[kind]
    name = f"{kind}_{number}"
    mixed = net.concat([follow(net, x, branch) for branch in branches], name=f"{name}_mixed")
    up = net.conv(mixed, channels, 1, name=f"{name}_conv")
    x = net.scaled_add(x, up, scale)
    return net.activation(x, "relu", name=f"{name}_ac") if act else x


def classify(net: Net, x: Value) -> Value:
    """The 1,000 classes of ImageNet."""
    x = net.global_average_pool(x, name="avg_pool")
    return net.dense(x, 1000, act="softmax", name="predictions")


# Sizes, counts, files and hashes: Keras' inception_v3.py and inception_resnet_v2.py. Accuracies: keras-applications'
# README. The numbers in the groups are those of the unnamed layers from the block on.
V3_FILES = keras_weights(
    "inception_v3",
    "inception_v3_weights_tf_dim_ordering_tf_kernels",
    "9a0d58056eeedaa3f26cb7ebd46da564",
    "bcbd6486424b2319ff4ef7d526e38f63",
)
RESNET_FILES = keras_weights(
    "inception_resnet_v2",
    "inception_resnet_v2_weights_tf_dim_ordering_tf_kernels",
    "e693bd0210a403b3192acc6073ad2e96",
    "d19885ff4a710c122648d3b5c3b684e4",
)
NETWORKS = (
    ModelSpec(
        name="inception_v3",
        build=inception_v3,
        input_size=299,
        min_input_size=75,
        preprocessing="tf",
        num_params=23_851_784,
        num_params_no_top=21_802_784,
        top1=77.898,
        top5=93.720,
        license="Apache 2.0 (Google)",
        paper="arXiv:1512.00567",
        weights=V3_FILES[0],
        weights_no_top=V3_FILES[1],
        groups=default_groups("mixed9_10", r"\w+_(7[6-9]|[89]\d)"),
    ),
    ModelSpec(
        name="inception_resnet_v2",
        build=inception_resnet_v2,
        input_size=299,
        min_input_size=75,
        preprocessing="tf",
        num_params=55_873_736,
        num_params_no_top=54_336_736,
        top1=80.256,
        top5=95.252,
        license="Apache 2.0 (Google)",
        paper="arXiv:1602.07261",
        weights=RESNET_FILES[0],
        weights_no_top=RESNET_FILES[1],
        groups=default_groups("block8", r"block8_.*|conv_7b.*|\w+_(16[3-9]|1[7-9]\d|20\d)"),
    ),
)
