"""Who goes where: counts, permutation, groups that stay together."""

import re
from collections import Counter

import numpy as np
import pytest

from flaxtl.data.splitting import check_fractions, stratified_kfold, stratified_split
from flaxtl.errors import UserError

LECTURE = {"train": 0.5, "validation": 0.2, "test": 0.3}
FLOWERS = {"daisy": 633, "dandelion": 898, "roses": 641, "sunflowers": 699, "tulips": 799}


def nothing(sentence: str) -> None:
    raise AssertionError(f"nothing should be said: {sentence}")


def labels(**sizes: int) -> list[str]:
    return [label for label, n in sizes.items() for _ in range(n)]


def table(given: list[str], splits: list[str]) -> dict[str, list[int]]:
    """class -> images of each split of the lecture"""
    found = Counter(zip(given, splits, strict=True))
    return {label: [found[label, split] for split in LECTURE] for label in sorted(set(given))}


def test_the_3670_flowers() -> None:
    given = labels(**FLOWERS)
    assert table(given, stratified_split(given, [], LECTURE, 0, nothing)) == {
        "daisy": [317, 126, 190],
        "dandelion": [449, 180, 269],
        "roses": [321, 128, 192],
        "sunflowers": [349, 140, 210],
        "tulips": [399, 160, 240],
    }


def test_the_permutation_is_the_documented_one() -> None:
    given = labels(cats=20, dogs=10)
    splits = stratified_split(given, [], LECTURE, 7, nothing)
    for label, first, n in (("cats", 0, 20), ("dogs", 20, 10)):
        order = np.random.default_rng([7, *label.encode()]).permutation(n)
        assert [splits[first + i] for i in order] == (
            ["train"] * (n // 2) + ["validation"] * (n // 5) + ["test"] * (3 * n // 10)
        )


def test_classes_are_permuted_differently_and_by_their_seed() -> None:
    given = labels(a=30, b=30)
    splits = stratified_split(given, [], LECTURE, 0, nothing)
    assert splits[:30] != splits[30:]
    assert splits[:30] == stratified_split(labels(a=30, c=30), [], LECTURE, 0, nothing)[:30]
    assert splits[:30] != stratified_split(given, [], LECTURE, 1, nothing)[:30]


@pytest.mark.parametrize("seed", range(20))
def test_groups_never_straddle_and_counts_stay(seed: int) -> None:
    given = labels(a=20, b=30)
    groups = [[0, 1, 2], [5, 6, 7], [10, 11], [20, 22, 24, 26], [19, 21], [18, 28, 29]]  # the last two span classes
    splits = stratified_split(given, groups, LECTURE, seed, nothing)
    assert table(given, splits) == {"a": [10, 4, 6], "b": [15, 6, 9]}
    assert all(len({splits[i] for i in group}) == 1 for group in groups)


def test_groups_are_spread_over_the_splits_as_images_are() -> None:
    given = labels(a=300, b=300)
    groups = [[i, i + 1] for i in range(0, 300, 2)]
    splits = stratified_split(given, groups, LECTURE, 0, nothing)
    assert Counter(splits[:300]) == {"train": 150, "validation": 60, "test": 90}
    groups = groups[:100]  # and 100 single images
    pairs = Counter(stratified_split(given, groups, LECTURE, 0, nothing)[i] for i, _ in groups)
    assert all(abs(pairs[split] - 100 * part) <= 1 for split, part in LECTURE.items())


def test_which_split_a_group_goes_to_is_seeded() -> None:
    given = labels(a=20, b=20)
    groups = [[0, 1], [2, 3], [4, 5], [6, 7]]
    found = {tuple(stratified_split(given, groups, LECTURE, seed, nothing)[i] for i, _ in groups) for seed in range(10)}
    assert len(found) > 3


def test_a_group_that_does_not_fit_is_kept_and_said() -> None:
    given = labels(a=10, b=10)
    told: list[str] = []
    splits = stratified_split(given, [list(range(6)) + list(range(10, 17))], LECTURE, 0, told.append)
    assert len({splits[i] for i in range(6)}) == 1
    assert table(given, splits) == {"a": [6, 1, 3], "b": [7, 1, 2]}
    (said,) = told
    found = re.findall(r"\b(train|validation|test)\b\D*(\d+)\D+(\d+)", said)
    assert found == [("train", "13", "10"), ("validation", "2", "4"), ("test", "5", "6")]


def test_another_class_makes_up_for_a_large_group_where_it_can() -> None:
    given = labels(a=10, b=10)
    splits = stratified_split(given, [list(range(6))], LECTURE, 0, nothing)
    found = table(given, splits)
    assert found["a"][0] == 6
    assert [sum(column) for column in zip(*found.values(), strict=True)] == [10, 4, 6]


@pytest.mark.parametrize(("n", "fractions"), [(3, (0.5, 0.2, 0.3)), (5, (0.98, 0.01, 0.01))])
def test_every_split_gets_of_every_class_if_there_is_enough(n: int, fractions: tuple[float, ...]) -> None:
    given = labels(a=n, b=100)
    splits = stratified_split(given, [], dict(zip(LECTURE, fractions, strict=True)), 0, lambda sentence: None)
    assert all(table(given, splits)["a"])


@pytest.mark.parametrize(
    ("n", "groups", "facts"),
    [
        (2, [], r"^(?!.*near-duplicate).*'a'.*\b2\b.*\b(train|validation|test)\b"),
        (4, [[0, 1, 2]], r"'a'.*\b4\b.*\b3\b.*\b(train|validation|test)\b.*near-duplicate"),
        (9, [list(range(9))], r"'a'.*\b9\b.*\b9\b.*\bvalidation, test\b"),
    ],
)
def test_a_class_that_leaves_a_split_empty_is_an_error(n: int, groups: list[list[int]], facts: str) -> None:
    with pytest.raises(UserError, match=facts):
        stratified_split(labels(a=n, b=20), groups, LECTURE, 0, nothing)


def test_folds_are_equal_disjoint_and_keep_groups() -> None:
    given = labels(a=23, b=31)
    groups = [[0, 1, 2], [30, 40], [22, 23]]
    found = stratified_kfold(given, groups, 5, 3, nothing)
    assert sorted(Counter(found).values()) == [10, 11, 11, 11, 11]
    for label, n in (("a", 23), ("b", 31)):
        sizes = Counter(fold for fold, name in zip(found, given, strict=True) if name == label)
        assert set(sizes) == set(range(5))
        assert all(abs(size - n / 5) <= 1 for size in sizes.values())
    assert all(len({found[i] for i in group}) == 1 for group in groups)
    assert found == stratified_kfold(given, groups, 5, 3, nothing)
    assert found != stratified_kfold(given, groups, 5, 4, nothing)


def test_one_fold_is_none() -> None:
    with pytest.raises(UserError, match=r"\b1\b.*\bfold.*\b2\b"):
        stratified_kfold(labels(a=9, b=9), [], 1, 0, nothing)


def test_fractions_of_nothing_are_dropped() -> None:
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
def test_fractions_that_will_not_do(fractions: dict[str, float], seed: int, facts: str) -> None:
    with pytest.raises(UserError, match=facts):
        check_fractions(fractions, seed)
