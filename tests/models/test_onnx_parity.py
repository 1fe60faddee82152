"""AlexNet and GoogLeNet, compared with the ONNX model zoo's bvlc_alexnet and inception_v1 with the same random weights.

onnxruntime and XLA order the sums of a layer differently (in fc6 of 9,216 products), and the errors, a few units of the
last place (2**-24 = 6e-8) of the largest values, add up from layer to layer. Measured: at most 2.1e-6 of the largest
value. The bound is three times that.
"""

from typing import NamedTuple

import jax.numpy as jnp
import pytest
from helpers import keras_zoo, onnx_zoo

from flaxtl.errors import UserError
from flaxtl.models import classifier, registry

BOUND = 6e-6


class Case(NamedTuple):
    """The name of the ONNX model, and layer -> output name in it."""

    onnx_name: str
    backbone: dict[str, str]
    top: dict[str, str]
    bfloat16: tuple[str, ...]


CASES = {
    "alexnet": Case(
        "bvlc_alexnet",
        {"conv1": "r1", "norm1": "r2", "pool1": "r3", "conv2": "r5", "norm2": "r6", "conv4": "r11", "pool5": "r14"},
        {"fc6": "r17", "fc7": "r21", "fc8": "r24", "predictions": "prob_1"},
        ("conv1", "norm1", "conv2", "norm2"),
    ),
    "googlenet": Case(
        "inception_v1",
        {
            "conv1_7x7_s2": "r1",
            "pool1_norm1": "r3",
            "conv2_norm2": "r8",
            "inception_3a_output": "r23",
            "inception_3b_pool_proj": "r36",
            "inception_4d_5x5": "r90",
            "inception_5b_output": "r137",
        },
        {"inception_5b_output": "r137", "pool5_7x7_s1": "r141", "loss3_classifier": "r143", "predictions": "prob_1"},
        ("pool1_norm1", "conv2_norm2", "inception_3a_output"),
    ),
}


@pytest.mark.parametrize(
    ("name", "height", "width"),
    [
        ("alexnet", 75, 100),
        pytest.param("alexnet", 227, 227, marks=pytest.mark.slow),
        ("googlenet", 75, 100),
        pytest.param("googlenet", 224, 224, marks=pytest.mark.slow),
    ],
)
def test_backbone_equals_onnx(name, height, width, tmp_path):
    case = CASES[name]
    pair = onnx_zoo.make_pair(name, case.onnx_name, tmp_path / "x.onnx", height, width, include_top=False)
    expected = onnx_zoo.onnx_outputs(pair, case.backbone)
    keras_zoo.assert_outputs_close(onnx_zoo.flaxtl_outputs(pair, case.backbone), expected, BOUND)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "side"), [("alexnet", 224), ("alexnet", 227), ("googlenet", 224)])
def test_whole_network_equals_onnx(name, side, tmp_path):
    """AlexNet at the zoo's and at Caffe's size; fc6 reads [height, width, channels], in the file channels first.

    GoogLeNet's 7x7 pool has 6x6 features as input and a border that does not count: it is the mean over the image.
    """
    case = CASES[name]
    pair = onnx_zoo.make_pair(name, case.onnx_name, tmp_path / "x.onnx", side, side, include_top=True)
    expected = onnx_zoo.onnx_outputs(pair, case.top)
    assert 0.002 < expected["predictions"].max() < 0.9
    keras_zoo.assert_outputs_close(onnx_zoo.flaxtl_outputs(pair, case.top), expected, BOUND)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_bfloat16_is_close_to_float32(name, tmp_path):
    """A mantissa of 8 bits: each of up to five layers adds errors of 2**-9 of its output."""
    case = CASES[name]
    pair = onnx_zoo.make_pair(name, case.onnx_name, tmp_path / "x.onnx", 67, 67, include_top=False)
    exact = onnx_zoo.flaxtl_outputs(pair, case.bfloat16)
    outputs = onnx_zoo.flaxtl_outputs(pair._replace(model=pair.model.clone(dtype=jnp.bfloat16)), case.bfloat16)
    assert {array.dtype for array in outputs.values()} == {jnp.dtype(jnp.bfloat16)}
    float32 = {layer: array.astype(jnp.float32) for layer, array in outputs.items()}
    keras_zoo.assert_outputs_close(float32, exact, 0.03)


