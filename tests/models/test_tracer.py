"""The graph of layers. Their order is compared with Keras in test_keras_parity.py."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from flaxtl.errors import UserError
from flaxtl.models import classifier, registry
from flaxtl.models.classifier import Classifier
from flaxtl.models.head import Head
from flaxtl.models.tracer import OPERATION, Layer, cut_points, keras_order


def layer(name, *inputs, kind="conv"):
    return Layer("backbone", name, kind, (1,), inputs)


def test_keras_order_leaves_out_operations():
    layers = [
        layer("a"),
        layer("b", "a"),
        layer("plus", "b", kind=OPERATION),
        layer("times", "plus", "a", kind=OPERATION),
        layer("c", "times"),
    ]
    assert [(layer.name, layer.inputs) for layer in keras_order(layers)] == [
        ("a", ()),
        ("b", ("a",)),
        ("c", ("b", "a")),
    ]


def test_cut_points_are_not_inside_branches():
    layers = [
        layer("stem"),
        layer("left", "stem"),
        layer("right", "stem"),
        layer("add", "left", "right"),
        layer("inside", "add"),
        layer("out", "inside", "add"),
        layer("head", "out"),
    ]
    assert cut_points(layers) == ["stem", "add", "out", "head"]


def test_backbone_with_a_name_of_the_head_is_a_user_error():
    def build(net, x, include_top):
        return net.dropout(net.conv(x, 4, 3, name="conv"), 0.5)

    model = Classifier(replace(registry.get_spec("vgg16"), build=build), Head(3, "global_average", ()))
    with pytest.raises(UserError, match=r"Two layers are named 'dropout'; the second is in the head\."):
        classifier.list_layers(model, 32, 32)


def test_cut_points_with_two_layers_that_read_the_images():
    assert cut_points([layer("a"), layer("b"), layer("add", "a", "b")]) == ["add"]


WHOLE_NETWORK = pytest.mark.exhaustive("networks")


@pytest.mark.parametrize(
    ("name", "output_layer"),
    [
        ("mobilenet_v3_small_100", "expanded_conv_2_add"),
        pytest.param("mobilenet_v3_small_100", None, marks=WHOLE_NETWORK),
        pytest.param("xception", None, marks=WHOLE_NETWORK),
    ],
)
def test_network_can_start_at_cut_points_only(name, output_layer):
    spec = registry.get_spec(name)
    model = Classifier(spec, Head(3, "global_average"), output_layer=output_layer)
    layers = classifier.list_layers(model, spec.min_input_size, spec.min_input_size)
    base = [layer for layer in layers if layer.section == "backbone"]
    assert [name for name in cut_points(layers) if name in {layer.name for layer in base}] == [
        layer.name for layer in base if can_start(model, layer)
    ]


def can_start(model, layer):
    features = jax.ShapeDtypeStruct((1, *layer.shape), jnp.float32)
    try:
        jax.eval_shape(lambda key, x: model.init(key, x, start=layer.name), jax.random.key(0), features)
    except UserError:
        return False
    return True
