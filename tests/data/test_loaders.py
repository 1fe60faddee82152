import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtl.data.array_store import ArrayStore, ArrayStoreWriter
from flaxtl.data.loaders import PIPELINES, DeviceDataset, DeviceLoader, HostLoader, ImageSet, bits, choose_pipeline
from flaxtl.data.sampler import EpochSampler
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


def test_image_set_loaders_from_memory_and_disk_agree(tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (10, 4, 5, 3), dtype=np.uint8)
    labels = np.arange(10, dtype=np.int32) % 3
    store = ArrayStore(tmp_path / "images.npy", images.shape, images.dtype)
    with ArrayStoreWriter(store) as writer:
        writer.write(0, images)
    mesh, sampler = devices.make_mesh(4), EpochSampler(7, 4, 10)
    on_device = ImageSet(images, labels).loader(mesh)
    on_host = ImageSet(store, labels, "digest").loader(mesh)
    assert (type(on_device), type(on_host)) == (DeviceLoader, HostLoader)
    assert len(on_device) == len(on_host) == 10
    train_batches = zip(*(loader.train_batches(sampler, 1, 6, None) for loader in (on_device, on_host)), strict=True)
    eval_batches = zip(*(loader.eval_batches(4) for loader in (on_device, on_host)), strict=True)
    pairs = [*train_batches, *((ours, theirs) for (ours, _), (theirs, _) in eval_batches)]
    assert len(pairs) == 5 + 3
    for ours, theirs in pairs:
        ours = jax.tree.map(jnp.asarray, ours)
        assert np.array_equal(ours.inputs(0, None), theirs.inputs(0, None))
        for name in ("labels", "indices", "epochs"):
            assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name


@pytest.mark.parametrize(
    ("num_bytes", "memory_bytes", "expected"),
    [
        (2 * 10**9, 4 * 10**9, "resident"),
        (2 * 10**9 + 1, 4 * 10**9, "stream"),
        (0, 1, "resident"),
        (10**13, 10**11, "stream"),
    ],
)
def test_choose_pipeline_keeps_images_in_half_of_the_memory(num_bytes, memory_bytes, expected):
    pipeline, _ = choose_pipeline(num_bytes, memory_bytes, "device memory")
    assert pipeline == expected
    assert pipeline in PIPELINES


def test_choose_pipeline_reason_names_sizes_and_memory():
    _, reason = choose_pipeline(440_400_000, 24 * 10**9, "device memory")
    assert re.search(r"\b440\.4 MB\b.*\bdevice memory\b", reason)
    _, reason = choose_pipeline(60 * 10**9, 24 * 10**9, "device memory")
    assert re.search(r"\b60\.0 GB\b.*\b50%.*\b24\.0 GB\b.*\bdevice memory\b", reason)
