"""How sure the answers are, against how often they are right.

The measures, the temperature and the 15 bins are those of Guo, Pleiss, Sun and Weinberger (2017), "On Calibration of
Modern Neural Networks". The confidence of an answer is the probability of the predicted class.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flaxtl.evaluation import classification
from flaxtl.evaluation.classification import Integers, Matrix, Reals

Probabilities = npt.NDArray[np.floating]

BINS = 15
COLDEST, HOTTEST = 0.01, 100.0  # beyond them answers are all or nothing, or all alike
TOLERANCE = 1e-12  # of log T


@dataclass(frozen=True, eq=False)
class Reliability:
    """Answers by confidence, in BINS bins of equal width; bin i holds those above i / BINS, up to (i + 1) / BINS.

    Attributes:
        count: answers in the bin, int64 [BINS].
        confidence: their mean confidence, float64 [BINS]; nan where there are none.
        accuracy: the share of them that is right, float64 [BINS]; nan where there are none.
    """

    count: Matrix
    confidence: Reals
    accuracy: Reals

    @property
    def error(self) -> float:
        """The expected calibration error: the mean over answers of |accuracy - confidence| of their bin, in [0, 1]."""
        held = self.count > 0
        gaps = np.abs(self.accuracy[held] - self.confidence[held])
        return float((gaps * self.count[held]).sum() / self.count.sum())


@dataclass(frozen=True, eq=False)
class Calibration:
    """Of the answers about one or more images: mean confidence, mean cross-entropy, and the answers by confidence."""

    confidence: float
    loss: float
    reliability: Reliability


def make_calibration(probabilities: Probabilities, labels: Integers) -> Calibration:
    """How well `probabilities` [n, classes] of n > 0 images tell how often they are right; `labels` are int [n]."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    return Calibration(
        confidence=float(confidence.mean()),
        loss=float(classification.losses(probabilities, labels).mean()),
        reliability=reliability(confidence, probabilities.argmax(axis=1) == labels),
    )


def reliability(confidence: Reals, right: npt.NDArray[np.bool_]) -> Reliability:
    """Sort n > 0 answers into bins by their confidence; `right` says which of them are."""
    edges = np.arange(1, BINS) / BINS
    index = np.searchsorted(edges, confidence, side="left")
    count, sure, true = (np.bincount(index, weights, BINS) for weights in (None, confidence, right))
    with np.errstate(invalid="ignore"):  # 0 / 0 of an empty bin is nan
        return Reliability(count.astype(np.int64), sure / count, true / count)


def apply_temperature(probabilities: Probabilities, temperature: float) -> Reals:
    """softmax(log p / T), float64 [n, classes]: the same answers, less sure where T > 1 and surer where T < 1."""
    weights = np.exp(_logits(probabilities) / temperature)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float64)


def fit_temperature(probabilities: Probabilities, labels: Integers) -> float | None:
    """The temperature at which the mean cross-entropy of `labels` int [n] is least.

    None where none from COLDEST to HOTTEST is: without images, where hardly one was answered wrong, so that surer is
    always better, and where the answers are no better than chance.

    The loss is convex in 1 / T. Where its slope is 0 is found by bisection, to the last digits but one; comparing
    losses would find half of them.
    """
    logits = _logits(probabilities)
    true = logits[np.arange(len(labels)), labels]

    def slope(log_temperature: float) -> float:
        """Of the loss in 1 / T: the mean logit that softmax expects, less that of the true class."""
        weights = np.exp(logits / math.exp(log_temperature))
        expected = (weights * logits).sum(axis=1) / weights.sum(axis=1)
        return float((expected - true).mean())

    cold, hot = math.log(COLDEST), math.log(HOTTEST)
    if not len(labels) or not slope(hot) < 0 < slope(cold):
        return None
    while hot - cold > TOLERANCE:
        middle = (cold + hot) / 2
        cold, hot = (cold, middle) if slope(middle) < 0 else (middle, hot)
    return math.exp((cold + hot) / 2)


def _logits(probabilities: Probabilities) -> Reals:
    """log p less its largest, float64 [n, classes]: finite, for p is kept above the smallest normal float32."""
    logits = np.log(np.maximum(probabilities.astype(np.float64), float(np.finfo(np.float32).tiny)))
    return np.asarray(logits - logits.max(axis=1, keepdims=True, initial=-np.inf), np.float64)


@dataclass(frozen=True, eq=False)
class RiskCoverage:
    """What each threshold gives: one for every confidence that was met, highest first.

    Attributes:
        threshold: float64 [m], falling.
        answered: images whose confidence is at least the threshold, int64 [m], rising to all of them.
        right: those among them that were answered right, int64 [m].
    """

    threshold: Reals
    answered: Matrix
    right: Matrix


class CoveragePoint(NamedTuple):
    """The highest threshold at which `percent` of all images are answered; equal confidences may make it more."""

    percent: int
    threshold: float
    answered: int
    right: int


def risk_coverage(confidence: npt.NDArray[np.floating], right: npt.NDArray[np.bool_]) -> RiskCoverage:
    """The curve of n > 0 answers: how sure each is, in [0, 1], and whether it is right."""
    surest = np.argsort(-confidence, kind="stable")
    falling = confidence[surest].astype(np.float64)
    last = np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)  # of those that are equally sure
    return RiskCoverage(falling[last], last.astype(np.int64) + 1, np.cumsum(right[surest], dtype=np.int64)[last])


def coverage_at(curve: RiskCoverage, percent: int) -> CoveragePoint:
    """What it takes to answer at least `percent` of the images, from 1 to 100."""
    row = int(np.argmax(100 * curve.answered >= percent * curve.answered[-1]))
    return CoveragePoint(percent, float(curve.threshold[row]), int(curve.answered[row]), int(curve.right[row]))
