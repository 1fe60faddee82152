"""One phase: a new optimizer and a new compiled step over the parameters that the phase before left."""

import math
import time
from collections.abc import Iterable, Mapping
from contextlib import closing
from itertools import islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flaxtl.data.augment import Augmentation
from flaxtl.errors import UserError
from flaxtl.train import mesh as meshes
from flaxtl.train import rundir, steps
from flaxtl.train.checkpoint import Checkpoints, Memory, Progress
from flaxtl.train.evaluate import measure
from flaxtl.train.features import Inputs, digest
from flaxtl.train.feeds import Examples, Feed
from flaxtl.train.groups import Flat
from flaxtl.train.log import Log
from flaxtl.train.metrics import Measures, Totals, divide
from flaxtl.train.optim import optimizer
from flaxtl.train.phases import Phase
from flaxtl.train.setup import Setup
from flaxtl.train.steps import EvalStep, State, TrainStep


class Run(NamedTuple):
    """What every phase works with."""

    setup: Setup
    inputs: Mapping[str, Inputs]
    checkpoints: Checkpoints
    log: Log


class Leg(NamedTuple):
    """What stays the same through one phase: its frozen parameters, its data and its two compiled steps."""

    phase: Phase
    frozen: Flat
    data: Feed
    validation: Feed
    augmentation: Augmentation | None
    train_step: TrainStep
    eval_step: EvalStep


def run_phase(run: Run, phase: Phase, parameters: Flat) -> Flat:
    """Train one phase, prove its freeze, keep the result. Returns the parameters after it."""
    started = time.monotonic()
    learning, statistics, frozen = phase.split.part(parameters)
    before = digest(frozen)
    transformation = optimizer(run.setup.config.optimizer, phase.split, phase.schedule, phase.steps, phase.warmup_steps)
    leg = _leg(run, phase, parameters, frozen, transformation)
    featured = time.monotonic()

    totals = Totals.zero(len(run.setup.manifest.classes))
    state = State(jnp.int32(phase.first_step), learning, statistics, transformation.init(learning), totals)
    mesh = run.setup.mesh
    fresh = Progress(meshes.place(state, mesh), meshes.place(learning | statistics, mesh), Memory(0, None, 0))
    progress = run.checkpoints.restore_latest(phase.first_step, phase.last_step, fresh) or fresh
    earlier = sum(row["seconds"] for row in run.log.rows_of(phase.name)[: progress.memory.epoch])
    progress = _epochs(run, leg, progress)

    ended = frozen | (progress.best if phase.patience else progress.state.moved)
    unchanged = _prove_freeze(phase, before, frozen, ended)
    wall = earlier + time.monotonic() - started
    _note(run, leg, ended, progress.memory, frozen_leaves_unchanged=unchanged, wall_seconds=wall)
    rundir.note(run.setup.workdir, timings={f"{phase.name}: features": featured - started})
    run.checkpoints.save_phase(run.setup.phases.index(phase) + 1, ended)
    return ended


def _leg(run: Run, phase: Phase, parameters: Flat, frozen: Flat, transformation: Any) -> Leg:
    setup = run.setup
    start = None if phase.augment else phase.cut
    data, validation = _data(run, "train", start, parameters), _data(run, "validation", phase.cut, parameters)
    augmentation = setup.augmentation if phase.augment else None
    train_step = steps.train_step(
        setup.network.model,
        transformation,
        setup.mesh,
        setup.config.seed,
        data.sharding(setup.mesh),
        start=start,
        augmentation=augmentation,
        class_weights=setup.class_weights,
    )
    eval_step = steps.eval_step(setup.network.model, setup.mesh, phase.cut, validation.sharding(setup.mesh))
    return Leg(phase, frozen, data, validation, augmentation, train_step, eval_step)


def _data(run: Run, split: str, cut: str | None, parameters: Flat) -> Feed:
    """The split's pictures, or with a cut what the frozen prefix makes of them."""
    inputs = run.inputs[split]
    if cut is None:
        return inputs.pictures()
    return inputs.features(cut, parameters, lambda title, n: run.log.advancing(f"{split} pictures {title}", n))


def _epochs(run: Run, leg: Leg, progress: Progress) -> Progress:
    """All epochs that are left. A checkpoint is due by the clock; when it is written does not change the result."""
    phase = leg.phase
    _continue_log(run, phase, progress)
    saved = time.monotonic()
    first = phase.first_step + progress.memory.epoch * phase.steps_per_epoch
    order = run.setup.order()
    with (
        run.log.phase(phase.name, phase.epochs, progress.memory.epoch) as report,
        closing(leg.data.training(order, first, phase.last_step, leg.augmentation)) as examples,
    ):
        while progress.memory.epoch < phase.epochs and not _exhausted(phase, progress.memory):
            progress, row = _epoch(run, leg, progress, islice(examples, phase.steps_per_epoch))
            report(row)
            if time.monotonic() - saved > run.setup.config.checkpoint.every_seconds:
                run.checkpoints.save_latest(int(progress.state.step), progress)
                saved = time.monotonic()
    if progress.memory.epoch < phase.epochs:
        best = progress.memory.best_epoch
        run.log.say(f"{phase.name}: stopped after epoch {progress.memory.epoch}; epoch {best} was best and is kept")
    return progress


