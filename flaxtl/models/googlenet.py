"""GoogLeNet (Inception v1): Szegedy et al. 2014, arXiv:1409.4842, table 1, without the auxiliary classifiers.

Layer by layer as in the ONNX model zoo's inception_v1, under Caffe's names, in which a slash is an underscore here; a
convolution's output is what its relu leaves there. As in the zoo, pools round their size down, where Caffe rounds up.
"""

from flaxtl.models.net import Net
from flaxtl.models.resnet import BORDER_3
from flaxtl.models.spec import ModelSpec, WeightsFile, default_groups
from flaxtl.models.tracer import Value

Widths = tuple[int, int, int, int, int, int]
"""Channels of a block: 1x1; before and after the 3x3; before and after the 5x5; behind the pool."""

BLOCKS: dict[int, dict[str, Widths]] = {
    3: {"a": (64, 96, 128, 16, 32, 32), "b": (128, 128, 192, 32, 96, 64)},
    4: {
        "a": (192, 96, 208, 16, 48, 64),
        "b": (160, 112, 224, 24, 64, 64),
        "c": (128, 128, 256, 24, 64, 64),
        "d": (112, 144, 288, 32, 64, 64),
        "e": (256, 160, 320, 32, 128, 128),
    },
    5: {"a": (256, 160, 320, 32, 128, 128), "b": (384, 192, 384, 48, 128, 128)},
}
"""Stage -> block -> its widths."""


def googlenet(net: Net, x: Value, top: bool) -> Value:
    """A stem that divides the size by eight, then three stages of blocks, the second and third behind a pool."""
    x = net.pad(x, BORDER_3, name="conv1_pad")
    x = net.conv(x, 64, 7, strides=2, padding="valid", act="relu", name="conv1_7x7_s2")
    x = net.max_pool(x, 3, strides=2, name="pool1_3x3_s2")
    x = net.local_response_norm(x, name="pool1_norm1")
    x = net.conv(x, 64, 1, act="relu", name="conv2_3x3_reduce")
    x = net.conv(x, 192, 3, act="relu", name="conv2_3x3")
    x = net.local_response_norm(x, name="conv2_norm2")
    for stage, blocks in BLOCKS.items():
        x = net.max_pool(x, 3, strides=2, name=f"pool{stage - 1}_3x3_s2")
        for letter, widths in blocks.items():
            x = inception(net, x, widths, name=f"inception_{stage}{letter}")
    if top:
        x = net.global_average_pool(x, name="pool5_7x7_s1")
        x = net.dropout(x, 0.4, name="pool5_drop_7x7_s1")
        x = net.dense(x, 1000, name="loss3_classifier")
        x = net.activation(x, "softmax", name="predictions")
    return x


def inception(net: Net, x: Value, widths: Widths, *, name: str) -> Value:
    """Four views of the input side by side: 1x1, 3x3 and 5x5 convolutions, the latter two of fewer channels, a pool."""
    one, before_three, three, before_five, five, pooled = widths
    first = net.conv(x, one, 1, act="relu", name=f"{name}_1x1")
    second = net.conv(x, before_three, 1, act="relu", name=f"{name}_3x3_reduce")
    second = net.conv(second, three, 3, act="relu", name=f"{name}_3x3")
    third = net.conv(x, before_five, 1, act="relu", name=f"{name}_5x5_reduce")
    third = net.conv(third, five, 5, act="relu", name=f"{name}_5x5")
    fourth = net.max_pool(x, 3, strides=1, padding="same", name=f"{name}_pool")
    fourth = net.conv(fourth, pooled, 1, act="relu", name=f"{name}_pool_proj")
    return net.concat([first, second, third, fourth], name=f"{name}_output")


# The file with the SHA-256 of the zoo's Git LFS pointer; the zoo moved from github.com/onnx/models in July 2025.
_FILE = WeightsFile(
    "inception-v1-12.onnx",
    "https://huggingface.co/onnxmodelzoo/inception-v1-12/resolve/main/inception-v1-12.onnx",
    "814b31a6316873bd03d2d808415ce1f40a7bf48ad88eab5ecc3cdc8dc6cf38ec",
)

# Accuracies: models/bvlc_googlenet/readme.md in github.com/BVLC/caffe, for its own file in Caffe; of the zoo's file
# only top-1 is published, 67.23. Preprocessing: the zoo's README of googlenet; license: that of inception_v1.
NETWORKS = (
    ModelSpec(
        name="googlenet",
        build=googlenet,
        input_size=224,
        min_input_size=61,
        preprocessing="caffe",
        num_params=6_998_552,
        num_params_no_top=5_973_552,
        top1=68.7,
        top5=88.9,
        license="MIT (ONNX model zoo)",
        paper="arXiv:1409.4842",
        weights=_FILE,
        weights_no_top=_FILE,
        groups=default_groups("inception_5", "inception_5.*"),
    ),
)
