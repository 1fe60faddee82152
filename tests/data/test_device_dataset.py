"""Data sets in device memory: exact rows, whatever their layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtl.data.array_store import aligned_empty
from flaxtl.data.device_dataset import DeviceDataset, bits, device_bytes, put_dataset, stored_shape
from flaxtl.parallel import devices

ROWS = np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32)


def device_dataset(dtype):
    return DeviceDataset(jnp.asarray(bits(ROWS.astype(dtype))), jnp.zeros(24, jnp.int32))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float16, np.uint8])
def test_device_dataset_gather_is_bit_identical(dtype):
    indices = np.array([3, 0, 3, 23])
    rows = device_dataset(dtype).gather(jnp.asarray(indices))
    assert rows.dtype == dtype
    assert np.asarray(rows).tobytes() == ROWS.astype(dtype)[indices].tobytes()


def test_device_dataset_gather_in_loop_converts_only_its_rows():
    """XLA on CPU would convert a whole bfloat16 array."""

    def looped(data, n):
        def step(i, total):
            return total + data.gather(jnp.arange(2) + i).astype(jnp.float32).sum(0)

        return jax.lax.fori_loop(0, n, step, jnp.zeros(5))

    data = device_dataset(jnp.bfloat16)
    program = jax.jit(looped).lower(data, 20).compile()
    assert "u16[24,5]" in program.as_text()
    assert "f32[24,5]" not in program.as_text()
    total = sum(ROWS.astype(jnp.bfloat16).astype(np.float32)[i : i + 2].sum(0) for i in range(20))
    np.testing.assert_allclose(program(data, 20), total, rtol=1e-5)  # float32 sums of 40 numbers


@pytest.mark.parametrize(
    ("shape", "itemsize", "expected"),
    [
        ((5, 200, 200, 3), 1, (5, 960, 128)),  # 120,000 bytes are 29.3 tiles of 4,096
        ((5, 6, 6, 512), 2, (5, 144, 128)),  # 9 tiles of 16 rows
        ((5, 6, 6, 512), 4, (5, 144, 128)),  # 18 tiles of 8 rows
        ((5, 3), 4, (5, 8, 128)),
    ],
)
def test_stored_shape_on_tpu_is_of_whole_tiles(monkeypatch, shape, itemsize, expected):
    mesh = devices.make_mesh(1)
    assert stored_shape(shape, itemsize, mesh) == shape
    monkeypatch.setattr(devices, "platform_of", lambda mesh: "tpu")
    assert stored_shape(shape, itemsize, mesh) == expected
    assert device_bytes(shape, itemsize, mesh) == 5 * expected[1] * 128 * itemsize


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.uint8])
def test_put_dataset_on_cpu_shares_aligned_arrays(dtype):
    """Features of gigabytes would otherwise be in memory twice while they are loaded."""
    examples = aligned_empty((3, 7, 5), dtype)
    examples[:] = np.arange(3 * 7 * 5).reshape(3, 7, 5)
    data = put_dataset(examples, np.zeros(3, np.int32), devices.make_mesh(1))
    assert data.inputs.unsafe_buffer_pointer() == examples.ctypes.data
    assert np.asarray(data.gather(jnp.asarray([2]))).tobytes() == examples[2].tobytes()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, np.uint8])
def test_put_dataset_on_tpu_keeps_the_bits_of_rows(monkeypatch, dtype):
    monkeypatch.setattr(devices, "platform_of", lambda mesh: "tpu")
    examples = np.random.default_rng(2).integers(0, 256, (3, 7, 61, 3)).astype(dtype)
    data = put_dataset(examples, np.zeros(3, np.int32), devices.make_mesh(1))
    assert (data.inputs.shape[2], len(data)) == (128, 3)
    assert data.device_bytes == data.inputs.nbytes
    rows = data.gather(jnp.asarray([2, 0]))
    assert (rows.dtype, np.asarray(rows).tobytes()) == (dtype, examples[[2, 0]].tobytes())
