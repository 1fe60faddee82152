"""AlexNet equals the ONNX model zoo's bvlc_alexnet.

onnxruntime and XLA order the sums of a layer differently, in fc6 of 9,216 products, and the errors, each a few units of
the last place (2**-24 = 6e-8) of the largest values, add from layer to layer. Measured are at most 2.1e-6 of the
largest value, behind the second norm; the bound is about three times that.
"""

import jax.numpy as jnp
import pytest
from helpers import keras_zoo, onnx_zoo

from flaxtl.errors import UserError
from flaxtl.models import classifier, registry
from flaxtl.models.classifier import Classifier
from flaxtl.models.head import Head

BOUND = 6e-6
BASE = {"conv1": "r1", "norm1": "r2", "pool1": "r3", "conv2": "r5", "norm2": "r6", "conv4": "r11", "pool5": "r14"}
TOP = {"fc6": "r17", "fc7": "r21", "fc8": "r24", "predictions": "prob_1"}


@pytest.mark.parametrize(("height", "width"), [(75, 100), pytest.param(227, 227, marks=pytest.mark.slow)])
def test_base_equals_onnx(height, width, tmp_path):
    both = onnx_zoo.pair("alexnet", "bvlc_alexnet", tmp_path / "x.onnx", height, width, top=False)
    keras_zoo.assert_equal(onnx_zoo.theirs(both, BASE), onnx_zoo.ours(both, BASE), BOUND)


@pytest.mark.parametrize("side", [224, pytest.param(227, marks=pytest.mark.slow)])
def test_top_equals_onnx(side, tmp_path):
    """At the zoo's size and at Caffe's; fc6 reads rows and columns of channels, in the file channels of rows."""
    both = onnx_zoo.pair("alexnet", "bvlc_alexnet", tmp_path / "x.onnx", side, side, top=True)
    theirs = onnx_zoo.theirs(both, TOP)
    assert 0.01 < theirs["predictions"].max() < 0.9
    keras_zoo.assert_equal(theirs, onnx_zoo.ours(both, TOP), BOUND)


def shapes(side):
    model = Classifier(registry.get_spec("alexnet"), Head(2, "global_average"))
    return {layer.name: layer.shape for layer in classifier.list_layers(model, side, side)}


@pytest.mark.parametrize(("side", "sides"), [(224, (54, 26, 12, 6)), (227, (55, 27, 13, 6))])
def test_only_the_last_pool_rounds_up(side, sides):
    found = shapes(side)
    assert tuple(found[name][0] for name in ("conv1", "pool1", "pool2", "pool5")) == sides


def test_minimum_size():
    assert shapes(51)["pool5"] == (1, 1, 256)
    with pytest.raises(UserError, match=r"\b50x50\b.*\balexnet\b.*\b51\b"):
        shapes(50)


def test_layers_and_counts():
    names = ["conv1", "norm1", "pool1", "conv2", "norm2", "pool2", "conv3", "conv4", "conv5", "pool5_pad", "pool5"]
    top = ["flatten", "fc6", "drop6", "fc7", "drop7", "fc8", "predictions"]
    assert keras_zoo.our_names("alexnet", 227, top=False) == names
    assert keras_zoo.our_names("alexnet", 227, top=True) == names + top
    assert keras_zoo.count("alexnet", top=True) == registry.get_spec("alexnet").num_params == 60_965_224
    assert keras_zoo.count("alexnet", top=False) == registry.get_spec("alexnet").num_params_no_top


def test_grouped_kernels_see_half_of_the_channels():
    expected = classifier.param_shapes(Classifier(registry.get_spec("alexnet"), Head(2, "global_average")), 227, 227)[
        "backbone"
    ]
    kernels = {layer: leaves["kernel"] for layer, leaves in expected.items()}
    assert kernels["conv2"] == (5, 5, 48, 256)
    assert kernels["conv3"] == (3, 3, 256, 384)
    assert kernels["conv4"] == (3, 3, 192, 384)


def test_bfloat16(tmp_path):
    """Eight bits of a number: each of two layers in a row adds errors of 2**-9 of it."""
    both = onnx_zoo.pair("alexnet", "bvlc_alexnet", tmp_path / "x.onnx", 67, 67, top=False)
    layers = ("conv1", "norm1", "conv2", "norm2")
    exact = onnx_zoo.ours(both, layers)
    coarse = onnx_zoo.ours(both._replace(model=both.model.clone(dtype=jnp.bfloat16)), layers)
    assert {array.dtype for array in coarse.values()} == {jnp.dtype(jnp.bfloat16)}
    keras_zoo.assert_equal(exact, {name: array.astype(jnp.float32) for name, array in coarse.items()}, 0.03)
