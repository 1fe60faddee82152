import math
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_run
from safetensors.numpy import load_file

from flaxtl.errors import UserError
from flaxtl.models import registry
from flaxtl.models.classifier import Classifier
from flaxtl.pretrained import backbone
from flaxtl.train.feature_cache import param_digests
from flaxtl.train.setup import build_model

KERAS_FILE = Path(__file__).parents[3] / "shared" / "weights" / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"


def start(**changes):
    config = tiny_run.config("unused", **changes)
    return backbone.initial_params(config, build_model(config, classes=3).model, notify=lambda text: None)


def layers(params, section):
    return {path: value for path, value in params.items() if path.startswith(section)}


def test_random_parameters_are_a_function_of_the_seed():
    first, again, other = start(), start(), start(seed=4)
    assert first.source == "random"
    assert {value.dtype.name for value in first.params.values()} == {"float32"}
    assert param_digests(first.params) == param_digests(again.params)
    kernels = [path for path in first.params if path.endswith("kernel")]
    assert len(kernels) == 6
    assert all(not np.array_equal(first.params[path], other.params[path]) for path in kernels)


def test_a_pretrained_base_comes_under_a_fresh_head():
    found = start(weights={"path": "builtin"})
    assert "vgg16_notop.safetensors" in found.source
    assert {path.split("/")[1] for path in layers(found.params, "backbone")} == {
        "block1_conv1",
        "block1_conv2",
        "block2_conv1",
        "block2_conv2",
    }
    kernel = found.params["backbone/block2_conv1/kernel"]
    stored = load_file(backbone.BUILTIN_DIR / "vgg16_notop.safetensors")  # whole numbers and a scale per output channel
    expected = stored["block2_conv1/kernel"].astype(np.float32) * stored["block2_conv1/kernel.scale"]
    assert kernel.dtype == np.float32
    assert np.array_equal(kernel, expected)
    head = layers(found.params, "head")
    assert {path: value.shape for path, value in head.items()} == {
        "head/dense_1/bias": (8,),
        "head/dense_1/kernel": (128, 8),
        "head/predictions/bias": (3,),
        "head/predictions/kernel": (8, 3),
    }
    for layer, (inputs, outputs) in {"dense_1": (128, 8), "predictions": (8, 3)}.items():
        kernel, limit = np.asarray(head[f"head/{layer}/kernel"]), math.sqrt(6 / (inputs + outputs))
        assert 0.8 * limit < np.abs(kernel).max() <= limit  # Glorot, uniform: Keras' own start
        assert not np.any(head[f"head/{layer}/bias"])
    other = layers(start(weights={"path": "builtin"}, seed=4).params, "head")
    assert not np.array_equal(head["head/dense_1/kernel"], other["head/dense_1/kernel"])


def test_the_whole_base_of_the_package_fits():
    deeper = start(
        weights={"path": "builtin"},
        param_groups=(),
        model={"name": "vgg16", "output_layer": ""},
        frozen={"lr": {"head": 0.1, "block5": 0.0, "base": 0.0}},
        finetune={"lr": {"head": 0.1, "block5": 0.1, "base": 0.0}},
    )
    assert len(layers(deeper.params, "backbone")) == 26
    assert sum(value.size for value in layers(deeper.params, "backbone").values()) == 14_714_688


@pytest.mark.skipif(not KERAS_FILE.is_file(), reason="needs Keras' own VGG16 file")
def test_a_file_of_keras_fits():
    found = start(weights={"path": str(KERAS_FILE)})
    assert KERAS_FILE.name in found.source
    ours = start(weights={"path": "builtin"}).params
    path = "backbone/block2_conv1/kernel"
    scale = load_file(backbone.BUILTIN_DIR / "vgg16_notop.safetensors")["block2_conv1/kernel.scale"]
    # the package's file rounds to whole multiples of the scale: half of it away, and a float32 rounding of 127 of them
    assert np.all(np.abs(found.params[path] - ours[path]) <= scale * (0.5 + 127 * 2.0**-23))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"none\.h5"):
        start(weights={"path": str(tmp_path / "none.h5")})


def test_expected_shapes_are_those_of_the_published_network():
    whole = backbone.expected_shapes(Classifier(registry.get_spec("vgg16")))
    count = sum(math.prod(shape) for leaves in whole.values() for shape in leaves.values())
    assert count == 138_357_544
    assert backbone.optional_layers(registry.get_spec("vgg16")) == set(whole)
