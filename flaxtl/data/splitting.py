"""Stratified splits and folds: reproducible, exact in the totals, and with duplicates kept together.

`stratified_split` first computes a table of counts, images per class and split, as close to the fractions as
integers allow (`allocate_counts`), and then fills it from a seeded permutation of each class.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from flaxtl.errors import UserError

Counts = NDArray[np.int64]
"""Images per class and split, [classes, splits], or a row or column sum of that."""

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

_UNIT = 10**6
"""Quotas and costs are whole numbers of this fraction of an image, which floats add exactly.

With sums that are rounded, moves that cancel each other can seem to gain a little, and the search for the cheapest path
would follow them in a circle without end.
"""

_OFF_BY_MORE = 10**6  # penalty per image by which a count is more than one off its quota; outweighs any sum of squares


def check_fractions(fractions: Mapping[str, float], seed: int) -> dict[str, float]:
    """Return the fractions above 0. Raise UserError unless each is in [0, 1], they sum to 1, and the seed is >= 0."""
    for name, fraction in fractions.items():
        if not 0 <= fraction <= 1:
            raise UserError(f"The fraction of {name} is {fraction}. Fractions must be between 0 and 1.")
    total = sum(fractions.values())
    if not math.isclose(total, 1, abs_tol=1e-6):
        raise UserError(f"The fractions ({format_fractions(fractions)}) sum to {total:.6g}. They must sum to 1.")
    if seed < 0:
        raise UserError(f"The seed of the split is {seed}. It must be 0 or more.")
    return {name: fraction for name, fraction in fractions.items() if fraction > 0}


def format_fractions(fractions: Mapping[str, float]) -> str:
    """Format fractions for a message: 'train 0.5, validation 0.2, test 0.3'."""
    return ", ".join(f"{split} {fraction}" for split, fraction in fractions.items())


def stratified_split(
    labels: Sequence[str],
    groups: Sequence[Sequence[int]],
    fractions: Mapping[str, float],
    seed: int,
    warn: Callable[[str], None],
) -> list[str]:
    """Assign every image to a split.

    The counts are those of `allocate_counts`; every split gets an image of each class that has enough of them. The
    images of a class, in the given order, are permuted by numpy's default_rng seeded with `seed` and the bytes of the
    class name. Groups are placed first, as a whole, the largest first: where most of the capacity for their classes is
    left, or else where they exceed it least. The other images then fill the counts in the order of the permutation. So
    a split depends on the order of the images, but not on where they are stored.

    Args:
      labels: the class name of every image.
      groups: disjoint sets of two or more images, by index, that must stay together; their classes may differ.
      fractions: of each split, above 0, with sum 1.
      seed: 0 or more.
      warn: called with one message if groups are so large, or classes so small, that the totals had to change.

    Returns:
      The split of every image.

    Raises:
      UserError: a class leaves a split empty.
    """
    splits = list(fractions)
    classes, class_of = np.unique(np.array(labels, dtype=object), return_inverse=True)
    sizes = np.bincount(class_of, minlength=len(classes))
    members = _permute_classes(class_of, classes, sizes, seed)
    nothing_placed = np.zeros((len(classes), len(splits)), np.int64)
    targets = allocate_counts(sizes.tolist(), list(fractions.values()), _lower_bounds(nothing_placed, sizes))
    assignment = np.full(len(labels), -1)
    placed = _place_groups(groups, class_of, np.concatenate(members), targets, assignment)
    counts = allocate_counts(sizes.tolist(), list(fractions.values()), _lower_bounds(placed, sizes))
    _check_none_empty(counts, [str(name) for name in classes], splits, sizes, placed)
    for own, free in zip(members, counts - placed, strict=True):
        assignment[own[assignment[own] < 0]] = np.repeat(np.arange(len(splits)), free)
    _warn_of_totals(splits, counts, targets, allocate_counts([len(labels)], list(fractions.values())), warn)
    return [splits[number] for number in assignment]


def stratified_kfold(
    labels: Sequence[str], groups: Sequence[Sequence[int]], k: int, seed: int, warn: Callable[[str], None]
) -> list[int]:
    """Assign every image to a fold, 0 to k - 1, as `stratified_split` does.

    Raises:
      UserError: k < 2, a class has fewer than k images, or as `stratified_split`.
    """
    if k < 2:
        raise UserError(f"{k} fold(s) leave no images for training or for validation. Use 2 or more.")
    smallest, size = min(Counter(labels).items(), key=lambda item: item[1])
    if size < k:
        raise UserError(f"The class {smallest!r} is too small: its {size} image(s) cannot fill {k} folds. Use fewer.")
    names = [f"fold {number + 1}" for number in range(k)]
    return [names.index(name) for name in stratified_split(labels, groups, dict.fromkeys(names, 1 / k), seed, warn)]


def _warn_of_totals(
    splits: Sequence[str], counts: Counts, targets: Counts, exact: Counts, warn: Callable[[str], None]
) -> None:
    """Warn if the totals of `counts` are not `exact`; `targets` are the counts without groups."""
    totals, exact_totals = counts.sum(0), exact.sum(0)
    if (totals == exact_totals).all():
        return
    grouped = (totals != targets.sum(0)).any()
    reason = "Near-duplicates are kept in the same split" if grouped else "Every split gets an image of each class"
    rows = zip(splits, totals, exact_totals, strict=True)
    changes = ", ".join(f"{split} {n} instead of {target}" for split, n, target in rows if n != target)
    warn(f"{reason}, so the fractions cannot be met exactly: {changes}")


def _permute_classes(class_of: Indices, classes: NDArray[np.object_], sizes: Counts, seed: int) -> list[Indices]:
    """Return the images of each class, permuted."""
    members = np.split(np.argsort(class_of, kind="stable"), np.cumsum(sizes)[:-1])
    seeds = [[seed, *name.encode(errors="surrogateescape")] for name in classes]
    return [own[np.random.default_rng(key).permutation(len(own))] for own, key in zip(members, seeds, strict=True)]


def _lower_bounds(placed: Counts, sizes: Counts) -> Counts:
    """Return the placed counts, with 1 instead of 0 for classes that have an image left for each empty split."""
    empty = placed == 0
    enough = empty.sum(1) <= sizes - placed.sum(1)
    return np.where(empty & enough[:, None], 1, placed)


def _place_groups(
    groups: Sequence[Sequence[int]], class_of: Indices, order: Indices, targets: Counts, assignment: Indices
) -> Counts:
    """Write the split of each group to `assignment`; return how many images are placed so, [classes, splits]."""
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    placed = np.zeros_like(targets)
    for group in sorted(groups, key=lambda members: (-len(members), rank[list(members)].min())):
        members = list(group)
        classes, sizes = np.unique(class_of[members], return_counts=True)
        split = _best_split(sizes[:, None], targets[classes], placed[classes])
        placed[classes, split] += sizes
        assignment[members] = split
    return placed


def _best_split(sizes: Counts, targets: Counts, placed: Counts) -> int:
    capacity = targets - placed
    excess = np.maximum(sizes - capacity, 0).sum(0)
    fraction_left = (capacity / np.maximum(targets, 1)).min(0)  # of the class that has the least
    return int(np.where(excess == excess.min(), fraction_left, -np.inf).argmax())


def _check_none_empty(
    counts: Counts, classes: Sequence[str], splits: Sequence[str], sizes: Counts, placed: Counts
) -> None:
    for row, name, size, grouped in zip(counts, classes, sizes, placed.sum(1), strict=True):
        if not row.all():
            empty = ", ".join(split for split, n in zip(splits, row, strict=True) if not n)
            near = f", {grouped} of which are near-duplicates and stay together," if grouped else ""
            raise UserError(
                f"The class {name!r} is too small: its {size} image(s){near} leave {empty} empty. Add images, or "
                "change the fractions" + (" or the threshold of near-duplicates." if grouped else ".")
            )


def allocate_counts(sizes: Sequence[int], fractions: Sequence[float], at_least: Counts | None = None) -> Counts:
    """Return the table of counts, int64 [classes, splits], nearest to the quotas sizes[c] * fractions[s].

    Every row sums to the size of its class. The columns sum to the largest-remainder totals of all images: each total
    is its quota rounded down, and those with the largest remainders get the images left over, the earlier split first
    among equals. Of all such tables, this is the one with the fewest images by which counts are more than one off their
    quotas (none, if possible), and of those the one with the least sum of squared differences.

    Args:
      sizes: images per class, 0 or more.
      fractions: above 0; relative to their sum.
      at_least: int64 [classes, splits], lower bounds of the counts, with row sums within `sizes`; the totals change
        where these require it.
    """
    shares = np.asarray(fractions, np.float64) / np.sum(fractions)
    rows = np.asarray(sizes, np.int64)
    low = np.zeros((len(rows), len(shares)), np.int64) if at_least is None else at_least
    quotas = np.round(np.outer(rows, shares) * _UNIT)
    totals = _round_quotas(int(rows.sum()), np.round(rows.sum() * shares * _UNIT), low.sum(0))
    table = np.array([_round_quotas(int(n), *row) for n, *row in zip(rows, quotas, low, strict=True)], np.int64)
    return _match_totals(table, quotas, low, totals)


def _round_quotas(n: int, quotas: Floats, low: Counts) -> Counts:
    """Return counts that sum to n: the quotas rounded down, then changed one image at a time where it costs least."""
    counts = np.maximum(low, (quotas // _UNIT).astype(np.int64))
    while counts.sum() < n:
        counts[_cost_of_adding(counts, quotas).argmin()] += 1
    while counts.sum() > n:
        counts[_cost_of_removing(counts, quotas, low).argmin()] -= 1
    return counts


def _match_totals(table: Counts, quotas: Floats, low: Counts, totals: Counts) -> Counts:
    """Move images between splits, within their classes, until the columns sum to `totals`.

    Each move follows the cheapest path from a column with too many to one with too few, possibly through other columns
    by images of other classes. The rows are optimal at the start, so this is the successive shortest path algorithm for
    minimum convex cost flow, and its result is optimal too.
    """
    table = table.copy()
    while (surplus := table.sum(0) - totals).any():
        costs = _cost_of_removing(table, quotas, low)[:, :, None] + _cost_of_adding(table, quotas)[:, None, :]
        for start, end in pairwise(_cheapest_path(costs.min(0), surplus)):
            label = costs[:, start, end].argmin()
            table[label, start] -= 1
            table[label, end] += 1
    return table


def _cheapest_path(costs: Floats, surplus: Counts) -> list[int]:
    """Return the columns along the cheapest path from any surplus to any deficit (Bellman-Ford)."""
    distance = np.where(surplus > 0, 0.0, np.inf)
    previous = np.full(len(surplus), -1)
    for _ in surplus:
        through = distance[:, None] + costs
        shorter = through.min(0) < distance
        previous[shorter] = through.argmin(0)[shorter]
        distance = np.minimum(distance, through.min(0))
    path = [int(np.where(surplus < 0, distance, np.inf).argmin())]
    while previous[path[0]] >= 0:
        path.insert(0, int(previous[path[0]]))
    return path


def _cost_of_adding(table: Counts, quotas: Floats) -> Floats:
    """Return the cost of one more image, in units."""
    return _cost_of_rising(table * _UNIT - quotas)


def _cost_of_removing(table: Counts, quotas: Floats, low: Counts) -> Floats:
    """Return the cost of one image less, in units, infinite at the lower bound."""
    return np.where(table > low, _cost_of_rising(quotas - table * _UNIT), np.inf)


def _cost_of_rising(off: Floats) -> Floats:
    """Return by how much x**2 and the penalty grow from x = `off` / _UNIT to x + 1."""
    penalty = np.maximum(np.abs(off + _UNIT) - _UNIT, 0) - np.maximum(np.abs(off) - _UNIT, 0)
    return np.asarray(2 * off + _UNIT + _OFF_BY_MORE * penalty)
