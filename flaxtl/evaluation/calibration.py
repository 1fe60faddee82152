"""Calibration: how well confidences match accuracies, temperature scaling, and accuracy against coverage.

Metrics, temperature scaling and the 15 bins follow Guo, Pleiss, Sun and Weinberger (2017), "On Calibration of Modern
Neural Networks". The confidence of a prediction is the probability of the predicted class.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flaxtl.evaluation import classification
from flaxtl.evaluation.classification import CountArray, FloatArray, IntArray
from flaxtl.train.run_records import TemperatureFit

NUM_BINS = 15
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 1e4  # of logits from some hundredths to some ten thousands
LIKELIHOOD_MARGIN = 1.96**2 / 2  # of a 95 % interval: half the quantile of chi-squared with one degree of freedom
COVERAGE_PERCENTS = (100, 95, 90, 80, 50)  # the rows of the report's table


@dataclass(frozen=True, eq=False)
class ReliabilityDiagram:
    """Predictions in NUM_BINS confidence bins of equal width; bin i is (i / NUM_BINS, (i + 1) / NUM_BINS].

    Attributes:
      count: predictions in the bin, int64 [NUM_BINS].
      confidence: their mean confidence, float64 [NUM_BINS]; NaN for an empty bin.
      accuracy: the fraction of them that is correct, float64 [NUM_BINS]; NaN for an empty bin.
    """

    count: CountArray
    confidence: FloatArray
    accuracy: FloatArray

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean of |accuracy - confidence| over bins, weighted by count; in [0, 1]."""
        filled = self.count > 0
        gaps = np.abs(self.accuracy[filled] - self.confidence[filled])
        return float((gaps * self.count[filled]).sum() / self.count.sum())


@dataclass(frozen=True, eq=False)
class CalibrationMetrics:
    """Mean confidence, mean cross-entropy (nats) and reliability diagram of the predictions on n > 0 images."""

    mean_confidence: float
    loss: float
    reliability: ReliabilityDiagram


def calibration_metrics(log_probs: FloatArray, labels: IntArray) -> CalibrationMetrics:
    """Compute the calibration metrics of log-probabilities [n, classes] for true classes `labels` [n], n > 0."""
    confidence = np.exp(log_probs.max(axis=1))
    return CalibrationMetrics(
        mean_confidence=float(confidence.mean()),
        loss=float(classification.cross_entropy(log_probs, labels).mean()),
        reliability=reliability_diagram(confidence, log_probs.argmax(axis=1) == labels),
    )


def reliability_diagram(confidence: FloatArray, correct: npt.NDArray[np.bool_]) -> ReliabilityDiagram:
    """Bin n > 0 predictions by `confidence` [n]; `correct` [n] marks the correct ones."""
    upper_edges = np.arange(1, NUM_BINS) / NUM_BINS
    bins = np.searchsorted(upper_edges, confidence, side="left")
    count, confidence_sum, num_correct = (
        np.bincount(bins, weights, NUM_BINS) for weights in (None, confidence, correct)
    )
    with np.errstate(invalid="ignore"):  # empty bins: 0 / 0 is NaN
        return ReliabilityDiagram(count.astype(np.int64), confidence_sum / count, num_correct / count)


def apply_temperature(log_probs: FloatArray, temperature: float) -> FloatArray:
    """Return log softmax(log p / T), float64 [n, classes]: the same predictions, less confident where T > 1."""
    logits = _logits(log_probs)
    logits /= temperature  # in place, as below: with many classes, a copy may take gigabytes
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits


def fit_temperature(log_probs: FloatArray, labels: IntArray) -> float | None:
    """Return the temperature of log-probabilities [n, classes] that minimizes the mean cross-entropy of `labels` [n].

    The loss is convex in 1 / T, so its minimum is the root of its slope. A root finder gives T to almost all digits;
    minimizing the loss itself would give half of them.

    Returns:
      The temperature, or None if there is no minimum between MIN_TEMPERATURE and MAX_TEMPERATURE: without images,
      with almost no errors (sharper is always better), and with predictions no better than chance.
    """
    if not len(labels):
        return None
    logits = _logits(log_probs)
    true_logits = logits[np.arange(len(labels)), labels]

    def slope(log_temperature: float) -> float:
        """Return the slope of the loss in 1 / T: the mean of the expected logit minus the true class's logit."""
        weights = np.exp(logits / math.exp(log_temperature))
        expected = (weights * logits).sum(axis=1) / weights.sum(axis=1)
        return float((expected - true_logits).mean())

    low, high = math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)
    if not slope(high) < 0 < slope(low):
        return None
    from scipy.optimize import brentq  # slow to import

    return math.exp(brentq(slope, low, high, xtol=1e-12))


def temperature_interval(log_probs: FloatArray, labels: IntArray, temperature: float) -> tuple[float, float]:
    """Return the 95 % interval (low, high) of a fitted temperature, within MIN_TEMPERATURE and MAX_TEMPERATURE.

    It has all temperatures that a likelihood-ratio test does not reject: the sum of the cross-entropies of log p
    [n, classes] for `labels` [n] is less than LIKELIHOOD_MARGIN above its minimum, which is at `temperature`.
    """
    from scipy.optimize import brentq  # slow to import

    def loss(log_temperature: float) -> float:
        scaled = apply_temperature(log_probs, math.exp(log_temperature))
        return float(classification.cross_entropy(scaled, labels).sum())

    fitted = math.log(temperature)
    limit = loss(fitted) + LIKELIHOOD_MARGIN
    low, high = (
        bound if loss(bound) < limit else brentq(lambda value: loss(value) - limit, *sorted((bound, fitted)))
        for bound in (math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE))
    )
    return math.exp(low), math.exp(high)


