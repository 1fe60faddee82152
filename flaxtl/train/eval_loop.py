"""How far the host may run ahead of the device."""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import numpy.typing as npt

from flaxtl.data.loaders import Loader
from flaxtl.models.classifier import FlatParams
from flaxtl.train.metrics import Metrics, MetricSums, compute_metrics
from flaxtl.train.train_step import EvalStep

MAX_PENDING_RESULTS = 2
"""Results that may be on the way: enough that the device is never idle, few enough that it is done soon if asked to."""


class DispatchThrottle:
    """Waits for old results while new ones are handed to the device."""

    def __init__(self) -> None:
        """Nothing is on the way."""
        self._on_the_way: deque[jax.Array] = deque()

    def push(self, newest: jax.Array) -> None:
        """Note a result, which nobody may overwrite, and wait for the one AHEAD before it."""
        self._on_the_way.append(newest)
        if len(self._on_the_way) > MAX_PENDING_RESULTS:
            self._on_the_way.popleft().block_until_ready()


class Evaluation(NamedTuple):
    """Float32 probabilities [n, classes] in the order of the data, and what they come to."""

    probabilities: npt.NDArray[np.float32]
    metrics: Metrics


def evaluate(step: EvalStep, parameters: FlatParams, data: Loader, batch: int) -> Evaluation:
    """Probabilities of every example, with what they come to."""
    counted: list[MetricSums] = []
    parts = []
    for examples, real in data.eval_batches(batch):
        probabilities, totals = step(parameters, examples, real)
        parts.append(np.asarray(probabilities)[real])
        counted.append(totals)
    return Evaluation(np.concatenate(parts), compute_metrics(_sum(counted)))


def evaluate_metrics(
    step: EvalStep, parameters: FlatParams, data: Loader, batch: int, pause: Callable[[], None] = lambda: None
) -> Metrics:
    """Loss and accuracies alone: nothing but the sums leaves the device, and those once.

    `pause` is called between batches; it may raise.
    """
    counted: list[MetricSums] = []
    pace = DispatchThrottle()
    for examples, real in data.eval_batches(batch):
        counted.append(step(parameters, examples, real)[1])
        pace.push(counted[-1].loss)
        pause()
    return compute_metrics(_sum(counted))


def _sum(counted: list[MetricSums]) -> MetricSums:
    """In the order of the batches."""
    first, *rest = counted
    return sum(rest, start=first)
