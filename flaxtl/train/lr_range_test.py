"""The learning-rate range test (Smith 2017): a phase's first steps with a growing learning rate, and their losses."""

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
from rich.console import Console

from flaxtl.console import ProgressFn, message, progress_bar
from flaxtl.data.loaders import Loader
from flaxtl.errors import UserError, join_names, unknown
from flaxtl.models.classifier import FlatParams, cast_for_compute
from flaxtl.parallel import devices
from flaxtl.pretrained import backbone
from flaxtl.train import resume, run_dir, train_step
from flaxtl.train.checkpoints import Checkpoints
from flaxtl.train.datasets import SplitData, load_splits
from flaxtl.train.metrics import MetricSums
from flaxtl.train.optimizers import Schedule, clip_grads, make_optimizer, optimizer_factory
from flaxtl.train.param_groups import ParamGroups
from flaxtl.train.phases import Phase
from flaxtl.train.setup import RunSetup, build_manifest, build_setup
from flaxtl.train.train_step import StepConfig, TrainState
from flaxtl.train.trainer import initial_state, make_step_config, select_loader, with_feature_statistics

SMOOTHING = 0.98
"""Decay of the moving average of the loss (fastai's AvgSmoothLoss)."""

DIVERGENCE_FACTOR = 4.0
"""The loss has diverged if its average is above this multiple of its minimum (fastai's LRFinder)."""

MIN_STEPS = 10

SKIPPED_FRACTION = 10
"""The first 1 / SKIPPED_FRACTION of the steps are ignored: their average is still noisy (fastai's num_it // 10)."""

FETCH_STEPS = 10
"""Number of steps after which losses are fetched, so that the device does not wait after each step."""


class LrRange(NamedTuple):
    """Learning rates of a range test: `steps` rates from `min_lr` to `max_lr`, in a geometric sequence."""

    min_lr: float
    max_lr: float
    steps: int

    def validate(self) -> None:
        """Raise UserError if the rates do not increase, or if there are too few steps."""
        if not 0 < self.min_lr < self.max_lr < math.inf:
            raise UserError(
                f"The learning rates go from {self.min_lr:g} to {self.max_lr:g}. "
                "Set --min-lr above 0 and below --max-lr."
            )
        if self.steps < MIN_STEPS:
            raise UserError(f"--steps={self.steps} is too few for a range test. Use {MIN_STEPS} or more, such as 100.")

    def lrs(self) -> npt.NDArray[np.float64]:
        """Return the learning rate of each step, [steps]."""
        return np.geomspace(self.min_lr, self.max_lr, self.steps)

    @property
    def num_skipped(self) -> int:
        """Number of steps at the start that are ignored."""
        return self.steps // SKIPPED_FRACTION


class LrPoint(NamedTuple):
    """One step: its learning rate, the mean cross-entropy of its batch before the update (nats), and the average.

    The loss is NaN if it, or its gradient, was not finite.
    """

    lr: float
    loss: float
    smoothed_loss: float


class LrCurve(NamedTuple):
    """The steps of a range test, up to the one at which the loss diverged. The first `num_skipped` are too noisy."""

    points: tuple[LrPoint, ...]
    num_skipped: int

    @property
    def usable_points(self) -> tuple[LrPoint, ...]:
        """The points that are not skipped."""
        return self.points[self.num_skipped :]

    @property
    def diverged(self) -> bool:
        """Whether the loss diverged."""
        lowest = min((point.smoothed_loss for point in self.usable_points), default=math.inf)
        return _has_diverged(self.points[-1].smoothed_loss, lowest)


class PhaseStart(NamedTuple):
    """What the first step of a phase needs: the data of the splits, and the parameters before the phase."""

    setup: RunSetup
    splits: Mapping[str, SplitData]
    phase: Phase
    params: FlatParams


def load_phase_start(config: Any, workdir: Path, name: str | None, console: Console) -> PhaseStart:
    """Load data and parameters for the start of a phase, as training in `workdir` would; nothing is written there.

    Args:
      config: a complete config.
      workdir: a run directory of that config, perhaps with its images at another place, or a new one.
      name: the phase; None for the first one.
      console: for messages and progress.

    Raises:
      UserError: earlier phases were not trained in `workdir`, or with other settings.
    """
    config = run_dir.with_canonical_name(config)
    index = _phase_index(config, name)
    devices.check_batch_size(jax.device_count(), config.batch_size, config.accum_steps)
    is_run = run_dir.is_run(workdir)
    if is_run:
        manifest = resume.check_images(workdir, resume.locate_images(workdir, config, num_phases=index))
    else:
        manifest = build_manifest(config, workdir, console)
    setup = build_setup(config, workdir, manifest)
    params = _params_after(setup, index) if is_run else None
    if params is None and index:
        raise UserError(
            f"Phase {config.phases[index]} starts from the weights of {join_names(config.phases[:index])}, which "
            f"{workdir} does not have. Run flaxtl train in it first, or use the --workdir of a trained run."
        )
    if params is None:
        initial = backbone.initial_params(config, setup.model_info.model, partial(message, console))
        params = devices.replicate(initial.params, setup.mesh)
    setup, splits, _ = load_splits(setup, manifest.splits, console, may_skip=not is_run)
    if index == 0:
        params = with_feature_statistics(setup, splits, params, partial(progress_bar, console))
    return PhaseStart(setup, splits, setup.phases[index], params)


