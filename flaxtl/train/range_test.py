"""The learning-rate range test (Smith 2017, arXiv:1506.01186): a phase's first steps, at a rate that grows with each.

Batches, dropout and augmentation are those that the phase will begin with. Nothing is kept of what is learned.
"""

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax

from flaxtl.errors import UserError
from flaxtl.train import mesh as meshes
from flaxtl.train import steps
from flaxtl.train.advance import Way
from flaxtl.train.groups import Flat, Split
from flaxtl.train.metrics import Totals
from flaxtl.train.optim import Rate, by_groups
from flaxtl.train.phases import Phase
from flaxtl.train.setup import Setup
from flaxtl.train.steps import State
from flaxtl.train.ways import Material, first_state

SMOOTHING = 0.98
"""Weight of what came before in the moving average of the loss (fastai's AvgSmoothLoss)."""

DIVERGED = 4.0
"""Times its lowest value at which the smoothed loss has diverged (fastai's LRFinder)."""

FEWEST_STEPS = 10

UNSETTLED = 10
"""One of so many steps at the start is passed over: the mean of a few batches says little (fastai's num_it // 10)."""

BLOCK = 10
"""Steps whose losses are fetched from the device together: it is not made to wait after each of them."""


class Rates(NamedTuple):
    """From which rate to which, in how many steps; each step multiplies the rate by the same factor."""

    lowest: float
    highest: float
    steps: int

    def check(self) -> None:
        """Raise UserError for rates that do not grow, and for too few steps."""
        if not 0 < self.lowest < self.highest < math.inf:
            raise UserError(
                f"the rates run from {self.lowest:g} to {self.highest:g}; let --lowest be above 0 and below --highest"
            )
        if self.steps < FEWEST_STEPS:
            raise UserError(f"--steps={self.steps} shows no curve; give {FEWEST_STEPS} or more, such as 100")

    def all(self) -> npt.NDArray[np.float64]:
        """Of every step, the first `lowest` and the last `highest`, [steps]."""
        return np.geomspace(self.lowest, self.highest, self.steps)

    @property
    def unsettled(self) -> int:
        """How many of the first steps are passed over."""
        return self.steps // UNSETTLED


class Point(NamedTuple):
    """A step: its rate, the mean cross-entropy of its batch before it was made (nats), and this smoothed.

    The loss is NaN where it, or its gradient, was not finite.
    """

    rate: float
    loss: float
    smoothed: float


class Curve(NamedTuple):
    """The steps up to the last one, or to that at which the loss had diverged, which is among them.

    The first `unsettled` are shown, and nothing is concluded from them.
    """

    points: tuple[Point, ...]
    unsettled: int

    @property
    def settled(self) -> tuple[Point, ...]:
        """The points that conclusions are drawn from."""
        return self.points[self.unsettled :]

    @property
    def diverged(self) -> bool:
        """Whether the loss had run away before the highest rate was reached, or there."""
        lowest = min((point.smoothed for point in self.settled), default=math.inf)
        return _has_diverged(self.points[-1].smoothed, lowest)


def rising(settings: Mapping[str, Any], split: Split, rates: npt.NDArray[np.float64]) -> optax.GradientTransformation:
    """The recipe's optimizer, step k at rates[k] for the fastest group; the others keep their ratios to it."""
    fastest = max(split.rates.values())

    def scheduled(rate: float) -> Rate:
        table = jnp.asarray(rates * (rate / fastest), jnp.float32)
        return lambda taken: table[taken]

    return by_groups(settings, split, scheduled)


def range_test(
    material: Material, phase: Phase, parameters: Flat, rates: Rates, advance: Callable[[int], None]
) -> Curve:
    """The curve of `phase`, begun with `parameters`, which stay what they are; `advance` is told of steps made."""
    setup, grown = material.setup, rates.all()
    transformation = rising(setup.config.optimizer, phase.split, grown)
    way = material.way(phase, parameters, transformation)
    state = first_state(setup, phase, parameters, transformation)
    with closing(_losses(setup, way, state, rates.steps, advance)) as losses:
        return Curve(tuple(followed(grown.tolist(), losses, rates.unsettled)), rates.unsettled)


def _losses(
    setup: Setup, way: Way, state: State, n: int, advance: Callable[[int], None]
) -> Generator[float, None, None]:
    """Of each of `n` steps from `state` on, fetched in blocks."""
    step = steps.train_step(way.task, way.data.sharding(setup.mesh))
    first, zero = int(state.step), Totals.zero(len(setup.manifest.classes))
    waiting: list[Totals] = []
    with closing(way.data.training(setup.order(), first, first + n, way.task.augmentation)) as examples:
        for made, given in enumerate(examples, 1):
            # Each step begins with totals of its own: those before are not given away with the state.
            state = step(state._replace(totals=meshes.place(zero, setup.mesh)), way.frozen, given)
            waiting.append(state.totals)
            if len(waiting) == BLOCK or made == n:
                done, waiting = jax.device_get(waiting), []
                advance(len(done))
                yield from map(_mean, done)


def _mean(totals: Totals) -> float:
    """A step that was not finite has counted nothing."""
    seen = int(totals.seen.sum())
    return float(totals.loss) / seen if seen else math.nan


def followed(rates: Iterable[float], losses: Iterable[float], unsettled: int) -> Iterator[Point]:
    """The points, to the one at which the smoothed loss is above DIVERGED times its lowest, or not finite.

    The first `unsettled` are not the lowest: where a network is good already, one batch has ten times another's loss.
    """
    mean, weight, lowest = 0.0, 0.0, math.inf
    for made, (rate, loss) in enumerate(zip(rates, losses, strict=False)):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        weight = SMOOTHING * weight + (1 - SMOOTHING)  # 1 - SMOOTHING**k after k steps
        point = Point(rate, loss, mean / weight)
        if made >= unsettled:
            lowest = min(lowest, point.smoothed)
        yield point
        if _has_diverged(point.smoothed, lowest):
            return


def _has_diverged(smoothed: float, lowest: float) -> bool:
    return not (math.isfinite(smoothed) and smoothed <= DIVERGED * lowest)
