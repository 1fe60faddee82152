"""Winograd's algorithm on CPU, with tiles of both sizes, compared with XLA's convolution."""

import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.compare import outputs_and_gradients, relative_error

from flaxtl.models import winograd
from flaxtl.models.winograd import LARGE_TILES, SMALL_TILES

BATCH, INPUTS, OUTPUTS = 2, 24, 16

own_conv = partial(winograd.winograd, relu=True)


def xla_conv(x, kernel, bias):
    y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jax.nn.relu(y + bias)


def random_arrays(height, width, dtype, batch=BATCH):
    """Return images, a kernel, a bias and the gradient with respect to the outputs; all of unit variance."""
    random = np.random.default_rng(height)
    kernel, outputs = (3, 3, INPUTS, OUTPUTS), (batch, height, width, OUTPUTS)
    shapes = (batch, height, width, INPUTS), kernel, (OUTPUTS,), outputs
    return tuple(jnp.asarray(random.normal(size=shape), dtype) for shape in shapes)


def with_gradients(convolve):
    return jax.jit(lambda x, kernel, bias, dy: outputs_and_gradients(convolve, x, kernel, bias, dy=dy))


@pytest.mark.parametrize("tiling", [SMALL_TILES, LARGE_TILES])
def test_tiling_in_one_dimension_is_a_correlation(tiling):
    random = np.random.default_rng(0)
    inputs, kernel = random.normal(size=tiling.size + 2), random.normal(size=3)
    products = tiling.kernel_transform @ kernel * tiling.transform_inputs(inputs)
    # Up to six terms with factors of up to 6, from float64 values
    np.testing.assert_allclose(tiling.sum_products(products), np.correlate(inputs, kernel), rtol=0, atol=1e-14)


@pytest.mark.parametrize("tiling", [SMALL_TILES, LARGE_TILES])
def test_tiling_spreads_outputs_by_the_transpose_of_the_sum(tiling):
    size = tiling.size + 2
    sums = np.array(tiling.sum_products(np.eye(size)))
    assert sums.shape == (tiling.size, size)
    np.testing.assert_array_equal(np.array(tiling.spread_outputs(np.eye(tiling.size))), sums.T)


@pytest.mark.parametrize(
    ("dtype", "batch", "size", "expected"),
    [
        (jnp.float32, 4, 25, LARGE_TILES),  # 4 * 7 * 7 tiles, as many as MIN_TILES
        (jnp.float32, 4, 24, SMALL_TILES),
        (jnp.float32, 22, 12, LARGE_TILES),  # 22 * 3 * 3
        (jnp.float32, 21, 12, SMALL_TILES),
        (jnp.bfloat16, 32, 200, SMALL_TILES),
    ],
)
def test_choose_tiling_large_tiles_need_float32_and_many_tiles(dtype, batch, size, expected):
    assert winograd._choose_tiling(jax.ShapeDtypeStruct((batch, size, size, 64), dtype)) is expected


SIZES = (8, 6, 2), (1, 1, 2), (2, 3, 1)


@pytest.mark.parametrize(("tiling", "num_roundings"), [(SMALL_TILES, 8), (LARGE_TILES, 32)])
@pytest.mark.parametrize(
    ("height", "width", "batch"), [(7, 9, 3), *(pytest.param(*size, marks=pytest.mark.slow) for size in SIZES)]
)
def test_winograd_and_gradients_equal_xla(monkeypatch, tiling, num_roundings, height, width, batch):
    monkeypatch.setattr(winograd, "_choose_tiling", lambda x: tiling)
    monkeypatch.setattr(winograd, "CHUNK_SIZE", 1)
    monkeypatch.setattr(winograd, "MIN_TILES", 1)  # one row of tiles at a time
    arrays = random_arrays(height, width, jnp.float32, batch)
    actual, expected = with_gradients(own_conv)(*arrays), with_gradients(xla_conv)(*arrays)
    # Sums of up to 9 * 24 products in another order; the factors of large tiles enlarge the values that are rounded.
    for value, reference in zip(actual, expected, strict=True):
        assert (value.shape, value.dtype) == (reference.shape, jnp.float32)
        assert relative_error(value, reference) < num_roundings * 2.0**-24


@pytest.mark.slow
def test_winograd_sums_bfloat16_products_in_float32(monkeypatch):
    monkeypatch.setattr(winograd, "CHUNK_SIZE", 1)
    monkeypatch.setattr(winograd, "MIN_TILES", 2 * BATCH * 3)  # two rows of tiles at a time
    arrays = random_arrays(7, 5, jnp.bfloat16)
    values = with_gradients(own_conv)(*arrays)
    exact = with_gradients(xla_conv)(*(array.astype(jnp.float32) for array in arrays))
    assert {value.dtype for value in values} == {np.dtype(jnp.bfloat16)}
    # Transformed inputs, transformed kernel and outputs are each rounded to 8 bits.
    assert relative_error(values[0], exact[0]) < 2**-7


@pytest.mark.slow
def test_winograd_with_vmap_equals_one_call_each():
    x, kernel, bias, _ = random_arrays(4, 5, jnp.float32)
    many = jnp.stack([x, 2 * x])
    expected = np.stack([own_conv(images, kernel, bias) for images in many])
    assert relative_error(jax.vmap(own_conv, (0, None, None))(many, kernel, bias), expected) < 8 * 2.0**-24


SPLIT_BATCH = """
import re, sys, jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from flaxtl.models import convolution, winograd

convolution.MIN_PRODUCTS, winograd.CHUNK_SIZE = {8: 1}, 1
winograd.MIN_TILES = int(sys.argv[3])
axis_type, in_shard_map = AxisType[sys.argv[1]], sys.argv[2] == "shard_map"
mesh = jax.make_mesh((2,), ("data",), axis_types=(axis_type,))
specs = PartitionSpec(), PartitionSpec("data")
whole, split = (NamedSharding(mesh, spec) for spec in specs)

def loss(kernel, x):
    return (convolution.conv(x, kernel, relu=True) ** 2).sum()

random = np.random.default_rng(0)
arrays = [jnp.asarray(random.normal(size=shape), jnp.float32) for shape in ((3, 3, 8, 8), (4, 6, 6, 8))]
gradients = jax.grad(loss, argnums=(0, 1))
expected = jax.jit(gradients)(*arrays)
if in_shard_map:
    gradients = jax.shard_map(gradients, mesh=mesh, in_specs=specs, out_specs=specs)
arrays = jax.device_put(arrays, [whole, split])
program = jax.jit(gradients, out_shardings=(whole, split)).lower(*arrays).compile()
for value, reference in zip(program(*arrays), expected):
    np.testing.assert_allclose(value, reference, rtol=0, atol=2e-6 * np.abs(reference).max())
print(re.findall(r" (all-\\w+|collective-\\w+|reduce-scatter)\\(", program.as_text()))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [("Auto", "jit", "1"), ("Explicit", "jit", "1"), ("Auto", "shard_map", "1"), ("Auto", "jit", "17")],  # small tiles
)
def test_winograd_keeps_a_split_batch_on_its_devices(arguments):
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, "-c", SPLIT_BATCH, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["['all-reduce']"], done.stderr  # of the kernel's gradient, after the loop
