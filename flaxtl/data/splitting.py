"""How many images of each class each split gets: whole numbers as near to the fractions as whole numbers can be."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from flaxtl.errors import UserError

SplitCounts = NDArray[np.int64]
Quotas = NDArray[np.float64]

_BEYOND = 1e6  # for every image by which a count is more than one off its quota: outweighs any number of squares


def allocate_counts(
    sizes: Sequence[int], fractions: Sequence[float], at_least: SplitCounts | None = None
) -> SplitCounts:
    """The table of counts, int64 [classes, splits], nearest to the quotas sizes[c] * fractions[s].

    Every row sums to its class's size. The columns sum to the largest-remainder totals of all images: each total is
    its quota rounded down, and those with the largest remainders get the images that are left over, the earlier split
    first among equals. Of all such tables this is the one with the fewest images by which counts are more than one
    off their quotas (none, where that is possible), and of those one with the least sum of squared differences.

    Args:
      sizes: images per class, 0 or more.
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


def _nearest(n: int, quotas: Quotas, low: SplitCounts) -> SplitCounts:
    """The row of counts that sums to n: from the quotas rounded down, one image at a time where it costs least."""
    row = np.maximum(low, np.floor(quotas + 1e-9).astype(np.int64))  # 733.9999999999999 is 734
    while row.sum() < n:
        row[_adding(row, quotas).argmin()] += 1
    while row.sum() > n:
        row[_removing(row, quotas, low).argmin()] -= 1
    return row


