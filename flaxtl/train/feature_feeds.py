"""Features as the steps are given them: K views of each picture, on the device or in a file.

View v of picture i is row i * K + v. In pass p over the pictures a step is given view p mod K.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

from flaxtl.data.augment import Augmentation
from flaxtl.data.order import Batch, Indices, Order, evaluation_batches, share
from flaxtl.data.resident import Resident
from flaxtl.train.feature_files import FeatureFile
from flaxtl.train.feeds import Examples, Picked, Real, ResidentFeed, Sender

AHEAD = 2
"""Batches that are read before the training step asks for them."""

Job = TypeVar("Job")
Done = TypeVar("Done")


class ViewsFeed(ResidentFeed):
    """Views on the device, all rows of them; a batch is its rows."""

    def __init__(self, data: Resident, views: int) -> None:
        """`data` is replicated over the mesh: features [n * views, ...], labels [n * views]."""
        super().__init__(data)
        self._views = views

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.data) // self._views

    def _picked(self, batch: Batch) -> Examples:
        return Picked(self.data, _rows(batch, self._views), batch.passes)  # type: ignore[arg-type]


class MappedFeed(Sender):
    """Features in a file, a batch read and sent while the step before is computed."""

    def __init__(self, file: FeatureFile, labels: npt.NDArray[np.int32], mesh: Mesh, views: int = 1) -> None:
        """`labels` are the class indices of the pictures, int32 [n]; the file has n * views rows."""
        super().__init__(mesh)
        self._file, self._labels, self._views = file, labels, views

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self._labels)

    def training(
        self, order: Order, first: int, last: int, augmentation: Augmentation | None
    ) -> Generator[Examples, None, None]:
        """See Feed."""
        with closing(_ahead(self._read, (order.batch(step) for step in range(first, last)))) as read:
            for batch in read:
                yield self._sent(*batch)

    def evaluation(self, batch: int) -> Generator[tuple[Examples, Real], None, None]:
        """See Feed; the first view of each picture."""
        batches = list(evaluation_batches(len(self), batch))
        first_views = (Batch(indices, np.zeros_like(indices)) for indices, _ in batches)
        with closing(_ahead(self._read, first_views)) as read:
            for given, (_, real) in zip(read, batches, strict=True):
                yield self._sent(*given), real

    def _read(self, batch: Batch) -> tuple[npt.NDArray[Any], ...]:
        own = Batch(*(share(part, *self._share) for part in batch))
        return self._file.read(_rows(own, self._views)), self._labels[own.indices], own.indices, own.passes


def _rows(batch: Batch, views: int) -> Indices:
    """In which row each example's view is."""
    return batch.indices * views + batch.passes % views


def _ahead(work: Callable[[Job], Done], jobs: Iterable[Job]) -> Generator[Done, None, None]:
    """What `work` makes of each job, in their order, by a thread that is AHEAD of whoever asks."""
    begun: deque[Future[Done]] = deque()
    with ThreadPoolExecutor(max_workers=1) as thread:
        try:
            for job in jobs:
                begun.append(thread.submit(work, job))
                if len(begun) > AHEAD:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()
