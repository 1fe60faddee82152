"""Which way the images take to the training step: lying in memory, or streamed from a file."""

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

from flaxtl import fileio
from flaxtl.data.array_store import ArrayStore, FeatureFile
from flaxtl.data.augment.config import AugmentConfig, example_keys
from flaxtl.data.augment.ops import augment
from flaxtl.data.sampler import BatchIndices, EpochSampler, Indices, padded_batches, process_slice
from flaxtl.parallel import devices, processes

PIPELINES = ("resident", "stream")

MAX_MEMORY_FRACTION = 0.5
"""Of the memory that the decoded images may fill; the rest is for the network, its activations and the optimizer."""


def choose_loader(n_bytes: int, memory_bytes: int, memory: str) -> tuple[str, str]:
    """The pipeline for `n_bytes` of decoded images, and why: one sentence for the log.

    `memory` names where resident images would lie, in words that can end a sentence ("the device's memory"), and
    `memory_bytes` is all of it. They stay resident while they fill no more than SHARE of it.
    """
    size = f"the decoded images are {fileio.format_bytes(n_bytes)}"
    limit = f"{MAX_MEMORY_FRACTION:.0%} of the {fileio.format_bytes(memory_bytes)} of {memory}"
    if n_bytes <= MAX_MEMORY_FRACTION * memory_bytes:
        return "resident", f"{size}, within {limit}: they stay there"
    return "stream", f"{size}, more than {limit}: they are streamed from a file"


class DeviceDataset(NamedTuple):
    """Images (uint8 [n, height, width, 3]) or features (float or `bits`, [n, ...]) with their labels (int32 [n])."""

    inputs: jax.Array
    labels: jax.Array

    def __len__(self) -> int:
        """Number of examples."""
        return int(self.labels.shape[0])

    def picked(self, rows: jax.Array) -> jax.Array:
        """The inputs of some rows, [len(rows), ...]; what lies here as bits is bfloat16 again."""
        found = self.inputs[rows]
        return jax.lax.bitcast_convert_type(found, jnp.bfloat16) if found.dtype == np.uint16 else found


def bits(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """bfloat16 as the uint16 of the same bits, everything else as it is.

    XLA on a CPU has no bfloat16: in a loop of steps it makes float32 of the whole array again and again, a second for
    a gigabyte, and only then takes a few rows of it.
    """
    return array.view(np.uint16) if array.dtype == jnp.bfloat16 else array


Mask = npt.NDArray[np.bool_]


class IndexBatch(NamedTuple):
    """Examples of resident data by their indices; `passes` counts the passes over the data before each."""

    data: DeviceDataset
    indices: jax.Array
    passes: jax.Array

    @property
    def rows(self) -> tuple[jax.Array, ...]:
        """What belongs to each example, [batch, ...] each."""
        return self.indices, self.passes

    def of(self, rows: tuple[jax.Array, ...]) -> "IndexBatch":
        """The examples of other rows."""
        return IndexBatch(self.data, *rows)

    def inputs(self, seed: int, augmentation: AugmentConfig | None) -> jax.Array:
        """What the network is given; augmented here, inside the step."""
        picked = self.data.picked(self.indices)
        return (
            picked
            if augmentation is None
            else augment(example_keys(seed, self.passes, self.indices), picked, augmentation)
        )

    def answers(self) -> jax.Array:
        """Class indices, int32 [batch]."""
        return self.data.labels[self.indices]


class HostBatch(NamedTuple):
    """Examples that were read, and augmented, on the host."""

    images: jax.Array
    labels: jax.Array
    indices: jax.Array
    passes: jax.Array

    @property
    def rows(self) -> tuple[jax.Array, ...]:
        """See Picked."""
        return tuple(self)

    def of(self, rows: tuple[jax.Array, ...]) -> "HostBatch":
        """See Picked."""
        return HostBatch(*rows)

    def inputs(self, seed: int, augmentation: AugmentConfig | None) -> jax.Array:
        """What the network is given."""
        return self.images

    def answers(self) -> jax.Array:
        """Class indices, int32 [batch]."""
        return self.labels


Batch = IndexBatch | HostBatch


class Loader(Protocol):
    """The examples of one split, in the order of the manifest."""

    def __len__(self) -> int:
        """Number of examples."""

    def sharding(self, mesh: Mesh) -> Batch:
        """How a batch of them lies on the devices: the examples split, resident data whole on each."""

    def training(
        self, order: EpochSampler, first: int, last: int, augmentation: AugmentConfig | None
    ) -> Generator[Batch, None, None]:
        """The batches of the training steps from `first` to below `last`; close it when it is no longer needed."""

    def evaluation(self, batch: int) -> Generator[tuple[Batch, Mask], None, None]:
        """Every example once, with the mask of those that do not pad the last batch."""


class DeviceLoader:
    """Images or features on the device; a batch is its indices."""

    def __init__(self, data: DeviceDataset) -> None:
        """`data` is replicated over the mesh."""
        self.data = data

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.data)

    def sharding(self, mesh: Mesh) -> Batch:
        """See Feed."""
        whole = devices.replicated_sharding(mesh)  # the step splits them
        return IndexBatch(DeviceDataset(whole, whole), whole, whole)  # type: ignore[arg-type]

    def training(
        self, order: EpochSampler, first: int, last: int, augmentation: AugmentConfig | None
    ) -> Generator[Batch, None, None]:
        """See Feed; the step itself augments."""
        for step in range(first, last):
            yield self._picked(order.batch(step))

    def epoch(self, order: EpochSampler, first: int, last: int, length: int) -> Batch:
        """The batches of the steps from `first` to below `last` as rows [length, batch], the last one again to fill."""
        batches = [order.batch(min(step, last - 1)) for step in range(first, first + length)]
        return self._picked(BatchIndices(*(np.stack(parts) for parts in zip(*batches, strict=True))))

    def evaluation(self, batch: int) -> Generator[tuple[Batch, Mask], None, None]:
        """See Feed."""
        for indices, real in padded_batches(len(self), batch):
            yield self._picked(BatchIndices(indices, np.zeros_like(indices))), real

    def _picked(self, batch: BatchIndices) -> Batch:
        return IndexBatch(self.data, *batch)  # type: ignore[arg-type]


