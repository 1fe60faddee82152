"""Winograd's algorithm on CPU: 3x3 convolutions of stride 1 with a fraction of the products.

Winograd 1980; Lavin and Gray 2015, arXiv:1509.09308. A tile of inputs `d` and a kernel `k` give a tile of outputs,
A^T ((G k G^T) * (B^T d B)) A, where the product of the two square matrices is summed over the input channels: one
product of matrices for each of their elements, for all tiles together.

Tiles of 4x4 outputs, F(4x4, 3x3), take 36 products instead of 144; tiles of 2x2, F(2x2, 3x3), 16 instead of 36. The
rounding errors of the former are about four times those of a sum of products, 1e-6 of the outputs (root mean square).
In bfloat16 that would be too much, so it is computed with small tiles. Their transforms only add, subtract and halve.

XLA's own convolution on CPU computes bfloat16 in float32. Products of bfloat16 matrices with float32 sums use the
processor's bfloat16 instructions; if it has none, `convolution` converts images to float32 first.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax
from jax.sharding import NamedSharding, auto_axes

CHUNK_SIZE = 1_300_000
"""Input values that are transformed at a time, so that their products are still in the cache when they are added."""

MIN_TILES = 196
"""Fewest tiles to transform at a time: the weights are read from memory for each product. With fewer tiles of 4x4
outputs, the 36 matrices of weights take longer than they save; 25x25 outputs of four images have as many."""

Vector = list[jax.Array]
"""A column, a row, or all elements row by row of a small matrix for each tile and channel."""


class Tiling(NamedTuple):
    """F(size x size, 3x3): the tiles, and their transforms, which apply to a column or a row of a tile at a time.

    Attributes:
      size: rows and columns of the outputs of a tile; the inputs have two more.
      kernel_transform: G, float64 [size + 2, 3].
      transform_inputs: d -> B^T d.
      sum_products: m -> A^T m.
      spread_outputs: y -> A y, for the gradient with respect to the kernel.
      stores_columns: whether to store transformed columns before the rows are transformed, because each is read often.
    """

    size: int
    kernel_transform: npt.NDArray[np.float64]
    transform_inputs: Callable[[Vector], Vector]
    sum_products: Callable[[Vector], Vector]
    spread_outputs: Callable[[Vector], Vector]
    stores_columns: bool

    @property
    def kernel_transform_2d(self) -> npt.NDArray[np.float32]:
        """The matrix that transforms a kernel of 9 elements, [(size + 2)**2, 9]."""
        return np.kron(self.kernel_transform, self.kernel_transform).astype(np.float32)


SMALL_TILES = Tiling(  # Lavin and Gray, section 4.1
    size=2,
    kernel_transform=np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]),
    transform_inputs=lambda d: [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]],
    sum_products=lambda m: [m[0] + m[1] + m[2], m[1] - m[2] - m[3]],
    spread_outputs=lambda y: [y[0], y[0] + y[1], y[0] - y[1], -y[1]],
    stores_columns=False,
)

A, B = 5 / 8, 3 / 2
"""F(4x4, 3x3) interpolates polynomials at 0, A, -A, B, -B and infinity. Of the numbers tried, these have the smallest
rounding errors."""


def _kernel_transform() -> npt.NDArray[np.float64]:
    """Return G: the values of a kernel's polynomial, divided by the denominators of Lagrange's interpolation."""
    points = (0, A, -A, B, -B)
    scales = [math.prod(point - other for other in points if other != point) for point in points]
    rows = [[point**power / scale for power in range(3)] for point, scale in zip(points, scales, strict=True)]
    return np.array([*rows, [0, 0, 1]])


def _transform_inputs(d: Vector) -> Vector:
    even_a, odd_a = d[4] - B**2 * d[2], A * (d[3] - B**2 * d[1])
    even_b, odd_b = d[4] - A**2 * d[2], B * (d[3] - A**2 * d[1])
    at_zero = d[4] - (A**2 + B**2) * d[2] + (A * B) ** 2 * d[0]
    at_infinity = d[5] - (A**2 + B**2) * d[3] + (A * B) ** 2 * d[1]
    return [at_zero, even_a + odd_a, even_a - odd_a, even_b + odd_b, even_b - odd_b, at_infinity]


def _sum_products(m: Vector) -> Vector:
    even_a, odd_a = m[1] + m[2], A * (m[1] - m[2])
    even_b, odd_b = m[3] + m[4], B * (m[3] - m[4])
    first, third = m[0] + even_a + even_b, A**2 * even_a + B**2 * even_b
    return [first, odd_a + odd_b, third, A**2 * odd_a + B**2 * odd_b + m[5]]


def _spread_outputs(y: Vector) -> Vector:
    even_a, odd_a = y[0] + A**2 * y[2], A * (y[1] + A**2 * y[3])
    even_b, odd_b = y[0] + B**2 * y[2], B * (y[1] + B**2 * y[3])
    return [y[0], even_a + odd_a, even_a - odd_a, even_b + odd_b, even_b - odd_b, y[3]]


LARGE_TILES = Tiling(4, _kernel_transform(), _transform_inputs, _sum_products, _spread_outputs, stores_columns=True)


def _choose_tiling(x: jax.Array) -> Tiling:
    """Return the tiles of images [batch, height, width, channels]."""
    batch, height, width, _ = x.shape
    num_large = batch * -(-height // LARGE_TILES.size) * -(-width // LARGE_TILES.size)
    return LARGE_TILES if x.dtype == jnp.float32 and num_large >= MIN_TILES else SMALL_TILES


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def winograd(x: jax.Array, kernel: jax.Array, bias: jax.Array, relu: bool) -> jax.Array:
    """Convolve [batch, height, width, inputs] with a kernel [3, 3, inputs, outputs], stride 1, padding 'SAME'.

    It runs through the rows of all images, a few at a time. Images are never regrouped, so that a batch that is split
    over devices stays split. The bias [outputs] is added, and negative outputs are replaced, while a row is in the
    cache.
    """
    xla_conv = partial(lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    y = jax.eval_shape(lambda: xla_conv(x, kernel, (1, 1), "SAME") + lax.broadcast_to_rank(bias, 4))
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
    elements = kernel.astype(jnp.float32).reshape(9, inputs, outputs)
    weights = [jnp.tensordot(row, elements, 1).astype(x.dtype) for row in chunks.tiling.kernel_transform_2d]
    padded = lax.optimization_barrier(chunks.pad(x))

    def convolve_chunk(index: jax.Array, y: jax.Array) -> jax.Array:
        tiles = chunks.transform_inputs(padded, index, x.dtype)
        products = [_multiply(tile.astype(x.dtype), weight) for tile, weight in zip(tiles, weights, strict=True)]
        rows = chunks.sum_products(products)[:, :, :width].astype(x.dtype) + lax.broadcast_to_rank(bias, 4)
        rows = _as_bits(jnp.maximum(rows, 0) if relu else rows)
        return lax.dynamic_update_slice_in_dim(y, rows, chunks.first_row(index), axis=1)

    # Every value is overwritten. A start that depends on the padded images keeps XLA from reserving the memory of the
    # outputs of all layers at once, and frees that of the images. Each image starts from its own, on its own device.
    y = jnp.broadcast_to(padded[:, :1, :1, :1], (len(x), chunks.number * chunks.rows, width, outputs))
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
    transform = chunks.tiling.kernel_transform_2d
    padded_x, padded_dy = chunks.pad(x), chunks.pad(dy)
    groups = math.gcd(len(x), jax.device_count())

    def add_chunk(index: jax.Array, total: jax.Array) -> jax.Array:
        tiles = chunks.transform_inputs(padded_x, index, x.dtype)
        grads = chunks.spread_outputs(padded_dy, index, dy.dtype)
        products = jnp.stack([_multiply_groups(*pair, groups) for pair in zip(tiles, grads, strict=True)], 1)
        return total + jnp.einsum("ak,gab->gkb", transform, products.reshape(groups, len(transform), -1))

    total = jnp.zeros_like(x, jnp.float32, (groups, 9, inputs * outputs))  # with the varying axes of x
    total = lax.fori_loop(0, chunks.number, add_chunk, total)
    return jnp.sum(total, axis=0).reshape(3, 3, inputs, outputs)


class _Chunks(NamedTuple):
    """How the rows of a batch of images [batch, height, width, channels] are divided into tiles, and these into chunks.

    Methods take images with zeros around them, from `pad`, and the number of a chunk. They return float32 arrays
    [batch, rows of tiles, columns of tiles, channels], one for each element of a tile.
    """

    tiling: Tiling
    number: int
    tile_rows: int  # of one chunk
    height: int
    width: int

    @classmethod
    def of(cls, x: jax.Array) -> "_Chunks":
        batch, height, width, channels = x.shape
        tiling = _choose_tiling(x)
        tile_rows, tile_columns = (-(-length // tiling.size) for length in (height, width))
        row_size, row_tiles = tiling.size * batch * width * channels, batch * tile_columns
        number = -(-tile_rows // max(CHUNK_SIZE // row_size, -(-MIN_TILES // row_tiles)))
        return cls(tiling, number, -(-tile_rows // number), height, width)

    @property
    def rows(self) -> int:
        """Rows of outputs of a chunk."""
        return self.tiling.size * self.tile_rows

    def first_row(self, index: jax.Array) -> jax.Array:
        return self.rows * index

    def pad(self, x: jax.Array) -> jax.Array:
        """Add a row of zeros at the top, and at the bottom so many that all tiles are complete."""
        return jnp.pad(_as_bits(x), ((0, 0), (1, 1 + self.number * self.rows - self.height), (0, 0), (0, 0)))

    def transform_inputs(self, padded: jax.Array, index: jax.Array, dtype: jnp.dtype) -> Vector:
        rows = lax.dynamic_slice_in_dim(padded, self.first_row(index), self.rows + 2, axis=1)
        return self._transform(self.tiling.transform_inputs, rows, (1, 1 + -self.width % self.tiling.size), dtype)

    def spread_outputs(self, padded: jax.Array, index: jax.Array, dtype: jnp.dtype) -> Vector:
        rows = lax.dynamic_slice_in_dim(padded, self.first_row(index) + 1, self.rows, axis=1)
        border = 0, self.tiling.size - self.width % self.tiling.size  # never (0, 0), with which nothing is stored
        return self._transform(self.tiling.spread_outputs, rows, border, dtype)

    def _transform(
        self, transform: Callable[[Vector], Vector], rows: jax.Array, border: tuple[int, int], dtype: jnp.dtype
    ) -> Vector:
        """Transform the columns of all tiles, then their rows."""
        step, tile_columns = self.tiling.size, -(-self.width // self.tiling.size)
        size = rows.shape[1] - self.rows + step  # of a tile
        if not self.tiling.stores_columns:
            rows = _pad_columns(rows, border)
        rows = _from_bits(rows, dtype).astype(jnp.float32)
        columns = transform([_every_nth(rows, 1, i, step, self.tile_rows) for i in range(size)])
        if self.tiling.stores_columns:
            columns = [_pad_columns(column, border) for column in columns]
        parts = [[_every_nth(column, 2, j, step, tile_columns) for j in range(size)] for column in columns]
        return [value for row in parts for value in transform(row)]

    def sum_products(self, products: Vector) -> jax.Array:
        """Return the outputs of the tiles side by side, float32 [batch, rows, at least `width` columns, channels]."""
        size = self.tiling.size + 2
        columns = [self.tiling.sum_products(products[j::size]) for j in range(size)]
        if self.tiling.stores_columns:
            columns = [[_pad_columns(value, (0, 1)) for value in column] for column in columns]
        outputs = [self.tiling.sum_products(list(row)) for row in zip(*columns, strict=True)]
        stacked = jnp.stack([jnp.stack(row, axis=3) for row in outputs], axis=2)
        batch, tile_rows, _, tile_columns, _, channels = stacked.shape
        return stacked.reshape(batch, self.tiling.size * tile_rows, self.tiling.size * tile_columns, channels)


def _every_nth(x: jax.Array, axis: int, start: int, n: int, count: int) -> jax.Array:
    return lax.slice_in_dim(x, start, start + n * (count - 1) + 1, n, axis)


def _pad_columns(x: jax.Array, border: tuple[int, int]) -> jax.Array:
    """Add columns of zeros. XLA stores the result, while it computes others again wherever they are read."""
    return jnp.pad(x, ((0, 0), (0, 0), border, (0, 0)))


def _multiply(pixels: jax.Array, weights: jax.Array) -> jax.Array:
    """[batch, rows, columns, inputs] times [inputs, outputs], float32."""
    return lax.dot_general(pixels, weights, (((3,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def _multiply_groups(tiles: jax.Array, grads: jax.Array, groups: int) -> jax.Array:
    """Return the sum over the tiles of each group of images, float32 [groups, inputs, outputs]."""
    left, right = (array.reshape(groups, -1, array.shape[3]) for array in (tiles, grads))
    return lax.dot_general(left, right, (((1,), (1,)), ((0,), (0,))))


def _as_bits(x: jax.Array) -> jax.Array:
    """Return bfloat16 as integers, because XLA moves bfloat16 on CPU by way of float32; float32 stays as it is."""
    return lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def _from_bits(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return lax.bitcast_convert_type(x, dtype) if x.dtype == jnp.uint16 else x
