"""Splits: counts against all possible tables, the permutation, and groups that stay together."""

import itertools
import re
from collections import Counter

import numpy as np
import pytest

from flaxtl.data.splitting import allocate_counts, check_fractions, stratified_kfold, stratified_split
from flaxtl.errors import UserError

LECTURE = {"train": 0.5, "validation": 0.2, "test": 0.3}
FLOWERS = {"daisy": 633, "dandelion": 898, "roses": 641, "sunflowers": 699, "tulips": 799}


def nothing(message: str) -> None:
    raise AssertionError(f"unexpected warning: {message}")


def labels(**sizes: int) -> list[str]:
    return [label for label, n in sizes.items() for _ in range(n)]


def table(names: list[str], splits: list[str]) -> dict[str, list[int]]:
    """class -> images per split in the lecture"""
    found = Counter(zip(names, splits, strict=True))
    return {label: [found[label, split] for split in LECTURE] for label in sorted(set(names))}


def test_stratified_split_of_the_3670_flowers() -> None:
    names = labels(**FLOWERS)
    assert table(names, stratified_split(names, [], LECTURE, 0, nothing)) == {
        "daisy": [317, 126, 190],
        "dandelion": [449, 180, 269],
        "roses": [321, 128, 192],
        "sunflowers": [349, 140, 210],
        "tulips": [399, 160, 240],
    }


