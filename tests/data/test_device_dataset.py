"""Data on the device: what is picked of them, and that nothing else of them is touched."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtl.data.loaders import DeviceDataset, bits

ROWS = np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32)


def resident(dtype):
    return DeviceDataset(jnp.asarray(bits(ROWS.astype(dtype))), jnp.zeros(24, jnp.int32))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float16, np.uint8])
def test_rows_are_picked_bit_for_bit(dtype):
    rows = np.array([3, 0, 3, 23])
    picked = resident(dtype).gather(jnp.asarray(rows))
    assert picked.dtype == dtype
    assert np.asarray(picked).tobytes() == ROWS.astype(dtype)[rows].tobytes()


def test_a_loop_of_steps_does_not_convert_the_whole_of_them():
    """As XLA on a CPU does of a bfloat16 array, whose rows it cannot take."""

    def looped(data, n):
        def step(i, total):
            return total + data.gather(jnp.arange(2) + i).astype(jnp.float32).sum(0)

        return jax.lax.fori_loop(0, n, step, jnp.zeros(5))

    data = resident(jnp.bfloat16)
    program = jax.jit(looped).lower(data, 20).compile()
    assert "u16[24,5]" in program.as_text()
    assert "f32[24,5]" not in program.as_text()
    total = sum(ROWS.astype(jnp.bfloat16).astype(np.float32)[i : i + 2].sum(0) for i in range(20))
    np.testing.assert_allclose(program(data, 20), total, rtol=1e-5)  # float32 sums of 40 numbers