class Sender:
    """What feeds share that send their examples; each process sends its share of a batch."""

    def __init__(self, mesh: Mesh) -> None:
        """To the devices of `mesh`."""
        self._split = devices.batch_sharding(mesh)
        self._share = jax.process_index(), processes.process_count()

    def sharding(self, mesh: Mesh) -> Batch:
        """See Feed."""
        split = devices.batch_sharding(mesh)
        return HostBatch(split, split, split, split)  # type: ignore[arg-type]

    def _sent(self, *rows: npt.NDArray[np.generic]) -> HostBatch:
        return HostBatch(*(processes.put_process_local(row, self._split) for row in rows))


class HostLoader(Sender):
    """Images in a file, read, augmented and sent while the step before is computed."""

    def __init__(self, store: ArrayStore, labels: npt.NDArray[np.int32], mesh: Mesh) -> None:
        """`labels` are the class indices of the store's images."""
        super().__init__(mesh)
        self.store, self.labels = store, labels

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.store)

    def training(
        self, order: EpochSampler, first: int, last: int, augmentation: AugmentConfig | None
    ) -> Generator[Batch, None, None]:
        """See Feed; TensorFlow augments on the host."""
        from flaxtl.data import tfdata

        stream = tfdata.train_batches(self.store, self.labels, order, first, last, augmentation, self._share)
        with closing(stream):
            for batch in stream:
                yield self._sent(*batch)

    def evaluation(self, batch: int) -> Generator[tuple[Batch, Mask], None, None]:
        """See Feed."""
        from flaxtl.data import tfdata

        with closing(tfdata.eval_batches(self.store, self.labels, batch, self._share)) as stream:
            batches = padded_batches(len(self), batch)
            for (images, labels, _), (indices, real) in zip(stream, batches, strict=True):
                yield self._sent(images, labels, process_slice(indices, *self._share), np.zeros_like(labels)), real


BATCHES_AHEAD = 2
"""Batches that are read before the training step asks for them."""

Job = TypeVar("Job")
Done = TypeVar("Done")


class ViewsLoader(DeviceLoader):
    """Views on the device, all rows of them; a batch is its rows."""

    def __init__(self, data: DeviceDataset, views: int) -> None:
        """`data` is replicated over the mesh: features [n * views, ...], labels [n * views]."""
        super().__init__(data)
        self._views = views

    def __len__(self) -> int:
        """Number of images."""
        return len(self.data) // self._views

    def _picked(self, batch: BatchIndices) -> Batch:
        return IndexBatch(self.data, _rows(batch, self._views), batch.passes)  # type: ignore[arg-type]


