"""Loaders: the batches of one split, from device memory or read from disk."""

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import cached_property
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

from flaxtl import fileio
from flaxtl.data.array_store import ArrayStore
from flaxtl.data.augment.config import AugmentConfig, example_keys
from flaxtl.data.augment.ops import augment
from flaxtl.data.decode import EncodedImages
from flaxtl.data.device_dataset import DeviceDataset, put_dataset
from flaxtl.data.sampler import BatchIndices, EpochSampler, Indices, padded_batches, process_slice
from flaxtl.parallel import devices, processes

PIPELINES = ("resident", "stream")

LOADERS = ("decoded", "tfdata")
"""Whether images are decoded once, or again in every epoch, by tf.data."""

MAX_MEMORY_FRACTION = 0.5
"""Largest fraction of the memory for images and features; the rest is for the model, activations and optimizer."""

READ_AHEAD = 2
"""Number of batches that are read ahead, and of those that are sent to the device ahead of the train step."""

AUGMENT_ON = ("device", "host")
"""Where streamed images are augmented: inside the step, or by TensorFlow before they are sent."""

Mask = npt.NDArray[np.bool_]
ImagePixels = npt.NDArray[np.uint8]
Job = TypeVar("Job")
Result = TypeVar("Result")


class IndexBatch(NamedTuple):
    """A batch of examples in device memory, by their indices; see `BatchIndices` for the fields."""

    data: DeviceDataset
    indices: jax.Array
    epochs: jax.Array

    @property
    def arrays(self) -> tuple[jax.Array, ...]:
        """The arrays with one entry per example, [batch, ...] each."""
        return self.indices, self.epochs

    def with_arrays(self, arrays: tuple[jax.Array, ...]) -> "IndexBatch":
        """Return the batch of other examples."""
        return IndexBatch(self.data, *arrays)

    def inputs(self, seed: int, augmentation: AugmentConfig | None) -> jax.Array:
        """Return the model's inputs; images, which are uint8, are augmented here, inside the step."""
        return _augment_images(self, self.data.gather(self.indices), seed, augmentation)

    @property
    def labels(self) -> jax.Array:
        """Class indices, int32 [batch]."""
        return self.data.labels[self.indices]


class HostBatch(NamedTuple):
    """A batch that was read on the host; see `BatchIndices` for the last two fields.

    `images` are uint8 [batch, height, width, 3]; float32 if the host has augmented them; or features [batch, ...].
    """

    images: jax.Array
    labels: jax.Array
    indices: jax.Array
    epochs: jax.Array

    @property
    def arrays(self) -> tuple[jax.Array, ...]:
        """The arrays with one entry per example, [batch, ...] each."""
        return tuple(self)

    def with_arrays(self, arrays: tuple[jax.Array, ...]) -> "HostBatch":
        """Return the batch of other examples."""
        return HostBatch(*arrays)

    def inputs(self, seed: int, augmentation: AugmentConfig | None) -> jax.Array:
        """Return the model's inputs; uint8 images are augmented here, inside the step."""
        return _augment_images(self, self.images, seed, augmentation)


Batch = IndexBatch | HostBatch


def _augment_images(batch: Batch, inputs: jax.Array, seed: int, augmentation: AugmentConfig | None) -> jax.Array:
    """Return the inputs of a batch, augmented if they are uint8: not features, nor what the host has augmented."""
    if augmentation is None or inputs.dtype != np.uint8:
        return inputs
    return augment(example_keys(seed, batch.epochs, batch.indices), inputs, augmentation)


