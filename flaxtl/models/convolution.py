"""Fast convolutions on CPU, where XLA's are slow.

Kernels of one pixel: XLA computes most of them on one core, so one product of matrices.

Few outputs: XLA uses one core, so the rows of the kernel become outputs of one convolution with a single row.

Images smaller than the kernel: XLA's own convolution then takes tens of times as long, so one product of matrices, too.

Large 3x3 convolutions: Winograd's algorithm, see `winograd`.

bfloat16 on processors that have no instructions for it: XLA emulates them, so its matrices are multiplied in float32.

bfloat16 in XLA's convolutions: a barrier keeps two of them apart, because jaxlib 0.12 fuses them to wrong results.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import export, lax

from flaxtl.models.winograd import winograd
from flaxtl.parallel.host import multiplies_bfloat16

DIMENSION_NUMBERS = ("NHWC", "HWIO", "NHWC")

CONV_VERSION = "winograd-4, small-1, pointwise-2, rows-1, apart-1, chunks-1"
"""Changes with the arithmetic of `conv` and `infer`, so that cached features of another version are not used."""

MIN_PRODUCTS = {256: 2**27, 64: 2**30}
"""Channels on both sides -> fewest products of a kernel element in a call (pixels of the batch * inputs * outputs).
Winograd takes a second to compile, far longer than XLA's convolution. From here on it saves about 10 ms of processor
time a call, or more. With fewer channels the transforms cost more of what is saved; with less than 64, all of it."""

MIN_PRODUCTS_IN_CHUNKS = {64: 2**27}
"""The same for a batch in chunks: their tiles stay in the cache, so that Winograd saves more."""

MAX_SERIAL_OUTPUTS = 64
"""XLA uses one core for a convolution with up to as many outputs (jax 0.10.2; not if there are only 16)."""

Padding = Sequence[tuple[int, int]]
"""Zeros above and below, left and right."""

Pair = tuple[jax.Array, jax.Array]


def conv(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    strides: tuple[int, int] = (1, 1),
    padding: str = "SAME",
    groups: int = 1,
    relu: bool = False,
    num_chunks: int = 1,
) -> jax.Array:
    """Convolve images. On CPU a large 3x3 convolution of stride 1 uses Winograd's algorithm.

    There it has no forward-mode derivatives (`jax.jvp`). Kernels of one pixel, and images smaller than the kernel, are
    one product of matrices; convolutions with few outputs are computed by rows of the kernel.

    Args:
      x: [batch, height, width, inputs], float32 or bfloat16.
      kernel: [height, width, inputs / groups, outputs], of the same dtype.
      bias: [outputs], of the same dtype; None for none.
      strides: (vertical, horizontal).
      padding: 'SAME' or 'VALID'.
      groups: number of groups of channels that are convolved separately.
      relu: replace negative outputs by zero.
      num_chunks: number of batches like `x` that the program convolves; more of them repay a longer compilation.

    Returns:
      [batch, height, width, outputs] of the same dtype.
    """

    def finish(y: jax.Array, bias: jax.Array | None) -> jax.Array:
        y = y if bias is None else y + lax.broadcast_to_rank(bias, y.ndim)
        return jax.nn.relu(y) if relu else y

    def xla_conv(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
        return finish(_convolve(x, kernel, strides, padding, feature_group_count=groups), bias)

    def separate_conv(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
        # XLA of jaxlib 0.12.0.1 passes conv, relu, conv, relu and a pool or a mean to YNNPACK as one operation. Its
        # outputs are wrong: mostly NaN, or numbers near 1e38.
        output: jax.Array = lax.optimization_barrier(xla_conv(x, kernel, bias))
        return output

    def pointwise_conv(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
        return finish(_multiply_pixels(x, kernel, strides), bias)

    def rows_conv(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
        output: jax.Array = _sum_rows(x, kernel, strides[1], padding)
        return finish(output, bias)

    def small_conv(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
        return finish(_multiply_patches(x, kernel, strides, padding), bias)

    def winograd_conv(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
        zeros = jnp.where(False, kernel[0, 0, 0], 0)  # on the kernel's mesh, unlike jnp.zeros
        arrays = _vary_alike(x, kernel, zeros if bias is None else bias)
        output: jax.Array = winograd(*_to_products(*arrays), relu)
        return output.astype(x.dtype)

    plain_conv = separate_conv if x.dtype == jnp.bfloat16 else xla_conv
    if groups > 1 or export.is_symbolic_dim(x.shape[0]):  # symbolic: an exported program, for batches of any size
        cpu_conv = plain_conv
    elif kernel.shape[:2] == (3, 3) and strides == (1, 1) and padding == "SAME" and _is_large(x, kernel, num_chunks):
        cpu_conv = winograd_conv
    elif kernel.shape[:2] == (1, 1):
        cpu_conv = pointwise_conv
    elif _is_smaller_than_kernel(x, kernel):
        cpu_conv = small_conv
    elif strides[0] == 1 and _has_few_outputs(x, kernel):
        cpu_conv = rows_conv
    else:
        cpu_conv = plain_conv
    if cpu_conv is xla_conv:  # the same on every platform
        return xla_conv(x, kernel, bias)
    output: jax.Array = lax.platform_dependent(x, kernel, bias, cpu=cpu_conv, default=xla_conv)
    return output


def _vary_alike(*arrays: jax.Array) -> list[jax.Array]:
    """Let all arrays vary over the same axes of `jax.shard_map`, as the carries of loops and their inputs have to."""
    axes = [jax.typeof(array).manual_axis_type.varying for array in arrays]
    all_axes = frozenset().union(*axes)
    return [lax.pcast(array, tuple(all_axes - own), to="varying") for array, own in zip(arrays, axes, strict=True)]


def _convolve(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: str | Padding, **options: Any
) -> jax.Array:
    """Return XLA's convolution."""
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=DIMENSION_NUMBERS, **options)


