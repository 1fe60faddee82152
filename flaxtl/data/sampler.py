"""The order in which examples are seen.

It is a pure function of (seed, position in the endless stream of examples): nothing to save, a resumed run sees what
an uninterrupted one would have seen, and every process of many works out its own part.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from flaxtl.errors import UserError

Indices = npt.NDArray[np.int32]
Scalar = TypeVar("Scalar", bound=np.generic)


class BatchIndices(NamedTuple):
    """Which examples, int32 [batch], and how often each was drawn before, int32 [batch].

    The two together name one showing of one image; no other showing of the run has the same pair.
    """

    indices: Indices
    passes: Indices


class EpochSampler:
    """The endless stream of training examples, cut into batches; batches run across passes.

    Without labels every pass over the data is a new permutation of them. With labels the sampling is balanced: in each
    pass of n places every class that occurs has equally many, to within one, and the one more goes round. The places
    of a class are filled by turns of its own permutation, so within a class no image is drawn twice more often than
    another; then the pass is shuffled.
    """

    def __init__(self, seed: int, batch: int, n: int, labels: Indices | None = None) -> None:
        """`batch` examples a step out of `n`; `labels`, int32 [n], ask for balanced sampling."""
        self.seed, self._batch, self._n = seed, batch, n
        self._classes = [] if labels is None else [np.flatnonzero(labels == label) for label in np.unique(labels)]
        draw = self._permutation if labels is None else self._balanced
        self._drawn = lru_cache(maxsize=4)(draw)  # a pass is many steps

    def batch(self, step: int) -> BatchIndices:
        """The examples of a training step; steps count from 0."""
        first = step * self._batch
        passes, places = np.divmod(np.arange(first, first + self._batch, dtype=np.int64), self._n)
        indices, before = np.empty(self._batch, np.int32), np.empty(self._batch, np.int32)
        for number in np.unique(passes).tolist():
            here = passes == number
            drawn = self._drawn(number)
            indices[here], before[here] = drawn.indices[places[here]], drawn.passes[places[here]]
        return BatchIndices(indices, before)

    def _permutation(self, number: int) -> BatchIndices:
        """Pass `number`, counted from 0: every example once."""
        order = np.random.default_rng([self.seed, number]).permutation(self._n)
        return BatchIndices(order.astype(np.int32), np.full(self._n, number, np.int32))

    def _balanced(self, number: int) -> BatchIndices:
        """Pass `number`, counted from 0: every class equally often."""
        each, more = divmod(self._n, len(self._classes))

        def drawn_before(place: int, number: int) -> int:
            # Of the extra places, dealt out in turn since the run began, every len(classes)-th is this class's.
            return number * each + (number * more - place - 1) // len(self._classes) + 1

        parts = [
            self._turns(place, drawn_before(place, number), drawn_before(place, number + 1))
            for place in range(len(self._classes))
        ]
        shuffle = np.random.default_rng([self.seed, number]).permutation(self._n)
        return BatchIndices(*(np.concatenate(column)[shuffle] for column in zip(*parts, strict=True)))

    def _turns(self, place: int, first: int, last: int) -> BatchIndices:
        """Draws `first` up to `last` of one class, in the endless row of its permutations."""
        members = self._classes[place]
        turns = range(first // len(members), -(-last // len(members)))
        # The class counts from 1: numpy takes [seed, turn, 0] for [seed, turn], which shuffles a pass.
        orders = [np.random.default_rng([self.seed, turn, place + 1]).permutation(members) for turn in turns]
        drawn = slice(first - turns.start * len(members), last - turns.start * len(members))
        indices, before = np.concatenate(orders), np.repeat(turns, len(members))
        return BatchIndices(indices[drawn].astype(np.int32), before[drawn].astype(np.int32))


def padded_batches(n: int, batch: int) -> Iterator[tuple[Indices, npt.NDArray[np.bool_]]]:
    """Every example once, in order: (indices [batch], real [batch]); the last batch is padded with example 0."""
    for first in range(0, n, batch):
        positions = np.arange(first, first + batch, dtype=np.int32)
        real = positions < n
        yield np.where(real, positions, 0).astype(np.int32), real


def process_slice(part: npt.NDArray[Scalar], process: int, processes: int) -> npt.NDArray[Scalar]:
    """A process's slice of something about each example of a batch, [batch, ...] -> [batch / processes, ...]."""
    if len(part) % processes:
        raise UserError(f"a batch of {len(part)} cannot be split over {processes} processes; choose a multiple of it")
    mine: npt.NDArray[Scalar] = np.split(part, processes)[process]
    return mine
