"""Which pictures are the same, byte for byte or to the eye."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flaxtl.data.fingerprint import BITS, Fingerprint
from flaxtl.errors import UserError

LARGEST = 16
"""The largest threshold: beyond it, hashes of pictures that have nothing in common meet by chance in any large set."""


class Pair(NamedTuple):
    """Two pictures that are alike, by index, first < second.

    distance: the number of bits by which their perceptual hashes differ; `exact`: their files are equal, and the
    distance is 0.
    """

    first: int
    second: int
    distance: int
    exact: bool


def pairs(fingerprints: Sequence[Fingerprint], threshold: int) -> list[Pair]:
    """Enough pairs of like pictures to connect all that are alike, sorted.

    Of pictures with equal files, and of those with equal hashes, the first is paired with each of the others (n equal
    ones give n - 1 pairs). Different hashes, by the first picture of each, are paired where they differ by at most
    `threshold` bits and are not connected yet, so that there are never more pairs than pictures.

    Args:
      fingerprints: of all pictures.
      threshold: bits, 0 to 16; -1 pairs equal files only. Up to 8 bits every pair of the 2,570 flowers that this was
        tried on is truly one picture; at 10 the first false ones appear.

    Raises:
      UserError: the threshold is out of its range.
    """
    check_threshold(threshold)
    files: dict[str, int] = {}
    found = [
        Pair(first, index, 0, True)
        for index, fingerprint in enumerate(fingerprints)
        if (first := files.setdefault(fingerprint.sha256, index)) != index
    ]
    if threshold >= 0:
        hashes: dict[int, int] = {}
        for index in files.values():
            phash = fingerprints[index].phash
            if phash is not None and (first := hashes.setdefault(phash, index)) != index:
                found.append(Pair(first, index, 0, False))
        found += _near(hashes, threshold)
    return sorted(found)


def check_threshold(threshold: int) -> None:
    """Raises UserError unless it is one that `pairs` takes."""
    if not -1 <= threshold <= LARGEST:
        raise UserError(
            f"near-duplicates cannot differ by {threshold} bits; give 0 to {LARGEST}, or -1 for equal files only"
        )


def groups(n: int, pairs: Sequence[Pair]) -> list[list[int]]:
    """The sets of two and more of n pictures that `pairs` connect, directly or through others; all sorted."""
    forest = _Forest(n)
    forest.join([pair.first for pair in pairs], [pair.second for pair in pairs])
    members: dict[int, list[int]] = {}
    for index in sorted({index for pair in pairs for index in pair[:2]}):
        members.setdefault(int(forest.roots[index]), []).append(index)
    return list(members.values())


class _Forest:
    """Which of n places are connected: `roots`, int64 [n], is the smallest place of the tree that each is in."""

    def __init__(self, n: int) -> None:
        self.roots = np.arange(n)

    def join(self, left: Sequence[int], right: Sequence[int]) -> list[tuple[int, int]]:
        """Connect left[i] with right[i] for every i; returns the pairs that were not connected before."""
        joined = []
        for pair in zip(left, right, strict=True):
            first, second = sorted(map(self._root, pair))
            if first < second:
                self.roots[second] = first
                joined.append(pair)
        while joined and (self.roots != (higher := self.roots[self.roots])).any():
            self.roots = higher
        return joined

    def _root(self, place: int) -> int:
        while (higher := int(self.roots[place])) != place:
            self.roots[place] = self.roots[higher]  # halves the way for the next one
            place = higher
        return place


def _near(hashes: dict[int, int], threshold: int) -> Iterator[Pair]:
    """Pairs of different hashes (hash -> picture), as few as connect all that are near.

    By the pigeonhole principle two hashes that differ by at most t bits agree in at least one of t + 1 bands of bits,
    so only hashes that share a band are compared.
    """
    values = np.fromiter(hashes.keys(), np.uint64, len(hashes))
    pictures = list(hashes.values())
    edges = np.linspace(0, BITS, threshold + 2).astype(int).tolist()
    forest = _Forest(len(values))
    for low, high in pairwise(edges):
        band = (values >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        for left, right in _equal(band, forest):
            new = np.bitwise_count(values[left] ^ values[right]) <= threshold
            new &= forest.roots[left] != forest.roots[right]
            for one, other in forest.join(left[new].tolist(), right[new].tolist()):
                first, second = sorted((pictures[one], pictures[other]))
                yield Pair(first, second, int(np.bitwise_count(values[one] ^ values[other])), False)


def _equal(keys: NDArray[np.uint64], forest: _Forest) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """The places of every two equal keys, the lesser first, in portions no longer than `keys`.

    Equal keys whose places have all become connected are not gone through to the end: among the frames of a film every
    two are alike, and their number is squared.
    """
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=~ordered[:1]))
    run = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(keys)))
    places = np.arange(len(keys))
    apart = 1
    while len(places := places[places + apart < len(keys)]):
        places = places[ordered[places] == ordered[places + apart]]  # equal at a distance is equal at every lesser one
        if apart.bit_count() == 1:  # a look at 1, 2, 4, 8, ... costs little
            roots = forest.roots[order]
            divided = np.minimum.reduceat(roots, starts) < np.maximum.reduceat(roots, starts)
            places = places[divided[run[places]]]
        yield order[places], order[places + apart]
        apart += 1
