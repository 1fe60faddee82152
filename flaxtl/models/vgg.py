"""VGG16 and VGG19: Simonyan and Zisserman 2014, arXiv:1409.1556, configurations D and E.

Layer by layer as in Keras' vgg16.py and vgg19.py.
"""

from functools import partial

from flaxtl.models.net import Net
from flaxtl.models.spec import ModelSpec, default_groups, keras_weights, row
from flaxtl.models.tracer import Value

WIDTHS = (64, 128, 256, 512, 512)


def vgg(net: Net, x: Value, top: bool, *, depths: tuple[int, ...]) -> Value:
    """Five blocks of 3x3 convolutions, each halved by a pool; with `top` the 1,000-class ImageNet classifier."""
    for block, (depth, width) in enumerate(zip(depths, WIDTHS, strict=True), start=1):
        for layer in range(1, depth + 1):
            x = net.conv(x, width, 3, act="relu", name=f"block{block}_conv{layer}")
        x = net.max_pool(x, 2, name=f"block{block}_pool")
    if top:
        x = net.flatten(x, name="flatten")
        x = net.dense(x, 4096, act="relu", name="fc1")
        x = net.dense(x, 4096, act="relu", name="fc2")
        x = net.dense(x, 1000, act="softmax", name="predictions")
    return x


def _row(
    name: str,
    depths: tuple[int, ...],
    parameters: tuple[int, int],
    accuracy: tuple[float, float],
    md5s: tuple[str, str],
    builtin: str = "",
) -> ModelSpec:
    files = keras_weights(name, f"{name}_weights_tf_dim_ordering_tf_kernels", *md5s)
    return row(
        name,
        partial(vgg, depths=depths),
        files,
        parameters,
        accuracy,
        preprocessing="caffe",
        license="CC BY 4.0 (K. Simonyan, A. Zisserman)",
        paper="arXiv:1409.1556",
        groups=default_groups("block5", "block5_.*"),
        builtin=builtin,
    )


# Sizes, counts, files and hashes: Keras' vgg16.py and vgg19.py. Accuracies: keras-applications' README.
NETWORKS = (
    _row(
        "vgg16",
        (2, 2, 3, 3, 3),
        (138_357_544, 14_714_688),
        (71.268, 90.050),
        ("64373286793e3c8b2b4e3219cbf3544b", "6d6bbae143d832006294945121d1f1fc"),
        builtin="vgg16_notop.safetensors",
    ),
    _row(
        "vgg19",
        (2, 2, 4, 4, 4),
        (143_667_240, 20_024_384),
        (71.256, 89.988),
        ("cbe5617147190e668d6c5d5026f83318", "253f8cb515780f3b799900260a226db6"),
    ),
)
