import numpy as np
import pytest

from flaxtl.evaluation import calibration
from flaxtl.evaluation.calibration import CoveragePoint

CONFIDENCE = np.array([0.5, 0.9, 0.75, 0.75, 0.25], np.float32)
RIGHT = np.array([False, True, True, False, True])


def test_each_confidence_is_a_threshold_and_equal_ones_are_answered_together():
    curve = calibration.risk_coverage(CONFIDENCE, RIGHT)
    assert curve.threshold.tolist() == [np.float32(0.9), 0.75, 0.5, 0.25]
    assert curve.num_covered.tolist() == [1, 3, 4, 5]
    assert curve.num_correct.tolist() == [1, 2, 2, 3]
    assert curve.num_covered.dtype == curve.num_correct.dtype == np.int64


@pytest.mark.parametrize(
    ("percent", "found"),
    [
        (100, (0.25, 5, 3)),
        (81, (0.25, 5, 3)),
        (80, (0.5, 4, 2)),
        (60, (0.75, 3, 2)),
        (40, (0.75, 3, 2)),  # two of five would do, but the third is as sure as the second
        (20, (float(np.float32(0.9)), 1, 1)),
        (1, (float(np.float32(0.9)), 1, 1)),
    ],
)
def test_answering_a_share_of_the_images(percent, found):
    assert calibration.coverage_at(calibration.risk_coverage(CONFIDENCE, RIGHT), percent) == CoveragePoint(
        percent, *found
    )


@pytest.mark.parametrize("n", [7, 10, 120, 1000])
def test_no_rounding_of_shares_asks_for_one_image_more(n):
    curve = calibration.risk_coverage(np.linspace(1, 0, n), np.ones(n, bool))
    for percent in range(1, 101):
        assert calibration.coverage_at(curve, percent).num_covered == -(-percent * n // 100)


def test_answers_of_one_confidence_are_all_or_nothing():
    curve = calibration.risk_coverage(np.full(4, 0.5), np.array([True, False, True, True]))
    assert calibration.coverage_at(curve, 50) == CoveragePoint(50, 0.5, 4, 3)
