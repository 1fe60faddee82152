"""Every picture of a split exactly once."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flaxtl.data.resident import Resident, evaluation_batches
from flaxtl.train.groups import Flat
from flaxtl.train.metrics import Measures, Totals, divide
from flaxtl.train.steps import EvalStep


class Evaluation(NamedTuple):
    """Float32 probabilities [n, classes] in the order of the data, and what they come to."""

    probabilities: npt.NDArray[np.float32]
    measures: Measures


def evaluate(step: EvalStep, parameters: Flat, data: Resident, batch: int) -> Evaluation:
    """Probabilities of every example, with loss and accuracy."""
    totals, parts = Totals.zero(), []
    for indices, real in evaluation_batches(len(data), batch):
        probabilities, counted = step(parameters, data, indices, real)
        parts.append(np.asarray(probabilities)[real])
        totals = totals + counted
    return Evaluation(np.concatenate(parts), divide(totals))


def measure(step: EvalStep, parameters: Flat, data: Resident, batch: int) -> Measures:
    """Loss and accuracy alone: nothing but the sums leaves the device, and those once."""
    totals = Totals.zero()
    for indices, real in evaluation_batches(len(data), batch):
        totals = totals + step(parameters, data, indices, real)[1]
    return divide(totals)
