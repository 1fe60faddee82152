import math
import tracemalloc

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from flaxtl.evaluation import calibration
from flaxtl.evaluation.calibration import CoveragePoint
from flaxtl.evaluation.classification import log_probabilities
from flaxtl.train.run_records import TemperatureFit


def log_softmax(logits):
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def loss(log_probs, labels, temperature):
    return calibration.calibration_metrics(calibration.apply_temperature(log_probs, temperature), labels).loss


LOGIT = math.log(0.9) - math.log(0.1)


def one_logit(num_correct):
    """Return 100 predictions of class 0 with the same LOGIT, and labels with which `num_correct` are correct."""
    return np.log(np.tile([0.9, 0.1], (100, 1))), (np.arange(100) >= num_correct).astype(np.int64)


@pytest.fixture
def samples():
    """Labels drawn from softmax(z), and the log-softmax of 2.5 z of an overconfident model: T is 2.5."""
    rng = np.random.default_rng(0)
    logits = 1.5 * rng.normal(size=(4000, 5))
    labels = (rng.gumbel(size=logits.shape) + logits).argmax(axis=1)  # the Gumbel-max way to draw a class
    return log_softmax(2.5 * logits), labels


@pytest.mark.parametrize("num_correct", [51, 70, 80, 99])
def test_fit_temperature_two_classes_matches_closed_form(num_correct):
    # the loss is minimal where 1 / (1 + exp(-LOGIT / T)) is the accuracy
    expected = LOGIT / math.log(num_correct / (100 - num_correct))
    # the root finder stops at 1e-12; the slope is rounded at 1e-16, a hundredth of its steepness
    assert calibration.fit_temperature(*one_logit(num_correct)) == pytest.approx(expected, rel=1e-11)


def test_loss_and_temperature_beyond_logit_gap_of_88_are_exact():
    """Three of four images are right by a gap of 801.84, so the loss is a quarter of it; T makes it ln 3."""
    labels = np.array([0, 0, 0, 1])
    assert loss(log_softmax(np.tile([801.84, 0], (4, 1))), labels, 1) == 801.84 / 4 == 200.46
    very_sure = log_softmax(np.tile([427.9 * math.log(3), 0], (4, 1)))
    fitted = calibration.fit_temperature(very_sure, labels)
    assert fitted == pytest.approx(427.9, rel=1e-11)
    # a quarter of the images has a probability of 1/4: the loss is the entropy of the labels
    assert loss(very_sure, labels, fitted) == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25), rel=1e-12)


def test_fit_temperature_recovers_sharpening(samples):
    # 4,000 draws: the standard error of T is 2.5 / sqrt(4000 x information), a few percent
    assert calibration.fit_temperature(*samples) == pytest.approx(2.5, rel=0.06)


def test_fit_temperature_matches_loss_minimization(samples):
    minimum = minimize_scalar(
        lambda x: loss(*samples, math.exp(x)), bounds=(-4, 4), method="bounded", options={"xatol": 1e-9}
    )
    # minimizing the loss gives T to the square root of 1e-16
    assert calibration.fit_temperature(*samples) == pytest.approx(math.exp(minimum.x), rel=1e-6)


def test_fit_temperature_improves_calibration(samples):
    fitted = calibration.fit_temperature(*samples)
    before = calibration.calibration_metrics(*samples)
    after = calibration.calibration_metrics(calibration.apply_temperature(samples[0], fitted), samples[1])
    assert after.loss < before.loss - 0.1
    assert after.reliability.ece < 0.03 < 0.1 < before.reliability.ece


@pytest.mark.parametrize(
    ("probabilities", "labels"),
    [
        (np.zeros((0, 2)), []),
        ([[0.9, 0.1], [0.2, 0.8]], [0, 1]),  # all correct: sharper is always better
        ([[0.9, 0.1], [0.2, 0.8]], [1, 0]),  # all wrong
        ([[0.5, 0.5], [0.5, 0.5]], [0, 1]),  # the loss does not depend on T
        ([[np.nan, np.nan]], [0]),
    ],
)
def test_fit_temperature_without_minimum_returns_none(probabilities, labels):
    log_probs = log_probabilities(np.array(probabilities, np.float32))
    assert calibration.fit_temperature(log_probs, np.array(labels, np.int64)) is None