def describe_fit(fit: TemperatureFit) -> str:
    """Return what a fitted temperature means: 'very overconfident', ..., 'well calibrated', ... 'underconfident'.

    'not clearly underconfident' if the images are too few to exclude that the model is calibrated; '' without one.
    """
    if fit.temperature is None:
        return ""
    if 0.9 <= fit.temperature <= 1.1:
        return "well calibrated"
    direction = "overconfident" if fit.temperature > 1 else "underconfident"
    if fit.interval and fit.interval[0] <= 1 <= fit.interval[1]:
        return f"not clearly {direction}"
    return direction if 0.5 <= fit.temperature <= 2 else f"very {direction}"


def fit_message(fit: TemperatureFit) -> str:
    """Return what a fitted temperature means, and the temperature with two significant digits, as a sentence."""
    return f"Model is {describe_fit(fit)} (temperature {fit.temperature:.2g})."


def _logits(log_probs: FloatArray) -> FloatArray:
    """Return log p minus its maximum, so that its exponential cannot overflow."""
    return np.asarray(log_probs - log_probs.max(axis=1, keepdims=True, initial=-np.inf), np.float64)


@dataclass(frozen=True, eq=False)
class RiskCoverage:
    """Accuracy when only predictions above a confidence threshold are accepted; one entry per distinct confidence.

    Attributes:
      threshold: float64 [m], decreasing.
      num_covered: images with at least this confidence, int64 [m], increasing to all n images.
      num_correct: correct predictions among them, int64 [m].
    """

    threshold: FloatArray
    num_covered: CountArray
    num_correct: CountArray


class CoveragePoint(NamedTuple):
    """The highest threshold that covers at least `percent` of the images; ties in confidence may cover more."""

    percent: int
    threshold: float
    num_covered: int
    num_correct: int


def risk_coverage(confidence: npt.NDArray[np.floating], correct: npt.NDArray[np.bool_]) -> RiskCoverage:
    """Compute the curve of n > 0 predictions from their confidence [n], in [0, 1], and whether each is correct [n]."""
    order = np.argsort(-confidence, kind="stable")
    threshold = confidence[order].astype(np.float64)
    last = np.append(np.flatnonzero(np.diff(threshold)), len(threshold) - 1)  # the last of each group of ties
    return RiskCoverage(threshold[last], last.astype(np.int64) + 1, np.cumsum(correct[order], dtype=np.int64)[last])


def coverage_at(curve: RiskCoverage, percent: int) -> CoveragePoint:
    """Return the point of the curve that covers at least `percent` (1 to 100) of the images."""
    row = int(np.argmax(100 * curve.num_covered >= percent * curve.num_covered[-1]))
    return CoveragePoint(percent, float(curve.threshold[row]), int(curve.num_covered[row]), int(curve.num_correct[row]))


@dataclass(frozen=True)
class CalibrationReport:
    """Calibration of the predictions on the evaluation split.

    Attributes:
      uncalibrated: metrics of the probabilities as predicted.
      calibrated: metrics at the run's temperature; None if it has none.
      temperature: fitted on the validation images at the end of the run, or None.
      no_temperature_reason: why there is no temperature, a sentence without its period; "" if there is one.
      num_fitted: number of validation images that the temperature was fitted on.
      risk_coverage: accuracy against the fraction of images covered; of calibrated confidences, if there are any.
      coverage_points: points of the curve at COVERAGE_PERCENTS.
    """

    uncalibrated: CalibrationMetrics
    calibrated: CalibrationMetrics | None
    temperature: float | None
    no_temperature_reason: str
    num_fitted: int
    risk_coverage: RiskCoverage
    coverage_points: Sequence[CoveragePoint]


def calibration_report(log_probs: FloatArray, labels: IntArray, fit: TemperatureFit | None) -> CalibrationReport:
    """Compute the calibration of predictions on n > 0 images, without and with a temperature.

    Args:
      log_probs: log-probabilities on the evaluation split, [n, classes].
      labels: true classes, [n].
      fit: the run's temperature; None if it has not finished.
    """
    temperature = fit.temperature if fit else None
    scaled = apply_temperature(log_probs, temperature) if temperature else None
    shown = log_probs if scaled is None else scaled
    confidence = np.exp(shown.max(axis=1)).astype(np.float32)  # as predictions have it: ties stay ties
    curve = risk_coverage(confidence, shown.argmax(axis=1) == labels)
    return CalibrationReport(
        uncalibrated=calibration_metrics(log_probs, labels),
        calibrated=None if scaled is None else calibration_metrics(scaled, labels),
        temperature=temperature,
        no_temperature_reason=missing_temperature_reason(fit),
        num_fitted=fit.n if fit else 0,
        risk_coverage=curve,
        coverage_points=[coverage_at(curve, percent) for percent in COVERAGE_PERCENTS],
    )


def missing_temperature_reason(fit: TemperatureFit | None) -> str:
    """Return why a run has no temperature, as a sentence without its period; "" if it has one."""
    if fit is None:
        return "This run has no temperature yet: it has not finished"
    if fit.temperature is not None:
        return ""
    if not fit.n:
        return "This run has no temperature: it has no validation images to fit one on"
    return (
        f"This run has no temperature: no value between {MIN_TEMPERATURE:g} and {MAX_TEMPERATURE:g} minimizes the loss "
        f"of its {fit.n:,} validation images, because almost all or almost none of them are classified correctly"
    )
