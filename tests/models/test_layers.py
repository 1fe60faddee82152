"""The sum over a kernel's places that stands for XLA's convolution on CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtl.models import layers
from flaxtl.models.layers import LAYOUT


def library(x, kernel, strides, padding):
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=LAYOUT, feature_group_count=x.shape[-1]
    )


def drawn(height, width, channels, rows, columns, dtype=jnp.float32):
    random = np.random.default_rng(height)
    x = random.normal(size=(2, height, width, channels)).astype(np.float32)
    return jnp.asarray(x, dtype), jnp.asarray(random.normal(size=(rows, columns, 1, channels)), dtype)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (2, 1)])
@pytest.mark.parametrize("shape", [(9, 7, 5, 3, 3), (8, 10, 3, 5, 5), (6, 7, 2, 1, 4), (5, 5, 4, 5, 5)])
def test_it_is_the_library_s_convolution_with_its_gradients(shape, strides, padding):
    x, kernel = drawn(*shape)

    def squares(convolve, x, kernel):
        return (convolve(x, kernel, strides, padding) ** 2).sum()

    ours, theirs = (convolve(x, kernel, strides, padding) for convolve in (layers.depthwise, library))
    assert ours.shape == theirs.shape
    # Up to 25 products of normal numbers, added up in another order.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=25 * 2.0**-22)
    for found, expected in zip(
        *(jax.grad(squares, argnums=(1, 2))(convolve, x, kernel) for convolve in (layers.depthwise, library)),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_bfloat16_is_added_up_in_float32():
    x, kernel = drawn(9, 9, 4, 5, 5, jnp.bfloat16)
    exact = library(x.astype(jnp.float32), kernel.astype(jnp.float32), (1, 1), "SAME")
    found = layers.depthwise(x, kernel, (1, 1), "SAME")
    assert found.dtype == jnp.bfloat16
    # Rounded once, at the end: half a unit in the last of 8 places.
    np.testing.assert_allclose(found.astype(np.float32), exact, rtol=2.0**-8, atol=25 * 2.0**-22)


def test_other_platforms_are_given_the_library_s():
    x, kernel = drawn(9, 7, 5, 3, 3)
    run = jax.jit(lambda x, kernel: layers.depthwise(x, kernel, (1, 1), "SAME"))
    texts = [jax.export.export(run, platforms=[platform])(x, kernel).mlir_module() for platform in ("cpu", "cuda")]
    assert ["stablehlo.convolution" in text for text in texts] == [False, True]