def test_temperature_underflowed_probabilities_stay_finite():
    log_probs = log_probabilities(np.array([[1, 0, 0], [1, 0, 0], [0.5, 0.5, 0]], np.float32))
    fitted = calibration.fit_temperature(log_probs, np.array([0, 1, 0]))
    assert calibration.MIN_TEMPERATURE < fitted < calibration.MAX_TEMPERATURE
    assert np.isfinite(calibration.apply_temperature(log_probs, fitted)).all()


@pytest.mark.parametrize("num_correct", [70, 80, 99])
def test_temperature_interval_is_that_of_the_likelihood_ratio(num_correct):
    log_probs, labels = one_logit(num_correct)
    interval = calibration.temperature_interval(log_probs, labels, calibration.fit_temperature(log_probs, labels))

    def log_likelihood(accuracy):
        return num_correct * math.log(accuracy) + (100 - num_correct) * math.log(1 - accuracy)

    for temperature in interval:
        accuracy = 1 / (1 + math.exp(-LOGIT / temperature))
        ratio = 2 * (log_likelihood(num_correct / 100) - log_likelihood(accuracy))
        assert ratio == pytest.approx(1.96**2, rel=1e-9)
    assert interval[0] < LOGIT / math.log(num_correct / (100 - num_correct)) < interval[1]


def test_temperature_interval_without_upper_end_stops_at_limit():
    log_probs, labels = one_logit(51)  # guessing, which is an infinite temperature, is not rejected
    fitted = calibration.fit_temperature(log_probs, labels)
    low, high = calibration.temperature_interval(log_probs, labels, fitted)
    assert low < fitted
    assert high == pytest.approx(calibration.MAX_TEMPERATURE, rel=1e-12)


@pytest.mark.parametrize(
    ("temperature", "interval", "text"),
    [
        (None, None, ""),
        (11.0, (9.0, 14.0), "very overconfident"),
        (1.5, (1.01, 2.5), "overconfident"),
        (1.5, (0.99, 2.5), "not clearly overconfident"),
        (11.0, (0.5, 1e4), "not clearly overconfident"),
        (1.0, (0.9, 1.1), "well calibrated"),
        (0.7, (0.5, 0.9), "underconfident"),
        (0.2, (0.1, 0.3), "very underconfident"),
        (0.2, (0.01, 1.0), "not clearly underconfident"),
        (0.2, None, "very underconfident"),  # of a run without an interval
    ],
)
def test_describe_fit_names_direction_and_degree(temperature, interval, text):
    assert calibration.describe_fit(TemperatureFit(temperature, 100, interval)) == text


@pytest.mark.parametrize(
    ("temperature", "text"),
    [
        (0.0213, "Model is very underconfident (temperature 0.021)."),
        (0.927, "Model is well calibrated (temperature 0.93)."),
        (11.62, "Model is very overconfident (temperature 12)."),
    ],
)
def test_fit_message_has_two_significant_digits(temperature, text):
    assert calibration.fit_message(TemperatureFit(temperature, 100)) == text


def test_apply_temperature_scales_log_probabilities():
    p = np.array([[0.2, 0.8], [0.5, 0.5]])
    # 2 takes square roots: 1 : 2; 0.5 squares: 1 : 16
    cases = (2.0, [[1 / 3, 2 / 3], [0.5, 0.5]]), (0.5, [[1 / 17, 16 / 17], [0.5, 0.5]]), (1.0, p)
    for temperature, expected in cases:
        scaled = calibration.apply_temperature(np.log(p), temperature)
        np.testing.assert_allclose(np.exp(scaled), expected, rtol=1e-15)


