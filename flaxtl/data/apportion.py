"""How many pictures of each class each split gets: whole numbers as near to the fractions as whole numbers can be."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Quotas = NDArray[np.float64]

_BEYOND = 1e6  # for every picture by which a count is more than one off its quota: outweighs any number of squares


def counts(sizes: Sequence[int], fractions: Sequence[float], at_least: Counts | None = None) -> Counts:
    """The table of counts, int64 [classes, splits], nearest to the quotas sizes[c] * fractions[s].

    Every row sums to its class's size. The columns sum to the largest-remainder totals of all pictures: each total is
    its quota rounded down, and those with the largest remainders get the pictures that are left over, the earlier split
    first among equals. Of all such tables this is the one with the fewest pictures by which counts are more than one
    off their quotas (none, where that is possible), and of those one with the least sum of squared differences.

    Args:
      sizes: pictures per class, 0 or more.
      fractions: above 0; taken relative to their sum.
      at_least: int64 [classes, splits], bounds that no count may fall below, with row sums within `sizes`; the totals
        give way to them where they must.
    """
    shares = np.asarray(fractions, np.float64) / np.sum(fractions)
    rows = np.asarray(sizes, np.int64)
    low = np.zeros((len(rows), len(shares)), np.int64) if at_least is None else at_least
    quotas = np.outer(rows, shares)
    totals = _nearest(int(rows.sum()), rows.sum() * shares, low.sum(0))
    table = np.array([_nearest(int(n), *row) for n, *row in zip(rows, quotas, low, strict=True)], np.int64)
    return _with_totals(table, quotas, low, totals)


def _nearest(n: int, quotas: Quotas, low: Counts) -> Counts:
    """The row of counts that sums to n: from the quotas rounded down, one picture at a time where it costs least."""
    row = np.maximum(low, np.floor(quotas + 1e-9).astype(np.int64))  # 733.9999999999999 is 734
    while row.sum() < n:
        row[_adding(row, quotas).argmin()] += 1
    while row.sum() > n:
        row[_removing(row, quotas, low).argmin()] -= 1
    return row


def _with_totals(table: Counts, quotas: Quotas, low: Counts, totals: Counts) -> Counts:
    """Moves pictures between splits, within their classes, until the columns sum to `totals`.

    Each move follows the cheapest path from a column with too many to one with too few, perhaps through others by
    pictures of other classes. The rows are optimal to begin with, so this is the successive-shortest-path algorithm
    for flows of least convex cost, and its end is optimal as well.
    """
    table = table.copy()
    while (surplus := table.sum(0) - totals).any():
        moving = _removing(table, quotas, low)[:, :, None] + _adding(table, quotas)[:, None, :]
        path = _cheapest_path(moving.min(0), surplus)
        for start, end in pairwise(path):
            mover = moving[:, start, end].argmin()
            table[mover, start] -= 1
            table[mover, end] += 1
    return table


def _cheapest_path(costs: Quotas, surplus: Counts) -> list[int]:
    """The columns along the cheapest way from any with a surplus to any with a deficit, by Bellman and Ford."""
    distance = np.where(surplus > 0, 0.0, np.inf)
    before = np.full(len(surplus), -1)
    for _ in surplus:
        through = distance[:, None] + costs
        shorter = through.min(0) < distance
        before[shorter] = through.argmin(0)[shorter]
        distance = np.minimum(distance, through.min(0))
    path = [int(np.where(surplus < 0, distance, np.inf).argmin())]
    while before[path[0]] >= 0:
        path.insert(0, int(before[path[0]]))
    return path


def _cost(table: Counts, quotas: Quotas) -> Quotas:
    off = np.abs(table - quotas)
    return np.asarray(off**2 + _BEYOND * np.maximum(off - 1, 0))


def _adding(table: Counts, quotas: Quotas) -> Quotas:
    """What one picture more costs; rounded, so that equal costs are equal to the bit and the first is taken."""
    return np.round(_cost(table + 1, quotas) - _cost(table, quotas), 6)


def _removing(table: Counts, quotas: Quotas, low: Counts) -> Quotas:
    """What one picture less costs."""
    cost = np.round(_cost(table - 1, quotas) - _cost(table, quotas), 6)
    return np.where(table > low, cost, np.inf)