def shard_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Split a batch over the devices, inside a step, however it arrived.

    Indices stay on every device: each looks for them in its part of the data, and `inputs` are split.
    """
    is_index = isinstance(batch, IndexBatch)
    sharding = devices.replicated_sharding(mesh) if is_index else devices.batch_sharding(mesh)
    return batch.with_arrays(jax.lax.with_sharding_constraint(batch.arrays, sharding))


class Loader(Protocol):
    """The batches of one split, in the order of the manifest."""

    def __len__(self) -> int:
        """Return the number of examples."""

    def sharding(self, mesh: Mesh) -> Batch:
        """Return the shardings of a batch, as the compiled steps expect it."""

    def train_batches(
        self, sampler: EpochSampler, first_step: int, last_step: int, augmentation: AugmentConfig | None
    ) -> Generator[Batch, None, None]:
        """Yield the batches of the train steps from `first_step` up to, not including, `last_step`.

        Close the generator when the rest is not needed.
        """

    def eval_batches(self, batch_size: int) -> Generator[tuple[Batch, Mask], None, None]:
        """Yield every example once, each batch with its mask: False for examples that pad the last batch."""


class DeviceLoader:
    """Loader of images or features in device memory; only indices are sent per batch.

    Args:
      data: the examples; row `i * num_views + v` is view v of example i.
      num_views: augmented views per example; epoch e sees view `e % num_views`, evaluation sees view 0.
    """

    def __init__(self, data: DeviceDataset, num_views: int = 1) -> None:
        self.data, self._num_views = data, num_views

    def __len__(self) -> int:
        return len(self.data) // self._num_views

    def sharding(self, mesh: Mesh) -> Batch:
        """Return the shardings of the data, which is divided among the devices, and of indices, which each has."""
        replicated = devices.replicated_sharding(mesh)
        return IndexBatch(self.data.shardings(mesh), replicated, replicated)  # type: ignore[arg-type]  # a tree of shardings

    def train_batches(
        self, sampler: EpochSampler, first_step: int, last_step: int, augmentation: AugmentConfig | None
    ) -> Generator[Batch, None, None]:
        """Yield the batches of steps; the step itself augments."""
        for step in range(first_step, last_step):
            yield self._batch(sampler.batch(step))

    def stacked_batches(self, sampler: EpochSampler, first_step: int, last_step: int, length: int) -> Batch:
        """Return the batches of steps stacked, [length, batch]; the last one repeats to fill up."""
        batches = [sampler.batch(min(step, last_step - 1)) for step in range(first_step, first_step + length)]
        return self._batch(BatchIndices(*(np.stack(arrays) for arrays in zip(*batches, strict=True))))

    def eval_batches(self, batch_size: int) -> Generator[tuple[Batch, Mask], None, None]:
        """Yield every example once, with the mask of each batch."""
        for indices, mask in padded_batches(len(self), batch_size):
            yield self._batch(BatchIndices(indices, np.zeros_like(indices))), mask

    def stacked_eval_batches(self, batch_size: int) -> tuple[Batch, Mask]:
        """Return the batches of `eval_batches` stacked, [batches, batch], and their masks, stacked too."""
        indices, masks = (np.stack(arrays) for arrays in zip(*padded_batches(len(self), batch_size), strict=True))
        return self._batch(BatchIndices(indices, np.zeros_like(indices))), masks

    def _batch(self, batch: BatchIndices) -> Batch:
        return IndexBatch(self.data, view_rows(batch, self._num_views), batch.epochs)  # type: ignore[arg-type]  # jit accepts numpy arrays


class HostLoader:
    """Loader of images or features on disk; reads and sends batches ahead while the device computes.

    Each process reads and sends its part of every batch.

    Args:
      store: the examples; row `i * num_views + v` is view v of example i.
      labels: int32 [n].
      mesh: devices to send to.
      num_views: augmented views per example, as in `DeviceLoader`.
      augment_on: one of AUGMENT_ON. On the device, images are sent as uint8, a quarter of the bytes.
    """

    def __init__(
        self,
        store: ArrayStore | EncodedImages,
        labels: npt.NDArray[np.int32],
        mesh: Mesh,
        num_views: int = 1,
        augment_on: str = "device",
    ) -> None:
        self.store, self.labels, self._num_views, self._augment_on = store, labels, num_views, augment_on
        self._sharding = devices.batch_sharding(mesh)
        self._process = jax.process_index(), processes.process_count()

    def __len__(self) -> int:
        return len(self.labels)

    def sharding(self, mesh: Mesh) -> Batch:
        """Return shardings that split every array over the devices."""
        split = devices.batch_sharding(mesh)
        return HostBatch(split, split, split, split)  # type: ignore[arg-type]  # a tree of shardings

    def train_batches(
        self, sampler: EpochSampler, first_step: int, last_step: int, augmentation: AugmentConfig | None
    ) -> Generator[Batch, None, None]:
        """Yield the batches of steps; TensorFlow decodes encoded images, and augments if the host augments."""
        on_host = augmentation if self._augment_on == "host" else None
        if on_host is None and isinstance(self.store, ArrayStore):
            batches = _read_ahead(self._read, (sampler.batch(step) for step in range(first_step, last_step)))
        else:
            from flaxtl.data import tfdata

            batches = tfdata.train_batches(
                self.store, self.labels, sampler, first_step, last_step, on_host, self._process
            )
        yield from self._send_ahead(batches)

    def eval_batches(self, batch_size: int) -> Generator[tuple[Batch, Mask], None, None]:
        """Yield every example once, its first view, with the mask of each batch."""
        padded = list(padded_batches(len(self), batch_size))
        batches = _read_ahead(self._read, (BatchIndices(i, np.zeros_like(i)) for i, _ in padded))
        with closing(self._send_ahead(batches)) as sent:
            yield from ((batch, mask) for batch, (_, mask) in zip(sent, padded, strict=True))

    def _read(self, batch: BatchIndices) -> tuple[npt.NDArray[Any], ...]:
        """Return inputs, labels, indices and epochs of this process's part of a batch."""
        part = BatchIndices(*(process_slice(array, *self._process) for array in batch))
        return self.store.read(view_rows(part, self._num_views)), self.labels[part.indices], *part

    def _send_ahead(
        self, batches: Generator[tuple[npt.NDArray[Any], ...], None, None]
    ) -> Generator[HostBatch, None, None]:
        """Yield the batches on the devices; READ_AHEAD more are on their way meanwhile."""
        sent: deque[HostBatch] = deque()
        with closing(batches):
            for arrays in batches:
                sent.append(HostBatch(*(processes.put_process_local(array, self._sharding) for array in arrays)))
                if len(sent) > READ_AHEAD:
                    yield sent.popleft()
            yield from sent


