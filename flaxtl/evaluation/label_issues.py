"""Images whose label looks wrong, by the confident learning of Northcutt, Jiang and Chuang (2021), "Confident
Learning: Estimating Uncertainty in Dataset Labels".

The answers must be about images that were not learned from: a network that learned a wrong label repeats it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flaxtl import fileio
from flaxtl.evaluation.classification import FloatArray
from flaxtl.evaluation.predictions import Predictions
from flaxtl.fileio import atomic_write

COLUMNS = ("path", "label", "suggested_label", "probability")


@dataclass(frozen=True, eq=False)
class LabelIssues:
    """m images, the most suspicious first.

    Attributes:
        rows: which ones of the predictions, int [m].
        suggested: the class that each seems to be of, int [m].
        probability: of that class, float32 [m].
    """

    rows: npt.NDArray[np.intp]
    suggested: npt.NDArray[np.intp]
    probability: npt.NDArray[np.float32]


def class_thresholds(predictions: Predictions) -> FloatArray:
    """The mean probability of each class over the images that are labelled so, float64 [classes]; nan without any."""
    own = _own(predictions).astype(np.float64)
    sums, counts = (np.bincount(predictions.labels, weights, len(predictions.classes)) for weights in (own, None))
    with np.errstate(invalid="ignore"):
        return np.asarray(sums / counts, np.float64)


def find_label_issues(predictions: Predictions) -> LabelIssues:
    """The images that are more probably of another class than of their own, and that class is sure of them.

    A class is sure of an image if its probability is at least the class's `self_confidence`, the paper's threshold;
    of several the most probable one is suggested. The most suspicious image is the one whose label is least probable:
    unlike the gap between the two probabilities, which ends at 1, its loss still tells the worst from the bad.
    """
    probabilities, own = predictions.probabilities, _own(predictions)[:, None]
    sure = (probabilities > own) & (probabilities >= class_thresholds(predictions))
    rows = np.flatnonzero(sure.any(axis=1))
    suggested = np.where(sure[rows], probabilities[rows], -1).argmax(axis=1)
    probability = probabilities[rows, suggested]
    worst = np.argsort(own[rows, 0], kind="stable")
    return LabelIssues(rows[worst], suggested[worst], probability[worst])


def write_label_issues(path: Path, predictions: Predictions, issues: LabelIssues) -> None:
    """Write the images as CSV, one a row, under COLUMNS; a file without rows says that none was found."""
    classes, labels = predictions.classes, predictions.labels
    found = zip(issues.rows, issues.suggested, issues.probability, strict=True)
    with atomic_write(path, errors="surrogateescape", newline="") as file:  # surrogateescape: as in predictions.csv
        fileio.write_csv(file, [COLUMNS])
        fileio.write_csv(
            file,
            ((predictions.paths[row], classes[labels[row]], classes[other], str(p)) for row, other, p in found),
        )


def _own(predictions: Predictions) -> npt.NDArray[np.float32]:
    """The probability of each image's own label, float32 [n]."""
    return np.asarray(predictions.probabilities[np.arange(len(predictions.labels)), predictions.labels], np.float32)
