"""Counts of a split, against every table that there is."""

import itertools

import numpy as np
import pytest

from flaxtl.data.splitting import allocate_counts


def test_the_3670_flowers() -> None:
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
        (3, [0.25, 0.25, 0.25, 0.25], [1, 1, 1, 0]),  # the earlier first among equals
        (3670, [0.1] * 10, [367] * 10),
        (1000, [0.333333, 0.333333, 0.333334], [333, 333, 334]),
        (0, [0.5, 0.5], [0, 0]),
    ],
)
def test_one_class_has_its_largest_remainders(n: int, fractions: list[float], expected: list[int]) -> None:
    assert allocate_counts([n], fractions).tolist() == [expected]


def cost(table, quotas) -> tuple[float, float]:
    off = np.abs(table - quotas)
    return round(float(np.maximum(off - 1, 0).sum()), 6), round(float((off**2).sum()), 6)


@pytest.mark.parametrize("seed", range(30))
def test_no_table_with_these_sums_is_nearer(seed: int) -> None:
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
    every = [np.array(made) for made in itertools.product(*rows)]
    totals = sizes.sum() * fractions / fractions.sum()
    same = [made for made in every if (made.sum(0) == table.sum(0)).all()]
    assert any((made == table).all() for made in same)
    assert cost(table, quotas) == min(cost(made, quotas) for made in same)
    assert cost(table.sum(0), totals) == min(cost(made.sum(0), totals) for made in every)


def test_a_thousand_equal_classes_have_exact_totals() -> None:
    table = allocate_counts(
        [11] * 1000, [0.55, 0.27, 0.18]
    )  # 6.05, 2.97 and 1.98: all rows alike would give 6, 3 and 2
    assert table.sum(0).tolist() == [6050, 2970, 1980]
    assert (table.sum(1) == 11).all()
    assert np.abs(table - 11 * np.array([0.55, 0.27, 0.18])).max() <= 1


def test_bounds_come_before_totals() -> None:
    low = np.array([[6, 0], [0, 0]])
    assert allocate_counts([6, 4], [0.5, 0.5], low).tolist() == [[6, 0], [0, 4]]  # 5 and 5 cannot be had
    low = np.array([[4, 0], [0, 0]])
    assert allocate_counts([6, 4], [0.5, 0.5], low).tolist() == [[4, 2], [1, 3]]  # the other class makes up for it