class MappedLoader(Sender):
    """Features in a file, a batch read and sent while the step before is computed."""

    def __init__(self, file: FeatureFile, labels: npt.NDArray[np.int32], mesh: Mesh, views: int = 1) -> None:
        """`labels` are the class indices of the images, int32 [n]; the file has n * views rows."""
        super().__init__(mesh)
        self._file, self._labels, self._views = file, labels, views

    def __len__(self) -> int:
        """Number of images."""
        return len(self._labels)

    def training(
        self, order: EpochSampler, first: int, last: int, augmentation: AugmentConfig | None
    ) -> Generator[Batch, None, None]:
        """See Feed."""
        with closing(_ahead(self._read, (order.batch(step) for step in range(first, last)))) as read:
            for batch in read:
                yield self._sent(*batch)

    def evaluation(self, batch: int) -> Generator[tuple[Batch, Mask], None, None]:
        """See Feed; the first view of each image."""
        batches = list(padded_batches(len(self), batch))
        first_views = (BatchIndices(indices, np.zeros_like(indices)) for indices, _ in batches)
        with closing(_ahead(self._read, first_views)) as read:
            for given, (_, real) in zip(read, batches, strict=True):
                yield self._sent(*given), real

    def _read(self, batch: BatchIndices) -> tuple[npt.NDArray[Any], ...]:
        own = BatchIndices(*(process_slice(part, *self._share) for part in batch))
        return self._file.read(_rows(own, self._views)), self._labels[own.indices], own.indices, own.passes


def _rows(batch: BatchIndices, views: int) -> Indices:
    """In which row each example's view is."""
    return batch.indices * views + batch.passes % views


def _ahead(work: Callable[[Job], Done], jobs: Iterable[Job]) -> Generator[Done, None, None]:
    """What `work` makes of each job, in their order, by a thread that is AHEAD of whoever asks."""
    begun: deque[Future[Done]] = deque()
    with ThreadPoolExecutor(max_workers=1) as thread:
        try:
            for job in jobs:
                begun.append(thread.submit(work, job))
                if len(begun) > BATCHES_AHEAD:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()


ImagePixels = npt.NDArray[np.uint8]


class ImageSet(Protocol):
    """n images of one size."""

    @property
    def labels(self) -> npt.NDArray[np.int32]:
        """Class indices, int32 [n]."""

    def __len__(self) -> int:
        """Number of images."""

    def read(self, indices: Indices) -> ImagePixels:
        """uint8 [len(indices), height, width, 3]."""

    @property
    def digest(self) -> str:
        """Tells these images, in this order and size, from all others."""

    def feed(self, mesh: Mesh) -> Loader:
        """The images as the steps are given them."""


class MemoryImages:
    """Images in memory, uint8 [n, height, width, 3], with class indices int32 [n]."""

    def __init__(self, pixels: ImagePixels, labels: npt.NDArray[np.int32]) -> None:
        """The arrays are not copied."""
        self.pixels, self.labels = pixels, labels
        self._on_device: DeviceLoader | None = None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def read(self, indices: Indices) -> ImagePixels:
        """See Images."""
        return self.pixels[indices]

    @cached_property
    def digest(self) -> str:
        """See Images."""
        return f"{self.pixels.shape} {hashlib.sha256(np.ascontiguousarray(self.pixels).data).hexdigest()}"

    def feed(self, mesh: Mesh) -> Loader:
        """On the device, where they stay."""
        if self._on_device is None:
            self._on_device = DeviceLoader(devices.replicate(DeviceDataset(self.pixels, self.labels), mesh))  # type: ignore[arg-type]
        return self._on_device


@dataclass(frozen=True)
class StoredImages:
    """Images in a file, too many to be held; `digest` is that of the files they were decoded from."""

    store: ArrayStore
    labels: npt.NDArray[np.int32]
    digest: str

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def read(self, indices: Indices) -> ImagePixels:
        """See Images."""
        return self.store.read(indices)

    def feed(self, mesh: Mesh) -> Loader:
        """A stream."""
        return HostLoader(self.store, self.labels, mesh)
