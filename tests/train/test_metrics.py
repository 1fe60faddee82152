import jax.numpy as jnp
import numpy as np
import pytest

from flaxtl.train import metrics
from flaxtl.train.metrics import Metrics, MetricSums

# Softmax of log p is p, so that the losses are known: -log of the probability at the label.
PROBABILITIES = np.array([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125], [0.25, 0.25, 0.5], [0.1, 0.8, 0.1]])
LOGITS = jnp.asarray(np.log(PROBABILITIES), jnp.float32)
LABELS = jnp.array([0, 1, 0, 1])
LOSSES = -np.log([0.5, 0.75, 0.25, 0.8])


def test_cross_entropy_of_known_probabilities():
    # two float32 logarithms of values up to 2.3
    np.testing.assert_allclose(metrics.cross_entropy(LOGITS, LABELS), LOSSES, rtol=0, atol=3e-7)


def test_smoothed_labels_are_shared_by_all_classes():
    found = metrics.cross_entropy(LOGITS, LABELS, 0.3)
    shared = 0.7 * np.eye(3)[LABELS] + 0.1
    np.testing.assert_allclose(found, -(shared * np.log(PROBABILITIES)).sum(axis=1), rtol=0, atol=5e-7)
    assert metrics.cross_entropy(LOGITS, LABELS, 0.0).tolist() == metrics.cross_entropy(LOGITS, LABELS).tolist()


def test_cross_entropy_of_large_logits_and_of_bfloat16_is_float32():
    losses = metrics.cross_entropy(jnp.array([[1000.0, 0.0], [0.0, 1000.0]], jnp.bfloat16), jnp.array([0, 0]))
    assert losses.dtype == jnp.float32
    assert losses.tolist() == [0.0, 1000.0]


def test_totals_and_their_quotients():
    found = metrics.compute_metrics(metrics.batch_metrics(LOGITS, LABELS, jnp.ones(4, bool)))
    assert (found.accuracy, found.n) == (0.75, 4)
    assert found.balanced_accuracy == (1 / 2 + 2 / 2) / 2  # by class: one of two right, two of two, none there
    assert found.loss == pytest.approx(LOSSES.mean(), abs=3e-7)


def test_padding_counts_for_nothing_even_if_it_is_not_a_number():
    logits = LOGITS.at[2:].set(jnp.nan)
    found = metrics.batch_metrics(logits, LABELS, jnp.array([True, True, False, False]))
    assert (found.correct.tolist(), found.count.tolist()) == ([1, 1, 0], [1, 1, 0])
    assert float(found.loss) == pytest.approx(LOSSES[:2].sum(), abs=3e-7)


def test_totals_add_up():
    halves = [
        metrics.batch_metrics(LOGITS[part], LABELS[part], jnp.ones(2, bool)) for part in (slice(0, 2), slice(2, 4))
    ]
    found = MetricSums.zero(3) + halves[0] + halves[1]
    assert (found.correct.tolist(), found.count.tolist()) == ([1, 2, 0], [2, 2, 0])
    assert metrics.compute_metrics(found) == Metrics(pytest.approx(LOSSES.mean(), abs=3e-7), 0.75, 0.75, 4)


def test_losses_can_be_given():
    found = metrics.batch_metrics(LOGITS, LABELS, jnp.array([True, True, True, False]), jnp.array([1.0, 2.0, 4.0, 8.0]))
    assert float(found.loss) == 7.0
    assert found.correct.tolist() == [1, 1, 0]
