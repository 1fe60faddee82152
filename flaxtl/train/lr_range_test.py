"""Where a phase begins: its images, and the network that the phases before it have left, or the pretrained one."""

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
from rich.console import Console

from flaxtl.config import config_to_json
from flaxtl.console import progress_bar
from flaxtl.errors import UserError, join_names, unknown
from flaxtl.models.classifier import FlatParams
from flaxtl.parallel import devices
from flaxtl.pretrained import backbone
from flaxtl.train import run_dir, train_step
from flaxtl.train.checkpoints import Checkpoints
from flaxtl.train.datasets import load_splits
from flaxtl.train.epoch_loop import Way
from flaxtl.train.metrics import MetricSums
from flaxtl.train.optimizers import Schedule, make_optimizer, optimizer_factory
from flaxtl.train.param_groups import ParamGroups
from flaxtl.train.phases import Phase
from flaxtl.train.setup import RunSetup, build_manifest, build_setup, load_manifest
from flaxtl.train.train_step import TrainState
from flaxtl.train.trainer import Material, initial_state


class PhaseStart(NamedTuple):
    """What the steps of a phase are made from."""

    material: Material
    phase: Phase
    parameters: FlatParams


def load_phase_start(config: Any, workdir: Path, name: str | None, console: Console) -> PhaseStart:
    """The config's phase of that name, its first one without, as it would begin in `workdir`; nothing is written there.

    Images, as in a run, and features aside. Raises UserError for a phase whose predecessors were not trained in
    `workdir`, and where these, or what all phases share, have other settings there.
    """
    number = _number(config, name)
    is_run = run_dir.is_run(workdir)
    if is_run:
        run_dir.check_config(workdir, config_to_json(config), num_phases=number)
    manifest = load_manifest(workdir) if is_run else build_manifest(config, workdir, console)
    setup = build_setup(config, workdir, manifest)

    def say(sentence: str) -> None:
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)

    parameters = _left_by(setup, number) if is_run else None
    if parameters is None and number:
        before, phase = join_names(config.phases[:number]), config.phases[number]
        raise UserError(
            f"{phase} begins with the network that {before} leave{'s' if number == 1 else ''}, and {workdir} holds "
            "none; let flaxtl train come so far there, or give the --workdir of a run that did"
        )
    if parameters is None:
        parameters = devices.replicate(backbone.initial_params(config, setup.model_info.model, say).params, setup.mesh)
    setup, inputs, _ = load_splits(setup, manifest.splits, console, may_skip=not is_run)
    material = Material(setup, inputs, lambda title, n: progress_bar(console, title, n), say)
    return PhaseStart(material, setup.phases[number], parameters)


def _number(config: Any, name: str | None) -> int:
    names = list(config.phases)
    if name is not None and name not in names:
        raise unknown("phase", name, names)
    return names.index(name) if name is not None else 0


def _left_by(setup: RunSetup, phases: int) -> FlatParams | None:
    """The parameters after so many phases of the run, if it came so far."""
    with Checkpoints(setup.workdir) as checkpoints:
        done = checkpoints.num_phases()
        if done is None or done < phases:
            return None
        return checkpoints.restore_phase(phases, setup.abstract_params())


SMOOTHING = 0.98
"""Weight of what came before in the moving average of the loss (fastai's AvgSmoothLoss)."""

DIVERGED = 4.0
"""Times its lowest value at which the smoothed loss has diverged (fastai's LRFinder)."""

FEWEST_STEPS = 10

UNSETTLED = 10
"""One of so many steps at the start is passed over: the mean of a few batches says little (fastai's num_it // 10)."""

BLOCK = 10
"""Steps whose losses are fetched from the device together: it is not made to wait after each of them."""


class LrRange(NamedTuple):
    """From which rate to which, in how many steps; each step multiplies the rate by the same factor."""

    min_lr: float
    max_lr: float
    steps: int

    def validate(self) -> None:
        """Raise UserError for rates that do not grow, and for too few steps."""
        if not 0 < self.min_lr < self.max_lr < math.inf:
            raise UserError(
                f"the rates run from {self.min_lr:g} to {self.max_lr:g}; let --min-lr be above 0 and below --max-lr"
            )
        if self.steps < FEWEST_STEPS:
            raise UserError(f"--steps={self.steps} shows no curve; give {FEWEST_STEPS} or more, such as 100")

    def lrs(self) -> npt.NDArray[np.float64]:
        """Of every step, the first `min_lr` and the last `max_lr`, [steps]."""
        return np.geomspace(self.min_lr, self.max_lr, self.steps)

    @property
    def num_skipped(self) -> int:
        """How many of the first steps are passed over."""
        return self.steps // UNSETTLED