class ImageSet:
    """The decoded images of one split, uint8 [n, height, width, 3].

    Args:
      images: in memory, or on disk.
      labels: int32 [n].
      digest: identifies the images; required if they are on disk, else their hash.
      augment_on: where images on disk are augmented, one of AUGMENT_ON; those in memory, always on the device.
    """

    def __init__(
        self,
        images: ImagePixels | ArrayStore | EncodedImages,
        labels: npt.NDArray[np.int32],
        digest: str | None = None,
        augment_on: str = "device",
    ) -> None:
        self.images, self.labels, self._digest, self._augment_on = images, labels, digest, augment_on
        self._loader: Loader | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: Indices) -> ImagePixels:
        """Return some images, uint8 [len(indices), height, width, 3]."""
        return self.images[indices] if isinstance(self.images, np.ndarray) else self.images.read(indices)

    @cached_property
    def digest(self) -> str:
        """A string that identifies these images, in this order and size."""
        if self._digest is not None:
            return self._digest
        assert isinstance(self.images, np.ndarray), "images on disk have a digest"
        return f"{self.images.shape} {hashlib.sha256(np.ascontiguousarray(self.images).data).hexdigest()}"

    def loader(self, mesh: Mesh) -> Loader:
        """Return the loader of these images; images in memory are moved to the devices once."""
        if self._loader is None:
            if isinstance(self.images, np.ndarray):
                self._loader = DeviceLoader(put_dataset(self.images, self.labels, mesh))
            else:
                self._loader = HostLoader(self.images, self.labels, mesh, augment_on=self._augment_on)
        return self._loader


def fits_in_memory(n_bytes: int, memory_bytes: int) -> bool:
    """Return whether data fits beside the model in every process: hosts may differ, but all need the same loader."""
    return not processes.any_process(_exceeds(n_bytes, memory_bytes))


def _exceeds(n_bytes: int, memory_bytes: int) -> bool:
    return n_bytes > MAX_MEMORY_FRACTION * memory_bytes


def choose_pipeline(n_bytes: int, memory_bytes: int, memory: str, num_devices: int = 1) -> tuple[str, str]:
    """Return what `data.pipeline=auto` selects for decoded images, 'resident' or 'stream', and a message that says why.

    Args:
      n_bytes: size of the decoded images, on each device.
      memory_bytes: size of the memory that resident images would be in, of each device.
      memory: name of that memory, such as "device memory".
      num_devices: number of devices that the images are split over.
    """
    split = f" on each of {num_devices} devices" if num_devices > 1 else ""
    size = f"Decoded images ({fileio.format_bytes(n_bytes)}{split})"
    if fits_in_memory(n_bytes, memory_bytes):
        return "resident", f"{size} kept in {memory}."
    is_own = _exceeds(n_bytes, memory_bytes)
    limit = f"{fileio.format_bytes(memory_bytes)} of {memory}" if is_own else f"{memory} of another process"
    return "stream", f"{size} exceed {MAX_MEMORY_FRACTION:.0%} of the {limit}; streaming them from disk."


def view_rows(batch: BatchIndices, num_views: int) -> Indices:
    """Return the row of each example's view, as `DeviceLoader` describes, int32 [batch]."""
    return batch.indices * num_views + batch.epochs % num_views


def _read_ahead(read: Callable[[Job], Result], jobs: Iterable[Job]) -> Generator[Result, None, None]:
    """Yield `read(job)` of each job in order, computed by a thread that is READ_AHEAD jobs ahead."""
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(max_workers=1) as thread:
        try:
            for job in jobs:
                pending.append(thread.submit(read, job))
                if len(pending) > READ_AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