def test_stratified_split_permutation_is_the_documented_one() -> None:
    names = labels(cats=20, dogs=10)
    splits = stratified_split(names, [], LECTURE, 7, nothing)
    for label, first, n in (("cats", 0, 20), ("dogs", 20, 10)):
        order = np.random.default_rng([7, *label.encode()]).permutation(n)
        assert [splits[first + i] for i in order] == (
            ["train"] * (n // 2) + ["validation"] * (n // 5) + ["test"] * (3 * n // 10)
        )


def test_stratified_split_permutes_each_class_by_seed() -> None:
    names = labels(a=30, b=30)
    splits = stratified_split(names, [], LECTURE, 0, nothing)
    assert splits[:30] != splits[30:]
    assert splits[:30] == stratified_split(labels(a=30, c=30), [], LECTURE, 0, nothing)[:30]
    assert splits[:30] != stratified_split(names, [], LECTURE, 1, nothing)[:30]


@pytest.mark.parametrize("seed", range(20))
def test_stratified_split_keeps_groups_and_counts(seed: int) -> None:
    names = labels(a=20, b=30)
    groups = [[0, 1, 2], [5, 6, 7], [10, 11], [20, 22, 24, 26], [19, 21], [18, 28, 29]]  # the last two span classes
    splits = stratified_split(names, groups, LECTURE, seed, nothing)
    assert table(names, splits) == {"a": [10, 4, 6], "b": [15, 6, 9]}
    assert all(len({splits[i] for i in group}) == 1 for group in groups)


def test_stratified_split_spreads_groups_by_fraction() -> None:
    names = labels(a=300, b=300)
    groups = [[i, i + 1] for i in range(0, 300, 2)]
    splits = stratified_split(names, groups, LECTURE, 0, nothing)
    assert Counter(splits[:300]) == {"train": 150, "validation": 60, "test": 90}
    groups = groups[:100]  # and 100 single images
    pairs = Counter(stratified_split(names, groups, LECTURE, 0, nothing)[i] for i, _ in groups)
    assert all(abs(pairs[split] - 100 * part) <= 1 for split, part in LECTURE.items())


def test_stratified_split_places_groups_by_seed() -> None:
    names = labels(a=20, b=20)
    groups = [[0, 1], [2, 3], [4, 5], [6, 7]]
    found = {tuple(stratified_split(names, groups, LECTURE, seed, nothing)[i] for i, _ in groups) for seed in range(10)}
    assert len(found) > 3


def test_stratified_split_group_too_large_warns() -> None:
    names = labels(a=10, b=10)
    warnings: list[str] = []
    splits = stratified_split(names, [list(range(6)) + list(range(10, 17))], LECTURE, 0, warnings.append)
    assert len({splits[i] for i in range(6)}) == 1
    assert table(names, splits) == {"a": [6, 1, 3], "b": [7, 1, 2]}
    (text,) = warnings
    found = re.findall(r"\b(train|validation|test)\b\D*(\d+)\D+(\d+)", text)
    assert found == [("train", "13", "10"), ("validation", "2", "4"), ("test", "5", "6")]


def test_stratified_split_of_small_classes_warns() -> None:
    warnings: list[str] = []
    fractions = {"train": 0.9, "validation": 0.1}
    splits = stratified_split([f"class {i // 2}" for i in range(20)], [], fractions, 0, warnings.append)
    assert Counter(splits) == {"train": 10, "validation": 10}
    assert warnings == [
        "Every split gets an image of each class, so the fractions cannot be met exactly: train 10 instead of 18, "
        "validation 10 instead of 2"
    ]


def test_stratified_split_other_class_compensates_large_group() -> None:
    names = labels(a=10, b=10)
    splits = stratified_split(names, [list(range(6))], LECTURE, 0, nothing)
    found = table(names, splits)
    assert found["a"][0] == 6
    assert [sum(column) for column in zip(*found.values(), strict=True)] == [10, 4, 6]


@pytest.mark.parametrize(("n", "fractions"), [(3, (0.5, 0.2, 0.3)), (5, (0.98, 0.01, 0.01))])
def test_stratified_split_gives_every_split_every_class(n: int, fractions: tuple[float, ...]) -> None:
    names = labels(a=n, b=100)
    splits = stratified_split(names, [], dict(zip(LECTURE, fractions, strict=True)), 0, lambda message: None)
    assert all(table(names, splits)["a"])


@pytest.mark.parametrize(
    ("n", "groups", "facts"),
    [
        (2, [], r"^(?!.*near-duplicate).*'a'.*\b2\b.*\b(train|validation|test)\b"),
        (4, [[0, 1, 2]], r"'a'.*\b4\b.*\b3\b.*\b(train|validation|test)\b.*near-duplicate"),
        (9, [list(range(9))], r"'a'.*\b9\b.*\b9\b.*\bvalidation, test\b"),
    ],
)
def test_stratified_split_class_too_small_raises(n: int, groups: list[list[int]], facts: str) -> None:
    with pytest.raises(UserError, match=facts):
        stratified_split(labels(a=n, b=20), groups, LECTURE, 0, nothing)


def test_stratified_kfold_is_even_and_keeps_groups() -> None:
    names = labels(a=23, b=31)
    groups = [[0, 1, 2], [30, 40], [22, 23]]
    found = stratified_kfold(names, groups, 5, 3, nothing)
    assert sorted(Counter(found).values()) == [10, 11, 11, 11, 11]
    for label, n in (("a", 23), ("b", 31)):
        sizes = Counter(fold for fold, name in zip(found, names, strict=True) if name == label)
        assert set(sizes) == set(range(5))
        assert all(abs(size - n / 5) <= 1 for size in sizes.values())
    assert all(len({found[i] for i in group}) == 1 for group in groups)
    assert found == stratified_kfold(names, groups, 5, 3, nothing)
    assert found != stratified_kfold(names, groups, 5, 4, nothing)


def test_stratified_kfold_of_one_fold_raises() -> None:
    with pytest.raises(UserError, match=r"\b1\b.*\bfold.*\b2\b"):
        stratified_kfold(labels(a=9, b=9), [], 1, 0, nothing)


def test_check_fractions_drops_zero() -> None:
    assert check_fractions({"train": 0.6, "test": 0.0, "holdout": 0.4}, 0) == {"train": 0.6, "holdout": 0.4}


@pytest.mark.parametrize(
    ("fractions", "seed", "facts"),
    [
        ({"a": 1.5, "b": -0.5}, 0, r"fraction.*\ba\b.*\b1\.5\b"),
        ({"a": float("nan")}, 0, r"fraction.*\ba\b.*\b(?i:nan)\b"),
        ({"a": 0.5, "b": 0.4}, 0, r"(?=.*\b0\.9\b).*\ba\W+0\.5\W+b\W+0\.4\b"),
        ({"a": 1.0}, -1, r"seed\b.*-1\b"),
    ],
)
def test_check_fractions_invalid_raises(fractions: dict[str, float], seed: int, facts: str) -> None:
    with pytest.raises(UserError, match=facts):
        check_fractions(fractions, seed)


def test_allocate_counts_of_the_3670_flowers() -> None:
    # 0.5, 0.2 and 0.3 of 633, 898, 641, 699 and 799; of all 3,670 these are 1,835, 734 and 1,101 without a remainder.
    table = allocate_counts([633, 898, 641, 699, 799], [0.5, 0.2, 0.3])
    assert table.tolist() == [[317, 126, 190], [449, 180, 269], [321, 128, 192], [349, 140, 210], [399, 160, 240]]
    assert table.sum(0).tolist() == [1835, 734, 1101]


@pytest.mark.parametrize(
    ("n", "fractions", "expected"),
    [
        (10, [0.5, 0.2, 0.3], [5, 2, 3]),
        (11, [0.5, 0.2, 0.3], [6, 2, 3]),  # 5.5, 2.2, 3.3
        (1, [0.4, 0.6], [0, 1]),
        (3, [0.25, 0.25, 0.25, 0.25], [1, 1, 1, 0]),  # the earlier one among equals
        (3670, [0.1] * 10, [367] * 10),
        (1000, [0.333333, 0.333333, 0.333334], [333, 333, 334]),
        (0, [0.5, 0.5], [0, 0]),
    ],
)
def test_allocate_counts_of_one_class_is_largest_remainder(n: int, fractions: list[float], expected: list[int]) -> None:
    assert allocate_counts([n], fractions).tolist() == [expected]


def cost(table, quotas) -> tuple[float, float]:
    off = np.abs(table - quotas)
    return round(float(np.maximum(off - 1, 0).sum()), 6), round(float((off**2).sum()), 6)


@pytest.mark.parametrize("seed", range(30))
def test_allocate_counts_is_the_nearest_of_all_tables(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes, fractions = rng.integers(0, 6, 3), rng.random(3) + 0.05
    low = np.zeros((3, 3), int)
    if seed % 2:  # with bounds
        low[0] = rng.multinomial(sizes[0] // 2, [1 / 3] * 3)
        low[1] = rng.multinomial(sizes[1], [0.8, 0.1, 0.1])
    table = allocate_counts(sizes.tolist(), fractions.tolist(), low)
    rows = [
        [row for row in itertools.product(range(n + 1), repeat=3) if sum(row) == n and (row >= bound).all()]
        for n, bound in zip(sizes, low, strict=True)
    ]
    quotas = np.outer(sizes, fractions / fractions.sum())
    every = [np.array(candidate) for candidate in itertools.product(*rows)]
    totals = sizes.sum() * fractions / fractions.sum()
    same = [candidate for candidate in every if (candidate.sum(0) == table.sum(0)).all()]
    assert any((candidate == table).all() for candidate in same)
    assert cost(table, quotas) == min(cost(candidate, quotas) for candidate in same)
    assert cost(table.sum(0), totals) == min(cost(candidate.sum(0), totals) for candidate in every)


def test_allocate_counts_of_many_equal_classes_has_exact_totals() -> None:
    table = allocate_counts(
        [11] * 1000, [0.55, 0.27, 0.18]
    )  # 6.05, 2.97 and 1.98: all rows alike would give 6, 3 and 2
    assert table.sum(0).tolist() == [6050, 2970, 1980]
    assert (table.sum(1) == 11).all()
    assert np.abs(table - 11 * np.array([0.55, 0.27, 0.18])).max() <= 1


def test_allocate_counts_ends_where_moves_cancel_each_other() -> None:
    """With rounded costs, the search for the cheapest path went in a circle here."""
    sizes = [182, 59, 279, 128, 51, 250, 242, 73, 204, 378, 383, 76, 247, 400, 88, 186, 235, 298, 322, 101]
    table = allocate_counts(sizes, [0.56, 0.24, 0.2])
    assert table.sum(0).tolist() == [2342, 1004, 836]  # of 2,341.92, 1,003.68 and 836.4
    assert table.sum(1).tolist() == sizes
    assert np.abs(table - np.outer(sizes, [0.56, 0.24, 0.2])).max() <= 1


def test_allocate_counts_bounds_precede_totals() -> None:
    low = np.array([[6, 0], [0, 0]])
    assert allocate_counts([6, 4], [0.5, 0.5], low).tolist() == [[6, 0], [0, 4]]  # 5 and 5 is impossible
    low = np.array([[4, 0], [0, 0]])
    assert allocate_counts([6, 4], [0.5, 0.5], low).tolist() == [[4, 2], [1, 3]]  # the other class compensates