def _phase_index(config: Any, name: str | None) -> int:
    names = list(config.phases)
    if name is not None and name not in names:
        raise unknown("phase", name, names)
    return names.index(name) if name is not None else 0


def _params_after(setup: RunSetup, num_phases: int) -> FlatParams | None:
    """Return the parameters after a number of phases; None if the run has not finished them."""
    with Checkpoints(setup.workdir) as checkpoints:
        done = checkpoints.num_phases()
        if done is None or done < num_phases:
            return None
        return checkpoints.restore_phase(num_phases, setup.abstract_params())


def range_test(start: PhaseStart, lr_range: LrRange, progress: ProgressFn, advance: Callable[[int], None]) -> LrCurve:
    """Run the range test of a phase.

    Args:
      start: the start of the phase; its arrays are not changed.
      lr_range: the learning rates of the fastest group; the others keep their ratio to it.
      progress: makes the progress bar of feature extraction.
      advance: called with the number of steps that were made.
    """
    setup, phase, params = start.setup, start.phase, start.params
    optimizer = range_test_optimizer(setup.config.optimizer, phase.param_groups, lr_range.lrs())
    optimizer = clip_grads(optimizer, phase.clip_norm)
    num_views = setup.config.feature_cache.views
    loader, start_layer = select_loader(start.splits, phase, params, num_views, progress)
    cfg = make_step_config(setup, phase, optimizer, start_layer)
    state = initial_state(setup, phase, params, optimizer)
    frozen = phase.param_groups.partition(cast_for_compute(params, setup.model_info.model)).frozen
    with closing(_losses(setup, cfg, loader, state, frozen, lr_range.steps, advance)) as losses:
        points = lr_points(lr_range.lrs().tolist(), losses, lr_range.num_skipped)
        return LrCurve(tuple(points), lr_range.num_skipped)


def range_test_optimizer(
    settings: Mapping[str, Any], param_groups: ParamGroups, lrs: npt.NDArray[np.float64]
) -> optax.GradientTransformation:
    """Return the config's optimizer with the rate lrs[k] in step k for the fastest group, and the others in ratio."""
    fastest = max(param_groups.lrs.values())

    def lookup(lr: float) -> Schedule:
        table = jnp.asarray(lrs * (lr / fastest), jnp.float32)
        return lambda step: table[step]

    schedules = {group: lookup(lr) for group, lr in param_groups.lrs.items() if lr}
    return make_optimizer(param_groups.labels, schedules, optimizer_factory(settings), param_groups.lr_scales)


def _losses(
    setup: RunSetup,
    cfg: StepConfig,
    loader: Loader,
    state: TrainState,
    frozen: FlatParams,
    num_steps: int,
    advance: Callable[[int], None],
) -> Generator[float, None, None]:
    """Yield the loss of each step from `state` on."""
    step = train_step.make_train_step(cfg, loader.sharding(setup.mesh))
    first, zero = int(state.step), MetricSums.zero(len(setup.manifest.classes))
    pending: list[MetricSums] = []
    with closing(loader.train_batches(setup.sampler(), first, first + num_steps, cfg.augmentation)) as batches:
        for done, batch in enumerate(batches, 1):
            # Each step starts from new sums, so that those of earlier steps are not donated.
            state = step(state._replace(metrics=devices.replicate(zero, setup.mesh)), frozen, batch)
            pending.append(state.metrics)
            if len(pending) == FETCH_STEPS or done == num_steps:
                sums, pending = pending, []
                losses = [each.compute().loss for each in sums]  # NaN if the step was skipped
                advance(len(losses))
                yield from losses


def lr_points(lrs: Iterable[float], losses: Iterable[float], num_skipped: int) -> Iterator[LrPoint]:
    """Yield the points of the curve, up to the first one at which the average is not finite or has diverged.

    The first `num_skipped` points do not count for the minimum: if the model is good already, the losses of single
    batches differ by a factor of ten.
    """
    mean, weight, lowest = 0.0, 0.0, math.inf
    for index, (lr, loss) in enumerate(zip(lrs, losses, strict=False)):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        weight = SMOOTHING * weight + (1 - SMOOTHING)  # 1 - SMOOTHING**k after k steps
        point = LrPoint(lr, loss, mean / weight)
        if index >= num_skipped:
            lowest = min(lowest, point.smoothed_loss)
        yield point
        if _has_diverged(point.smoothed_loss, lowest):
            return


def _has_diverged(smoothed_loss: float, lowest: float) -> bool:
    return not (math.isfinite(smoothed_loss) and smoothed_loss <= DIVERGENCE_FACTOR * lowest)
