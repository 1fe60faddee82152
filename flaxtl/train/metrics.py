"""Loss, accuracy and class weights: sums on the device, metrics on the host."""

import ast
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from flaxtl.errors import UserError, unknown

CLASS_WEIGHT_KINDS = ("none", "balanced")


class Metrics(NamedTuple):
    """Mean loss (nats), accuracy and balanced accuracy (0..1), and the number of examples."""

    loss: float
    accuracy: float
    balanced_accuracy: float
    n: int


class ClassProbabilities(NamedTuple):
    """Softmax of logits and its logarithm, float32 [batch, classes], on the device or the host.

    The logarithm is computed from the logits, so that it is right where the probability underflows: beyond a gap of 88.
    """

    probabilities: jax.Array
    log_softmax: jax.Array

    @classmethod
    def from_logits(cls, logits: jax.Array) -> "ClassProbabilities":
        """Compute both in float32."""
        logits = logits.astype(jnp.float32)
        return cls(jax.nn.softmax(logits), jax.nn.log_softmax(logits))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MetricSums:
    """Sums over examples, on the device or the host: what metrics are computed from.

    Attributes:
      loss: cross-entropy (nats), float32 [].
      correct: correctly classified examples by true class, int32 [classes].
      count: examples by true class, int32 [classes].
    """

    loss: jax.Array
    correct: jax.Array
    count: jax.Array

    @staticmethod
    def zero(num_classes: int) -> "MetricSums":
        """Return the sums over no examples."""
        return MetricSums(jnp.zeros(()), jnp.zeros(num_classes, jnp.int32), jnp.zeros(num_classes, jnp.int32))

    def __add__(self, other: "MetricSums") -> "MetricSums":
        """Add field by field."""
        return MetricSums(self.loss + other.loss, self.correct + other.correct, self.count + other.count)

    def compute(self) -> Metrics:
        """Fetch the sums from the device and divide; NaN without examples."""
        loss, correct, count = jax.device_get((self.loss, self.correct, self.count))
        n = int(count.sum())
        if not n:
            return Metrics(math.nan, math.nan, math.nan, 0)
        return Metrics(float(loss) / n, int(correct.sum()) / n, balanced_accuracy(correct, count), n)


def balanced_accuracy(correct: npt.NDArray[np.integer], count: npt.NDArray[np.integer]) -> float:
    """Return the mean recall of the classes that have examples, in [0, 1]; NaN without examples.

    Args:
      correct: correctly classified examples by true class, [classes].
      count: examples by true class, [classes].
    """
    present = count > 0
    return float(np.mean(correct[present] / count[present])) if present.any() else math.nan


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Return the cross-entropy -log softmax(logits)[label], float32 [batch].

    Args:
      logits: [batch, classes]; converted to float32 first.
      labels: class indices [batch].
      label_smoothing: fraction of the label that is spread evenly over all classes.
    """
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    at_label = jnp.take_along_axis(log_probs, labels[:, None], axis=1)[:, 0]
    if not label_smoothing:
        return -at_label
    return -(1 - label_smoothing) * at_label - label_smoothing * log_probs.mean(axis=1)


def batch_metrics(logits: jax.Array, labels: jax.Array, mask: jax.Array, losses: jax.Array | None = None) -> MetricSums:
    """Return the sums over a batch.

    Args:
      logits: [batch, classes].
      labels: class indices [batch].
      mask: bool [batch], False for padding.
      losses: losses [batch] to sum instead of the cross-entropy, as for mixed images.
    """
    num_classes = logits.shape[-1]
    losses = cross_entropy(logits, labels) if losses is None else losses
    correct = (logits.argmax(-1) == labels) & mask

    def count_by_class(counted: jax.Array) -> jax.Array:
        return jnp.zeros(num_classes, jnp.int32).at[labels].add(counted.astype(jnp.int32))

    return MetricSums(jnp.where(mask, losses, 0.0).sum(), count_by_class(correct), count_by_class(mask))


def class_weights(setting: str, classes: Sequence[str], labels: npt.NDArray[np.int32]) -> tuple[float, ...] | None:
    """Return the loss weight of each class, in the order of `classes`; None for equal weights.

    Args:
      setting: 'none'; 'balanced', n / (classes * n of the class), which gives every class the same total weight; or
        weights by class name, "{'daisy': 2.0}", 1 for classes that are not named (as Keras' `class_weight`).
      classes: class names.
      labels: class indices of the training images, int32 [n].

    Raises:
      UserError: for another setting, an unknown class, or a weight that is not a number of at least 0.
    """
    if setting == "none":
        return None
    if setting == "balanced":
        counts = np.bincount(labels, minlength=len(classes))
        return tuple((len(labels) / (len(classes) * counts)).tolist())
    weights = _parse_weights(setting)
    for name, weight in weights.items():
        if name not in classes:
            raise unknown("class in class_weights", name, classes)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise UserError(f"class_weights of {name!r} is {weight!r}; it must be a number of at least 0.")
    if not any(weights.get(name, 1) for name in classes):
        raise UserError("class_weights is 0 for every class, so nothing would be trained. Raise one of them.")
    return tuple(float(weights.get(name, 1)) for name in classes)


def _parse_weights(setting: str) -> dict[str, Any]:
    """Return the weights by class name; a name such as 7 needs no quotes."""
    if not setting.startswith("{"):
        raise unknown("class_weights", setting, CLASS_WEIGHT_KINDS)
    try:
        weights = ast.literal_eval(setting)
    except (SyntaxError, TypeError, ValueError):
        weights = None
    if not isinstance(weights, dict):
        raise UserError("class_weights must be none, balanced, or weights by class name such as {'daisy': 2.0}.")
    return {str(name): weight for name, weight in weights.items()}
