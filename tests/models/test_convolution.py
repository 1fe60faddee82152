"""The choice of convolutions on CPU, and those without Winograd's algorithm, compared with XLA's convolution."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers.compare import outputs_and_gradients, relative_error
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from flaxtl.models import convolution
from flaxtl.models.convolution import DIMENSION_NUMBERS

BATCH, INPUTS, OUTPUTS = 2, 24, 16


@pytest.mark.parametrize(
    ("size", "kernel_size", "strides", "padding"),
    [
        ((2, 2), 3, (1, 1), "SAME"),
        ((2, 7), 3, (2, 2), "SAME"),
        ((4, 3), 5, (2, 1), "SAME"),
        ((1, 2), 3, (1, 1), "SAME"),
        ((6, 5), 1, (1, 1), "SAME"),
        ((7, 6), 1, (2, 2), "SAME"),
        ((5, 8), 1, (2, 3), "VALID"),
    ],
)
def test_conv_of_small_image_or_one_pixel_is_a_product_and_equals_xla(size, kernel_size, strides, padding):
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(BATCH, *size, INPUTS)), jnp.float32)
    kernel = jnp.asarray(random.normal(size=(kernel_size, kernel_size, INPUTS, OUTPUTS)), jnp.float32)

    def xla(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=DIMENSION_NUMBERS)

    def own(x, kernel):
        return convolution.conv(x, kernel, strides=strides, padding=padding)

    def output_and_gradients(convolve, x, kernel):
        output, gradients = jax.vjp(convolve, x, kernel)
        return output, *gradients(jnp.ones_like(output))

    assert " convolution(" not in jax.jit(own).lower(x, kernel).compile().as_text()
    actual = jax.jit(lambda *arrays: output_and_gradients(own, *arrays))(x, kernel)
    expected = jax.jit(lambda *arrays: output_and_gradients(xla, *arrays))(x, kernel)
    for value, reference in zip(actual, expected, strict=True):
        assert (value.shape, value.dtype) == (reference.shape, jnp.float32)
        assert relative_error(value, reference) < 8 * 2.0**-24  # sums of up to 25 * 24 products in another order


@pytest.mark.parametrize(
    ("kernel_size", "strides", "padding"),
    [((3, 3), (1, 1), "SAME"), ((2, 5), (1, 2), "SAME"), ((4, 2), (1, 1), "VALID")],
)
def test_conv_with_few_outputs_has_one_row_and_equals_xla(kernel_size, strides, padding):
    random = np.random.default_rng(0)
    inputs, outputs = 24, 6
    shapes = [(BATCH, 8, 9, inputs)] * 2 + [(*kernel_size, inputs, outputs)] * 2
    x, dx, kernel, dkernel = (jnp.asarray(random.normal(size=shape), jnp.float32) for shape in shapes)

    def xla(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=DIMENSION_NUMBERS)

    def own(x, kernel):
        return convolution.conv(x, kernel, strides=strides, padding=padding)

    def output_and_derivatives(convolve):
        output, tangent = jax.jvp(convolve, (x, kernel), (dx, dkernel))
        return output, tangent, *jax.vjp(convolve, x, kernel)[1](jnp.ones_like(output))

    text = jax.jit(own).lower(x, kernel).as_text()
    assert f"tensor<1x{kernel_size[1]}x{inputs}x{kernel_size[0] * outputs}xf32>" in text
    for value, reference in zip(output_and_derivatives(own), output_and_derivatives(xla), strict=True):
        assert (value.shape, value.dtype) == (reference.shape, jnp.float32)
        assert relative_error(value, reference) < 8 * 2.0**-24  # sums of up to 10 * 24 products in another order
    half = own(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    assert relative_error(half, own(x, kernel)) < 2**-7  # inputs, kernel and output are rounded to 8 bits


def exported_text(platform, batch, width, channels, size=3, outputs=None, dtype=jnp.float32, **options):
    """Return the program of a convolution for a platform; nothing is compiled."""
    run = jax.jit(lambda x, kernel: convolution.conv(x, kernel, **options))
    inputs = channels // options.get("groups", 1)
    x = jax.ShapeDtypeStruct((batch, width, width, channels), dtype)
    kernel = jax.ShapeDtypeStruct((size, size, inputs, outputs or channels), dtype)
    return jax.export.export(run, platforms=[platform])(x, kernel).mlir_module()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "winograd"),
        ({"platform": "cuda"}, "XLA"),
        ({"platform": "tpu"}, "XLA"),
        ({"width": 12, "channels": 256}, "winograd"),
        ({"width": 12, "channels": 255}, "XLA"),  # too little work for so few channels
        ({"channels": 32, "batch": 1024}, "XLA"),  # too few channels
        ({"batch": 1}, "XLA"),  # too little work
        ({"batch": 1, "num_chunks": 32}, "winograd"),  # repeated often enough
        ({"batch": 4, "num_chunks": 8, "width": 32}, "winograd"),  # 2^27 products are enough in chunks
        ({"batch": 4, "num_chunks": 8, "width": 31}, "XLA"),
        ({"batch": 32, "width": 32}, "XLA"),
        ({"strides": (2, 2)}, "XLA"),
        ({"padding": "VALID"}, "XLA"),
        ({"groups": 2}, "XLA"),
    ],
)
def test_conv_uses_winograd_for_large_convolutions_on_cpu(options, expected):
    text = exported_text(**({"platform": "cpu", "batch": 32, "width": 200, "channels": 64} | options))
    assert ("winograd", "XLA")["stablehlo.convolution" in text] == expected


@pytest.mark.parametrize(
    ("options", "by_rows"),
    [
        ({}, True),
        ({"platform": "cuda"}, False),
        ({"platform": "tpu"}, False),
        ({"width": 1}, False),  # of one pixel XLA makes a product of matrices
        ({"outputs": 33}, False),  # the sum of rows would be larger than the images
        ({"strides": (2, 2)}, False),
    ],
)
def test_conv_computes_few_outputs_by_rows_on_cpu(options, by_rows):
    options = {"platform": "cpu", "batch": 2, "width": 8, "channels": 96, "outputs": 32} | options
    assert ("tensor<1x3x96x96xf32>" in exported_text(**options)) == by_rows


@pytest.mark.parametrize("size", [3, 1])
def test_conv_exports_any_batch_size_with_xla(size):
    (batch,) = jax.export.symbolic_shape("batch")
    assert "stablehlo.convolution" in exported_text("cpu", batch, 400, 128, size)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_conv_of_one_pixel_on_accelerators_is_left_to_xla(platform):
    assert "stablehlo.convolution" in exported_text(platform, 2, 8, 64, size=1)


@pytest.mark.parametrize("has_instructions", [True, False])
@pytest.mark.parametrize(("size", "kernel_size"), [(7, 3), (7, 1), (2, 3)])
def test_conv_multiplies_bfloat16_only_if_processor_does(monkeypatch, has_instructions, size, kernel_size):
    monkeypatch.setattr(convolution, "multiplies_bfloat16", lambda: has_instructions)
    monkeypatch.setattr(convolution, "MIN_PRODUCTS", {16: 1})
    random = np.random.default_rng(0)
    shapes = (BATCH, size, size, INPUTS), (kernel_size, kernel_size, INPUTS, OUTPUTS)
    arrays = [jnp.asarray(random.normal(size=shape), jnp.bfloat16) for shape in shapes]
    text = jax.jit(partial(convolution.conv)).lower(*arrays).as_text()  # a function of its own is traced anew
    multiplied = re.findall(r"dot_general .* : \(tensor<[^>]*x(\w+)>", text)
    assert ("bf16" in multiplied) == has_instructions
    outputs = convolution.conv(*arrays)
    exact = convolution.conv(*(array.astype(jnp.float32) for array in arrays))
    assert outputs.dtype == jnp.bfloat16
    # Outputs are rounded to 8 bits; if bfloat16 is multiplied, so are transformed inputs and kernels.
    assert relative_error(outputs, exact) < (2**-7 if has_instructions else 2**-9)


@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"strides": (2, 2)}])
@pytest.mark.parametrize(
    ("platform", "dtype", "is_separate"),
    [("cpu", jnp.bfloat16, True), ("cpu", jnp.float32, False), ("cuda", jnp.bfloat16, False)],
)
def test_conv_of_xla_is_separate_in_bfloat16_on_cpu(platform, dtype, is_separate, options):
    text = exported_text(platform, 2, 8, 64, dtype=dtype, **options)
    assert "stablehlo.convolution" in text
    assert ("optimization_barrier" in text) == is_separate


@pytest.mark.parametrize("reduce", [lambda y: nn.max_pool(y, (2, 2), (2, 2)), lambda y: y.mean((1, 2))])
def test_bfloat16_convolutions_below_a_reduction_equal_float32(reduce):
    """Without barriers, jaxlib 0.12 fuses both convolutions with the reduction, and returns wrong numbers."""
    random = np.random.default_rng(0)
    shapes = (BATCH, 64, 64, 3), (3, 3, 3, 64), (3, 3, 64, 64)
    arrays = [
        jnp.asarray(random.normal(size=shape) / math.sqrt(math.prod(shape[:-1])), jnp.bfloat16) for shape in shapes
    ]

    @jax.jit
    def run(x, first, second):
        return reduce(convolution.conv(convolution.conv(x, first, relu=True), second, relu=True))

    assert relative_error(run(*arrays), run(*(array.astype(jnp.float32) for array in arrays))) < 2**-7


DEVICE_CASES = {"winograd": (7, 3, 16), "one pixel": (7, 1, 16), "rows": (7, 3, 6), "small image": (2, 3, 8)}
"""Name -> (width and height, those of the kernel, outputs)."""


@pytest.fixture(params=DEVICE_CASES)
def conv_case(monkeypatch, request):
    """Return images, kernel, bias and gradient of the outputs, for each way to compute a convolution on CPU."""
    monkeypatch.setattr(convolution, "MIN_PRODUCTS", {16: 1})
    size, kernel_size, outputs = DEVICE_CASES[request.param]
    shapes = (BATCH, size, size, INPUTS), (kernel_size, kernel_size, INPUTS, outputs), (outputs,)
    random = np.random.default_rng(0)
    return [jnp.asarray(random.normal(size=shape), jnp.float32) for shape in (*shapes, (BATCH, size, size, outputs))]


def conv_and_gradients(x, kernel, bias, dy):
    return outputs_and_gradients(partial(convolution.conv, relu=True), x, kernel, bias, dy=dy)


def assert_equal_but_for_rounding(values, expected):
    for value, reference in zip(values, expected, strict=True):
        assert value.shape == reference.shape
        assert relative_error(value, reference) < 8 * 2.0**-24  # XLA may add up to 9 * 24 products in another order


def test_conv_on_mesh_with_explicit_axes_equals_no_mesh(conv_case):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))
    split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    arrays = jax.device_put(conv_case, [split, whole, whole, split])
    values, expected = (jax.jit(conv_and_gradients)(*each) for each in (arrays, conv_case))
    assert_equal_but_for_rounding(values, expected)
    assert [value.sharding.is_equivalent_to(split, value.ndim) for value in values[:2]] == [True, True]


def test_conv_of_images_on_no_mesh_and_kernel_on_mesh_equals_no_mesh(conv_case):
    images, kernel = (np.asarray(array) for array in conv_case[:2])
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))
    replicated = jax.device_put(kernel, NamedSharding(mesh, PartitionSpec()))
    outputs = jax.jit(convolution.conv)(images, replicated), jax.jit(convolution.conv)(images, kernel)
    assert_equal_but_for_rounding(*([output] for output in outputs))


@pytest.mark.parametrize("varying", [0, 1, 2])
def test_conv_in_shard_map_equals_no_mesh(conv_case, varying):
    """Images, kernel or bias differ between devices: the gradients of the others are sums over the devices."""
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    split, whole = PartitionSpec("data"), PartitionSpec()
    specs = [split if index == varying else whole for index in range(3)]
    run = jax.shard_map(conv_and_gradients, mesh=mesh, in_specs=(*specs, split), out_specs=(split, *specs))
    assert_equal_but_for_rounding(jax.jit(run)(*conv_case), jax.jit(conv_and_gradients)(*conv_case))
