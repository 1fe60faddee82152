"""Sums on the device, the metrics computed from them, and class weights."""

import jax.numpy as jnp
import numpy as np
import pytest

from flaxtl.config import load_config
from flaxtl.errors import UserError
from flaxtl.train import metrics
from flaxtl.train.metrics import Metrics, MetricSums, class_weights

# Softmax of log p is p, so that the losses are known: -log of the probability at the label.
PROBABILITIES = np.array([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125], [0.25, 0.25, 0.5], [0.1, 0.8, 0.1]])
LOGITS = jnp.asarray(np.log(PROBABILITIES), jnp.float32)
LABELS = jnp.array([0, 1, 0, 1])
LOSSES = -np.log([0.5, 0.75, 0.25, 0.8])


def test_cross_entropy_known_probabilities_gives_negative_log():
    # two float32 logarithms of values up to 2.3
    np.testing.assert_allclose(metrics.cross_entropy(LOGITS, LABELS), LOSSES, rtol=0, atol=3e-7)


def test_cross_entropy_smoothing_spreads_label_over_classes():
    found = metrics.cross_entropy(LOGITS, LABELS, 0.3)
    smoothed = 0.7 * np.eye(3)[LABELS] + 0.1
    np.testing.assert_allclose(found, -(smoothed * np.log(PROBABILITIES)).sum(axis=1), rtol=0, atol=5e-7)
    assert metrics.cross_entropy(LOGITS, LABELS, 0.0).tolist() == metrics.cross_entropy(LOGITS, LABELS).tolist()


def test_cross_entropy_large_bfloat16_logits_is_exact_float32():
    losses = metrics.cross_entropy(jnp.array([[1000.0, 0.0], [0.0, 1000.0]], jnp.bfloat16), jnp.array([0, 0]))
    assert losses.dtype == jnp.float32
    assert losses.tolist() == [0.0, 1000.0]


def test_compute_divides_sums_by_counts():
    found = metrics.batch_metrics(LOGITS, LABELS, jnp.ones(4, bool)).compute()
    assert (found.accuracy, found.n) == (0.75, 4)
    assert found.balanced_accuracy == (1 / 2 + 2 / 2) / 2  # recall 1 of 2, 2 of 2, class absent
    assert found.loss == pytest.approx(LOSSES.mean(), abs=3e-7)


def test_batch_metrics_nan_padding_is_ignored():
    logits = LOGITS.at[2:].set(jnp.nan)
    found = metrics.batch_metrics(logits, LABELS, jnp.array([True, True, False, False]))
    assert (found.correct.tolist(), found.count.tolist()) == ([1, 1, 0], [1, 1, 0])
    assert float(found.loss) == pytest.approx(LOSSES[:2].sum(), abs=3e-7)


def test_metric_sums_of_halves_equal_whole_batch():
    halves = [
        metrics.batch_metrics(LOGITS[part], LABELS[part], jnp.ones(2, bool)) for part in (slice(0, 2), slice(2, 4))
    ]
    found = MetricSums.zero(3) + halves[0] + halves[1]
    assert (found.correct.tolist(), found.count.tolist()) == ([1, 2, 0], [2, 2, 0])
    assert found.compute() == Metrics(pytest.approx(LOSSES.mean(), abs=3e-7), 0.75, 0.75, 4)


def test_batch_metrics_given_losses_are_summed():
    found = metrics.batch_metrics(LOGITS, LABELS, jnp.array([True, True, True, False]), jnp.array([1.0, 2.0, 4.0, 8.0]))
    assert float(found.loss) == 7.0
    assert found.correct.tolist() == [1, 1, 0]


def test_compute_without_examples_is_nan():
    assert np.isnan(MetricSums.zero(3).compute()[:3]).all()


CLASSES = ("daisy", "roses", "tulips")
TRAIN_LABELS = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 2], np.int32)


def test_class_weights_none_gives_equal_weights():
    assert class_weights("none", CLASSES, TRAIN_LABELS) is None


def test_class_weights_balanced_gives_classes_equal_total():
    weights = class_weights("balanced", CLASSES, TRAIN_LABELS)
    assert weights == (10 / 18, 10 / 9, 10 / 3)
    sums = np.bincount(TRAIN_LABELS, np.array(weights)[TRAIN_LABELS])
    np.testing.assert_allclose(sums, 10 / 3, rtol=1e-15)  # and all together weigh as much as before


def test_class_weights_by_name_default_to_one():
    assert class_weights("{'tulips': 3, 'daisy': 0.5}", CLASSES, TRAIN_LABELS) == (0.5, 1.0, 3.0)


def test_class_weights_of_numbered_classes_need_no_quotes():
    assert class_weights("{7: 2.0, '8': 3.0}", ("7", "8", "9"), TRAIN_LABELS) == (2.0, 3.0, 1.0)


def test_class_weights_of_config_are_replaced_by_override(tmp_path):
    file = tmp_path / "config.py"
    file.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "    return ConfigDict({'class_weights': {'tulips': 3}, 'frozen': {'lr': {'head': 1e-3}}})\n"
    )
    assert class_weights(load_config(str(file)).class_weights, CLASSES, TRAIN_LABELS) == (1.0, 1.0, 3.0)
    assert load_config(str(file), ["--config.class_weights=balanced"]).class_weights == "balanced"


@pytest.mark.parametrize(
    ("setting", "facts"),
    [
        ("balancd", "class_weights.*'balancd'.*'balanced'"),
        ("{'rose': 2.0}", "class_weights.*'rose'.*'roses'"),
        ("{'roses': -1.0}", r"class_weights.*'roses'.* -1\.0\b.*\b0\b"),
        ("{'roses': 1e999}", r"class_weights.*'roses'.*\binf\b"),
        ("{'roses': True}", r"class_weights.*'roses'.*\bTrue\b"),
        ("{'roses': '2'}", "class_weights.*'roses'.*'2'"),
        ("{'daisy': 0, 'roses': 0, 'tulips': 0}", r"class_weights(?!.*').*\b0\b"),
        ("{'roses': ", r"class_weights.*\bnone\b.*\bbalanced\b"),
        ("{['roses']: 2.0}", r"class_weights.*\bnone\b.*\bbalanced\b"),
        ("{1, 2}", r"class_weights.*\bnone\b.*\bbalanced\b"),
    ],
)
def test_class_weights_invalid_setting_is_rejected(setting, facts):
    with pytest.raises(UserError, match=facts):
        class_weights(setting, CLASSES, TRAIN_LABELS)
