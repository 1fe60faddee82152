"""Every picture of a split exactly once."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flaxtl.train.feeds import Feed
from flaxtl.train.groups import Flat
from flaxtl.train.metrics import Measures, Totals, divide
from flaxtl.train.pace import Pace
from flaxtl.train.steps import EvalStep


class Evaluation(NamedTuple):
    """Float32 probabilities [n, classes] in the order of the data, and what they come to."""

    probabilities: npt.NDArray[np.float32]
    measures: Measures


def evaluate(step: EvalStep, parameters: Flat, data: Feed, batch: int) -> Evaluation:
    """Probabilities of every example, with what they come to."""
    counted: list[Totals] = []
    parts = []
    for examples, real in data.evaluation(batch):
        probabilities, totals = step(parameters, examples, real)
        parts.append(np.asarray(probabilities)[real])
        counted.append(totals)
    return Evaluation(np.concatenate(parts), divide(_sum(counted)))


def measure(
    step: EvalStep, parameters: Flat, data: Feed, batch: int, pause: Callable[[], None] = lambda: None
) -> Measures:
    """Loss and accuracies alone: nothing but the sums leaves the device, and those once.

    `pause` is called between batches; it may raise.
    """
    counted: list[Totals] = []
    pace = Pace()
    for examples, real in data.evaluation(batch):
        counted.append(step(parameters, examples, real)[1])
        pace.wait(counted[-1].loss)
        pause()
    return divide(_sum(counted))


def _sum(counted: list[Totals]) -> Totals:
    """In the order of the batches."""
    first, *rest = counted
    return sum(rest, start=first)