def _continue_log(run: Run, phase: Phase, progress: Progress) -> None:
    run.log.continue_after(int(progress.state.step))
    if len(run.log.rows_of(phase.name)) != progress.memory.epoch:
        raise UserError(
            f"{run.setup.workdir / 'metrics.jsonl'} has lost epochs of phase {phase.name}; bring it back, "
            f"or delete {run.setup.workdir / 'checkpoints' / 'latest'} to repeat the phase"
        )


def _exhausted(phase: Phase, memory: Memory) -> bool:
    return bool(phase.patience) and memory.epoch - memory.best_epoch >= phase.patience


def _epoch(run: Run, leg: Leg, progress: Progress, examples: Iterable[Examples]) -> tuple[Progress, dict[str, Any]]:
    """Steps, then one fetch of their totals, then validation. Returns the row for metrics.jsonl."""
    started = time.monotonic()
    phase, config = leg.phase, run.setup.config
    epoch = progress.memory.epoch + 1
    first = phase.first_step + progress.memory.epoch * phase.steps_per_epoch
    zero = Totals.zero(len(run.setup.manifest.classes))
    state = progress.state._replace(totals=meshes.place(zero, run.setup.mesh))
    for given in examples:
        state = leg.train_step(state, leg.frozen, given)
    trained = divide(state.totals)
    validated = measure(leg.eval_step, leg.frozen | state.moved, leg.validation, config.batch)
    for measures in (trained, validated):
        _check_finite(phase, epoch, first, measures)
    row: dict[str, Any] = {
        "phase": phase.name,
        "epoch": epoch,
        "step": first + phase.steps_per_epoch,
        "train_loss": trained.loss,
        "train_accuracy": trained.accuracy,
        "validation_loss": validated.loss,
        "validation_accuracy": validated.accuracy,
        "validation_balanced_accuracy": validated.balanced_accuracy,
        "seconds": time.monotonic() - started,
    }
    value = float(row[phase.metric])
    if phase.better(value, progress.memory.best_value):
        # A copy: the next step is given the state's own buffers and overwrites them.
        return Progress(state, jax.tree.map(jnp.copy, state.moved), Memory(epoch, value, epoch)), row
    return Progress(state, progress.best, progress.memory._replace(epoch=epoch)), row


def _check_finite(phase: Phase, epoch: int, first_step: int, measures: Measures) -> None:
    if not math.isfinite(measures.loss):
        rates = ", ".join(f"{phase.name}.lr.{group}={rate:g}" for group, rate in phase.split.rates.items() if rate)
        raise UserError(
            f"the loss became {measures.loss} in phase {phase.name}, epoch {epoch} (steps {first_step} to "
            f"{first_step + phase.steps_per_epoch - 1}); start again in another --workdir with a lower learning rate "
            f"({rates}); what this one has is kept"
        )


def _prove_freeze(phase: Phase, before: Mapping[str, str], frozen: Flat, ended: Flat) -> int:
    """Compare every frozen parameter, bit for bit, with what it was; returns how many there are."""
    after = digest({path: ended[path] for path in frozen})
    moved = sorted(path for path in before if before[path] != after[path])
    if moved:
        raise RuntimeError(f"frozen parameters changed in phase {phase.name}: {', '.join(moved)}")
    return len(before)


def _note(run: Run, leg: Leg, parameters: Flat, memory: Memory, **facts: Any) -> None:
    """The phase's entry in summary.json; validation is measured on the parameters that the phase hands on."""
    phase = leg.phase
    rows = run.log.rows_of(phase.name)
    kept = rows[(memory.best_epoch if phase.patience else memory.epoch) - 1]
    validated = measure(leg.eval_step, parameters, leg.validation, run.setup.config.batch)
    n = phase.steps_per_epoch * run.setup.config.batch
    rundir.note_phase(
        run.setup.workdir,
        phase.name,
        epochs=memory.epoch,
        steps=memory.epoch * phase.steps_per_epoch,
        best_epoch=memory.best_epoch,
        learning_parameters=sum(value.size for path, value in parameters.items() if phase.split.learns(path)),
        rates=dict(phase.split.rates),
        augment=phase.augment,
        train={"accuracy": kept["train_accuracy"], "loss": kept["train_loss"], "n": n},
        validation=validated._asdict(),
        **facts,
    )
    run.log.say(
        f"{phase.name}: validation accuracy {validated.accuracy:.2%} on {validated.n} pictures; "
        f"{facts['frozen_leaves_unchanged']} frozen arrays are bit for bit what they were"
    )