def test_reliability_diagram_edge_belongs_to_lower_bin():
    confidence = np.array([1 / 15, 0.2, np.nextafter(0.2, 1), 1.0, 0.0])
    diagram = calibration.reliability_diagram(confidence, np.array([True, False, True, True, False]))
    assert diagram.count.tolist() == [2, 0, 1, 1, *[0] * 10, 1]
    assert diagram.confidence[[0, 2, 3, 14]].tolist() == [1 / 30, 0.2, np.nextafter(0.2, 1), 1.0]
    assert diagram.accuracy[[0, 2, 3, 14]].tolist() == [0.5, 0, 1, 1]
    assert np.isnan(diagram.accuracy[diagram.count == 0]).all()
    # two of five predictions in a bin of |0.5 - 1/30|, then |0 - 0.2|, |1 - 0.2|, |1 - 1|
    assert diagram.ece == pytest.approx((2 * (0.5 - 1 / 30) + 0.2 + 0.8 + 0) / 5, rel=1e-15)


def test_calibration_metrics_known_values():
    probabilities = np.array([[0.75, 0.25], [0.25, 0.75], [0.75, 0.25], [0.5, 0.5]], np.float32)
    metrics = calibration.calibration_metrics(log_probabilities(probabilities), np.array([0, 1, 1, 0]))
    assert metrics.mean_confidence == pytest.approx(2.75 / 4, rel=1e-15)
    assert metrics.loss == pytest.approx((-2 * math.log(0.75) - math.log(0.25) - math.log(0.5)) / 4, rel=1e-15)
    assert metrics.reliability.count.sum() == 4
    # three predictions of confidence 0.75, two correct; one of confidence 0.5, correct
    assert metrics.reliability.ece == pytest.approx(3 / 4 * (0.75 - 2 / 3) + 1 / 4 * 0.5, rel=1e-14)


CONFIDENCE = np.array([0.5, 0.9, 0.75, 0.75, 0.25], np.float32)
CORRECT = np.array([False, True, True, False, True])


def test_risk_coverage_ties_share_a_threshold():
    curve = calibration.risk_coverage(CONFIDENCE, CORRECT)
    assert curve.threshold.tolist() == [np.float32(0.9), 0.75, 0.5, 0.25]
    assert curve.num_covered.tolist() == [1, 3, 4, 5]
    assert curve.num_correct.tolist() == [1, 2, 2, 3]
    assert curve.num_covered.dtype == curve.num_correct.dtype == np.int64


@pytest.mark.parametrize(
    ("percent", "expected"),
    [
        (100, (0.25, 5, 3)),
        (81, (0.25, 5, 3)),
        (80, (0.5, 4, 2)),
        (60, (0.75, 3, 2)),
        (40, (0.75, 3, 2)),  # two of five would be enough, but the third has the same confidence as the second
        (20, (float(np.float32(0.9)), 1, 1)),
        (1, (float(np.float32(0.9)), 1, 1)),
    ],
)
def test_coverage_at_percent_known_points(percent, expected):
    assert calibration.coverage_at(calibration.risk_coverage(CONFIDENCE, CORRECT), percent) == CoveragePoint(
        percent, *expected
    )


@pytest.mark.parametrize("n", [7, 10, 120, 1000])
def test_coverage_at_every_percent_covers_ceiling(n):
    curve = calibration.risk_coverage(np.linspace(1, 0, n), np.ones(n, bool))
    for percent in range(1, 101):
        assert calibration.coverage_at(curve, percent).num_covered == -(-percent * n // 100)


def test_coverage_at_single_confidence_covers_all():
    curve = calibration.risk_coverage(np.full(4, 0.5), np.array([True, False, True, True]))
    assert calibration.coverage_at(curve, 50) == CoveragePoint(50, 0.5, 4, 3)


def test_calibrated_log_probabilities_need_little_memory():
    """A copy of 10,000 images x 5,000 classes in float64 is 400 MB."""
    probabilities = np.full((100, 1000), 0.001, np.float32)
    logs, peak = peak_arrays(log_probabilities, probabilities, np.log(probabilities))
    assert peak < 1.5  # the result, and the mask of what underflows
    _, peak = peak_arrays(calibration.apply_temperature, logs, 2.0)
    assert peak < 2.5  # the result and its exponential


def peak_arrays(function, *arguments):
    """Return what a function returns, and the largest memory that it needed, in arrays of that size."""
    tracemalloc.start()
    try:
        result = function(*arguments)
        return result, tracemalloc.get_traced_memory()[1] / result.nbytes
    finally:
        tracemalloc.stop()
