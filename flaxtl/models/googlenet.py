"""GoogLeNet (Inception v1): Szegedy et al. 2014, arXiv:1409.4842, table 1, without the auxiliary classifiers.

The layers are those of the ONNX model zoo's inception_v1, under Caffe's names with slashes replaced by underscores.
Caffe's relu works in place, so the output of a convolution is after its relu. As in the zoo, pools round their size
down, where Caffe rounds up.
"""

from flaxtl.models.blocks import BORDER_3
from flaxtl.models.net import Net
from flaxtl.models.spec import ModelSpec, WeightsFile, default_groups
from flaxtl.models.tracer import Value

Widths = tuple[int, int, int, int, int, int]
"""Channels of a block: 1x1; 3x3 reduction, 3x3; 5x5 reduction, 5x5; pool projection."""

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
"""Stage -> block -> channels."""


def googlenet(net: Net, x: Value, include_top: bool) -> Value:
    """Stem of stride 4, then three stages of blocks, each after a pool of stride 2."""
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
            x = _block(net, x, widths, name=f"inception_{stage}{letter}")
    if include_top:
        x = net.global_average_pool(x, name="pool5_7x7_s1")
        x = net.dropout(x, 0.4, name="pool5_drop_7x7_s1")
        x = net.dense(x, 1000, name="loss3_classifier")
        x = net.activation(x, "softmax", name="predictions")
    return x


def _block(net: Net, x: Value, widths: Widths, *, name: str) -> Value:
    """Concatenate four branches: 1x1; 1x1 and 3x3; 1x1 and 5x5; pool and 1x1."""
    width_1x1, reduction_3x3, width_3x3, reduction_5x5, width_5x5, width_pool = widths
    branch_1x1 = net.conv(x, width_1x1, 1, act="relu", name=f"{name}_1x1")
    branch_3x3 = net.conv(x, reduction_3x3, 1, act="relu", name=f"{name}_3x3_reduce")
    branch_3x3 = net.conv(branch_3x3, width_3x3, 3, act="relu", name=f"{name}_3x3")
    branch_5x5 = net.conv(x, reduction_5x5, 1, act="relu", name=f"{name}_5x5_reduce")
    branch_5x5 = net.conv(branch_5x5, width_5x5, 5, act="relu", name=f"{name}_5x5")
    pool = net.max_pool(x, 3, strides=1, padding="same", name=f"{name}_pool")
    pool = net.conv(pool, width_pool, 1, act="relu", name=f"{name}_pool_proj")
    return net.concat([branch_1x1, branch_3x3, branch_5x5, pool], name=f"{name}_output")


# SHA-256: the zoo's Git LFS pointer. The zoo moved here from github.com/onnx/models in July 2025.
_FILE = WeightsFile(
    "inception-v1-12.onnx",
    "https://huggingface.co/onnxmodelzoo/inception-v1-12/resolve/main/inception-v1-12.onnx",
    "814b31a6316873bd03d2d808415ce1f40a7bf48ad88eab5ecc3cdc8dc6cf38ec",
)

# Accuracies: models/bvlc_googlenet/readme.md in github.com/BVLC/caffe, for its own file in Caffe; of the zoo's file
# only top-1 is published, 67.23. Preprocessing: the zoo's README of googlenet. License: that of inception_v1.
MODELS = (
    ModelSpec(
        name="googlenet",
        build=googlenet,
        preprocessing="caffe",
        weights=_FILE,
        weights_no_top=_FILE,
        num_params=6_998_552,
        num_params_no_top=5_973_552,
        top1=68.7,
        top5=88.9,
        blocks=r"conv\d+|inception_\d[a-e]",
        groups=default_groups(last_block="inception_5", layers="inception_5.*"),
        license="MIT (ONNX model zoo)",
        paper="arXiv:1409.4842",
        min_input_size=61,
    ),
)
