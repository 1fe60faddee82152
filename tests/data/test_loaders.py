import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtl.data import loaders
from flaxtl.data.array_store import ArrayStore, ArrayStoreWriter
from flaxtl.data.augment.config import AugmentConfig
from flaxtl.data.loaders import PIPELINES, DeviceLoader, HostLoader, ImageSet, choose_pipeline
from flaxtl.data.sampler import EpochSampler
from flaxtl.parallel import devices

IMAGES = np.random.default_rng(1).integers(0, 256, (10, 4, 5, 3), dtype=np.uint8)
LABELS = np.arange(10, dtype=np.int32) % 3


@pytest.fixture
def store(tmp_path):
    store = ArrayStore(tmp_path / "images.npy", IMAGES.shape, IMAGES.dtype)
    with ArrayStoreWriter(store) as writer:
        writer.write(0, IMAGES)
    return store


def test_image_set_loaders_from_memory_and_disk_agree(store):
    mesh, sampler = devices.make_mesh(4), EpochSampler(7, 4, 10)
    on_device = ImageSet(IMAGES, LABELS).loader(mesh)
    on_host = ImageSet(store, LABELS, "digest").loader(mesh)
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


def test_streamed_images_are_sent_as_uint8_and_augmented_in_the_step(store):
    mesh, sampler = devices.make_mesh(4), EpochSampler(7, 4, 10)
    augmentation = AugmentConfig(brightness=0.5)
    inputs = jax.jit(lambda batch: batch.inputs(7, augmentation))
    in_memory, on_disk = (
        list(images.loader(mesh).train_batches(sampler, 0, 5, augmentation))
        for images in (ImageSet(IMAGES, LABELS), ImageSet(store, LABELS, "digest"))
    )
    for ours, theirs in zip(on_disk, in_memory, strict=True):
        assert ours.images.dtype == np.uint8
        assert np.array_equal(inputs(ours), inputs(theirs))


def test_streamed_batches_are_sent_two_ahead(store, monkeypatch):
    sent = []
    put = loaders.processes.put_process_local
    monkeypatch.setattr(loaders.processes, "put_process_local", lambda *args: sent.append(args) or put(*args))
    batches = ImageSet(store, LABELS, "digest").loader(devices.make_mesh(4)).eval_batches(2)
    next(batches)
    assert len(sent) == 4 * (1 + 2)  # images, labels, indices and epochs
    batches.close()


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
    pipeline, message = choose_pipeline(num_bytes, memory_bytes, "device memory", num_devices=4)
    assert pipeline == expected
    assert "on each of 4 devices" in message
    assert pipeline in PIPELINES


def test_choose_pipeline_reason_names_sizes_and_memory():
    _, reason = choose_pipeline(440_400_000, 24 * 10**9, "device memory")
    assert re.search(r"\b440\.4 MB\b.*\bdevice memory\b", reason)
    _, reason = choose_pipeline(60 * 10**9, 24 * 10**9, "device memory")
    assert re.search(r"\b60\.0 GB\b.*\b50%.*\b24\.0 GB\b.*\bdevice memory\b", reason)


def test_choose_pipeline_reason_names_the_memory_of_another_process(monkeypatch):
    monkeypatch.setattr(loaders.processes, "any_process", lambda flag: True)
    assert choose_pipeline(6 * 10**9, 64 * 10**9, "memory") == (
        "stream",
        "Decoded images (6.0 GB) exceed 50% of the memory of another process; streaming them from disk.",
    )
