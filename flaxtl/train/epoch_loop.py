"""The epochs of a phase: `PhaseTrainer.run` is the training loop, `StepCalls` divides its steps into device calls.

A call makes one step or many; device_calls.py has how many. The first epoch goes step by step.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from flaxtl.data.loaders import DeviceLoader, Loader
from flaxtl.data.sampler import EpochSampler
from flaxtl.errors import UserError
from flaxtl.models.classifier import FlatParams
from flaxtl.parallel import devices, processes
from flaxtl.train import eval_steps, run_dir, train_step
from flaxtl.train.checkpoints import Checkpoints, EarlyStopping, PhaseProgress
from flaxtl.train.device_calls import CallLength, DispatchThrottle
from flaxtl.train.eval_loop import ResidentEvaluator, evaluate_metrics
from flaxtl.train.forecast import forecast
from flaxtl.train.logger import MetricLogger, PhaseLog
from flaxtl.train.metrics import Metrics, MetricSums
from flaxtl.train.phases import Phase
from flaxtl.train.run_records import EpochMetrics, NonfiniteStep
from flaxtl.train.setup import RunSetup
from flaxtl.train.signals import StopSignal
from flaxtl.train.train_step import NO_STEP, StepConfig, TrainState

Evaluator = Callable[[FlatParams, Callable[[], None]], Metrics]
"""(params, function that is called between calls to the device and may raise to stop) -> metrics of validation."""


@dataclass
class PhaseTrainer:
    """Trains one phase: steps, validation after each epoch, early stopping, plateaus, checkpoints.

    It resumes from any progress, also from within an epoch, with bit-identical results.

    Attributes:
      setup: the run.
      phase: the phase.
      step_config: constants of its steps.
      frozen: parameters that the phase does not change, in the dtype that the model computes with.
      train_loader: training data, which enters the model at `step_config.start_layer`.
      validation_loader: validation data, which enters the model at `phase.cut_layer`.
      checkpoints: where progress is saved.
      logger: receives the metrics of each epoch.
      stop_signal: ends the run between two steps.
      start_time: monotonic seconds at which the run started; None once the start-up time was logged.
    """

    setup: RunSetup
    phase: Phase
    step_config: StepConfig
    frozen: FlatParams
    train_loader: Loader
    validation_loader: Loader
    checkpoints: Checkpoints
    logger: MetricLogger
    stop_signal: StopSignal
    start_time: float | None = None

    def __post_init__(self) -> None:
        """Compile nothing yet; jit compiles each step when it is first called."""
        self._last_save = time.monotonic()
        self._evaluate = self._make_evaluator()

    def run(self, progress: PhaseProgress) -> PhaseProgress:
        """Train the remaining epochs. The result does not depend on when checkpoints are written."""
        phase, step = self.phase, int(progress.state.step)
        self.logger.truncate_after(self._epoch_start(progress))
        with (
            self.stop_signal.deferred(),
            self._log_phase(step) as log,
            closing(self._make_calls(step)) as calls,
        ):
            while not self._is_done(progress):
                start_time, throttle = time.monotonic(), DispatchThrottle()
                progress = self._begin_epoch(progress, step)
                epoch_end = self._epoch_start(progress) + phase.steps_per_epoch
                for next_step, inputs in calls.inputs(step, epoch_end):
                    state = calls.train_step(progress.state, self.frozen, *inputs)
                    progress = progress._replace(state=state)
                    self._log_start_up(state)
                    throttle.push(jnp.copy(state.step))  # a copy, because the next call donates the state
                    log.steps(next_step - phase.first_step)
                    self._maybe_checkpoint(progress, next_step)
                step = epoch_end
                calls.end_epoch(progress.state)
                progress, metrics = self._end_epoch(progress)
                log.epoch(metrics.replace(seconds=time.monotonic() - start_time))
                self._after_epoch(progress)
        self._log_best_epoch(progress)
        return progress

    def _log_phase(self, first_step: int) -> AbstractContextManager[PhaseLog]:
        phase = self.phase
        return self.logger.log_phase(
            phase.name,
            phase.epochs,
            phase.steps_per_epoch,
            first_step - phase.first_step,
            partial(forecast, self.setup, phase),
        )

    def _make_calls(self, first_step: int) -> "StepCalls":
        """Return the calls of the phase from global step `first_step` on."""
        cfg, loader, sampler = self.step_config, self.train_loader, self.setup.sampler()
        backbone_output = self.setup.model_info.backbone_layers[-1]
        if isinstance(loader, DeviceLoader) and uses_multi_step(cfg.mesh, cfg.start_layer, backbone_output):
            return MultiStepCalls(cfg, loader, sampler, self.phase.steps_per_epoch)
        return SingleStepCalls(cfg, loader, sampler, first_step, self.phase.last_step)

    def _make_evaluator(self) -> Evaluator:
        """Return what evaluates the validation data: in one call if that is possible, else batch by batch."""
        model_info, mesh, loader = self.setup.model_info, self.setup.mesh, self.validation_loader
        start_layer, batch_size = self.phase.cut_layer, self.setup.config.batch_size
        constants = model_info.model, mesh, start_layer, loader.sharding(mesh)
        if isinstance(loader, DeviceLoader) and uses_multi_step(mesh, start_layer, model_info.backbone_layers[-1]):
            zero = devices.replicate(MetricSums.zero(len(self.setup.manifest.classes)), mesh)
            return ResidentEvaluator(eval_steps.make_multi_eval_step(*constants), loader, batch_size, zero)
        step = eval_steps.make_eval_step(*constants)
        return lambda params, on_call: evaluate_metrics(step, params, loader, batch_size, on_call)

    def _epoch_start(self, progress: PhaseProgress) -> int:
        """Return the first global step of the current epoch."""
        return self.phase.first_step + progress.early_stopping.epoch * self.phase.steps_per_epoch

    def _is_done(self, progress: PhaseProgress) -> bool:
        """Return whether the phase has ended: all epochs are done, or early stopping applies."""
        phase, (epoch, _, best_epoch) = self.phase, progress.early_stopping
        return epoch >= phase.epochs or (bool(phase.patience) and epoch - best_epoch >= phase.patience)

    def _begin_epoch(self, progress: PhaseProgress, step: int) -> PhaseProgress:
        """Reset the training metrics, unless the phase resumes at a `step` within the epoch."""
        if step > self._epoch_start(progress):
            return progress
        zero = devices.replicate(MetricSums.zero(len(self.setup.manifest.classes)), self.setup.mesh)
        return progress._replace(state=progress.state._replace(metrics=zero))

    def _log_start_up(self, state: TrainState) -> None:
        """Log, once per run, the time that reading, computing features and compiling took before the first step."""
        if self.start_time is not None:
            state.step.block_until_ready()
            seconds, self.start_time = time.monotonic() - self.start_time, None
            run_dir.update_summary(self.setup.workdir, timings={"start to first step": seconds})
            self.logger.info(f"Start-up: {seconds:,.1f} s")

    def _end_epoch(self, progress: PhaseProgress) -> tuple[PhaseProgress, EpochMetrics]:
        """Fetch the training metrics, validate, and update early stopping and plateaus."""
        phase, state = self.phase, progress.state
        self._check_finite(progress)
        train_metrics = state.metrics.compute()
        validation_metrics = self._validate(progress)
        epoch = progress.early_stopping.epoch + 1
        metrics = EpochMetrics(
            phase=phase.name,
            epoch=epoch,
            step=self._epoch_start(progress) + phase.steps_per_epoch,
            train_loss=train_metrics.loss,
            train_accuracy=train_metrics.accuracy,
            validation_loss=validation_metrics.loss,
            validation_accuracy=validation_metrics.accuracy,
            validation_balanced_accuracy=validation_metrics.balanced_accuracy,
            lrs=phase.lrs(epoch * phase.steps_per_epoch, float(state.lr_scale)),
            seconds=0.0,  # measured by the caller
        )
        value = float(getattr(metrics, phase.monitor))
        if phase.is_improvement(value, progress.early_stopping.best_value):
            # A copy, because the next step donates the state.
            best_params = jax.tree.map(jnp.copy, state.eval_params)
            return PhaseProgress(state, best_params, EarlyStopping(epoch, value, epoch)), metrics
        early_stopping = progress.early_stopping._replace(epoch=epoch)
        state = self._reduce_lr_on_plateau(state, early_stopping)
        return PhaseProgress(state, progress.best_params, early_stopping), metrics

    def _log_best_epoch(self, progress: PhaseProgress) -> None:
        epoch, _, best_epoch = progress.early_stopping
        if self.phase.patience and best_epoch < epoch:
            stopped = f"stopped early after epoch {epoch}; " if epoch < self.phase.epochs else ""
            self.logger.info(f"{self.phase.name}: {stopped}best epoch: {best_epoch} (its weights are kept)")

    def _reduce_lr_on_plateau(self, state: TrainState, early_stopping: EarlyStopping) -> TrainState:
        """Reduce the learning rates if the schedule is 'plateau' and the monitored metric no longer improves."""
        phase = self.phase
        if not phase.plateau_reached(early_stopping.epoch - early_stopping.best_epoch):
            return state
        lr_scale = float(state.lr_scale) * phase.plateau_factor
        self.logger.info(
            f"{phase.name}: {phase.monitor} has not improved since epoch {early_stopping.best_epoch}. "
            f"Learning rates reduced to {lr_scale:.3g} of their initial values."
        )
        return state._replace(lr_scale=devices.replicate(jnp.float32(lr_scale), self.setup.mesh))

    def _validate(self, progress: PhaseProgress) -> Metrics:
        def stop_if_requested() -> None:
            if processes.process_count() == 1 and self.stop_signal.requested:  # several processes stop between steps
                self._save(progress)
                self.stop_signal.stop()

        metrics = self._evaluate(self.frozen | progress.state.eval_params, stop_if_requested)
        if not math.isfinite(metrics.loss):
            epoch, step = progress.early_stopping.epoch + 1, int(progress.state.step) - 1
            record = NonfiniteStep(phase=self.phase.name, epoch=epoch, step=step, images=[])
            run_dir.update_summary(self.setup.workdir, nonfinite_step=record)
            raise UserError(
                f"The validation loss became {metrics.loss} in phase {self.phase.name!r}, epoch {epoch}, step {step}. "
                f"Start a new --workdir with a lower learning rate than {self._lr_flags()}."
            )
        return metrics

    def _maybe_checkpoint(self, progress: PhaseProgress, step: int) -> None:
        """Before global step `step`: save the progress if it is due, or if the run is to stop."""
        single = processes.process_count() == 1
        stop = self.stop_signal.requested if single else processes.should_stop(step)
        if stop or (single and self._save_is_due()):
            self._check_finite(progress)
            self._save(progress)
        if stop:
            self.stop_signal.stop()

    def _after_epoch(self, progress: PhaseProgress) -> None:
        """Do the same after an epoch. The clocks of several processes differ, so they agree here on whether to save."""
        stop = processes.process_count() == 1 and self.stop_signal.requested
        if processes.any_process(self._save_is_due() or stop):
            self._save(progress)
        if stop:
            self.stop_signal.stop()

    def _save_is_due(self) -> bool:
        return time.monotonic() - self._last_save > float(self.setup.config.checkpoint.every_seconds)

    def _save(self, progress: PhaseProgress) -> None:
        self.checkpoints.save_latest(progress)
        self._last_save = time.monotonic()

    def _check_finite(self, progress: PhaseProgress) -> None:
        """Raise UserError, with the last good state saved, if a step's loss or gradient was not finite."""
        step = int(progress.state.nonfinite_step)
        if step == NO_STEP:
            return
        self._save(progress)
        examples, epoch = self.setup.manifest.of_split("train"), progress.early_stopping.epoch + 1
        paths = [examples[index].path for index in self.setup.sampler().batch(step).indices]
        record = NonfiniteStep(phase=self.phase.name, epoch=epoch, step=step, images=paths)
        run_dir.update_summary(self.setup.workdir, nonfinite_step=record)
        more = f" and {len(paths) - 5:,} more, listed in summary.json" if len(paths) > 5 else ""
        raise UserError(
            f"Loss or gradient became NaN or inf in phase {self.phase.name!r}, epoch {epoch}, step {step}. "
            f"Start a new --workdir with a lower learning rate than {self._lr_flags()}. The last good state is in "
            f"{self.setup.workdir / 'checkpoints' / 'latest'}. Batch: {', '.join(paths[:5])}{more}."
        )

    def _lr_flags(self) -> str:
        lrs = self.phase.param_groups.lrs.items()
        return ", ".join(f"{self.phase.name}.lr.{group}={lr:g}" for group, lr in lrs if lr)


