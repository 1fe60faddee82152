import os
import re
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_run
from PIL import Image

from flaxtl.data.array_store import ArrayStore, ArrayStoreWriter
from flaxtl.data.augment.config import AugmentConfig, example_keys
from flaxtl.data.augment.ops import augment
from flaxtl.data.decode import EncodedImages, Resize
from flaxtl.data.loaders import HostLoader, ImageSet
from flaxtl.data.manifest import make_manifest
from flaxtl.data.sampler import EpochSampler
from flaxtl.data.sources.image_folder import scan_folder
from flaxtl.errors import UserError
from flaxtl.parallel import devices
from flaxtl.train.datasets import load_splits
from flaxtl.train.setup import build_setup

pytestmark = pytest.mark.needs_tf


@pytest.fixture(scope="module", autouse=True)
def _tensorflow():
    """Import TensorFlow for the tests here, not in every worker that collects them: it takes 4 s."""
    global tfdata
    from flaxtl.data import tfdata


N, BATCH, STEPS = 22, 6, 9  # 54 examples: more than two epochs, and images twice in one batch
LECTURE = AugmentConfig(rotation=30, height_shift=0.2, width_shift=0.2, shear=0.2, zoom=0.2, horizontal_flip=True)

LABELS = (np.arange(N, dtype=np.int32) * 7) % 5
IMAGES = np.random.default_rng(0).integers(0, 256, (N, 24, 31, 3), dtype=np.uint8)

# Both implementations compute the same float32 sums, perhaps in another order: see test_tfdata_ops.py.
ORDER = 0.03


@pytest.fixture
def images(tmp_path):
    store = ArrayStore(tmp_path / "images.npy", IMAGES.shape, IMAGES.dtype)
    with ArrayStoreWriter(store) as fresh:
        for index, image in enumerate(IMAGES):
            fresh[index] = image
    return store


def stream(images, order, first=0, last=STEPS, augmentation=None, shard=(0, 1)):
    return list(tfdata.train_batches(images, LABELS, order, first, last, augmentation, shard))


