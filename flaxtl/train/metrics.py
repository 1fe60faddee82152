"""Measures as sums and counts, divided once at the end."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Totals(NamedTuple):
    """Sums over examples: cross-entropy (nats, float32), right answers and examples (int32)."""

    loss: jax.Array
    right: jax.Array
    seen: jax.Array

    @staticmethod
    def zero() -> "Totals":
        """Nothing counted yet."""
        return Totals(jnp.zeros(()), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def __add__(self, other: "Totals") -> "Totals":  # type: ignore[override]
        """Sums of both."""
        return Totals(self.loss + other.loss, self.right + other.right, self.seen + other.seen)


class Measures(NamedTuple):
    """What the totals come to: mean loss (nats), accuracy (0..1) and the number of examples."""

    loss: float
    accuracy: float
    n: int


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log softmax at the label, float32: logits [batch, classes], labels [batch] -> [batch]."""
    logs = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.take_along_axis(logs, labels[:, None], axis=1)[:, 0]


def total(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> Totals:
    """Totals of a batch; `weights` [batch] is True for real examples and False for padding."""
    right = (logits.argmax(-1) == labels) & weights
    losses = jnp.where(weights, cross_entropy(logits, labels), 0.0)
    return Totals(losses.sum(), right.sum(dtype=jnp.int32), weights.sum(dtype=jnp.int32))


def divide(totals: Totals) -> Measures:
    """The totals, fetched from the device and divided."""
    loss, right, seen = jax.device_get(totals)
    n = int(seen)
    return Measures(float(loss) / n, int(right) / n, n)
