import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from flaxtl.evaluation import calibration


def softmax(logits):
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def loss(probabilities, labels, temperature):
    return calibration.calibration_metrics(calibration.apply_temperature(probabilities, temperature), labels).loss


@pytest.fixture
def drawn():
    """Labels drawn from softmax(z), and the probabilities softmax(2.5 z) of a network that is too sure: T is 2.5."""
    rng = np.random.default_rng(0)
    logits = 1.5 * rng.normal(size=(4000, 5))
    labels = (rng.gumbel(size=logits.shape) + logits).argmax(axis=1)  # the Gumbel-max way to draw a class
    return softmax(2.5 * logits), labels


@pytest.mark.parametrize("right", [51, 70, 80, 99])
def test_the_temperature_of_two_classes_is_known(right):
    # 100 answers of the same logit L: at T each is 1 / (1 + exp(-L / T)) sure, best where that is the share right
    sure = np.float32(0.9)
    probabilities = np.tile([sure, 1 - sure], (100, 1)).astype(np.float32)
    labels = (np.arange(100) >= right).astype(np.int64)
    logit = math.log(float(probabilities[0, 0])) - math.log(float(probabilities[0, 1]))
    expected = logit / math.log(right / (100 - right))
    # the bisection ends at 1e-12; the slope is rounded at 1e-16, a hundredth of its steepness
    assert calibration.fit_temperature(probabilities, labels) == pytest.approx(expected, rel=1e-11)


def test_the_temperature_undoes_a_sharpened_softmax(drawn):
    # 4,000 draws: the standard error of T is 2.5 / sqrt(4000 x information), a few percent
    assert calibration.fit_temperature(*drawn) == pytest.approx(2.5, rel=0.06)


def test_the_temperature_is_where_a_library_finds_the_least_loss(drawn):
    found = minimize_scalar(
        lambda x: loss(*drawn, math.exp(x)), bounds=(-4, 4), method="bounded", options={"xatol": 1e-9}
    )
    # comparing losses tells T to the square root of 1e-16, and scipy does no better
    assert calibration.fit_temperature(*drawn) == pytest.approx(math.exp(found.x), rel=1e-6)


def test_the_temperature_does_not_worsen_what_it_was_fitted_on(drawn):
    fitted = calibration.fit_temperature(*drawn)
    before = calibration.calibration_metrics(*drawn)
    after = calibration.calibration_metrics(calibration.apply_temperature(drawn[0], fitted), drawn[1])
    assert after.loss < before.loss - 0.1
    assert after.reliability.ece < 0.03 < 0.1 < before.reliability.ece


@pytest.mark.parametrize(
    ("probabilities", "labels"),
    [
        (np.zeros((0, 2)), []),
        ([[0.9, 0.1], [0.2, 0.8]], [0, 1]),  # all right: surer is better, without end
        ([[0.9, 0.1], [0.2, 0.8]], [1, 0]),  # all wrong
        ([[0.5, 0.5], [0.5, 0.5]], [0, 1]),  # every temperature is alike
        ([[np.nan, np.nan]], [0]),
    ],
)
def test_there_may_be_no_temperature(probabilities, labels):
    assert calibration.fit_temperature(np.array(probabilities, np.float32), np.array(labels, np.int64)) is None


def test_probabilities_that_underflowed_are_no_infinity():
    probabilities = np.array([[1, 0, 0], [1, 0, 0], [0.5, 0.5, 0]], np.float32)
    fitted = calibration.fit_temperature(probabilities, np.array([0, 1, 0]))
    assert calibration.MIN_TEMPERATURE < fitted < calibration.MAX_TEMPERATURE
    assert np.isfinite(calibration.apply_temperature(probabilities, fitted)).all()


def test_at_temperature():
    p = np.array([[0.2, 0.8], [0.5, 0.5]])
    # 2 takes square roots: 1 : 2; 0.5 squares: 1 : 16
    np.testing.assert_allclose(calibration.apply_temperature(p, 2.0), [[1 / 3, 2 / 3], [0.5, 0.5]], rtol=1e-15)
    np.testing.assert_allclose(calibration.apply_temperature(p, 0.5), [[1 / 17, 16 / 17], [0.5, 0.5]], rtol=1e-15)
    np.testing.assert_allclose(calibration.apply_temperature(p, 1.0), p, rtol=1e-15)


def test_reliability_puts_an_edge_into_the_bin_below():
    confidence = np.array([1 / 15, 0.2, np.nextafter(0.2, 1), 1.0, 0.0])
    found = calibration.reliability_diagram(confidence, np.array([True, False, True, True, False]))
    assert found.count.tolist() == [2, 0, 1, 1, *[0] * 10, 1]
    assert found.confidence[[0, 2, 3, 14]].tolist() == [1 / 30, 0.2, np.nextafter(0.2, 1), 1.0]
    assert found.accuracy[[0, 2, 3, 14]].tolist() == [0.5, 0, 1, 1]
    assert np.isnan(found.accuracy[found.count == 0]).all()
    # two of five answers in a bin of |0.5 - 1/30|, then |0 - 0.2|, |1 - 0.2|, |1 - 1|
    assert found.ece == pytest.approx((2 * (0.5 - 1 / 30) + 0.2 + 0.8 + 0) / 5, rel=1e-15)


def test_calibration():
    probabilities = np.array([[0.75, 0.25], [0.25, 0.75], [0.75, 0.25], [0.5, 0.5]], np.float32)
    found = calibration.calibration_metrics(probabilities, np.array([0, 1, 1, 0]))
    assert found.mean_confidence == 2.75 / 4
    assert found.loss == pytest.approx((-2 * math.log(0.75) - math.log(0.25) - math.log(0.5)) / 4, rel=1e-15)
    assert found.reliability.count.sum() == 4
    # three answers 0.75 sure of which two are right; one 0.5 sure, and right
    assert found.reliability.ece == pytest.approx(3 / 4 * (0.75 - 2 / 3) + 1 / 4 * 0.5, rel=1e-14)