class LrPoint(NamedTuple):
    """A step: its rate, the mean cross-entropy of its batch before it was made (nats), and this smoothed.

    The loss is NaN where it, or its gradient, was not finite.
    """

    lr: float
    loss: float
    smoothed_loss: float


class LrCurve(NamedTuple):
    """The steps up to the last one, or to that at which the loss had diverged, which is among them.

    The first `num_skipped` are shown, and nothing is concluded from them.
    """

    points: tuple[LrPoint, ...]
    num_skipped: int

    @property
    def usable_points(self) -> tuple[LrPoint, ...]:
        """The points that conclusions are drawn from."""
        return self.points[self.num_skipped :]

    @property
    def diverged(self) -> bool:
        """Whether the loss had run away before the highest rate was reached, or there."""
        lowest = min((point.smoothed_loss for point in self.usable_points), default=math.inf)
        return _has_diverged(self.points[-1].smoothed_loss, lowest)


def rising(
    settings: Mapping[str, Any], split: ParamGroups, rates: npt.NDArray[np.float64]
) -> optax.GradientTransformation:
    """The config's optimizer, step k at rates[k] for the fastest group; the others keep their ratios to it."""
    fastest = max(split.lrs.values())

    def scheduled(rate: float) -> Schedule:
        table = jnp.asarray(rates * (rate / fastest), jnp.float32)
        return lambda taken: table[taken]

    schedules = {group: scheduled(rate) for group, rate in split.lrs.items() if rate}
    return make_optimizer(split.labels, schedules, optimizer_factory(settings), split.lr_scales)


def range_test(
    material: Material, phase: Phase, parameters: FlatParams, rates: LrRange, advance: Callable[[int], None]
) -> LrCurve:
    """The curve of `phase`, begun with `parameters`, which stay what they are; `advance` is told of steps made."""
    setup, grown = material.setup, rates.lrs()
    transformation = rising(setup.config.optimizer, phase.param_groups, grown)
    way = material.way(phase, parameters, transformation)
    state = initial_state(setup, phase, parameters, transformation)
    with closing(_losses(setup, way, state, rates.steps, advance)) as losses:
        return LrCurve(tuple(followed(grown.tolist(), losses, rates.num_skipped)), rates.num_skipped)


def _losses(
    setup: RunSetup, way: Way, state: TrainState, n: int, advance: Callable[[int], None]
) -> Generator[float, None, None]:
    """Of each of `n` steps from `state` on, fetched in blocks."""
    step = train_step.make_train_step(way.task, way.data.sharding(setup.mesh))
    first, zero = int(state.step), MetricSums.zero(len(setup.manifest.classes))
    waiting: list[MetricSums] = []
    with closing(way.data.train_batches(setup.sampler(), first, first + n, way.task.augmentation)) as examples:
        for made, given in enumerate(examples, 1):
            # Each step begins with totals of its own: those before are not given away with the state.
            state = step(state._replace(metrics=devices.replicate(zero, setup.mesh)), way.frozen, given)
            waiting.append(state.metrics)
            if len(waiting) == BLOCK or made == n:
                done, waiting = jax.device_get(waiting), []
                advance(len(done))
                yield from map(_mean, done)


def _mean(totals: MetricSums) -> float:
    """A step that was not finite has counted nothing."""
    seen = int(totals.count.sum())
    return float(totals.loss) / seen if seen else math.nan


def followed(rates: Iterable[float], losses: Iterable[float], num_skipped: int) -> Iterator[LrPoint]:
    """The points, to the one at which the smoothed loss is above DIVERGED times its lowest, or not finite.

    The first `num_skipped` are not the lowest: where a network is good already, one batch has ten times another's loss.
    """
    mean, weight, lowest = 0.0, 0.0, math.inf
    for made, (rate, loss) in enumerate(zip(rates, losses, strict=False)):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        weight = SMOOTHING * weight + (1 - SMOOTHING)  # 1 - SMOOTHING**k after k steps
        point = LrPoint(rate, loss, mean / weight)
        if made >= num_skipped:
            lowest = min(lowest, point.smoothed_loss)
        yield point
        if _has_diverged(point.smoothed_loss, lowest):
            return


def _has_diverged(smoothed: float, lowest: float) -> bool:
    return not (math.isfinite(smoothed) and smoothed <= DIVERGED * lowest)