class StepCalls(Protocol):
    """How the steps of a phase are divided into calls to the device."""

    train_step: Callable[..., TrainState]
    """`train_step.train_step`, for one step or many, compiled: (state, frozen params, *inputs) -> state.

    The given state is donated.
    """

    def inputs(self, first: int, last: int) -> Iterator[tuple[int, tuple[Any, ...]]]:
        """Yield the inputs of each call, after the step that follows it; the calls make steps `first` to `last` - 1."""

    def end_epoch(self, state: TrainState) -> None:
        """Take note that the calls of an epoch, or of the rest of one, were made and result in `state`."""

    def close(self) -> None:
        """Stop reading ahead."""


def uses_multi_step(mesh: Mesh, start_layer: str | None, backbone_output: str) -> bool:
    """Whether to make many steps per call, for data in device memory.

    XLA's convolutions on CPU are tens of times slower inside a loop, so on CPU only phases on outputs of the whole
    backbone use it. Several processes have to agree after each step on whether to stop.
    """
    if processes.process_count() > 1:
        return False
    return devices.platform_of(mesh) != "cpu" or start_layer == backbone_output


class MultiStepCalls:
    """Many steps per call to the device, but none beyond the end of an epoch."""

    def __init__(self, cfg: StepConfig, loader: DeviceLoader, sampler: EpochSampler, steps_per_epoch: int) -> None:
        self.train_step = train_step.make_multi_step(cfg, loader.sharding(cfg.mesh))
        self._loader, self._sampler = loader, sampler
        self._steps_per_epoch, self._length = steps_per_epoch, CallLength(steps_per_epoch)

    def inputs(self, first: int, last: int) -> Iterator[tuple[int, tuple[Any, ...]]]:
        """See `StepCalls`; the inputs are all batches of the epoch, the first step of the call and its end."""
        batches = self._loader.stacked_batches(self._sampler, first, last, self._steps_per_epoch)
        for begin, end in self._length.calls(last - first):
            yield first + end, (batches, np.int32(begin), np.int32(end))

    def end_epoch(self, state: TrainState) -> None:
        """Measure the speed, for the number of steps per call in the next epoch."""
        state.step.block_until_ready()
        self._length.measure()

    def close(self) -> None:
        """Do nothing: the data is in device memory."""


class SingleStepCalls:
    """One step per call to the device, with batches that are read ahead."""

    def __init__(self, cfg: StepConfig, loader: Loader, sampler: EpochSampler, first_step: int, last_step: int) -> None:
        self.train_step = train_step.make_train_step(cfg, loader.sharding(cfg.mesh))
        self._batches = loader.train_batches(sampler, first_step, last_step, cfg.augmentation)

    def inputs(self, first: int, last: int) -> Iterator[tuple[int, tuple[Any, ...]]]:
        """See `StepCalls`; the input is the batch. `first` must be the step after the last call."""
        for step, batch in zip(range(first, last), self._batches, strict=False):
            yield step + 1, (batch,)

    def end_epoch(self, state: TrainState) -> None:
        """Do nothing: the number of steps per call is fixed."""

    def close(self) -> None:
        """Stop the threads that read batches."""
        self._batches.close()
