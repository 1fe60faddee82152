"""Measures as sums and counts, divided once at the end."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Totals(NamedTuple):
    """Sums over examples: cross-entropy (nats, float32 []), right answers and examples by class (int32 [classes])."""

    loss: jax.Array
    right: jax.Array
    seen: jax.Array

    @staticmethod
    def zero(classes: int) -> "Totals":
        """Nothing counted yet."""
        return Totals(jnp.zeros(()), jnp.zeros(classes, jnp.int32), jnp.zeros(classes, jnp.int32))

    def __add__(self, other: "Totals") -> "Totals":  # type: ignore[override]
        """Sums of both."""
        return Totals(self.loss + other.loss, self.right + other.right, self.seen + other.seen)


class Measures(NamedTuple):
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


def total(logits: jax.Array, labels: jax.Array, real: jax.Array, losses: jax.Array | None = None) -> Totals:
    """Totals of a batch; `real` [batch] is False for padding.

    `losses` [batch] stand for the cross-entropy where an example's loss is another, as that of mixed pictures is.
    """
    classes = logits.shape[-1]
    losses = cross_entropy(logits, labels) if losses is None else losses
    right = (logits.argmax(-1) == labels) & real

    def by_class(counted: jax.Array) -> jax.Array:
        return jnp.zeros(classes, jnp.int32).at[labels].add(counted.astype(jnp.int32))

    return Totals(jnp.where(real, losses, 0.0).sum(), by_class(right), by_class(real))


def divide(totals: Totals) -> Measures:
    """The totals, fetched from the device and divided."""
    loss, right, seen = jax.device_get(totals)
    n = int(seen.sum())
    occurs = seen > 0
    balanced = np.mean(right[occurs] / seen[occurs])
    return Measures(float(loss) / n, int(right.sum()) / n, float(balanced), n)
