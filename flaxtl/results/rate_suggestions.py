"""Which learning rates the curve of a range test suggests, by the rules of fastai's lr_find."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flaxtl.results.formats import two_digits
from flaxtl.train.range_test import Curve, Point

FEWEST_POINTS = 5
"""Of a curve that can be read at all."""


class Suggestion(NamedTuple):
    """A rate, in two digits, the name of the rule that suggests it, and what it is."""

    name: str
    rate: float
    reason: str


def suggestions(curve: Curve) -> tuple[Suggestion, ...]:
    """What the rules make of the curve; the rate to be proposed first, none if no loss fell."""
    settled = curve.settled
    if curve.diverged:
        settled = settled[:-1]  # its loss may be no number
    if len(settled) < FEWEST_POINTS or min(settled, key=_smoothed) is settled[0]:
        return ()
    found = (
        ("valley", settled[_valley(settled)].rate, "half-way down the longest descent of the loss"),
        ("steepest", settled[_steepest(settled)].rate, "where the loss falls fastest"),
        ("lowest / 10", min(settled, key=_smoothed).rate / 10, "a tenth of the rate with the lowest loss"),
    )
    return tuple(Suggestion(name, two_digits(rate), reason) for name, rate, reason in found)


def _smoothed(point: Point) -> float:
    return point.smoothed


def _steepest(points: Sequence[Point]) -> int:
    """Before the largest drop; rates are evenly spaced on a logarithmic axis."""
    return int(np.argmin(np.diff([point.smoothed for point in points])))


def _valley(points: Sequence[Point]) -> int:
    """Half the length of the longest falling subsequence before its end, which noise breaks less than a run."""
    end, length = _longest_descent([point.smoothed for point in points])
    return end - length // 2


def _longest_descent(values: Sequence[float]) -> tuple[int, int]:
    """Where the first of the longest strictly falling subsequences ends, and how many values it has."""
    lasts: list[float] = []  # negated: the highest value that a descent of each length can end with
    end = 0
    for place, value in enumerate(values):
        length = bisect_left(lasts, -value)
        if length == len(lasts):
            end = place
        lasts[length : length + 1] = [-value]
    return end, len(lasts)
