"""Weights of classes in the training loss."""

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


def class_weights(setting: str, classes: Sequence[str], labels: npt.NDArray[np.int32]) -> tuple[float, ...] | None:
    """The factor on the loss of each class's examples, in the order of `classes`; None leaves all as they are.

    Args:
      setting: 'none'; 'balanced', which weighs a class by n / (classes * n of the class), so that every class counts
        the same in a pass over the data; or factors by class name, "{'daisy': 2.0}", 1 where a class is not named (as
        Keras' `class_weight`).
      classes: class names; labels: class indices of the training images, int32 [n].

    Raises UserError for another setting, an unknown class or a factor that is no number of 0 or more.
    """
    if setting == "none":
        return None
    if setting == "balanced":
        counts = np.bincount(labels, minlength=len(classes))
        return tuple((len(labels) / (len(classes) * counts)).tolist())
    factors = _factors(setting)
    for name, factor in factors.items():
        if name not in classes:
            raise unknown("class in class_weights", str(name), classes)
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 <= factor < math.inf:
            raise UserError(f"class_weights gives {name!r} the factor {factor!r}; give a number of 0 or more")
    if not any(factors.get(name, 1) for name in classes):
        raise UserError("class_weights gives every class the factor 0, so that nothing is learned; raise one of them")
    return tuple(float(factors.get(name, 1)) for name in classes)


def _factors(setting: str) -> dict[Any, Any]:
    if not setting.startswith("{"):
        raise unknown("class_weights", setting, CLASS_WEIGHT_KINDS)
    try:
        factors = ast.literal_eval(setting)
    except (SyntaxError, ValueError):
        factors = None
    if not isinstance(factors, dict):
        raise UserError("class_weights must be none, balanced, or factors by class name such as {'daisy': 2.0}")
    return factors


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MetricSums:
    """Sums over examples: cross-entropy (nats, float32 []), right answers and examples by class (int32 [classes])."""

    loss: jax.Array
    correct: jax.Array
    count: jax.Array

    @staticmethod
    def zero(classes: int) -> "MetricSums":
        """Nothing counted yet."""
        return MetricSums(jnp.zeros(()), jnp.zeros(classes, jnp.int32), jnp.zeros(classes, jnp.int32))

    def __add__(self, other: "MetricSums") -> "MetricSums":
        """Sums of both."""
        return MetricSums(self.loss + other.loss, self.correct + other.correct, self.count + other.count)


class Metrics(NamedTuple):
    """What the totals come to: mean loss (nats), accuracy and balanced accuracy (0..1), the number of examples.

    Balanced accuracy is the mean over the classes that occur of the share of their examples that were answered right.
    """

    loss: float
    accuracy: float
    balanced_accuracy: float
    n: int


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """-log softmax at the label, float32: logits [batch, classes], labels [batch] -> [batch].

    `smoothing` is the share of the label that goes to all classes evenly.
    """
    logs = jax.nn.log_softmax(logits.astype(jnp.float32))
    at_label = jnp.take_along_axis(logs, labels[:, None], axis=1)[:, 0]
    return -at_label if not smoothing else -(1 - smoothing) * at_label - smoothing * logs.mean(axis=1)


def batch_metrics(logits: jax.Array, labels: jax.Array, real: jax.Array, losses: jax.Array | None = None) -> MetricSums:
    """Totals of a batch; `real` [batch] is False for padding.

    `losses` [batch] stand for the cross-entropy where an example's loss is another, as that of mixed images is.
    """
    classes = logits.shape[-1]
    losses = cross_entropy(logits, labels) if losses is None else losses
    right = (logits.argmax(-1) == labels) & real

    def by_class(counted: jax.Array) -> jax.Array:
        return jnp.zeros(classes, jnp.int32).at[labels].add(counted.astype(jnp.int32))

    return MetricSums(jnp.where(real, losses, 0.0).sum(), by_class(right), by_class(real))


def compute_metrics(totals: MetricSums) -> Metrics:
    """The totals, fetched from the device and divided."""
    sums: MetricSums = jax.device_get(totals)
    loss, right, seen = sums.loss, sums.correct, sums.count
    n = int(seen.sum())
    occurs = seen > 0
    balanced = np.mean(right[occurs] / seen[occurs])
    return Metrics(float(loss) / n, int(right.sum()) / n, float(balanced), n)
