"""VGG16 and VGG19: Simonyan and Zisserman 2014, arXiv:1409.1556, configurations D and E.

The layers are those of Keras' vgg16.py and vgg19.py.
"""

from functools import partial

from flaxtl.models.net import Net
from flaxtl.models.spec import TF_KERNELS, ModelSpec, default_groups, keras_weights
from flaxtl.models.tracer import Value

WIDTHS = (64, 128, 256, 512, 512)
"""Channels of the five blocks."""


def vgg(net: Net, x: Value, include_top: bool, *, depths: tuple[int, ...]) -> Value:
    """Five blocks of 3x3 convolutions, each followed by a pool of stride 2."""
    for block, (depth, width) in enumerate(zip(depths, WIDTHS, strict=True), start=1):
        for layer in range(1, depth + 1):
            x = net.conv(x, width, 3, act="relu", name=f"block{block}_conv{layer}")
        x = net.max_pool(x, 2, name=f"block{block}_pool")
    if include_top:
        x = net.flatten(x, name="flatten")
        x = net.dense(x, 4096, act="relu", name="fc1")
        x = net.dense(x, 4096, act="relu", name="fc2")
        x = net.dense(x, 1000, act="softmax", name="predictions")
    return x


_vgg_spec = partial(
    ModelSpec,
    preprocessing="caffe",
    blocks=r"block\d+",
    groups=default_groups(last_block="block5", layers="block5_.*"),
    license="CC BY 4.0 (K. Simonyan, A. Zisserman)",
    paper="arXiv:1409.1556",
)

# Counts, files and hashes: Keras' vgg16.py and vgg19.py. Accuracies: README of keras-applications.
MODELS = (
    _vgg_spec(
        name="vgg16",
        build=partial(vgg, depths=(2, 2, 3, 3, 3)),
        weights=keras_weights(f"vgg16/vgg16_{TF_KERNELS}.h5", md5="64373286793e3c8b2b4e3219cbf3544b"),
        weights_no_top=keras_weights(f"vgg16/vgg16_{TF_KERNELS}_notop.h5", md5="6d6bbae143d832006294945121d1f1fc"),
        num_params=138_357_544,
        num_params_no_top=14_714_688,
        top1=71.268,
        top5=90.050,
        builtin="vgg16_notop.safetensors",
    ),
    _vgg_spec(
        name="vgg19",
        build=partial(vgg, depths=(2, 2, 4, 4, 4)),
        weights=keras_weights(f"vgg19/vgg19_{TF_KERNELS}.h5", md5="cbe5617147190e668d6c5d5026f83318"),
        weights_no_top=keras_weights(f"vgg19/vgg19_{TF_KERNELS}_notop.h5", md5="253f8cb515780f3b799900260a226db6"),
        num_params=143_667_240,
        num_params_no_top=20_024_384,
        top1=71.256,
        top5=89.988,
    ),
)
