"""Data that lie whole in device memory, and the order in which they are seen.

The order is a pure function of (seed, position in the endless stream of examples): nothing to save, and a resumed
run sees what an uninterrupted one would have seen.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import jax
import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int32]


class Resident(NamedTuple):
    """Pictures (uint8 [n, height, width, 3]) or features (float [n, ...]) with their labels (int32 [n])."""

    inputs: jax.Array
    labels: jax.Array

    def __len__(self) -> int:
        """Number of examples."""
        return int(self.labels.shape[0])


class Batch(NamedTuple):
    """Which examples: their indices and the passes over the data before each (both int32 [batch])."""

    indices: Indices
    passes: Indices


def training_batch(seed: int, step: int, batch: int, n: int) -> Batch:
    """The examples of a training step. Every pass over the data is a new permutation; batches run across passes."""
    passes, places = np.divmod(np.arange(step * batch, (step + 1) * batch, dtype=np.int64), n)
    indices = np.empty(batch, np.int32)
    for number in np.unique(passes).tolist():
        here = passes == number
        indices[here] = _order(seed, number, n)[places[here]]
    return Batch(indices, passes.astype(np.int32))


@lru_cache(maxsize=4)
def _order(seed: int, number: int, n: int) -> Indices:
    """The permutation of pass `number`; remembered, because a pass is many steps."""
    return np.random.default_rng([seed, number]).permutation(n).astype(np.int32)


def evaluation_batches(n: int, batch: int) -> Iterator[tuple[Indices, npt.NDArray[np.bool_]]]:
    """Every example once, in order: (indices [batch], real [batch]); the last batch is padded with example 0."""
    for first in range(0, n, batch):
        positions = np.arange(first, first + batch, dtype=np.int32)
        real = positions < n
        yield np.where(real, positions, 0).astype(np.int32), real