def _is_smaller_than_kernel(x: jax.Array, kernel: jax.Array) -> bool:
    """Return whether images have fewer rows or columns than the kernel, but more than one pixel.

    XLA makes products of matrices for single pixels itself.
    """
    size = x.shape[1:3]
    is_smaller = any(length < reach for length, reach in zip(size, kernel.shape[:2], strict=True))
    return is_smaller and size != (1, 1)


def _multiply_pixels(x: jax.Array, kernel: jax.Array, strides: tuple[int, int]) -> jax.Array:
    """Return the convolution with a kernel of one pixel, without bias."""
    pixels = x[:, :: strides[0], :: strides[1]]
    return _multiply(pixels, kernel[0, 0])


def _multiply_patches(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: str) -> jax.Array:
    """Return the convolution without bias: the pixels that an output needs, side by side, times all weights."""
    height, width, _, outputs = kernel.shape
    pads = lax.padtype_to_pads(x.shape[1:3], (height, width), strides, padding)
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    last_row, last_column = padded.shape[1] - height, padded.shape[2] - width
    patches = [
        padded[:, i : i + last_row + 1 : strides[0], j : j + last_column + 1 : strides[1]]
        for i in range(height)
        for j in range(width)
    ]
    return _multiply(jnp.concatenate(patches, axis=-1), kernel.reshape(-1, outputs))


def _multiply(pixels: jax.Array, weights: jax.Array) -> jax.Array:
    """[batch, rows, columns, inputs] times [inputs, outputs], of the dtype of `pixels`."""
    products = jnp.dot(*_to_products(pixels, weights), preferred_element_type=jnp.float32)
    return products.astype(pixels.dtype)


def _to_products(*arrays: jax.Array) -> list[jax.Array]:
    """Convert bfloat16 arrays to float32 if the processor multiplies these faster."""
    is_slow = arrays[0].dtype == jnp.bfloat16 and not multiplies_bfloat16()
    return [array.astype(jnp.float32) for array in arrays] if is_slow else list(arrays)


def _has_few_outputs(x: jax.Array, kernel: jax.Array) -> bool:
    """Return whether XLA would use one core, and what `_sum_rows` has to add up is no larger than its inputs."""
    rows, _, inputs, outputs = kernel.shape
    return 1 < rows <= x.shape[1] and rows * outputs <= inputs and outputs <= MAX_SERIAL_OUTPUTS


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _sum_rows(x: jax.Array, kernel: jax.Array, column_stride: int, padding: str) -> jax.Array:
    """Return the convolution with vertical stride 1, without bias: the sum of those with each row of the kernel.

    They are the channels of one convolution, because XLA divides channels among the cores.
    """
    rows, columns, inputs, outputs = kernel.shape
    pads = lax.padtype_to_pads(x.shape[1:3], (rows, columns), (1, column_stride), padding)
    row = kernel.transpose(1, 2, 0, 3).reshape(1, columns, inputs, rows * outputs)
    products = _convolve(x, row, (1, column_stride), pads, preferred_element_type=jnp.float32)
    height = products.shape[1] - rows + 1
    parts = [products[:, i : i + height, :, i * outputs : (i + 1) * outputs] for i in range(rows)]
    return sum(parts[1:], start=parts[0]).astype(x.dtype)


@_sum_rows.defjvp
def _differentiate_rows(column_stride: int, padding: str, primals: Pair, tangents: Pair) -> Pair:
    """Differentiate XLA's convolution, because the gradient of one with a single row takes ten times as long."""
    (x, kernel), (dx, dkernel) = primals, tangents
    strides = (1, column_stride)
    tangent = _convolve(dx, kernel, strides, padding) + _convolve(x, dkernel, strides, padding)
    return _sum_rows(x, kernel, column_stride, padding), tangent


def _is_large(x: jax.Array, kernel: jax.Array, num_chunks: int) -> bool:
    """Return whether Winograd's algorithm saves more time than it takes to compile."""
    batch, height, width, inputs = x.shape
    outputs = kernel.shape[3]
    products = num_chunks * batch * height * width * inputs * outputs
    min_products = MIN_PRODUCTS if num_chunks == 1 else MIN_PRODUCTS_IN_CHUNKS
    return any(min(inputs, outputs) >= channels and products >= least for channels, least in min_products.items())
