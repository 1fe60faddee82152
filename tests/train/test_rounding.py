from statistics import NormalDist

import numpy as np
import pytest

from flaxtl.train import rounding


@pytest.mark.parametrize(("correct", "n"), [(1019, 1100), (9, 10), (1, 2), (0, 5)])
def test_wilson_interval_solves_score_equation(correct, n):
    # the bounds are the p with (correct / n - p)^2 = z^2 p (1 - p) / n
    z2 = NormalDist().inv_cdf(0.975) ** 2
    roots = np.sort(np.roots([1 + z2 / n, -2 * correct / n - z2 / n, (correct / n) ** 2]))
    assert rounding.wilson_interval(correct, n) == pytest.approx(roots, abs=1e-12)  # two ways through float64


def test_wilson_interval_extreme_counts_stay_in_bounds():
    assert rounding.wilson_interval(0, 0) == (0.0, 1.0)
    assert rounding.wilson_interval(7, 7)[1] == 1.0
    assert 0.0 <= rounding.wilson_interval(0, 7)[0] < 1e-15  # a difference of equals, rounded


@pytest.mark.parametrize(
    ("correct", "n", "text"),
    [
        (1, 3, "33 %, 6 to 79 %"),
        (40, 60, "67 %, 54 to 77 %"),
        (60, 60, "100 %, 94 to 100 %"),
        (98, 99, "99 %, 94 to 100 %"),
        (258, 300, "86 %, 82 to 89 %"),
        (299, 300, "99.7 %, 98.1 to 99.9 %"),
        (634, 735, "86.3 %, 83.6 to 88.6 %"),
        (1020, 1101, "92.6 %, 90.9 to 94.0 %"),
        (38_500, 50_000, "77.0 %, 76.6 to 77.4 %"),
        (990_000, 1_000_000, "99.00 %, 98.98 to 99.02 %"),
    ],
)
def test_rounded_accuracy_has_the_digits_that_n_supports(correct, n, text):
    assert f"{rounding.rounded_percent(correct, n)}, {rounding.rounded_interval(correct, n)}" == text
