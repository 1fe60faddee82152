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
    ones give n - 1 pairs); of different hashes every two that differ by at most `threshold` bits are paired, by the
    first picture of each.

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
    parents = list(range(n))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]  # halves the way for the next one
            index = parents[index]
        return index

    for pair in pairs:
        first, second = sorted((root(pair.first), root(pair.second)))
        parents[second] = first  # so that the root of a set is its smallest member
    members: dict[int, list[int]] = {}
    for index in sorted({index for pair in pairs for index in pair[:2]}):
        members.setdefault(root(index), []).append(index)
    return list(members.values())


def _near(hashes: dict[int, int], threshold: int) -> Iterator[Pair]:
    """Pairs of different hashes (hash -> picture).

    By the pigeonhole principle two hashes that differ by at most t bits agree in at least one of t + 1 bands of bits,
    so only hashes that share a band are compared.
    """
    values = np.fromiter(hashes.keys(), np.uint64, len(hashes))
    pictures = np.fromiter(hashes.values(), np.int64, len(hashes))
    edges = np.linspace(0, BITS, threshold + 2).astype(int).tolist()
    near: set[tuple[int, int]] = set()
    for low, high in pairwise(edges):
        band = (values >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        for left, right in _equal(band):
            close = np.bitwise_count(values[left] ^ values[right]) <= threshold
            near.update(zip(left[close].tolist(), right[close].tolist(), strict=True))
    for one, other in near:
        first, second = sorted((int(pictures[one]), int(pictures[other])))
        yield Pair(first, second, int(np.bitwise_count(values[one] ^ values[other])), False)


def _equal(keys: NDArray[np.uint64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """The places of every two equal keys, the lesser first, in portions no longer than `keys`."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    places = np.arange(len(keys))
    apart = 1
    while len(places := places[places + apart < len(keys)]):
        places = places[ordered[places] == ordered[places + apart]]  # equal at a distance is equal at every lesser one
        yield order[places], order[places + apart]
        apart += 1
