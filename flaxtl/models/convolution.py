"""Fast convolutions on CPU, where XLA's are slow.

Kernels of one pixel: XLA computes most of them on one core, so one product of matrices.

Few outputs: XLA uses one core, so the rows of the kernel become outputs of one convolution with a single row.

Images smaller than the kernel: XLA's own convolution then takes tens of times as long, so one product of matrices, too.

Large 3x3 convolutions: Winograd's F(2x2, 3x3), with 16 products for every 2x2 outputs instead of 36.

Winograd 1980; Lavin and Gray 2015, arXiv:1509.09308. A tile of 4x4 inputs `d` and a kernel `k` give 2x2 outputs,
A^T ((G k G^T) * (B^T d B)) A, where the product of the two 4x4 matrices is summed over the input channels: 16 products
of matrices for all tiles together. The transforms only add, subtract and halve, so float32 stays accurate.

XLA's own convolution on CPU computes bfloat16 in float32. Products of bfloat16 matrices with float32 sums use the
processor's bfloat16 instructions, if it has any.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export, lax
from jax.sharding import NamedSharding, auto_axes

DIMENSION_NUMBERS = ("NHWC", "HWIO", "NHWC")

CONV_VERSION = "winograd-2, small-1, pointwise-1, rows-1, chunks-1"
"""Changes with the arithmetic of `conv` and `infer`, so that cached features of another version are not used."""

MIN_PRODUCTS = {256: 2**27, 64: 2**30}
"""Channels on both sides -> fewest products of a kernel element in a call (pixels of the batch * inputs * outputs).
Winograd takes a second to compile, far longer than XLA's convolution. From here on it saves about 10 ms of processor
time a call, or more. With fewer channels the transforms cost more of what is saved; with less than 64, all of it."""

MAX_SERIAL_OUTPUTS = 64
"""XLA uses one core for a convolution with up to as many outputs (jax 0.10.2; not if there are only 16)."""

CHUNK_SIZE = 1_300_000
"""Input values that are transformed at a time, so that their products are still in the cache when they are added."""

_KERNEL_TRANSFORM = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
"""G of Lavin and Gray, section 4.1."""

_KERNEL_TRANSFORM_2D = np.einsum("ai,bj->abij", _KERNEL_TRANSFORM, _KERNEL_TRANSFORM).reshape(16, 9)

Padding = Sequence[tuple[int, int]]
"""Zeros above and below, left and right."""

Pair = tuple[jax.Array, jax.Array]
Vector = list[jax.Array]
Matrix = list[list[jax.Array]]
"""A small matrix for each tile and channel; its elements are arrays [batch, rows, columns, channels]."""


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
        y = y if bias is None else y + bias
        return jax.nn.relu(y) if relu else y

    def xla_conv(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
        return finish(_convolve(x, kernel, strides, padding, feature_group_count=groups), bias)

    def pointwise_conv(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
        return finish(_multiply_pixels(x, kernel, strides), bias)

    def rows_conv(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
        output: jax.Array = _sum_rows(x, kernel, strides[1], padding)
        return finish(output, bias)

    def small_conv(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
        return finish(_multiply_patches(x, kernel, strides, padding), bias)

    def winograd_conv(x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
        zeros = jnp.where(False, kernel[0, 0, 0], 0)  # on the kernel's mesh, unlike jnp.zeros
        output: jax.Array = winograd(*_vary_alike(x, kernel, zeros if bias is None else bias), relu)
        return output

    if groups > 1 or export.is_symbolic_dim(x.shape[0]):  # symbolic: an exported program, for batches of any size
        return xla_conv(x, kernel, bias)
    if kernel.shape[:2] == (3, 3) and strides == (1, 1) and padding == "SAME" and _is_large(x, kernel, num_chunks):
        cpu_conv = winograd_conv
    elif kernel.shape[:2] == (1, 1):
        cpu_conv = pointwise_conv
    elif _is_smaller_than_kernel(x, kernel):
        cpu_conv = small_conv
    elif strides[0] == 1 and _has_few_outputs(x, kernel):
        cpu_conv = rows_conv
    else:
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
    return _multiply(pixels, kernel[0, 0]).astype(x.dtype)


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
    products = jnp.dot(
        jnp.concatenate(patches, axis=-1), kernel.reshape(-1, outputs), preferred_element_type=jnp.float32
    )
    return products.astype(x.dtype)


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
    return any(min(inputs, outputs) >= channels and products >= least for channels, least in MIN_PRODUCTS.items())


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def winograd(x: jax.Array, kernel: jax.Array, bias: jax.Array, relu: bool) -> jax.Array:
    """Convolve [batch, height, width, inputs] with a kernel [3, 3, inputs, outputs], stride 1, padding 'SAME'.

    It runs through the rows of all images, a few at a time. Images are never regrouped, so that a batch that is split
    over devices stays split. The bias [outputs] is added, and negative outputs are replaced, while a row is in the
    cache.
    """
    y = jax.eval_shape(lambda: _convolve(x, kernel, (1, 1), "SAME") + bias)
    return _split_by_xla(partial(_convolve_tiles, relu=relu), y.sharding)(x, kernel, bias)


def _split_by_xla(function: Callable[..., jax.Array], sharding: NamedSharding | None) -> Callable[..., jax.Array]:
    """Let XLA choose how `function` splits arrays over the explicit axes of a mesh; `sharding` is that of its output.

    With explicit axes, JAX refuses reshapes between images and tiles, which merge or split several axes.
    """
    axes = sharding.mesh.explicit_axes if sharding is not None else ()
    return auto_axes(function, axes=axes, out_sharding=sharding) if axes else function


def _convolve_tiles(x: jax.Array, kernel: jax.Array, bias: jax.Array, relu: bool) -> jax.Array:
    """Return what `winograd` returns, on devices or on meshes without explicit axes."""
    _, height, width, inputs = x.shape
    outputs = kernel.shape[3]
    chunks = _Chunks.of(x)
    weights = jnp.dot(_KERNEL_TRANSFORM_2D, kernel.astype(jnp.float32).reshape(9, -1))
    weights = weights.reshape(4, 4, inputs, outputs).astype(x.dtype)
    padded = lax.optimization_barrier(chunks.pad(x))

    def convolve_chunk(index: jax.Array, y: jax.Array) -> jax.Array:
        tiles = _transform_inputs(chunks.tiles(padded, index, x.dtype))
        products = [[_multiply(tiles[i][j].astype(x.dtype), weights[i, j]) for j in range(4)] for i in range(4)]
        rows = _interleave(_transform(_sum_products, products))[:, :, :width].astype(x.dtype) + bias
        rows = _as_bits(jnp.maximum(rows, 0) if relu else rows)
        return lax.dynamic_update_slice_in_dim(y, rows, chunks.first_row(index), axis=1)

    # Every value is overwritten. A start that depends on the padded images keeps XLA from reserving the memory of the
    # outputs of all layers at once, and frees that of the images. Each image starts from its own, on its own device.
    y = jnp.broadcast_to(padded[:, :1, :1, :1], (len(x), chunks.padded_height, width, outputs))
    y = lax.fori_loop(0, chunks.number, convolve_chunk, y)
    return _from_bits(y[:, :height], x.dtype)


Saved = tuple[jax.Array, jax.Array, jax.Array]


def _winograd_forward(x: jax.Array, kernel: jax.Array, bias: jax.Array, relu: bool) -> tuple[jax.Array, Saved]:
    y = winograd(x, kernel, bias, relu)
    return y, (x, kernel, y)


def _winograd_backward(relu: bool, saved: Saved, dy: jax.Array) -> Saved:
    """Return the gradients with respect to the inputs, the kernel and the bias.

    The first is a convolution with the reversed kernel. The products of the second are those of the tiles of inputs and
    outputs.
    """
    x, kernel, y = saved
    dy = jnp.where(y > 0, dy, 0) if relu else dy
    no_bias = jnp.zeros_like(kernel, shape=kernel.shape[2])
    dx = winograd(dy, kernel[::-1, ::-1].swapaxes(2, 3), no_bias, False)
    dbias = dy.sum((0, 1, 2), dtype=jnp.float32).astype(dy.dtype)
    sharding = NamedSharding(jax.typeof(dy).sharding.mesh, jax.typeof(kernel).sharding.spec)
    dkernel = _split_by_xla(_kernel_gradient, sharding)(x, dy)
    return dx, dkernel.astype(kernel.dtype), dbias


winograd.defvjp(_winograd_forward, _winograd_backward)


def _kernel_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
    """Return the gradient with respect to the kernel, float32 [3, 3, inputs, outputs].

    Each device sums the products of its own images: the sums of groups of images are added up at the end.
    """
    inputs, outputs = x.shape[3], dy.shape[3]
    chunks = _Chunks.of(x)
    padded_x, padded_dy = chunks.pad(x), chunks.pad(dy)
    groups = math.gcd(len(x), jax.device_count())

    def add_chunk(index: jax.Array, total: jax.Array) -> jax.Array:
        tiles = _transform_inputs(chunks.tiles(padded_x, index, x.dtype))
        grads = _transform(_spread_outputs, chunks.outputs(padded_dy, index, dy.dtype))
        products = jnp.stack(
            [_multiply_groups(tiles[i][j], grads[i][j], groups) for i in range(4) for j in range(4)], 1
        )
        return total + jnp.einsum("ak,gab->gkb", _KERNEL_TRANSFORM_2D, products.reshape(groups, 16, -1))

    total = jnp.zeros_like(x, jnp.float32, (groups, 9, inputs * outputs))  # with the varying axes of x
    total = lax.fori_loop(0, chunks.number, add_chunk, total)
    return jnp.sum(total, axis=0).reshape(3, 3, inputs, outputs)


class _Chunks(NamedTuple):
    """How the rows of a batch of images [batch, height, width, channels] are divided."""

    number: int
    tile_rows: int  # of one chunk; each has two rows of outputs
    height: int
    width: int

    @classmethod
    def of(cls, x: jax.Array) -> "_Chunks":
        batch, height, width, channels = x.shape
        all_rows = -(-height // 2)
        number = -(-all_rows // max(1, CHUNK_SIZE // (2 * batch * width * channels)))
        return cls(number, -(-all_rows // number), height, width)

    @property
    def padded_height(self) -> int:
        return 2 * self.number * self.tile_rows

    @property
    def tile_columns(self) -> int:
        return -(-self.width // 2)

    def first_row(self, index: jax.Array) -> jax.Array:
        return 2 * self.tile_rows * index

    def pad(self, x: jax.Array) -> jax.Array:
        """Add a row of zeros at the top, and at the bottom so many that all tiles are complete."""
        return jnp.pad(_as_bits(x), ((0, 0), (1, 1 + self.padded_height - self.height), (0, 0), (0, 0)))

    def tiles(self, padded: jax.Array, index: jax.Array, dtype: jnp.dtype) -> Matrix:
        """Return the 4x4 inputs of the tiles of a chunk, float32."""
        rows = lax.dynamic_slice_in_dim(padded, self.first_row(index), 2 * self.tile_rows + 2, axis=1)
        return self._every_second(rows, 4, (1, 1 + self.width % 2), dtype)

    def outputs(self, padded: jax.Array, index: jax.Array, dtype: jnp.dtype) -> Matrix:
        """Return the 2x2 outputs of the tiles of a chunk, float32."""
        rows = lax.dynamic_slice_in_dim(padded, self.first_row(index) + 1, 2 * self.tile_rows, axis=1)
        return self._every_second(rows, 2, (0, self.width % 2), dtype)

    def _every_second(self, rows: jax.Array, size: int, border: tuple[int, int], dtype: jnp.dtype) -> Matrix:
        # Padding the columns here and not all at once makes XLA copy the chunk, which its transforms read many times.
        rows = _from_bits(jnp.pad(rows, ((0, 0), (0, 0), border, (0, 0))), dtype).astype(jnp.float32)
        height, width = 2 * self.tile_rows - 1, 2 * self.tile_columns - 1
        return [[rows[:, i : i + height : 2, j : j + width : 2] for j in range(size)] for i in range(size)]


def _transform(vector_transform: Callable[[Vector], Vector], matrix: Sequence[Vector]) -> Matrix:
    """Transform the columns of a matrix, then its rows."""
    columns = [vector_transform(list(column)) for column in zip(*matrix, strict=True)]
    return [vector_transform(list(row)) for row in zip(*columns, strict=True)]


def _transform_inputs(tiles: Matrix) -> Matrix:
    return _transform(lambda d: [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]], tiles)  # B^T d


def _sum_products(m: Vector) -> Vector:
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]  # A^T m


def _spread_outputs(y: Vector) -> Vector:
    return [y[0], y[0] + y[1], y[0] - y[1], -y[1]]  # A y


def _multiply(pixels: jax.Array, weights: jax.Array) -> jax.Array:
    """[batch, rows, columns, inputs] times [inputs, outputs], float32."""
    return lax.dot_general(pixels, weights, (((3,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def _multiply_groups(tiles: jax.Array, grads: jax.Array, groups: int) -> jax.Array:
    """Return the sum over the tiles of each group of images, float32 [groups, inputs, outputs]."""
    left, right = (array.reshape(groups, -1, array.shape[3]) for array in (tiles, grads))
    return lax.dot_general(left, right, (((1,), (1,)), ((0,), (0,))))


def _interleave(outputs: Matrix) -> jax.Array:
    """Put the 2x2 outputs of each tile side by side: [batch, 2 * rows, 2 * columns, channels]."""
    batch, rows, columns, channels = outputs[0][0].shape
    stacked = jnp.stack([jnp.stack(row, axis=3) for row in outputs], axis=2)
    return stacked.reshape(batch, 2 * rows, 2 * columns, channels)


def _as_bits(x: jax.Array) -> jax.Array:
    """Return bfloat16 as integers, because XLA moves bfloat16 on CPU by way of float32; float32 stays as it is."""
    return lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def _from_bits(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return lax.bitcast_convert_type(x, dtype) if x.dtype == jnp.uint16 else x
