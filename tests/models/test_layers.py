"""The sum over a kernel's positions that replaces XLA's convolution on CPU, and the ranks of operands."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtl.models import layers, registry
from flaxtl.models.classifier import (
    Classifier,
    flatten_params,
    forward,
    list_layers,
    param_shapes,
    unflatten_params,
)
from flaxtl.models.head import Head
from flaxtl.models.layers import DIMENSION_NUMBERS


def xla_conv(x, kernel, strides, padding):
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=DIMENSION_NUMBERS, feature_group_count=x.shape[-1]
    )


def random_inputs(height, width, channels, rows, columns, dtype=jnp.float32):
    random = np.random.default_rng(height)
    x = random.normal(size=(2, height, width, channels)).astype(np.float32)
    return jnp.asarray(x, dtype), jnp.asarray(random.normal(size=(rows, columns, 1, channels)), dtype)


FAST = (
    ((9, 7, 5, 3, 3), (1, 1), "SAME"),
    ((8, 10, 3, 5, 5), (2, 2), "SAME"),
    ((5, 5, 4, 5, 5), (2, 1), "VALID"),
)
ALL = tuple(
    itertools.product(
        ((9, 7, 5, 3, 3), (8, 10, 3, 5, 5), (6, 7, 2, 1, 4), (5, 5, 4, 5, 5)),
        ((1, 1), (2, 2), (2, 1)),
        ("SAME", "VALID"),
    )
)


@pytest.mark.parametrize(
    ("shape", "strides", "padding"),
    [*FAST, *(pytest.param(*case, marks=pytest.mark.slow) for case in ALL if case not in FAST)],
)
def test_depthwise_conv_and_gradients_equal_xla(shape, strides, padding):
    x, kernel = random_inputs(*shape)

    @jax.jit
    def outputs_and_gradients(x, kernel):
        def squares(x, kernel, convolve):
            output = convolve(x, kernel, strides, padding)
            return (output**2).sum(), output

        run = jax.grad(squares, argnums=(0, 1), has_aux=True)
        return run(x, kernel, layers.depthwise_conv), run(x, kernel, xla_conv)

    (gradients, output), (expected_gradients, expected) = outputs_and_gradients(x, kernel)
    assert output.shape == expected.shape
    # Up to 25 products of normal numbers, summed in another order.
    np.testing.assert_allclose(output, expected, rtol=0, atol=25 * 2.0**-22)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_depthwise_conv_sums_bfloat16_in_float32():
    x, kernel = random_inputs(9, 9, 4, 5, 5, jnp.bfloat16)
    exact = xla_conv(x.astype(jnp.float32), kernel.astype(jnp.float32), (1, 1), "SAME")
    output = layers.depthwise_conv(x, kernel, (1, 1), "SAME")
    assert output.dtype == jnp.bfloat16
    # Rounded once, at the end, to 8 bits.
    np.testing.assert_allclose(output.astype(np.float32), exact, rtol=2.0**-8, atol=25 * 2.0**-22)


def test_depthwise_conv_uses_xla_on_other_platforms():
    x, kernel = random_inputs(9, 7, 5, 3, 3)
    run = jax.jit(lambda x, kernel: layers.depthwise_conv(x, kernel, (1, 1), "SAME"))
    texts = [jax.export.export(run, platforms=[platform])(x, kernel).mlir_module() for platform in ("cpu", "cuda")]
    assert ["stablehlo.convolution" in text for text in texts] == [False, True]


def test_layers_and_their_gradients_need_no_rank_promotion():
    """`jax_numpy_rank_promotion=raise` is a setting of users who look for mistakes in code of their own."""

    def build(net, x, include_top):
        x = net.conv(net.conv(x, 64, 3), 64, 3)  # the second by Winograd's algorithm
        x = net.separable_conv(net.depthwise_conv(x, 3, use_bias=True), 8, 3)
        x = net.layer_scale(net.layer_norm(net.batch_norm(x)), name="layer_scale")
        x = net.local_response_norm(x, name="lrn")
        tokens = net.position_embedding(net.class_token(x, name="token"), x, (64, 64), name="positions")
        return net.first_token(net.attention(tokens, tokens, tokens, 2, name="attention"), name="first")

    spec = replace(registry.get_spec("resnet50_v2"), build=build, preprocessing="torch")
    model = Classifier(spec, Head(3, "none", (8,), 0.5, "standardize"))
    layers = frozenset(layer.name for layer in list_layers(model, 64, 64))

    def loss(params, images):
        keys = jax.random.split(jax.random.key(0), len(images))
        return forward(model, params, images, train_layers=layers, dropout_keys=keys).logits.sum()

    shapes = param_shapes(model, 64, 64)
    params = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in flatten_params(shapes).items()}
    images = jax.ShapeDtypeStruct((64, 64, 64, 3), jnp.uint8)
    with jax.numpy_rank_promotion("raise"):
        jax.eval_shape(jax.grad(loss), unflatten_params(params), images)
