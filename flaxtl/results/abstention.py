"""What is gained where the network may stay silent: it answers where its confidence is at least t, else it passes.

Accuracy against the share of pictures answered is the risk-coverage curve of El-Yaniv and Wiener (2010), "On the
Foundations of Noise-free Selective Classification", read from above.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flaxtl.results.measures import Matrix, Reals


@dataclass(frozen=True, eq=False)
class Curve:
    """What each threshold gives: one for every confidence that was met, highest first.

    Attributes:
        threshold: float64 [m], falling.
        answered: pictures whose confidence is at least the threshold, int64 [m], rising to all of them.
        right: those among them that were answered right, int64 [m].
    """

    threshold: Reals
    answered: Matrix
    right: Matrix


class Answering(NamedTuple):
    """The highest threshold at which `percent` of all pictures are answered; equal confidences may make it more."""

    percent: int
    threshold: float
    answered: int
    right: int


def curve(confidence: npt.NDArray[np.floating], right: npt.NDArray[np.bool_]) -> Curve:
    """The curve of n > 0 answers: how sure each is, in [0, 1], and whether it is right."""
    surest = np.argsort(-confidence, kind="stable")
    falling = confidence[surest].astype(np.float64)
    last = np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)  # of those that are equally sure
    return Curve(falling[last], last.astype(np.int64) + 1, np.cumsum(right[surest], dtype=np.int64)[last])


def answering(curve: Curve, percent: int) -> Answering:
    """What it takes to answer at least `percent` of the pictures, from 1 to 100."""
    row = int(np.argmax(100 * curve.answered >= percent * curve.answered[-1]))
    return Answering(percent, float(curve.threshold[row]), int(curve.answered[row]), int(curve.right[row]))
