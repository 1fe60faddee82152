"""Tests of whether numbers are drawn from a distribution; scipy.stats, which has them too, takes a second to import."""

import numpy as np
from scipy import special


def kolmogorov_distance(values, cdf):
    """Return the largest difference between the empirical distribution of `values` and `cdf`, an array function."""
    chances = cdf(np.sort(np.asarray(values, np.float64)))
    steps = np.arange(len(chances) + 1) / len(chances)
    return max((steps[1:] - chances).max(), (chances - steps[:-1]).max())


def chi_square_p_value(counts, expected):
    """Return the chance that counts deviate as far as these from the expected ones, which have the same sum."""
    counts, expected = np.ravel(counts), np.ravel(expected)
    np.testing.assert_allclose(counts.sum(), expected.sum())
    return special.chdtrc(counts.size - 1, ((counts - expected) ** 2 / expected).sum())
