"""Classification metrics on NumPy arrays.

Most metrics are computed from the confusion matrix, int64 [classes, classes]: rows are true classes, columns predicted
classes. A ratio without a denominator is NaN, never 0: the precision of a class that was never predicted is unknown.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flaxtl.train import metrics

IntArray = npt.NDArray[np.integer]
CountArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

SMALLEST = float(np.finfo(np.float32).tiny)
"""The smallest normal float32, 1.2e-38 = exp(-87.3). XLA flushes smaller probabilities to 0 on some devices."""


@dataclass(frozen=True, eq=False)
class ClassMetrics:
    """Metrics of each class; every array is [classes].

    Attributes:
      precision: fraction of the images predicted as this class that belong to it; NaN if there are none.
      recall: fraction of the images of this class that were predicted as such; NaN if there are none.
      f1: harmonic mean of precision and recall, 2 TP / (2 TP + FP + FN); NaN if all three counts are 0.
      support: number of images of this class, int64.
    """

    precision: FloatArray
    recall: FloatArray
    f1: FloatArray
    support: CountArray


@dataclass(frozen=True)
class Confusion:
    """Class indices of an off-diagonal entry of the confusion matrix, and its count."""

    true: int
    predicted: int
    count: int


def confusion_matrix(labels: IntArray, predicted: IntArray, num_classes: int) -> CountArray:
    """Count images by true class (row) and predicted class (column).

    Args:
      labels: true class indices, [n].
      predicted: predicted class indices, [n].
      num_classes: size of the matrix; indices are below it.

    Returns:
      int64 [num_classes, num_classes].
    """
    matrix = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(matrix, (labels, predicted), 1)
    return matrix


def num_errors(matrix: CountArray) -> int:
    """Return the number of misclassified images."""
    return int(matrix.sum() - np.trace(matrix))


def normalize_rows(matrix: CountArray) -> FloatArray:
    """Divide each row by its sum; float64 [classes, classes]. A class without images gives a row of NaN."""
    return _ratio(matrix, matrix.sum(axis=1, keepdims=True))


def class_metrics(matrix: CountArray) -> ClassMetrics:
    """Return precision, recall, F1 and support of each class."""
    correct, support, predicted = np.diagonal(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    return ClassMetrics(
        precision=_ratio(correct, predicted),
        recall=_ratio(correct, support),
        f1=_ratio(2 * correct, support + predicted),  # row sum + column sum = 2 TP + FP + FN
        support=support,
    )


def balanced_accuracy(matrix: CountArray) -> float:
    """Return the mean recall of the classes that have images, in [0, 1]; NaN without images."""
    return metrics.balanced_accuracy(np.diagonal(matrix), matrix.sum(axis=1))


def most_confused_pairs(matrix: CountArray, limit: int) -> list[Confusion]:
    """Return the `limit` largest off-diagonal entries above 0, largest first, ties in class order."""
    pairs = [
        Confusion(int(true), int(predicted), int(matrix[true, predicted]))
        for true, predicted in np.argwhere(matrix)
        if true != predicted
    ]
    return sorted(pairs, key=lambda pair: -pair.count)[:limit]


def classes_with_most_errors(matrix: CountArray, limit: int) -> npt.NDArray[np.intp]:
    """Return the `limit` classes with the most false negatives and false positives, in class order; int [limit]."""
    errors = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * np.diagonal(matrix)
    return np.sort(np.argsort(-errors, kind="stable")[:limit])


def log_probabilities(
    probabilities: npt.NDArray[np.float32], log_softmax: npt.NDArray[np.floating] | None = None
) -> FloatArray:
    """Return the logarithms of probabilities, float64 of their shape, also of those that underflow float32.

    Args:
      probabilities: float32, such as [n, classes].
      log_softmax: the log-softmax of the logits, of the same shape; used where a probability is below SMALLEST. None:
        these count as SMALLEST, so that their logarithm, -87.3, is finite.
    """
    logs = np.maximum(probabilities, SMALLEST, dtype=np.float64)
    np.log(logs, out=logs)  # in place: with many classes, a copy may take gigabytes
    if log_softmax is not None:
        np.copyto(logs, log_softmax, where=probabilities < SMALLEST)
    return logs


def cross_entropy(log_probs: FloatArray, labels: IntArray) -> FloatArray:
    """Return the cross-entropy -log p(true class) of each image, float64 [n]; `log_probs` are [n, classes]."""
    return np.asarray(-log_probs[np.arange(len(labels)), labels], np.float64)


def typical_correct(probabilities: npt.NDArray[np.floating], labels: IntArray, limit: int) -> list[int]:
    """Return one row for each of the first `limit` classes with a correct prediction: that of median confidence."""
    correct, confidence = probabilities.argmax(axis=1) == labels, probabilities.max(axis=1)
    rows = []
    for index in range(probabilities.shape[1]):
        of_class = np.flatnonzero(correct & (labels == index))
        if of_class.size:
            by_confidence = of_class[np.argsort(confidence[of_class], kind="stable")]
            rows.append(int(by_confidence[by_confidence.size // 2]))
    return rows[:limit]


def binomial_test(correct: int, n: int, accuracy: float) -> float:
    """Return the one-sided p-value of at most `correct` of n > 0 images if each is correct with p = `accuracy`."""
    from scipy.stats import binomtest  # slow to import; training does not need it

    return float(binomtest(correct, n, accuracy, alternative="less").pvalue)


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of the exact McNemar test.

    Args:
      only_first: number of images that only the first classifier predicts correctly.
      only_second: number of images that only the second classifier predicts correctly.
    """
    n = only_first + only_second
    if n == 0:
        return 1.0
    from scipy.stats import binomtest  # slow to import; training does not need it

    return float(binomtest(only_first, n, 0.5).pvalue)


def _ratio(numerator: npt.ArrayLike, denominator: npt.ArrayLike) -> FloatArray:
    """Divide; NaN where the denominator is 0."""
    with np.errstate(invalid="ignore"):
        return np.true_divide(numerator, denominator)