def same(actual, expected):
    return len(actual) == len(expected) and all(
        np.array_equal(*parts)
        for one, other in zip(actual, expected, strict=True)
        for parts in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("labels", [None, LABELS], ids=["plain", "balanced"])
def test_train_batches_are_those_of_the_sampler(images, labels):
    order = EpochSampler(5, BATCH, N, labels)
    batches = stream(images, order)
    assert len(batches) == STEPS
    for step, batch in enumerate(batches):
        indices, epochs = order.batch(step)
        assert batch[0].dtype == np.uint8
        assert same([batch], [(IMAGES[indices], LABELS[indices], indices, epochs)])


def test_train_batches_augmentation_matches_device(images):
    order = EpochSampler(5, BATCH, N)
    resident = jax.jit(
        lambda epochs, indices: augment(example_keys(5, epochs, indices), jnp.asarray(IMAGES)[indices], LECTURE)
    )
    for step, batch in enumerate(stream(images, order, augmentation=LECTURE)):
        indices, epochs = order.batch(step)
        assert same([batch[1:]], [(LABELS[indices], indices, epochs)])
        assert batch[0].dtype == np.float32
        np.testing.assert_allclose(batch[0], resident(epochs, indices), rtol=0, atol=ORDER)


@pytest.mark.parametrize("augmentation", [None, LECTURE], ids=["plain", "augmented"])
def test_train_batches_later_start_continues(images, augmentation):
    order = EpochSampler(5, BATCH, N)
    whole = stream(images, order, augmentation=augmentation)
    assert same(stream(images, order, first=4, augmentation=augmentation), whole[4:])
    assert same(stream(images, order, augmentation=augmentation), whole)


@pytest.mark.parametrize(
    "augmentation", [None, pytest.param(LECTURE, marks=pytest.mark.slow)], ids=["plain", "augmented"]
)
def test_train_batches_shards_make_the_batch(images, augmentation):
    order = EpochSampler(5, BATCH, N)
    whole = stream(images, order, augmentation=augmentation)
    shards = [stream(images, order, augmentation=augmentation, shard=(process, 3)) for process in range(3)]
    assert {batch[0].shape[0] for shard in shards for batch in shard} == {2}
    together = [tuple(map(np.concatenate, zip(*parts, strict=True))) for parts in zip(*shards, strict=True)]
    assert same(together, whole)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """The images as PNG files."""
    folder = tmp_path_factory.mktemp("encoded")
    paths = tuple(folder / f"{number}.png" for number in range(N))
    for path, image in zip(paths, IMAGES, strict=True):
        Image.fromarray(image).save(path)
    return EncodedImages(paths, Resize(*IMAGES.shape[1:3]))


@pytest.mark.parametrize("augmentation", [None, LECTURE], ids=["plain", "augmented"])
@pytest.mark.parametrize("shard", [(0, 1), (1, 3)], ids=["one process", "one of three"])
def test_train_batches_of_files_equal_those_of_store(images, encoded, augmentation, shard):
    order = EpochSampler(5, BATCH, N)
    assert same(
        stream(encoded, order, 4, STEPS, augmentation, shard), stream(images, order, 4, STEPS, augmentation, shard)
    )


def test_host_loader_of_files_equals_that_of_store(images, encoded):
    order, mesh = EpochSampler(5, BATCH, N), devices.make_mesh(BATCH)
    loaders = [ImageSet(source, LABELS, "digest").loader(mesh) for source in (encoded, images)]
    assert same(*(list(loader.train_batches(order, 0, STEPS, LECTURE)) for loader in loaders))  # uint8
    assert same(*([batch for batch, _ in loader.eval_batches(BATCH)] for loader in loaders))


def test_load_splits_with_tfdata_reads_files_and_skips_the_unreadable(folder, tmp_path):
    images = shutil.copytree(folder, tmp_path / "images")
    damaged = images / "red" / "0.png"
    damaged.write_bytes(damaged.read_bytes()[:80])
    config = tiny_run.config(images)
    config.data.on_error, config.data.loader = "skip", "tfdata"
    manifest = make_manifest(scan_folder(images), config.data.fractions.to_dict(), config.seed)
    setup = build_setup(config, tmp_path / "run", manifest)
    setup, splits, skipped = load_splits(setup, ("train", "validation", "test"), tiny_run.quiet(), may_skip=True)
    assert list(skipped) == [str(damaged)]
    assert sum(map(len, splits.values())) == len(setup.manifest.examples) == 23
    assert {type(split.image_loader()) for split in splits.values()} == {HostLoader}


def test_train_batches_of_files_reraise_decoding_errors(encoded, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(encoded.paths[3].read_bytes()[:-30])
    damaged = replace(encoded, paths=(*encoded.paths[:3], bad, *encoded.paths[4:]))
    with pytest.raises(UserError, match=rf"{re.escape(str(bad))}.*truncated"):
        stream(damaged, EpochSampler(5, BATCH, N))


def test_train_batches_indivisible_batch_raises(images):
    with pytest.raises(UserError, match=r"batch.*\b6\b.*\b4 process"):
        stream(images, EpochSampler(5, BATCH, N), shard=(0, 4))


def test_train_batches_of_no_steps_are_none(images):
    assert stream(images, EpochSampler(5, BATCH, N), first=3, last=3) == []


def test_train_batches_reraise_read_errors_unchanged(images, capfd):
    batches = tfdata.train_batches(images, LABELS, EpochSampler(5, BATCH, N), 0, 10_000, None)
    next(batches)
    images.path.unlink()
    with pytest.raises(UserError, match=rf"{re.escape(str(images.path))}.*No such file"):
        list(batches)
    assert capfd.readouterr() == ("", "")


class Watched:
    """A store that counts how often it is read."""

    def __init__(self, images):
        self.shape, self.reads, self._images = images.shape, 0, images

    def read(self, indices):
        self.reads += 1
        return self._images.read(indices)


def test_train_batches_prefetch_is_bounded_and_stops(images):
    watched = Watched(images)
    batches = tfdata.train_batches(watched, LABELS, EpochSampler(5, BATCH, N), 0, 10_000, None)
    threads = threading.active_count()
    next(batches)
    time.sleep(0.5)  # time for 10,000 reads, if nothing limited them
    ahead = watched.reads
    assert 2 <= ahead <= 3 + tfdata.PREFETCH + os.cpu_count()  # the first twice, the yielded one, one per core
    batches.close()
    time.sleep(0.1)
    assert watched.reads <= ahead
    assert threading.active_count() == threads


def test_train_batches_release_store_when_closed(images):
    def opened():
        return {file.resolve() for file in Path("/proc/self/fd").iterdir()}

    for _ in range(3):
        batches = tfdata.train_batches(images, LABELS, EpochSampler(5, BATCH, N), 0, 100, LECTURE)
        next(batches)
        batches.close()
    assert images.path not in opened()


def test_tfdata_hides_accelerators_from_tensorflow():
    assert tfdata.tf.config.get_visible_devices("GPU") == []
    assert {device.device_type for device in tfdata.tf.config.list_logical_devices()} == {"CPU"}


def test_tfdata_without_jax_cpu_backend_raises(monkeypatch):
    def unknown(backend):
        raise RuntimeError(f"Unknown backend: {backend!r} requested, but no platforms that are instances of it")

    monkeypatch.setattr(jax, "local_devices", unknown)
    with pytest.raises(UserError, match=r"\bJAX_PLATFORMS\b.*\bcpu\b"):
        tfdata._cpu_device()