def _with_totals(table: SplitCounts, quotas: Quotas, low: SplitCounts, totals: SplitCounts) -> SplitCounts:
    """Moves images between splits, within their classes, until the columns sum to `totals`.

    Each move follows the cheapest path from a column with too many to one with too few, perhaps through others by
    images of other classes. The rows are optimal to begin with, so this is the successive-shortest-path algorithm
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


def _cheapest_path(costs: Quotas, surplus: SplitCounts) -> list[int]:
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


def _cost(table: SplitCounts, quotas: Quotas) -> Quotas:
    off = np.abs(table - quotas)
    return np.asarray(off**2 + _BEYOND * np.maximum(off - 1, 0))


def _adding(table: SplitCounts, quotas: Quotas) -> Quotas:
    """What one image more costs; rounded, so that equal costs are equal to the bit and the first is taken."""
    return np.round(_cost(table + 1, quotas) - _cost(table, quotas), 6)


def _removing(table: SplitCounts, quotas: Quotas, low: SplitCounts) -> Quotas:
    """What one image less costs."""
    cost = np.round(_cost(table - 1, quotas) - _cost(table, quotas), 6)
    return np.where(table > low, cost, np.inf)


Indices = NDArray[np.int64]


def check_fractions(fractions: Mapping[str, float], seed: int) -> dict[str, float]:
    """The fractions above 0. Raises UserError unless each lies in 0..1, they sum to 1, and the seed is 0 or more."""
    for name, part in fractions.items():
        if not 0 <= part <= 1:
            raise UserError(f"the fraction of {name} is {part}; fractions lie between 0 and 1")
    if not math.isclose(sum(fractions.values()), 1, abs_tol=1e-6):
        told = ", ".join(f"{split} {part}" for split, part in fractions.items())
        raise UserError(f"the fractions ({told}) sum to {sum(fractions.values()):.6g}; make them sum to 1")
    if seed < 0:
        raise UserError(f"the seed of the split is {seed}; give 0 or more")
    return {name: part for name, part in fractions.items() if part > 0}


def stratified_split(
    labels: Sequence[str],
    groups: Sequence[Sequence[int]],
    fractions: Mapping[str, float],
    seed: int,
    warn: Callable[[str], None],
) -> list[str]:
    """Gives every image its split.

    The counts are those of `apportion.counts`, where every split gets an image of each class that has enough of them.
    The images of a class, in the order given, are permuted by numpy's default_rng seeded with `seed` and the bytes of
    the class name. Groups are placed first, the largest first: each, whole, where most of the room for its classes is
    left, else where it exceeds the room least. Then the others fill the counts in the order of the permutation. So a
    split does not depend on where the images lie, as long as their order does not.

    Args:
      labels: the class name of every image.
      groups: disjoint sets of two and more images, by index, that must not be separated; classes may mix.
      fractions: the part of each split, above 0, with the sum 1.
      seed: 0 or more.
      warn: is told one sentence where groups are so large that the totals had to give way.

    Returns:
      The names of the splits, one an image.

    Raises:
      UserError: a class leaves a split empty.
    """
    splits, shares = list(fractions), list(fractions.values())
    classes, of = np.unique(np.array(labels, dtype=object), return_inverse=True)
    sizes = np.bincount(of, minlength=len(classes))
    order = _order(of, classes, seed)
    wanted = allocate_counts(sizes.tolist(), shares, _bounds(np.zeros((len(classes), len(splits)), np.int64), sizes))
    dealt = np.full(len(labels), -1)
    placed = _place(groups, of, order, wanted, dealt)
    table = allocate_counts(sizes.tolist(), shares, _bounds(placed, sizes))
    _check_none_empty(table, [str(name) for name in classes], splits, sizes, placed)
    for number in range(len(classes)):
        singles = order[(of[order] == number) & (dealt[order] < 0)]
        dealt[singles] = np.repeat(np.arange(len(splits)), table[number] - placed[number])
    if (table.sum(0) != wanted.sum(0)).any():
        told = zip(splits, table.sum(0), wanted.sum(0), strict=True)
        changes = ", ".join(f"{split} {n} instead of {exact}" for split, n, exact in told if n != exact)
        warn(f"images that are alike stay together and do not fit into the fractions exactly: {changes}")
    return [splits[number] for number in dealt]


def stratified_kfold(
    labels: Sequence[str], groups: Sequence[Sequence[int]], k: int, seed: int, warn: Callable[[str], None]
) -> list[int]:
    """The fold of every image, 0 to k - 1, dealt out as `deal` does.

    Raises UserError as it does, for k < 2, and for more folds than some class has images.
    """
    if k < 2:
        raise UserError(f"{k} fold(s) leave nothing to train on or nothing to validate with; give 2 or more")
    smallest, size = min(Counter(labels).items(), key=lambda item: item[1])
    if size < k:
        raise UserError(f"the class {smallest!r} is too small: its {size} image(s) cannot fill {k} folds; give fewer")
    names = [f"fold {number + 1}" for number in range(k)]
    return [names.index(name) for name in stratified_split(labels, groups, dict.fromkeys(names, 1 / k), seed, warn)]


def _order(of: Indices, classes: NDArray[np.object_], seed: int) -> Indices:
    """All images, class by class, each class permuted."""
    permuted = [np.zeros(0, np.int64)]
    for number, name in enumerate(classes):
        members = np.flatnonzero(of == number)
        rng = np.random.default_rng([seed, *name.encode(errors="surrogateescape")])
        permuted.append(members[rng.permutation(len(members))])
    return np.concatenate(permuted)


def _bounds(placed: SplitCounts, sizes: SplitCounts) -> SplitCounts:
    """What is placed, and one image for each empty place of the classes that have as many left."""
    empty = placed == 0
    enough = empty.sum(1) <= sizes - placed.sum(1)
    return np.where(empty & enough[:, None], 1, placed)


def _place(
    groups: Sequence[Sequence[int]], of: Indices, order: Indices, wanted: SplitCounts, dealt: Indices
) -> SplitCounts:
    """Gives each group its split in `dealt`; returns how many of each class are placed so, [classes, splits]."""
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    placed = np.zeros_like(wanted)
    for group in sorted(groups, key=lambda members: (-len(members), rank[list(members)].min())):
        members = list(group)
        classes, need = np.unique(of[members], return_counts=True)
        split = _roomiest(need[:, None], wanted[classes], placed[classes])
        placed[classes, split] += need
        dealt[members] = split
    return placed


def _roomiest(need: SplitCounts, wanted: SplitCounts, placed: SplitCounts) -> int:
    room = wanted - placed
    excess = np.maximum(need - room, 0).sum(0)
    left = (room / np.maximum(wanted, 1)).min(0)  # of the class that has the least
    return int(np.where(excess == excess.min(), left, -np.inf).argmax())


def _check_none_empty(
    table: SplitCounts, classes: Sequence[str], splits: Sequence[str], sizes: SplitCounts, placed: SplitCounts
) -> None:
    for row, name, size, together in zip(table, classes, sizes, placed.sum(1), strict=True):
        if not row.all():
            empty = ", ".join(split for split, n in zip(splits, row, strict=True) if not n)
            alike = f", {together} of which are like others and stay with them," if together else ""
            raise UserError(
                f"the class {name!r} is too small: its {size} image(s){alike} leave {empty} empty; add images or"
                " change the fractions" + (", or count fewer as near-duplicates" if together else "")
            )
