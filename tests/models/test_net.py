"""Partial execution of a network: start, stop, taps and perturbations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flaxtl.errors import UserError
from flaxtl.models import classifier, registry
from flaxtl.models.classifier import Classifier, forward
from flaxtl.models.head import Head
from flaxtl.models.net import Net
from flaxtl.models.tracer import SKIPPED

VGG16 = registry.get_spec("vgg16")
LAYERS = [layer.name for layer in classifier.list_layers(Classifier(VGG16, Head(3, "global_average")), 32, 32)]
BASE = LAYERS[: LAYERS.index("block5_pool") + 1]


class Network(nn.Module):
    """Run `architecture` on a net and return the net."""

    architecture: object

    @nn.compact
    def __call__(self, net, x):
        net.begin_section("backbone")
        self.architecture(net, x)
        return net


def run(architecture, x, **settings):
    """Return a net that has run `architecture`, and the variables that it created."""
    net = Net(start_value=x if "start" in settings else None, **settings)
    return Network(architecture).init_with_output(jax.random.key(0), net, SKIPPED if "start" in settings else x)


def chain(net, x):
    x = net.conv(x, 4, 3, act="relu", name="first")
    x = net.max_pool(x, 2, name="pool")
    return net.conv(x, 5, 3, name="second")


def residual(net, x):
    """Two convolutions of one input, added; then one more layer."""
    x = net.conv(x, 4, 3, name="stem")
    left = net.conv(x, 4, 3, name="left")
    right = net.conv(x, 4, 3, name="right")
    x = net._layer("add", "add", jnp.add, left, right)
    return net.conv(x, 4, 3, name="after")


def repeated(net, x):
    x = net.conv(x, 4, 3, name="same")
    return net.conv(x, 4, 3, name="same")


X = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def vgg16():
    """The first two blocks of VGG16 under a head."""
    model = Classifier(VGG16, Head(3, "global_average"), output_layer="block2_pool")
    generator = np.random.default_rng(0)
    shapes = classifier.param_shapes(model, 32, 32)
    params = jax.tree.map(lambda shape: draw(generator, shape), shapes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    return model, params, generator.integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)


def draw(generator, shape):
    scale = np.sqrt(2 / np.prod(shape[:-1])) if len(shape) > 1 else 1.0  # He: activations keep their size
    return generator.standard_normal(shape, np.float32) * np.float32(scale)


def test_stop_then_start_equals_the_whole_network(vgg16):
    """Layer by layer outside of jit, where each operation is computed separately, in the same way in both."""
    model, params, images = vgg16
    cuts = ("block1_conv1", "block1_pool", "block2_conv1", "block2_pool")
    whole = forward(model, params, images, taps=cuts)
    assert np.ptp(whole.logits) > 0
    for layer in cuts:
        below = forward(model, params, images, stop=layer)
        np.testing.assert_array_equal(below.output, whole.taps[layer], err_msg=layer)
        above = forward(model, params, below.output, start=layer)
        np.testing.assert_array_equal(above.logits, whole.logits, err_msg=layer)
        np.testing.assert_array_equal(above.output, whole.output, err_msg=layer)


@pytest.mark.parametrize("layer", ["block1_conv1", "block2_pool", "block4_conv2"])
def test_skipped_layers_create_no_params(layer):
    model = Classifier(VGG16, Head(3, "global_average"))
    shape = next(found.shape for found in classifier.list_layers(model, 32, 32) if found.name == layer)
    below = created(model, (1, 32, 32, 3), stop=layer)
    above = created(model, (1, *shape), start=layer)
    end = BASE.index(layer) + 1
    assert below == [name for name in BASE[:end] if "conv" in name]
    assert above == [*(name for name in BASE[end:] if "conv" in name), "dense_1", "predictions"]


def created(model, shape, **cuts):
    tree = jax.eval_shape(lambda key, x: model.init(key, x, **cuts), jax.random.key(0), np.zeros(shape, np.float32))
    return [name for layers in tree["params"].values() for name in layers]


def test_layers_are_recorded_in_order_with_shapes():
    net, variables = run(chain, X)
    assert net.layers == [
        ("backbone", "first", "conv", (8, 8, 4), ()),
        ("backbone", "pool", "max pool", (4, 4, 4), ("first",)),
        ("backbone", "second", "conv", (4, 4, 5), ("pool",)),
    ]
    assert list(variables["params"]) == ["first", "second"]


def test_taps_return_outputs_by_name():
    net, variables = run(chain, X, taps=("second", "first"))
    assert net.tapped.keys() == {"first", "second"}
    np.testing.assert_array_equal(net.tapped["second"], net.output)
    kernel, bias = variables["params"]["first"]["kernel"], variables["params"]["first"]["bias"]
    corner = np.maximum(np.einsum("byxc,yxcf->bf", X[:, :2, :2], kernel[1:, 1:]) + bias, 0)
    np.testing.assert_allclose(
        net.tapped["first"][:, 0, 0], corner, rtol=1e-6, atol=1e-6
    )  # sums of 12 float32 products


def test_tap_that_does_not_run_is_an_error(vgg16):
    model, params, images = vgg16
    with pytest.raises(UserError, match=r"'block2_pool'.*\bstop=block1_pool\b"):
        forward(model, params, images, stop="block1_pool", taps=("block2_pool",))
    features = forward(model, params, images, stop="block1_pool").output
    with pytest.raises(UserError, match=r"'block1_conv1'.*\bstart=block1_pool\b"):
        forward(model, params, features, start="block1_pool", taps=("block1_conv1",))


def test_start_above_stop_is_an_error(vgg16):
    model, params, images = vgg16
    features = forward(model, params, images, stop="block2_pool").output
    with pytest.raises(UserError, match=r"'block2_pool'.*\bstart=block2_pool\b.*\bstop=block1_pool\b"):
        forward(model, params, features, start="block2_pool", stop="block1_pool")


def test_start_equal_to_stop_returns_the_input(vgg16):
    model, params, images = vgg16
    features = forward(model, params, images, stop="block2_pool").output
    same = forward(model, params, features, start="block2_pool", stop="block2_pool")
    np.testing.assert_array_equal(same.output, features)
    assert same.logits is None


@pytest.mark.parametrize("cut", [{"start": "block2_convv1"}, {"stop": "block2_convv1"}, {"taps": ("block2_convv1",)}])
def test_unknown_layer_suggests(vgg16, cut):
    model, params, images = vgg16
    with pytest.raises(UserError, match=r"'block2_convv1'.*'block2_conv1'"):
        jax.eval_shape(lambda: forward(model, params, images, **cut))


def test_perturbation_is_tapped_and_passed_on():
    """Outside of jit, operation by operation, so bit for bit."""
    taps = ("left", "right", "add")
    plain, moved = (
        run(residual, X, taps=taps, perturbations=added)[0].tapped for added in ({}, {"left": np.ones((2, 8, 8, 4))})
    )
    np.testing.assert_array_equal(moved["left"], plain["left"] + 1)
    np.testing.assert_array_equal(moved["right"], plain["right"])
    np.testing.assert_array_equal(moved["add"], (plain["left"] + 1) + plain["right"])


def test_gradient_of_perturbation_is_that_of_the_layer(vgg16):
    """Outside of jit, operation by operation, so bit for bit."""
    model, params, images = vgg16
    features = forward(model, params, images, stop="block2_conv2").output

    def from_there(features):
        return forward(model, params, features, start="block2_conv2").logits[:, 0].sum()

    def with_added(zeros):
        return forward(model, params, images, perturbations={"block2_conv2": zeros}).logits[:, 0].sum()

    found = jax.grad(with_added)(np.zeros_like(features))
    np.testing.assert_array_equal(found, jax.grad(from_there)(features))
    assert np.any(found)


def test_perturbation_of_unknown_layer_suggests(vgg16):
    model, params, images = vgg16
    with pytest.raises(UserError, match=r"'block2_con2'.*'block2_conv2'"):
        forward(model, params, images, perturbations={"block2_con2": np.zeros(())})


def test_duplicate_layer_name_is_an_error():
    with pytest.raises(UserError, match="'same'"):
        run(repeated, X)


@pytest.mark.parametrize("start", ["left", "right"])
def test_start_inside_a_branch_is_an_error(start):
    given = run(residual, X, stop=start)[0].output
    with pytest.raises(UserError, match=f"'{start}'.*'add'"):
        run(residual, given, start=start)


@pytest.mark.parametrize("start", ["stem", "add", "after"])
def test_start_at_a_cut_point_equals_the_whole_network(start):
    whole, variables = run(residual, X)
    assert [layer.name for layer in whole.layers] == ["stem", "left", "right", "add", "after"]
    given = Network(residual).apply(variables, Net(stop=start), X).output
    rest = Network(residual).apply(variables, Net(start=start, start_value=given), SKIPPED)
    np.testing.assert_array_equal(rest.output, whole.output)


def test_dense_softmax_keeps_float32_logits():
    def architecture(net, x):
        return net.dense(net.flatten(x, name="flatten"), 6, act="softmax", name="predictions")

    net, variables = run(architecture, X, dtype=jnp.bfloat16)
    assert net.logits.dtype == net.output.dtype == jnp.float32
    assert variables["params"]["predictions"]["kernel"].dtype == jnp.float32
    np.testing.assert_allclose(net.output, jax.nn.softmax(net.logits), rtol=1e-6)  # float32 exp and sum, twice
    # Not rounded to bfloat16 on the way: the loss needs the difference of large logits.
    assert not np.array_equal(net.logits, net.logits.astype(jnp.bfloat16))


@pytest.mark.parametrize("kind", ["max_pool", "average_pool"])
def test_pools_drop_incomplete_windows(kind):
    x = np.arange(2 * 5 * 3, dtype=np.float32).reshape(2, 5, 3, 1)
    windows = x[:, :4, :2].reshape(2, 2, 2, 1, 2, 1)
    expected = windows.max((2, 4)) if kind == "max_pool" else windows.mean((2, 4))
    net, _ = run(lambda net, x: getattr(net, kind)(x, 2, name="pool"), x)
    np.testing.assert_array_equal(net.output, expected)
