"""GoogLeNet equals the ONNX model zoo's inception_v1.

onnxruntime and XLA order the sums of a layer differently, and the errors, each a few units of the last place
(2**-24 = 6e-8) of the largest values, add from layer to layer. Measured are at most 1.9e-6 of the largest value; the
bound is about three times that.
"""

import jax.numpy as jnp
import pytest
from helpers import keras_zoo, onnx_zoo

from flaxtl.errors import UserError
from flaxtl.models import classifier, registry
from flaxtl.models.classifier import Classifier
from flaxtl.models.head import Head

BOUND = 6e-6
BASE = {
    "conv1_7x7_s2": "r1",
    "pool1_norm1": "r3",
    "conv2_norm2": "r8",
    "inception_3a_output": "r23",
    "inception_3b_pool_proj": "r36",
    "inception_4d_5x5": "r90",
    "inception_5b_output": "r137",
}
TOP = {"inception_5b_output": "r137", "pool5_7x7_s1": "r141", "loss3_classifier": "r143", "predictions": "prob_1"}


@pytest.mark.parametrize(("height", "width"), [(224, 224), (75, 100)])
def test_base_equals_onnx(height, width, tmp_path):
    both = onnx_zoo.pair("googlenet", "inception_v1", tmp_path / "x.onnx", height, width, top=False)
    keras_zoo.assert_equal(onnx_zoo.theirs(both, BASE), onnx_zoo.ours(both, BASE), BOUND)


def test_top_equals_onnx(tmp_path):
    """The pool of 7x7 has 6x6 before it, and an edge of zeros that does not count: it is the mean of the image."""
    both = onnx_zoo.pair("googlenet", "inception_v1", tmp_path / "x.onnx", 224, 224, top=True)
    theirs = onnx_zoo.theirs(both, TOP)
    assert 0.002 < theirs["predictions"].max() < 0.9
    keras_zoo.assert_equal(theirs, onnx_zoo.ours(both, TOP), BOUND)


def shapes(side):
    model = Classifier(registry.get_spec("googlenet"), Head(2, "global_average"))
    return {layer.name: layer.shape for layer in classifier.list_layers(model, side, side)}


def test_pools_round_down():
    """As in the zoo's file; Caffe's own would give 56, 28, 14 and 7."""
    found = shapes(224)
    assert [found[f"pool{number}_3x3_s2"][0] for number in (1, 2, 3, 4)] == [55, 27, 13, 6]


def test_minimum_size():
    assert shapes(61)["inception_5b_output"] == (1, 1, 1024)
    with pytest.raises(UserError, match=r"\b60x60\b.*\bgooglenet\b.*\b61\b"):
        shapes(60)


def test_layers_and_counts():
    names = keras_zoo.our_names("googlenet", 224, top=True)
    assert names[:4] == ["conv1_pad", "conv1_7x7_s2", "pool1_3x3_s2", "pool1_norm1"]
    parts = ("1x1", "3x3_reduce", "3x3", "5x5_reduce", "5x5", "pool", "pool_proj", "output")
    assert {name for name in names if name.startswith("inception_4e")} == {f"inception_4e_{part}" for part in parts}
    assert names[-4:] == ["pool5_7x7_s1", "pool5_drop_7x7_s1", "loss3_classifier", "predictions"]
    assert keras_zoo.count("googlenet", top=True) == registry.get_spec("googlenet").num_params == 6_998_552
    assert keras_zoo.count("googlenet", top=False) == registry.get_spec("googlenet").num_params_no_top


def test_bfloat16(tmp_path):
    """Eight bits of a number: each of five layers in a row adds errors of 2**-9 of it."""
    both = onnx_zoo.pair("googlenet", "inception_v1", tmp_path / "x.onnx", 67, 67, top=False)
    layers = ("pool1_norm1", "conv2_norm2", "inception_3a_output")
    exact = onnx_zoo.ours(both, layers)
    coarse = onnx_zoo.ours(both._replace(model=both.model.clone(dtype=jnp.bfloat16)), layers)
    assert {array.dtype for array in coarse.values()} == {jnp.dtype(jnp.bfloat16)}
    keras_zoo.assert_equal(exact, {name: array.astype(jnp.float32) for name, array in coarse.items()}, 0.03)
