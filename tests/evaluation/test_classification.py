import math

import numpy as np
import pytest

from flaxtl.evaluation import classification

# three classes, 10 images; the last class has no image and is never predicted in EMPTY
MATRIX = np.array([[3, 1, 0], [0, 2, 2], [1, 0, 1]])
EMPTY = np.array([[2, 1, 0], [0, 0, 0], [0, 0, 0]])


def test_confusion_matrix_has_true_rows_and_predicted_columns():
    matrix = classification.confusion_matrix(np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 0, 0]), 4)
    assert matrix.dtype == np.int64
    assert matrix.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [2, 0, 0, 0], [0, 0, 0, 0]]


def test_num_errors_counts_off_diagonal():
    assert classification.num_errors(MATRIX) == 4


def test_normalize_rows_empty_class_is_nan():
    np.testing.assert_array_equal(
        classification.normalize_rows(MATRIX), [[0.75, 0.25, 0], [0, 0.5, 0.5], [0.5, 0, 0.5]]
    )
    assert np.isnan(classification.normalize_rows(EMPTY)[1]).all()


def test_class_metrics_known_matrix():
    metrics = classification.class_metrics(MATRIX)
    assert metrics.precision.tolist() == [3 / 4, 2 / 3, 1 / 3]
    assert metrics.recall.tolist() == [3 / 4, 2 / 4, 1 / 2]
    assert metrics.f1.tolist() == [6 / 8, 4 / 7, 2 / 5]
    assert metrics.support.tolist() == [4, 4, 2]


def test_class_metrics_zero_denominator_is_nan():
    metrics = classification.class_metrics(EMPTY)
    np.testing.assert_array_equal(metrics.precision, [1, 0, np.nan])
    np.testing.assert_array_equal(metrics.recall, [2 / 3, np.nan, np.nan])
    np.testing.assert_array_equal(metrics.f1, [4 / 5, 0, np.nan])


def test_balanced_accuracy_is_mean_recall_of_present_classes():
    assert classification.balanced_accuracy(MATRIX) == (3 / 4 + 2 / 4 + 1 / 2) / 3
    assert classification.balanced_accuracy(EMPTY) == 2 / 3
    assert np.isnan(classification.balanced_accuracy(np.zeros((2, 2), np.int64)))


def test_most_confused_pairs_sorted_by_count_then_class():
    pairs = [(pair.true, pair.predicted, pair.count) for pair in classification.most_confused_pairs(MATRIX, limit=10)]
    assert pairs == [(1, 2, 2), (0, 1, 1), (2, 0, 1)]
    assert len(classification.most_confused_pairs(MATRIX, limit=2)) == 2
    assert classification.most_confused_pairs(np.diag([4, 5]), limit=2) == []


def test_cross_entropy_beyond_a_logit_gap_of_88_is_that_of_the_logits():
    log_softmax = np.array([[-100, 0], [-427.9, 0], [-200.46, 0], [-0.5, np.log1p(-np.exp(-0.5))]], np.float32)
    probabilities = np.exp(log_softmax)
    probabilities[probabilities < classification.SMALLEST] = 0
    log_probs, labels = classification.log_probabilities(probabilities, log_softmax), np.zeros(4, np.int64)
    losses = [100, np.float32(427.9), np.float32(200.46), -np.log(float(probabilities[3, 0]))]
    assert classification.cross_entropy(log_probs, labels).tolist() == losses
    # without logits all that is known of a probability of 0 is that it is below the smallest float32
    assert (
        classification.cross_entropy(classification.log_probabilities(probabilities), labels)[:3].tolist()
        == [-np.log(classification.SMALLEST)] * 3
    )


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (0, 0, 1.0),
        (5, 5, 1.0),
        (0, 5, 2 / 32),
        (5, 0, 2 / 32),
        (1, 5, 2 * 7 / 64),
        (10, 25, 2 * sum(math.comb(35, k) for k in range(11)) / 2**35),
    ],
)
def test_mcnemar_is_exact_binomial_test(first, second, expected):
    assert classification.mcnemar(first, second) == pytest.approx(expected, rel=1e-14)  # the last bit of a float64
