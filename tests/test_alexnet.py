"""AlexNet equals the ONNX model zoo's bvlc_alexnet.

onnxruntime and XLA order the sums of a layer differently, in fc6 of 9,216 products, and the errors, each a few units of
the last place (2**-24 = 6e-8) of the largest values, add from layer to layer. Measured are at most 2.1e-6 of the
largest value, behind the second norm; the bound is about three times that.
"""

import jax.numpy as jnp
import pytest
import zoo
import zoo_onnx

from flaxtl.errors import UserError
from flaxtl.models import catalog, classifier
from flaxtl.models.classifier import Classifier
from flaxtl.models.head import Head

BOUND = 6e-6
BASE = {"conv1": "r1", "norm1": "r2", "pool1": "r3", "conv2": "r5", "norm2": "r6", "conv4": "r11", "pool5": "r14"}
TOP = {"fc6": "r17", "fc7": "r21", "fc8": "r24", "predictions": "prob_1"}


@pytest.mark.parametrize(("height", "width"), [(75, 100), pytest.param(227, 227, marks=pytest.mark.slow)])
def test_base_equals_onnx(height, width, tmp_path):
    both = zoo_onnx.pair("alexnet", "bvlc_alexnet", tmp_path / "x.onnx", height, width, top=False)
    zoo.assert_equal(zoo_onnx.theirs(both, BASE), zoo_onnx.ours(both, BASE), BOUND)


@pytest.mark.parametrize("side", [224, pytest.param(227, marks=pytest.mark.slow)])
def test_top_equals_onnx(side, tmp_path):
    """At the zoo's size and at Caffe's; fc6 reads rows and columns of channels, in the file channels of rows."""
    both = zoo_onnx.pair("alexnet", "bvlc_alexnet", tmp_path / "x.onnx", side, side, top=True)
    theirs = zoo_onnx.theirs(both, TOP)
    assert 0.01 < theirs["predictions"].max() < 0.9
    zoo.assert_equal(theirs, zoo_onnx.ours(both, TOP), BOUND)


def shapes(side):
    model = Classifier(catalog.find("alexnet"), Head(2, "global_average"))
    return {layer.name: layer.shape for layer in classifier.layers(model, side, side)}


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
    assert zoo.our_names("alexnet", 227, top=False) == names
    assert zoo.our_names("alexnet", 227, top=True) == names + top
    assert zoo.count("alexnet", top=True) == catalog.find("alexnet").parameters_with_top == 60_965_224
    assert zoo.count("alexnet", top=False) == catalog.find("alexnet").parameters_base


def test_grouped_kernels_see_half_of_the_channels():
    expected = classifier.shapes(Classifier(catalog.find("alexnet"), Head(2, "global_average")), 227, 227)["backbone"]
    kernels = {layer: leaves["kernel"] for layer, leaves in expected.items()}
    assert kernels["conv2"] == (5, 5, 48, 256)
    assert kernels["conv3"] == (3, 3, 256, 384)
    assert kernels["conv4"] == (3, 3, 192, 384)


def test_bfloat16(tmp_path):
    """Eight bits of a number: each of two layers in a row adds errors of 2**-9 of it."""
    both = zoo_onnx.pair("alexnet", "bvlc_alexnet", tmp_path / "x.onnx", 67, 67, top=False)
    layers = ("conv1", "norm1", "conv2", "norm2")
    exact = zoo_onnx.ours(both, layers)
    coarse = zoo_onnx.ours(both._replace(model=both.model.clone(dtype=jnp.bfloat16)), layers)
    assert {array.dtype for array in coarse.values()} == {jnp.dtype(jnp.bfloat16)}
    zoo.assert_equal(exact, {name: array.astype(jnp.float32) for name, array in coarse.items()}, 0.03)
