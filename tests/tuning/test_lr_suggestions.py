"""Suggestions on curves whose answers are known."""

import math

import numpy as np
import pytest

from flaxtl.report.templating import round_lr
from flaxtl.train.lr_range_test import LrCurve, LrPoint, LrRange
from flaxtl.tuning import lr_finder
from flaxtl.tuning.lr_finder import suggestions

RATES = LrRange(1e-7, 1.0, 100).all()


def curve(smoothed):
    return LrCurve(tuple(LrPoint(rate, value, value) for rate, value in zip(RATES, smoothed, strict=False)), 10)


def rates(smoothed):
    return {each.name: each.rate for each in suggestions(curve(smoothed))}


def valley(*, steep=55):
    """Level to point 39, down to point 79 with the largest drop after `steep`, and up again."""
    drops = np.full(40, 0.01)
    drops[steep - 39] = 0.05
    down = 1 - np.cumsum(drops)
    return [1.0] * 40 + down.tolist() + np.linspace(down[-1], 2.0, 21)[1:].tolist()


def test_each_rule_finds_its_point():
    found = rates(valley())
    assert list(found) == ["valley", "steepest", "lowest / 10"]
    assert found["valley"] == round_lr(RATES[79 - 41 // 2])  # the level counts as one
    assert found["steepest"] == round_lr(RATES[55])
    assert found["lowest / 10"] == round_lr(RATES[79] / 10)


def test_the_valley_is_that_of_fastai():
    """fastai/callback/schedule.py, valley(): start = end - length; start + length / 3 + length / 6."""
    end, length = 79, 41
    theirs = end - length + int(length / 3) + int(int(length / 3) / 2)
    ours = list(map(round_lr, RATES)).index(rates(valley())["valley"])
    assert abs(ours - theirs) <= 2  # their halves of thirds are rounded down


def test_the_first_tenth_is_not_looked_at():
    early = valley()
    early[:10] = np.linspace(9, 0.1, 10)
    assert rates(early) == rates(valley())


def test_how_the_test_ended_changes_nothing():
    assert rates([*valley()[:90], math.nan]) == rates([*valley()[:90], 90.0]) == rates(valley())


@pytest.mark.parametrize("smoothed", [np.linspace(1, 2, 100), [1.0] * 100, [1.0] * 12, [1.0, math.nan]])
def test_a_loss_that_never_falls_suggests_nothing(smoothed):
    assert rates(smoothed) == {}


def longest(values):
    """By trying every pair."""
    lengths = []
    for place, value in enumerate(values):
        lengths.append(1 + max((lengths[k] for k in range(place) if values[k] > value), default=0))
    return lengths.index(max(lengths)), max(lengths)


@pytest.mark.parametrize("seed", range(20))
def test_the_longest_descent(seed):
    values = np.random.default_rng(seed).integers(0, 12, 40).tolist()  # with equal ones among them
    assert lr_finder._longest_descent(values) == longest(values)
