"""The order of the training examples: which of them make up step `s`, as a pure function of (seed, s)."""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from flaxtl.errors import UserError

Indices = npt.NDArray[np.int32]
Scalar = TypeVar("Scalar", bound=np.generic)


class BatchIndices(NamedTuple):
    """The examples of one batch.

    Attributes:
      indices: int32 [batch], positions in the split.
      epochs: int32 [batch], how often the example was drawn before. No two draws of a run share (index, epoch): the
        pair seeds the augmentation. Dropout is seeded by the step and the position in the batch.
    """

    indices: Indices
    epochs: Indices


class EpochSampler:
    """Which examples make up step `s`, as a pure function of (seed, s).

    Nothing is checkpointed: a resumed run, or another process, computes the same indices. Each epoch is a new
    permutation. A batch may span two epochs, so no example is dropped.

    Args:
      seed: seed of all permutations.
      batch_size: examples per step.
      num_examples: size of the training split, n.
      labels: int32 [n]. If given, classes are drawn equally often; counts per epoch differ by at most one, and the
        remainder rotates over the classes. The examples of a class take turns: none is drawn again before every other
        example of its class was drawn as often.
    """

    def __init__(self, seed: int, batch_size: int, num_examples: int, labels: Indices | None = None) -> None:
        self.seed, self._batch_size, self._n = seed, batch_size, num_examples
        self._classes = [] if labels is None else [np.flatnonzero(labels == label) for label in np.unique(labels)]
        draw_epoch = self._permutation if labels is None else self._balanced
        self._draw_epoch = lru_cache(maxsize=4)(draw_epoch)  # consecutive steps share an epoch

    def batch(self, step: int) -> BatchIndices:
        """Return the examples of a training step; steps count from 0 over the whole run."""
        first = step * self._batch_size
        epochs, positions = np.divmod(np.arange(first, first + self._batch_size, dtype=np.int64), self._n)
        batch = BatchIndices(np.empty(self._batch_size, np.int32), np.empty(self._batch_size, np.int32))
        for epoch in np.unique(epochs).tolist():
            in_epoch = epochs == epoch
            drawn = self._draw_epoch(epoch)
            batch.indices[in_epoch] = drawn.indices[positions[in_epoch]]
            batch.epochs[in_epoch] = drawn.epochs[positions[in_epoch]]
        return batch

    def _permutation(self, epoch: int) -> BatchIndices:
        """Return every example once, in the random order of an epoch."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self._n)
        return BatchIndices(order.astype(np.int32), np.full(self._n, epoch, np.int32))

    def _balanced(self, epoch: int) -> BatchIndices:
        """Return n draws of an epoch in which every class has n // classes draws, or one more."""
        per_class, remainder = divmod(self._n, len(self._classes))

        def draws_before(label: int, epoch: int) -> int:
            # The extra draws of all epochs go round the classes: every len(classes)-th is this class's.
            return epoch * per_class + (epoch * remainder - label - 1) // len(self._classes) + 1

        parts = [
            self._class_draws(label, draws_before(label, epoch), draws_before(label, epoch + 1))
            for label in range(len(self._classes))
        ]
        shuffle = np.random.default_rng([self.seed, epoch]).permutation(self._n)
        return BatchIndices(*(np.concatenate(column)[shuffle] for column in zip(*parts, strict=True)))

    def _class_draws(self, label: int, first: int, last: int) -> BatchIndices:
        """Return draws `first` to `last` (exclusive) from the endless sequence of a class's permutations."""
        members = self._classes[label]
        rounds = range(first // len(members), -(-last // len(members)))
        # label + 1: numpy treats the seed [seed, round, 0] like [seed, round], which shuffles an epoch.
        orders = [np.random.default_rng([self.seed, number, label + 1]).permutation(members) for number in rounds]
        drawn = slice(first - rounds.start * len(members), last - rounds.start * len(members))
        indices, epochs = np.concatenate(orders), np.repeat(rounds, len(members))
        return BatchIndices(indices[drawn].astype(np.int32), epochs[drawn].astype(np.int32))


def padded_batches(n: int, batch_size: int) -> Iterator[tuple[Indices, npt.NDArray[np.bool_]]]:
    """Yield every example once, in order: (indices [batch], mask [batch]).

    The last batch is padded with example 0; the mask is False there.
    """
    for first in range(0, n, batch_size):
        positions = np.arange(first, first + batch_size, dtype=np.int32)
        mask = positions < n
        yield np.where(mask, positions, 0).astype(np.int32), mask


def process_slice(array: npt.NDArray[Scalar], process_index: int, process_count: int) -> npt.NDArray[Scalar]:
    """Return the part of a per-example array that belongs to a process: [batch, ...] -> [batch / processes, ...]."""
    if len(array) % process_count:
        raise UserError(
            f"A batch of {len(array)} cannot be split over {process_count} processes. "
            f"Set batch_size to a multiple of {process_count}."
        )
    part: npt.NDArray[Scalar] = np.split(array, process_count)[process_index]
    return part
