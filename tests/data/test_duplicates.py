"""Like images, against a comparison of every two."""

import itertools
import time

import numpy as np
import pytest

from flaxtl.data.duplicates import MAX_THRESHOLD, DuplicatePair, Fingerprint, duplicate_groups, near_duplicate_pairs
from flaxtl.errors import UserError


def prints(*hashes: int | None) -> list[Fingerprint]:
    """Of files that all differ."""
    return [Fingerprint(f"{i:064x}", phash) for i, phash in enumerate(hashes)]


def clustered(n: int, seed: int) -> list[int]:
    """n different hashes; many are a few bits from one another."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2**64, n // 10, dtype=np.uint64)
    found: set[int] = set()
    while len(found) < n:
        flips = rng.choice(64, rng.integers(0, 10), replace=False)
        found.add(int(rng.choice(centres)) ^ sum(1 << int(bit) for bit in flips))
    return list(found)


@pytest.mark.parametrize("threshold", [0, 1, 4, 5, 8, MAX_THRESHOLD])
def test_all_that_are_near_are_connected_by_as_few_pairs_as_do(threshold: int) -> None:
    hashes = clustered(300, threshold)
    distances = {(i, j): (hashes[i] ^ hashes[j]).bit_count() for i, j in itertools.combinations(range(len(hashes)), 2)}
    near = [DuplicatePair(i, j, bits, False) for (i, j), bits in distances.items() if bits <= threshold]
    found = near_duplicate_pairs(prints(*hashes), threshold)
    assert set(found) <= set(near)
    assert found == sorted(found)
    assert duplicate_groups(300, found) == duplicate_groups(300, near)
    assert len(found) == sum(len(group) - 1 for group in duplicate_groups(300, near))
    assert bool(found) == (threshold > 0)


def test_equal_files_and_equal_hashes_are_paired_with_the_first() -> None:
    same = Fingerprint("f" * 64, 5)
    made = [same, *prints(5, 7, 5), same, same]
    assert near_duplicate_pairs(made, 0) == [(0, 1, 0, False), (0, 3, 0, False), (0, 4, 0, True), (0, 5, 0, True)]
    assert near_duplicate_pairs(made, 1) == [
        *near_duplicate_pairs(made, 0)[:1],
        (0, 2, 1, False),
        *near_duplicate_pairs(made, 0)[1:],
    ]
    assert near_duplicate_pairs(made, -1) == [(0, 4, 0, True), (0, 5, 0, True)]


def test_what_has_no_looks_is_like_its_copies_only() -> None:
    nothing = Fingerprint("e" * 64, None)
    assert near_duplicate_pairs([*prints(None, None, 0), nothing, nothing], MAX_THRESHOLD) == [(3, 4, 0, True)]


def test_the_highest_bit_counts() -> None:
    assert near_duplicate_pairs(prints(2**64 - 1, 2**63 - 1, 0), 1) == [(0, 1, 1, False)]


def test_nothing_to_compare() -> None:
    assert near_duplicate_pairs([], 4) == []
    assert near_duplicate_pairs(prints(1), 4) == []


@pytest.mark.parametrize("threshold", [-2, MAX_THRESHOLD + 1])
def test_thresholds_out_of_range(threshold: int) -> None:
    with pytest.raises(UserError, match=rf"(?=.*\b0\b.*\b{MAX_THRESHOLD}\b.*-1\b).*(?<![\w-]){threshold}\b"):
        near_duplicate_pairs([], threshold)


def test_groups_are_what_pairs_connect() -> None:
    made = [
        DuplicatePair(3, 7, 0, True),
        DuplicatePair(0, 9, 2, False),
        DuplicatePair(1, 7, 4, False),
        DuplicatePair(1, 2, 4, False),
    ]
    assert duplicate_groups(10, made) == [[0, 9], [1, 2, 3, 7]]
    assert duplicate_groups(10, []) == []


def test_a_long_chain_is_one_group() -> None:
    n = 20_000
    made = [DuplicatePair(i, i + 1, 1, False) for i in reversed(range(n - 1))]
    assert duplicate_groups(n, made) == [list(range(n))]


def test_a_star_drawn_from_its_largest_place_is_one_group() -> None:
    n = 20_000
    assert duplicate_groups(n, [DuplicatePair(i, n - 1, 1, False) for i in reversed(range(n - 1))]) == [list(range(n))]


def test_a_series_of_a_hundred_thousand_frames_takes_seconds() -> None:
    """2 s of one core here; the 5,000,000,000 pairs, of which every 70th is near, would fill memory first."""
    hashes = np.unique(np.random.default_rng(0).integers(0, 2**18, 100_000, dtype=np.uint64)).tolist()
    started = time.process_time()
    made = near_duplicate_pairs(prints(*hashes), 4)
    assert duplicate_groups(len(hashes), made) == [list(range(len(hashes)))]
    assert time.process_time() - started < 30
    assert len(made) == len(hashes) - 1


def test_a_hundred_thousand_images_take_seconds() -> None:
    """0.2 s of one core here; comparing every two would take minutes."""
    hashes = np.random.default_rng(0).integers(0, 2**64, 100_000, dtype=np.uint64).tolist()
    hashes[70_000] = hashes[10] ^ 0b1011
    hashes[80_000:] = [hashes[20]] * 20_000
    started = time.process_time()
    made = near_duplicate_pairs(prints(*hashes), 4)
    found = duplicate_groups(len(hashes), made)
    assert time.process_time() - started < 10
    assert found == [[10, 70_000], [20, *range(80_000, 100_000)]]
