"""What predictions are worth: pure functions on numpy arrays.

Most measures are read off the confusion matrix, int64 [classes, classes]: row = true class, column = predicted class.
A measure that would divide 0 by 0 is nan, never 0: that a class was never predicted says nothing about its precision.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.integer]
Matrix = npt.NDArray[np.int64]
Reals = npt.NDArray[np.float64]

# the 97.5 % quantile of the normal distribution, statistics.NormalDist().inv_cdf(0.975)
Z_95 = 1.959963984540054


@dataclass(frozen=True, eq=False)
class PerClass:
    """Measures of each class, every array [classes].

    Attributes:
        precision: right among the images predicted as this class; nan where none was.
        recall: right among the images of this class; nan where there are none.
        f1: harmonic mean of the two, 2 TP / (2 TP + FP + FN); nan where all three are 0.
        support: number of images of this class, int64.
    """

    precision: Reals
    recall: Reals
    f1: Reals
    support: Matrix


@dataclass(frozen=True)
class Confusion:
    """`count` images of class `true` were taken for class `predicted` (indices)."""

    true: int
    predicted: int
    count: int


def confusion_matrix(labels: Integers, predicted: Integers, classes: int) -> Matrix:
    """Count images by (true, predicted) class; labels and predicted are [n] indices below `classes`."""
    matrix = np.zeros((classes, classes), np.int64)
    np.add.at(matrix, (labels, predicted), 1)
    return matrix


def errors(matrix: Matrix) -> int:
    """Number of images that were predicted wrong."""
    return int(matrix.sum() - np.trace(matrix))


def row_shares(matrix: Matrix) -> Reals:
    """Each row divided by its sum, float64 [classes, classes]; a class without images gives a row of nan."""
    return _ratio(matrix, matrix.sum(axis=1, keepdims=True))


def per_class(matrix: Matrix) -> PerClass:
    """Precision, recall, F1 and support of every class."""
    right, support, predicted = np.diagonal(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    return PerClass(
        precision=_ratio(right, predicted),
        recall=_ratio(right, support),
        f1=_ratio(2 * right, support + predicted),  # 2 TP + FP + FN is the sum of row and column
        support=support,
    )


def balanced_accuracy(matrix: Matrix) -> float:
    """Mean recall over the classes that have images, in [0, 1]; nan without images."""
    support = matrix.sum(axis=1)
    present = support > 0
    return float(_ratio((np.diagonal(matrix)[present] / support[present]).sum(), present.sum()))


def most_confused(matrix: Matrix, limit: int) -> list[Confusion]:
    """The `limit` largest off-diagonal entries above 0, largest first, equals in class order."""
    pairs = [
        Confusion(int(true), int(predicted), int(matrix[true, predicted]))
        for true, predicted in np.argwhere(matrix)
        if true != predicted
    ]
    return sorted(pairs, key=lambda pair: -pair.count)[:limit]


def most_mistaken(matrix: Matrix, limit: int) -> npt.NDArray[np.intp]:
    """The `limit` classes with the most errors, taken for others or others for them, in class order, int [limit]."""
    wrong = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * np.diagonal(matrix)
    return np.sort(np.argsort(-wrong, kind="stable")[:limit])


def losses(probabilities: npt.NDArray[np.floating], labels: Integers) -> Reals:
    """Cross-entropy -log p(true class) of every image, float64 [n], finite.

    p is kept above the smallest normal float32 (1.2e-38, loss 87.3): a probability that underflowed is no infinity.
    """
    p = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return -np.log(np.maximum(p, float(np.finfo(np.float32).tiny)))


def top_losses(probabilities: npt.NDArray[np.floating], labels: Integers, limit: int) -> tuple[Matrix, Reals]:
    """The `limit` images with the largest loss: indices int64 [k], losses float64 [k], largest first."""
    loss = losses(probabilities, labels)
    worst = np.argsort(-loss, kind="stable")[:limit].astype(np.int64)
    return worst, loss[worst]


def largest_loss_errors(probabilities: npt.NDArray[np.floating], labels: Integers, limit: int) -> list[int]:
    """Return the rows of the `limit` misclassified images with the largest loss, largest first."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    order = np.argsort(-losses(probabilities, labels)[wrong], kind="stable")
    rows: list[int] = wrong[order][:limit].tolist()
    return rows


def typical_correct(probabilities: npt.NDArray[np.floating], labels: Integers, limit: int) -> list[int]:
    """Return one row for each of the first `limit` classes with a correct prediction: that of median confidence."""
    correct, confidence = probabilities.argmax(axis=1) == labels, probabilities.max(axis=1)
    rows = []
    for index in range(probabilities.shape[1]):
        of_class = np.flatnonzero(correct & (labels == index))
        if of_class.size:
            by_confidence = of_class[np.argsort(confidence[of_class], kind="stable")]
            rows.append(int(by_confidence[by_confidence.size // 2]))
    return rows[:limit]


def wilson_interval(right: int, n: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy of `right` out of `n`, in [0, 1]; (0, 1) for n = 0.

    Wilson (1927), "Probable inference, the law of succession, and statistical inference": unlike the textbook
    p ± 1.96 s it stays inside [0, 1] and holds for small n and for p near 1, where classifiers live.
    """
    if n == 0:
        return 0.0, 1.0
    p, z2 = right / n, Z_95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * (p * (1 - p) / n + z2 / (4 * n * n)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar(only_first: int, only_second: int) -> float:
    """The two-sided p-value of McNemar's exact test (1947) on the images that one of two classifiers has right.

    If both were equally good, each such image would be a toss of a coin: this is how often it would come out at
    least as unevenly.
    """
    n, fewer = only_first + only_second, min(only_first, only_second)
    ways = sum(math.comb(n, k) for k in range(fewer + 1))
    return min(1.0, 2 * ways / int(2**n))


def _ratio(part: npt.ArrayLike, whole: npt.ArrayLike) -> Reals:
    """part / whole, nan where whole is 0."""
    with np.errstate(invalid="ignore"):
        return np.true_divide(part, whole)
