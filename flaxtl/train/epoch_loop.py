"""From one step to another: batch by batch, or in few calls that make many steps each on the device.

A call of many steps costs the host nothing between them, but it is not heard of until it ends. So the first epoch goes
step by step, and from then on a call is as long as CALL_SECONDS allows.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flaxtl.data.loaders import Batch, DeviceLoader, Loader
from flaxtl.data.sampler import EpochSampler
from flaxtl.errors import UserError
from flaxtl.models.classifier import FlatParams
from flaxtl.parallel import devices, processes
from flaxtl.train import run_dir, train_step
from flaxtl.train.checkpoints import Checkpoints, EarlyStopping, PhaseProgress
from flaxtl.train.eval_loop import MAX_PENDING_RESULTS, EvalStep, evaluate_metrics
from flaxtl.train.logger import MetricLogger
from flaxtl.train.metrics import Metrics, MetricSums
from flaxtl.train.phases import Phase
from flaxtl.train.run_records import EpochMetrics, NonfiniteStep
from flaxtl.train.setup import RunSetup
from flaxtl.train.signals import StopSignal
from flaxtl.train.train_step import NO_STEP, ScannedSteps, StepConfig, TrainState, TrainStep

CALL_SECONDS = 0.5
"""How long a call may take: with those on the way before it, a signal is answered and a checkpoint made in 2 s."""

Stepper = Callable[[TrainState, int, int], Iterator[tuple[int, TrainState]]]
"""(state, first, last) -> after each call to the device, the global step it came to and the state there."""


class Way(NamedTuple):
    """From which examples a phase learns, and what is not changed by it; `layers` are the backbone's, low to high."""

    task: StepConfig
    data: Loader
    frozen: FlatParams
    layers: tuple[str, ...]

    def advancing(self, phase: Phase, order: EpochSampler, first: int) -> AbstractContextManager[Stepper]:
        """Compile the step of `phase`, which will be entered at global step `first`; the examples end with it."""
        sharding = self.data.sharding(self.task.mesh)
        if isinstance(self.data, DeviceLoader) and self._loops():
            compiled = train_step.make_scanned_steps(self.task, sharding)
            return nullcontext(ScannedStepper(compiled, self.frozen, self.data, order, phase.steps_per_epoch))
        examples = self.data.train_batches(order, first, phase.last_step, self.task.augmentation)
        return _per_step(train_step.make_train_step(self.task, sharding), self.frozen, examples)

    def _loops(self) -> bool:
        """Whether many steps in a call are an advantage.

        XLA's convolutions on CPU are tens of times slower within a loop, so there only what learns on the outputs of
        the whole backbone loops. Several processes agree after each step on whether to end.
        """
        return processes.process_count() == 1 and (
            jax.default_backend() != "cpu" or self.task.start_layer == self.layers[-1]
        )


class ScannedStepper:
    """The `Advance` of many steps a call."""

    def __init__(
        self, compiled: ScannedSteps, frozen: FlatParams, data: DeviceLoader, order: EpochSampler, length: int
    ) -> None:
        """`length` is the steps of an epoch, which no call goes beyond."""
        self._compiled, self._frozen, self._data, self._order = compiled, frozen, data, order
        self._length, self._stride = length, 1

    def __call__(self, state: TrainState, first: int, last: int) -> Iterator[tuple[int, TrainState]]:
        """See Advance."""
        started, steps = time.monotonic(), last - first
        epoch = self._data.stacked_batches(self._order, first, last, self._length)
        for begin in range(0, steps, self._stride):
            end = min(begin + self._stride, steps)
            state = self._compiled(state, self._frozen, epoch, np.int32(begin), np.int32(end))
            yield first + end, state
        state.step.block_until_ready()
        fitting = int(CALL_SECONDS * steps / (time.monotonic() - started))
        self._stride = min(max(fitting, 1), self._length)


@contextmanager
def _per_step(compiled: TrainStep, frozen: FlatParams, examples: Generator[Batch, None, None]) -> Iterator[Stepper]:
    def advance(state: TrainState, first: int, last: int) -> Iterator[tuple[int, TrainState]]:
        for step, given in zip(range(first + 1, last + 1), examples, strict=False):
            state = compiled(state, frozen, given)
            yield step, state

    with closing(examples):
        yield advance


