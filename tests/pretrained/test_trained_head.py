"""Weight files with a trained head: it is loaded if it fits, skipped if it is the published top, or else an error."""

import re

import jax
import numpy as np
import pytest

import flaxtl
from flaxtl.errors import UserError
from flaxtl.models import registry
from flaxtl.models.classifier import Classifier, param_shapes
from flaxtl.models.head import Head
from flaxtl.pretrained import safetensors_io
from flaxtl.pretrained.merge import StoredTensor
from flaxtl.pretrained.trained_head import merge_with_head

BACKBONE = {"conv": {"kernel": (3, 3, 3, 4), "bias": (4,)}}
HIDDEN = {"dense_1": {"kernel": (4, 8), "bias": (8,)}, "predictions": {"kernel": (8, 5), "bias": (5,)}}
LINEAR = {"predictions": {"kernel": (4, 5), "bias": (5,)}}
TOP = {"fc1": {"kernel": (4, 6), "bias": (6,)}, "predictions": {"kernel": (6, 1000), "bias": (1000,)}}


def draw(shapes, seed=0):
    """Return layer -> leaf -> random array of these shapes."""
    rng = np.random.default_rng(seed)
    return {
        layer: {leaf: rng.standard_normal(shape, np.float32) for leaf, shape in leaves.items()}
        for layer, leaves in shapes.items()
    }


def merge(file, head):
    """Return what is loaded from a file with arrays of these shapes, and these arrays."""
    arrays = draw(file)
    layers = {
        layer: {leaf: StoredTensor(f"{layer}/{leaf}", "float32", values) for leaf, values in leaves.items()}
        for layer, leaves in arrays.items()
    }
    return merge_with_head(layers, BACKBONE, head, published=BACKBONE | TOP, source="x.h5"), arrays


@pytest.mark.parametrize("head", [LINEAR, HIDDEN, TOP], ids=["linear", "hidden", "as the published top"])
def test_merge_with_head_loads_a_head_of_the_same_shapes(head):
    params, arrays = merge(head | BACKBONE, head)
    assert params.keys() == BACKBONE.keys() | head.keys()
    np.testing.assert_equal(params, arrays)


@pytest.mark.parametrize("head", [{}, LINEAR])
@pytest.mark.parametrize("top", [{}, TOP, {"predictions": TOP["predictions"]}], ids=["none", "whole", "last layer"])
def test_merge_with_head_skips_the_published_top(head, top):
    params, arrays = merge(BACKBONE | top, head)
    np.testing.assert_equal(params, {"conv": arrays["conv"]})


@pytest.mark.parametrize(
    ("file", "head", "facts"),
    [
        (LINEAR, {}, ("x.h5", "5 classes", "predictions (4, 5)", "none", "skip_layers='predictions'")),
        (LINEAR, HIDDEN, ("predictions (4, 5)", "dense_1 (4, 8), predictions (8, 5)", "skip_layers='predictions'")),
        (HIDDEN, LINEAR, ("dense_1 (4, 8), predictions (8, 5)", "(4, 5)", "skip_layers='dense_1|predictions'")),
        (TOP | LINEAR, HIDDEN, ("5 classes (predictions (4, 5))", "num_classes, units", "skip_layers='predictions'")),
        (
            {"my.head": {"kernel": (4, 5)}},
            LINEAR,
            ("trained head (my.head (4, 5))", "Only", "'predictions' is loaded: leave", r"skip_layers='my\\.head'"),
        ),
    ],
)
def test_merge_with_another_head_says_how_to_load_it(file, head, facts):
    with pytest.raises(UserError, match=".*".join(map(re.escape, facts))) as caught:
        merge(BACKBONE | file, head)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "line"),
    [
        (LINEAR, "- conv/kernel (3, 3, 3, 4)"),
        (BACKBONE | LINEAR | {"conv2": {"kernel": (3, 3, 4, 4)}}, "+ conv2/kernel (3, 3, 4, 4)"),
    ],
)
def test_merge_with_head_reports_another_backbone_first(file, line):
    with pytest.raises(UserError, match=r"x\.h5 does not fit the model") as caught:
        merge(file, HIDDEN)
    assert line in str(caught.value)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return a file of MobileNet under a linear head of 5 classes, and its arrays."""
    shapes = param_shapes(Classifier(registry.get_spec("mobilenet_025"), Head(5, "global_average", ())), 32, 32)
    arrays = draw(shapes["backbone"] | shapes["head"])
    path = tmp_path_factory.mktemp("exported") / "model.safetensors"
    safetensors_io.write_safetensors(path, arrays, {})
    return path, arrays


def test_create_model_loads_the_trained_head_of_a_file(exported):
    path, arrays = exported
    _, variables = flaxtl.create_model("mobilenet_025", 5, path, input_size=32)
    params, batch_stats = variables["params"], variables["batch_stats"]
    np.testing.assert_equal(params["head"], {"predictions": arrays["predictions"]})
    np.testing.assert_array_equal(params["backbone"]["conv_pw_13"]["kernel"], arrays["conv_pw_13"]["kernel"])
    np.testing.assert_array_equal(batch_stats["backbone"]["conv1_bn"]["var"], arrays["conv1_bn"]["var"])


def test_create_model_copies_loaded_arrays_in_one_program(tmp_path, caplog):
    head = Head(7, "global_average", (13,))  # its shapes occur in no other test
    shapes = param_shapes(Classifier(registry.get_spec("mobilenet_025"), head), 32, 32)
    safetensors_io.write_safetensors(tmp_path / "x", draw(shapes["backbone"] | shapes["head"]), {})
    with jax.log_compiles():
        flaxtl.create_model("mobilenet_025", 7, tmp_path / "x", input_size=32, units=(13,))
    messages = [record.getMessage() for record in caplog.records if record.msg.startswith("Compiling")]
    assert ["[13,7]" in message for message in messages if "[256,13]" in message] == [True]


def test_create_model_skip_layers_leaves_out_the_trained_head(exported):
    path, arrays = exported
    _, new = flaxtl.create_model("mobilenet_025", 3, path, skip_layers="predictions", input_size=32)
    assert new["params"]["head"]["predictions"]["kernel"].shape == (256, 3)
    _, features = flaxtl.create_model("mobilenet_025", None, path, skip_layers="predictions", input_size=32)
    for variables in (new, features):
        kernel = variables["params"]["backbone"]["conv_pw_13"]["kernel"]
        np.testing.assert_array_equal(kernel, arrays["conv_pw_13"]["kernel"])
    assert features["params"].keys() == {"backbone"}


@pytest.mark.parametrize("options", [{"num_classes": 3}, {"num_classes": 5, "units": (8,)}, {}])
def test_create_model_refuses_a_trained_head_that_does_not_fit(exported, options):
    with pytest.raises(UserError, match=r"model\.safetensors holds a trained head with 5 classes.*skip_layers='pred"):
        flaxtl.create_model("mobilenet_025", weights=exported[0], input_size=32, **options)