def layer_shapes(name, side):
    layers = classifier.list_layers(keras_zoo.flaxtl_model(name, include_top=False), side, side)
    return {layer.name: layer.shape for layer in layers}


@pytest.mark.parametrize(
    ("name", "side", "sides"),
    [
        ("alexnet", 224, {"conv1": 54, "pool1": 26, "pool2": 12, "pool5": 6}),
        ("alexnet", 227, {"conv1": 55, "pool1": 27, "pool2": 13, "pool5": 6}),
        ("googlenet", 224, {"pool1_3x3_s2": 55, "pool2_3x3_s2": 27, "pool3_3x3_s2": 13, "pool4_3x3_s2": 6}),
    ],
)
def test_pools_round_down_as_in_the_zoo(name, side, sides):
    """Only AlexNet's last pool rounds up. In Caffe GoogLeNet's pools would give 56, 28, 14 and 7."""
    shapes = layer_shapes(name, side)
    assert {layer: shapes[layer][0] for layer in sides} == sides


@pytest.mark.parametrize(
    ("name", "last", "channels"), [("alexnet", "pool5", 256), ("googlenet", "inception_5b_output", 1024)]
)
def test_min_input_size_leaves_one_feature(name, last, channels):
    side = registry.get_spec(name).min_input_size
    assert layer_shapes(name, side)[last] == (1, 1, channels)
    with pytest.raises(UserError, match=rf"\b{side - 1}x{side - 1}\b.*\b{name}\b.*\b{side}\b"):
        layer_shapes(name, side - 1)


@pytest.mark.parametrize("name", CASES)
def test_param_counts(name):
    spec = registry.get_spec(name)
    assert keras_zoo.count_params(name, include_top=True) == spec.num_params
    assert keras_zoo.count_params(name, include_top=False) == spec.num_params_no_top
    assert spec.num_params == {"alexnet": 60_965_224, "googlenet": 6_998_552}[name]


def test_alexnet_layer_names():
    names = ["conv1", "norm1", "pool1", "conv2", "norm2", "pool2", "conv3", "conv4", "conv5", "pool5_pad", "pool5"]
    top = ["flatten", "fc6", "drop6", "fc7", "drop7", "fc8", "predictions"]
    assert keras_zoo.layer_names("alexnet", 227, include_top=False) == names
    assert keras_zoo.layer_names("alexnet", 227, include_top=True) == names + top


def test_googlenet_layer_names():
    names = keras_zoo.layer_names("googlenet", 224, include_top=True)
    assert names[:4] == ["conv1_pad", "conv1_7x7_s2", "pool1_3x3_s2", "pool1_norm1"]
    parts = ("1x1", "3x3_reduce", "3x3", "5x5_reduce", "5x5", "pool", "pool_proj", "output")
    assert {name for name in names if name.startswith("inception_4e")} == {f"inception_4e_{part}" for part in parts}
    assert names[-4:] == ["pool5_7x7_s1", "pool5_drop_7x7_s1", "loss3_classifier", "predictions"]


def test_alexnet_grouped_kernels_read_half_of_the_channels():
    shapes = classifier.param_shapes(keras_zoo.flaxtl_model("alexnet", include_top=False), 227, 227)["backbone"]
    kernels = {layer: shapes[layer]["kernel"] for layer in ("conv2", "conv3", "conv4")}
    assert kernels == {"conv2": (5, 5, 48, 256), "conv3": (3, 3, 256, 384), "conv4": (3, 3, 192, 384)}
