"""Where the examples of a step come from: data that lie on the device, or pictures that are sent there in time."""

from collections.abc import Generator
from contextlib import closing
from typing import NamedTuple, Protocol

import jax
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

from flaxtl.data.apply import augment
from flaxtl.data.augment import Augmentation, keys
from flaxtl.data.order import Batch, Order, evaluation_batches, share
from flaxtl.data.resident import Resident
from flaxtl.data.store import Store
from flaxtl.train import hosts
from flaxtl.train import mesh as meshes

Real = npt.NDArray[np.bool_]


class Picked(NamedTuple):
    """Examples of resident data by their indices; `passes` counts the passes over the data before each."""

    data: Resident
    indices: jax.Array
    passes: jax.Array

    @property
    def rows(self) -> tuple[jax.Array, ...]:
        """What belongs to each example, [batch, ...] each."""
        return self.indices, self.passes

    def of(self, rows: tuple[jax.Array, ...]) -> "Picked":
        """The examples of other rows."""
        return Picked(self.data, *rows)

    def inputs(self, seed: int, augmentation: Augmentation | None) -> jax.Array:
        """What the network is given; augmented here, inside the step."""
        picked = self.data.picked(self.indices)
        return picked if augmentation is None else augment(keys(seed, self.passes, self.indices), picked, augmentation)

    def answers(self) -> jax.Array:
        """Class indices, int32 [batch]."""
        return self.data.labels[self.indices]


class Sent(NamedTuple):
    """Examples that were read, and augmented, on the host."""

    pictures: jax.Array
    labels: jax.Array
    indices: jax.Array
    passes: jax.Array

    @property
    def rows(self) -> tuple[jax.Array, ...]:
        """See Picked."""
        return tuple(self)

    def of(self, rows: tuple[jax.Array, ...]) -> "Sent":
        """See Picked."""
        return Sent(*rows)

    def inputs(self, seed: int, augmentation: Augmentation | None) -> jax.Array:
        """What the network is given."""
        return self.pictures

    def answers(self) -> jax.Array:
        """Class indices, int32 [batch]."""
        return self.labels


Examples = Picked | Sent


class Feed(Protocol):
    """The examples of one split, in the order of the manifest."""

    def __len__(self) -> int:
        """Number of examples."""

    def sharding(self, mesh: Mesh) -> Examples:
        """How a batch of them lies on the devices: the examples split, resident data whole on each."""

    def training(
        self, order: Order, first: int, last: int, augmentation: Augmentation | None
    ) -> Generator[Examples, None, None]:
        """The batches of the training steps from `first` to below `last`; close it when it is no longer needed."""

    def evaluation(self, batch: int) -> Generator[tuple[Examples, Real], None, None]:
        """Every example once, with the mask of those that do not pad the last batch."""


class ResidentFeed:
    """Pictures or features on the device; a batch is its indices."""

    def __init__(self, data: Resident) -> None:
        """`data` is replicated over the mesh."""
        self.data = data

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.data)

    def sharding(self, mesh: Mesh) -> Examples:
        """See Feed."""
        whole = meshes.replicated(mesh)  # the step splits them
        return Picked(Resident(whole, whole), whole, whole)  # type: ignore[arg-type]

    def training(
        self, order: Order, first: int, last: int, augmentation: Augmentation | None
    ) -> Generator[Examples, None, None]:
        """See Feed; the step itself augments."""
        for step in range(first, last):
            yield self._picked(order.batch(step))

    def epoch(self, order: Order, first: int, last: int, length: int) -> Examples:
        """The batches of the steps from `first` to below `last` as rows [length, batch], the last one again to fill."""
        batches = [order.batch(min(step, last - 1)) for step in range(first, first + length)]
        return self._picked(Batch(*(np.stack(parts) for parts in zip(*batches, strict=True))))

    def evaluation(self, batch: int) -> Generator[tuple[Examples, Real], None, None]:
        """See Feed."""
        for indices, real in evaluation_batches(len(self), batch):
            yield self._picked(Batch(indices, np.zeros_like(indices))), real

    def _picked(self, batch: Batch) -> Examples:
        return Picked(self.data, *batch)  # type: ignore[arg-type]


class Sender:
    """What feeds share that send their examples; each process sends its share of a batch."""

    def __init__(self, mesh: Mesh) -> None:
        """To the devices of `mesh`."""
        self._split = meshes.batched(mesh)
        self._share = jax.process_index(), hosts.count()

    def sharding(self, mesh: Mesh) -> Examples:
        """See Feed."""
        split = meshes.batched(mesh)
        return Sent(split, split, split, split)  # type: ignore[arg-type]

    def _sent(self, *rows: npt.NDArray[np.generic]) -> Sent:
        return Sent(*(hosts.spread_own(row, self._split) for row in rows))


class StreamFeed(Sender):
    """Pictures in a file, read, augmented and sent while the step before is computed."""

    def __init__(self, store: Store, labels: npt.NDArray[np.int32], mesh: Mesh) -> None:
        """`labels` are the class indices of the store's pictures."""
        super().__init__(mesh)
        self.store, self.labels = store, labels

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.store)

    def training(
        self, order: Order, first: int, last: int, augmentation: Augmentation | None
    ) -> Generator[Examples, None, None]:
        """See Feed; TensorFlow augments on the host."""
        from flaxtl.data import streaming

        stream = streaming.training(self.store, self.labels, order, first, last, augmentation, self._share)
        with closing(stream):
            for batch in stream:
                yield self._sent(*batch)

    def evaluation(self, batch: int) -> Generator[tuple[Examples, Real], None, None]:
        """See Feed."""
        from flaxtl.data import streaming

        with closing(streaming.evaluation(self.store, self.labels, batch, self._share)) as stream:
            batches = evaluation_batches(len(self), batch)
            for (pictures, labels, _), (indices, real) in zip(stream, batches, strict=True):
                yield self._sent(pictures, labels, share(indices, *self._share), np.zeros_like(labels)), real
