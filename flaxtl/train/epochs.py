"""The epochs of one phase: steps, then validation, with a checkpoint whenever one is due or the run shall end."""

import math
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flaxtl.errors import UserError
from flaxtl.train import hosts, rundir
from flaxtl.train import mesh as meshes
from flaxtl.train.advance import Advance, Way
from flaxtl.train.checkpoint import Checkpoints, Memory, Progress
from flaxtl.train.evaluate import measure
from flaxtl.train.feeds import Feed
from flaxtl.train.interruption import Interruption
from flaxtl.train.log import Log
from flaxtl.train.metrics import Measures, Totals, divide
from flaxtl.train.pace import Pace
from flaxtl.train.phases import Phase
from flaxtl.train.setup import Setup
from flaxtl.train.steps import NONE_FAILED, EvalStep, State


class Leg(NamedTuple):
    """What stays the same through one phase: how it learns, and how it is judged."""

    phase: Phase
    way: Way
    validation: Feed
    eval_step: EvalStep


class Epochs:
    """Of one phase. It goes on from any progress, also from within an epoch, to the same result bit for bit."""

    def __init__(
        self,
        setup: Setup,
        leg: Leg,
        checkpoints: Checkpoints,
        log: Log,
        interruption: Interruption,
        begun: float | None,
    ) -> None:
        """Rows go to `log`; who wants the run to end says so to `interruption`; `begun` is as in Run."""
        self._setup, self._leg, self._phase, self._begun = setup, leg, leg.phase, begun
        self._checkpoints, self._log, self._interruption = checkpoints, log, interruption
        self._saved = time.monotonic()

    def run(self, progress: Progress) -> Progress:
        """All epochs that are left. When a checkpoint is written does not change the result."""
        phase, leg = self._phase, self._leg
        step = int(progress.state.step)
        self._log.continue_after(self._first_step(progress))
        with (
            self._interruption.patient(),
            self._log.phase(phase.name, phase.epochs, progress.memory.epoch) as report,
            leg.way.advancing(phase, self._setup.order(), step) as advance,
        ):
            while progress.memory.epoch < phase.epochs and not self._exhausted(progress.memory):
                started = time.monotonic()
                progress = self._steps(progress, step, advance)
                progress, row = self._judge(progress)
                report(row | {"seconds": time.monotonic() - started})
                step = self._first_step(progress)
                self._after_epoch(progress)
        ended, _, best = progress.memory
        if phase.patience and best < ended:
            stopped = f"stopped after epoch {ended}; " if ended < phase.epochs else ""
            self._log.say(f"{phase.name}: {stopped}epoch {best} was best and is kept")
        return progress

    def _first_step(self, progress: Progress) -> int:
        """Of the epoch at hand."""
        return self._phase.first_step + progress.memory.epoch * self._phase.steps_per_epoch

    def _exhausted(self, memory: Memory) -> bool:
        return bool(self._phase.patience) and memory.epoch - memory.best_epoch >= self._phase.patience

    def _steps(self, progress: Progress, step: int, advance: Advance) -> Progress:
        """From `step`, which may lie within the epoch, to the epoch's end."""
        first = self._first_step(progress)
        if step == first:
            zero = meshes.place(Totals.zero(len(self._setup.manifest.classes)), self._setup.mesh)
            progress = progress._replace(state=progress.state._replace(totals=zero))
        pace = Pace()
        for done, state in advance(progress.state, step, first + self._phase.steps_per_epoch):
            progress = progress._replace(state=state)
            self._note_start(state)
            pace.wait(jnp.copy(state.step))  # the next call overwrites the state's own
            self._between_steps(progress, done)
        return progress

    def _note_start(self, state: State) -> None:
        """What a run waits for before it learns: reading, compiling, features. Once a run."""
        if self._begun is not None:
            state.step.block_until_ready()
            seconds, self._begun = time.monotonic() - self._begun, None
            rundir.note(self._setup.workdir, timings={"start to first step": seconds})
            self._log.say(f"{self._phase.name}: the first step was done {seconds:,.1f} s after the start")

    def _between_steps(self, progress: Progress, step: int) -> None:
        """Before global step `step`: keep the progress if it is time to, or if the run was asked to end."""
        asked = self._interruption.asked if hosts.count() == 1 else hosts.agreed_to_stop(step)
        if asked or (hosts.count() == 1 and self._due()):
            self._check_finite(progress)
            self._save(progress)
        if asked:
            self._interruption.stop()

    def _after_epoch(self, progress: Progress) -> None:
        """As between steps; of many processes, whose clocks differ, this is where they agree on what is due."""
        if hosts.any_of(self._due() or (hosts.count() == 1 and self._interruption.asked)):
            self._save(progress)
        if hosts.count() == 1 and self._interruption.asked:
            self._interruption.stop()

    def _due(self) -> bool:
        return time.monotonic() - self._saved > float(self._setup.config.checkpoint.every_seconds)

    def _save(self, progress: Progress) -> None:
        self._checkpoints.save_latest(progress)
        self._saved = time.monotonic()

    def _judge(self, progress: Progress) -> tuple[Progress, dict[str, Any]]:
        """One fetch of an epoch's totals, then validation. Returns the row for metrics.jsonl."""
        phase, state = self._phase, progress.state
        self._check_finite(progress)
        trained = divide(state.totals)
        validated = self._validated(progress)
        epoch = progress.memory.epoch + 1
        row: dict[str, Any] = {
            "phase": phase.name,
            "epoch": epoch,
            "step": self._first_step(progress) + phase.steps_per_epoch,
            "train_loss": trained.loss,
            "train_accuracy": trained.accuracy,
            "validation_loss": validated.loss,
            "validation_accuracy": validated.accuracy,
            "validation_balanced_accuracy": validated.balanced_accuracy,
            "rates": phase.rates(epoch * phase.steps_per_epoch, float(state.scale)),
        }
        value = float(row[phase.metric])
        if phase.better(value, progress.memory.best_value):
            # A copy: the next step is given the state's own buffers and overwrites them.
            return Progress(state, jax.tree.map(jnp.copy, state.kept), Memory(epoch, value, epoch)), row
        memory = progress.memory._replace(epoch=epoch)
        return Progress(self._lowered(state, memory), progress.best, memory), row

    def _lowered(self, state: State, memory: Memory) -> State:
        """With lower rates, if the schedule is `plateau` and the metric has been there for long enough."""
        phase = self._phase
        if not phase.lowers(memory.epoch - memory.best_epoch):
            return state
        scale = float(state.scale) * phase.plateau_factor
        self._log.say(
            f"{phase.name}: {phase.metric} has not got better since epoch {memory.best_epoch}; "
            f"after epoch {memory.epoch} the rates are {scale:.3g} of what they were at first"
        )
        return state._replace(scale=meshes.place(jnp.float32(scale), self._setup.mesh))

    def _validated(self, progress: Progress) -> Measures:
        leg, state = self._leg, progress.state

        def pause() -> None:
            if hosts.count() == 1 and self._interruption.asked:  # many processes end between steps
                self._save(progress)
                self._interruption.stop()

        found = measure(leg.eval_step, leg.way.frozen | state.kept, leg.validation, self._setup.config.batch, pause)
        if not math.isfinite(found.loss):
            raise UserError(
                f"the validation loss became {found.loss} in phase {self._phase.name}, epoch "
                f"{progress.memory.epoch + 1} (step {int(state.step) - 1}); {self._cure()}"
            )
        return found

    def _check_finite(self, progress: Progress) -> None:
        """Raise UserError, keeping the last good state, if a step's loss or gradient was not finite."""
        failed = int(progress.state.failed)
        if failed == NONE_FAILED:
            return
        self._save(progress)
        train = self._setup.manifest.of_split("train")
        paths = [train[index].path for index in self._setup.order().batch(failed).indices]
        where = {"phase": self._phase.name, "epoch": progress.memory.epoch + 1, "step": failed}
        rundir.note(self._setup.workdir, not_finite={**where, "pictures": paths})
        raise UserError(
            f"the loss or a gradient is no finite number in phase {where['phase']}, epoch {where['epoch']}, step "
            f"{failed}, on the pictures {', '.join(paths)}; the state before that step is in "
            f"{self._setup.workdir / 'checkpoints' / 'latest'}; {self._cure()}"
        )

    def _cure(self) -> str:
        rates = self._phase.split.rates.items()
        given = ", ".join(f"{self._phase.name}.lr.{group}={rate:g}" for group, rate in rates if rate)
        return f"start again in another --workdir with a lower learning rate ({given})"
