"""Pretrained weights under a new head, and `flaxtl convert`."""

import math
import re
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import keras_zoo, tiny_run
from safetensors.numpy import load_file

from flaxtl.errors import UserError
from flaxtl.models import registry
from flaxtl.models.classifier import Classifier
from flaxtl.pretrained import backbone, loader
from flaxtl.pretrained.backbone import convert_weights_file, expected_shapes, headless_model, optional_layers
from flaxtl.pretrained.loader import load_weights
from flaxtl.train.feature_cache import param_digests
from flaxtl.train.setup import build_model

KERAS_FILE = Path(__file__).parents[3] / "shared" / "weights" / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
BUILTIN_FILE = backbone.BUILTIN_DIR / "vgg16_notop.safetensors"


def initial_params(**changes):
    config = tiny_run.config("unused", **changes)
    return backbone.initial_params(config, build_model(config, 3).model, notify=lambda text: None)


def section(params, name):
    return {path: value for path, value in params.items() if path.startswith(name)}


def test_random_params_are_a_function_of_the_seed():
    first, again, other = initial_params(), initial_params(), initial_params(seed=4)
    assert first.source == "random"
    assert {value.dtype.name for value in first.params.values()} == {"float32"}
    assert param_digests(first.params) == param_digests(again.params)
    kernels = [path for path in first.params if path.endswith("kernel")]
    assert len(kernels) == 6
    assert all(not np.array_equal(first.params[path], other.params[path]) for path in kernels)


def test_initial_params_put_builtin_base_under_new_head():
    initial = initial_params(weights={"path": "builtin"})
    assert "vgg16_notop.safetensors" in initial.source
    assert {path.split("/")[1] for path in section(initial.params, "backbone")} == {
        "block1_conv1",
        "block1_conv2",
        "block2_conv1",
        "block2_conv2",
    }
    kernel = initial.params["backbone/block2_conv1/kernel"]
    stored = load_file(BUILTIN_FILE)  # int8, with a scale per output channel
    expected = stored["block2_conv1/kernel"].astype(np.float32) * stored["block2_conv1/kernel.scale"]
    assert kernel.dtype == np.float32
    assert np.array_equal(kernel, expected)
    head = section(initial.params, "head")
    assert {path: value.shape for path, value in head.items()} == {
        "head/dense_1/bias": (8,),
        "head/dense_1/kernel": (128, 8),
        "head/predictions/bias": (3,),
        "head/predictions/kernel": (8, 3),
    }
    for layer, (inputs, outputs) in {"dense_1": (128, 8), "predictions": (8, 3)}.items():
        kernel, limit = np.asarray(head[f"head/{layer}/kernel"]), math.sqrt(6 / (inputs + outputs))
        assert 0.8 * limit < np.abs(kernel).max() <= limit  # Glorot uniform, Keras' default
        assert not np.any(head[f"head/{layer}/bias"])
    other = section(initial_params(weights={"path": "builtin"}, seed=4).params, "head")
    assert not np.array_equal(head["head/dense_1/kernel"], other["head/dense_1/kernel"])


def test_layers_of_a_file_that_the_model_lacks_are_reported():
    messages = []
    for path in ("builtin", str(BUILTIN_FILE)):
        config = tiny_run.config("unused", weights={"path": path})
        backbone.initial_params(config, build_model(config, 3).model, messages.append)
    (text,) = messages  # about the file of the user only
    assert re.match(r"vgg16_notop.safetensors: block3_conv1, block3_conv2, .* and 4 more not loaded\b", text)


def test_initial_params_with_builtin_weights_fit_the_whole_vgg16():
    initial = initial_params(
        weights={"path": "builtin"},
        param_groups=(),
        model={"name": "vgg16", "output_layer": ""},
        frozen={"lr": {"head": 0.1, "block5": 0.0, "base": 0.0}},
        finetune={"lr": {"head": 0.1, "block5": 0.1, "base": 0.0}},
    )
    assert len(section(initial.params, "backbone")) == 26
    assert sum(value.size for value in section(initial.params, "backbone").values()) == 14_714_688


@pytest.mark.skipif(not KERAS_FILE.is_file(), reason="needs Keras' own VGG16 file")
def test_initial_params_from_keras_file_match_builtin_weights():
    initial = initial_params(weights={"path": str(KERAS_FILE)})
    assert KERAS_FILE.name in initial.source
    path = "backbone/block2_conv1/kernel"
    builtin = initial_params(weights={"path": "builtin"}).params[path]
    scale = load_file(BUILTIN_FILE)["block2_conv1/kernel.scale"]
    # int8 rounds to multiples of the scale: an error of at most half of it, plus float32 rounding of 127 of them
    assert np.all(np.abs(initial.params[path] - builtin) <= scale * (0.5 + 127 * 2.0**-23))


def test_initial_params_from_missing_file_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"none\.h5"):
        initial_params(weights={"path": str(tmp_path / "none.h5")})


def test_expected_shapes_are_those_of_the_published_model():
    shapes = expected_shapes(Classifier(registry.get_spec("vgg16")))
    assert sum(math.prod(shape) for leaves in shapes.values() for shape in leaves.values()) == 138_357_544
    assert optional_layers(registry.get_spec("vgg16")) == set(shapes)


@pytest.mark.parametrize(
    "name",
    [
        "mobilenet_025",
        pytest.param("efficientnet_b0", marks=pytest.mark.slow),
        *(
            pytest.param(name, marks=pytest.mark.exhaustive("networks"))
            for name in ("inception_v3", "nasnet_mobile", "mobilenet_v3_small_100", "resnet50_v2", "xception")
        ),
    ],
)
def test_convert_keeps_every_array_with_and_without_top(name, tmp_path, monkeypatch):
    """Batch statistics included, from both layouts that Keras writes."""
    monkeypatch.setattr(loader, "trial_read", lambda path: None)  # a process for each of the files
    spec = registry.get_spec(name)
    whole = keras_zoo.keras_network(name, spec.input_size, include_top=True)
    last, optional = keras_zoo.layer_names(name, spec.input_size, include_top=False)[-1], optional_layers(spec)
    base = keras.Model(whole.input, whole.get_layer(last).output)
    for network, model in ((whole, Classifier(spec)), (base, headless_model(spec))):
        expected = expected_shapes(model)
        for save in (keras_zoo.save_legacy, keras_zoo.save_keras3):
            source, output = save(network, tmp_path / "source.h5"), tmp_path / "output.safetensors"
            convert_weights_file(name, source, output)
            converted = load_weights(output, expected).params  # nothing is optional: an extra layer would be an error
            original = load_weights(source, expected, optional, trusted=True).params
            np.testing.assert_equal(converted, original)
            assert {leaf for leaves in converted.values() for leaf in leaves} >= {"mean", "var"}