class DispatchThrottle:
    """Keeps the host at most MAX_PENDING_RESULTS results ahead of the device."""

    def __init__(self) -> None:
        """Nothing is pending."""
        self._pending: deque[jax.Array] = deque()

    def push(self, result: jax.Array) -> None:
        """Add a dispatched result, which must not be donated; wait for an older one if too many are pending."""
        self._pending.append(result)
        if len(self._pending) > MAX_PENDING_RESULTS:
            self._pending.popleft().block_until_ready()


class Leg(NamedTuple):
    """What stays the same through one phase: how it learns, and how it is judged."""

    phase: Phase
    way: Way
    validation: Loader
    eval_step: EvalStep


class EpochLoop:
    """Of one phase. It goes on from any progress, also from within an epoch, to the same result bit for bit."""

    def __init__(
        self,
        setup: RunSetup,
        leg: Leg,
        checkpoints: Checkpoints,
        log: MetricLogger,
        interruption: StopSignal,
        begun: float | None,
    ) -> None:
        """Rows go to `log`; who wants the run to end says so to `interruption`; `begun` is as in Run."""
        self._setup, self._leg, self._phase, self._begun = setup, leg, leg.phase, begun
        self._checkpoints, self._log, self._interruption = checkpoints, log, interruption
        self._saved = time.monotonic()

    def run(self, progress: PhaseProgress) -> PhaseProgress:
        """All epochs that are left. When a checkpoint is written does not change the result."""
        phase, leg = self._phase, self._leg
        step = int(progress.state.step)
        self._log.truncate_after(self._first_step(progress))
        with (
            self._interruption.deferred(),
            self._log.log_phase(phase.name, phase.epochs, progress.early_stopping.epoch) as report,
            leg.way.advancing(phase, self._setup.sampler(), step) as advance,
        ):
            while progress.early_stopping.epoch < phase.epochs and not self._exhausted(progress.early_stopping):
                started = time.monotonic()
                progress = self._steps(progress, step, advance)
                progress, row = self._judge(progress)
                report(row.replace(seconds=time.monotonic() - started))
                step = self._first_step(progress)
                self._after_epoch(progress)
        ended, _, best = progress.early_stopping
        if phase.patience and best < ended:
            stopped = f"stopped after epoch {ended}; " if ended < phase.epochs else ""
            self._log.info(f"{phase.name}: {stopped}epoch {best} was best and is kept")
        return progress

    def _first_step(self, progress: PhaseProgress) -> int:
        """Of the epoch at hand."""
        return self._phase.first_step + progress.early_stopping.epoch * self._phase.steps_per_epoch

    def _exhausted(self, memory: EarlyStopping) -> bool:
        return bool(self._phase.patience) and memory.epoch - memory.best_epoch >= self._phase.patience

    def _steps(self, progress: PhaseProgress, step: int, advance: Stepper) -> PhaseProgress:
        """From `step`, which may lie within the epoch, to the epoch's end."""
        first = self._first_step(progress)
        if step == first:
            zero = devices.replicate(MetricSums.zero(len(self._setup.manifest.classes)), self._setup.mesh)
            progress = progress._replace(state=progress.state._replace(metrics=zero))
        pace = DispatchThrottle()
        for done, state in advance(progress.state, step, first + self._phase.steps_per_epoch):
            progress = progress._replace(state=state)
            self._note_start(state)
            pace.push(jnp.copy(state.step))  # the next call overwrites the state's own
            self._between_steps(progress, done)
        return progress

    def _note_start(self, state: TrainState) -> None:
        """What a run waits for before it learns: reading, compiling, features. Once a run."""
        if self._begun is not None:
            state.step.block_until_ready()
            seconds, self._begun = time.monotonic() - self._begun, None
            run_dir.update_summary(self._setup.workdir, timings={"start to first step": seconds})
            self._log.info(f"{self._phase.name}: the first step was done {seconds:,.1f} s after the start")

    def _between_steps(self, progress: PhaseProgress, step: int) -> None:
        """Before global step `step`: keep the progress if it is time to, or if the run was asked to end."""
        asked = self._interruption.requested if processes.process_count() == 1 else processes.should_stop(step)
        if asked or (processes.process_count() == 1 and self._due()):
            self._check_finite(progress)
            self._save(progress)
        if asked:
            self._interruption.stop()

    def _after_epoch(self, progress: PhaseProgress) -> None:
        """As between steps; of many processes, whose clocks differ, this is where they agree on what is due."""
        if processes.any_process(self._due() or (processes.process_count() == 1 and self._interruption.requested)):
            self._save(progress)
        if processes.process_count() == 1 and self._interruption.requested:
            self._interruption.stop()

    def _due(self) -> bool:
        return time.monotonic() - self._saved > float(self._setup.config.checkpoint.every_seconds)

    def _save(self, progress: PhaseProgress) -> None:
        self._checkpoints.save_latest(progress)
        self._saved = time.monotonic()

    def _judge(self, progress: PhaseProgress) -> tuple[PhaseProgress, EpochMetrics]:
        """One fetch of an epoch's totals, then validation. Returns the row for metrics.jsonl."""
        phase, state = self._phase, progress.state
        self._check_finite(progress)
        trained = state.metrics.compute()
        validated = self._validated(progress)
        epoch = progress.early_stopping.epoch + 1
        row = EpochMetrics(
            phase=phase.name,
            epoch=epoch,
            step=self._first_step(progress) + phase.steps_per_epoch,
            train_loss=trained.loss,
            train_accuracy=trained.accuracy,
            validation_loss=validated.loss,
            validation_accuracy=validated.accuracy,
            validation_balanced_accuracy=validated.balanced_accuracy,
            lrs=phase.lrs(epoch * phase.steps_per_epoch, float(state.lr_scale)),
            seconds=0.0,  # the caller measures it
        )
        value = float(getattr(row, phase.monitor))
        if phase.is_improvement(value, progress.early_stopping.best_value):
            # A copy: the next step is given the state's own buffers and overwrites them.
            return PhaseProgress(
                state, jax.tree.map(jnp.copy, state.eval_params), EarlyStopping(epoch, value, epoch)
            ), row
        memory = progress.early_stopping._replace(epoch=epoch)
        return PhaseProgress(self._lowered(state, memory), progress.best_params, memory), row

    def _lowered(self, state: TrainState, memory: EarlyStopping) -> TrainState:
        """With lower rates, if the schedule is `plateau` and the metric has been there for long enough."""
        phase = self._phase
        if not phase.plateau_reached(memory.epoch - memory.best_epoch):
            return state
        scale = float(state.lr_scale) * phase.plateau_factor
        self._log.info(
            f"{phase.name}: {phase.monitor} has not got better since epoch {memory.best_epoch}; "
            f"after epoch {memory.epoch} the rates are {scale:.3g} of what they were at first"
        )
        return state._replace(lr_scale=devices.replicate(jnp.float32(scale), self._setup.mesh))

    def _validated(self, progress: PhaseProgress) -> Metrics:
        leg, state = self._leg, progress.state

        def pause() -> None:
            if processes.process_count() == 1 and self._interruption.requested:  # many processes end between steps
                self._save(progress)
                self._interruption.stop()

        found = evaluate_metrics(
            leg.eval_step, leg.way.frozen | state.eval_params, leg.validation, self._setup.config.batch_size, pause
        )
        if not math.isfinite(found.loss):
            raise UserError(
                f"the validation loss became {found.loss} in phase {self._phase.name}, epoch "
                f"{progress.early_stopping.epoch + 1} (step {int(state.step) - 1}); {self._cure()}"
            )
        return found

    def _check_finite(self, progress: PhaseProgress) -> None:
        """Raise UserError, keeping the last good state, if a step's loss or gradient was not finite."""
        failed = int(progress.state.nonfinite_step)
        if failed == NO_STEP:
            return
        self._save(progress)
        train = self._setup.manifest.of_split("train")
        paths = [train[index].path for index in self._setup.sampler().batch(failed).indices]
        where: dict[str, Any] = {"phase": self._phase.name, "epoch": progress.early_stopping.epoch + 1, "step": failed}
        run_dir.update_summary(self._setup.workdir, nonfinite_step=NonfiniteStep(**where, images=paths))
        raise UserError(
            f"the loss or a gradient is no finite number in phase {where['phase']}, epoch {where['epoch']}, step "
            f"{failed}, on the images {', '.join(paths)}; the state before that step is in "
            f"{self._setup.workdir / 'checkpoints' / 'latest'}; {self._cure()}"
        )

    def _cure(self) -> str:
        rates = self._phase.param_groups.lrs.items()
        given = ", ".join(f"{self._phase.name}.lr.{group}={rate:g}" for group, rate in rates if rate)
        return f"start again in another --workdir with a lower learning rate ({given})"
