"""One phase: a new optimizer and a new compiled step over the parameters that the phase before left."""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from flaxtl.train import mesh as meshes
from flaxtl.train import rundir, steps
from flaxtl.train.checkpoint import Checkpoints, Memory, Progress
from flaxtl.train.epochs import Epochs, Leg
from flaxtl.train.features import Inputs, digest
from flaxtl.train.groups import Flat
from flaxtl.train.interruption import Interruption
from flaxtl.train.log import Log
from flaxtl.train.optim import optimizer
from flaxtl.train.phases import Phase
from flaxtl.train.setup import Setup
from flaxtl.train.ways import Material, first_state


class Run(NamedTuple):
    """What every phase works with. `begun` is when the run began, monotonic seconds, until it has made a step."""

    setup: Setup
    inputs: Mapping[str, Inputs]
    checkpoints: Checkpoints
    log: Log
    interruption: Interruption
    begun: float | None


def run_phase(run: Run, phase: Phase, parameters: Flat) -> Flat:
    """Train one phase, prove its freeze, keep the result. Returns the parameters after it."""
    started = time.monotonic()
    frozen = phase.split.part(parameters).frozen
    before = digest(frozen)
    transformation = optimizer(run.setup.config.optimizer, phase.split, phase.schedule, phase.steps, phase.warmup_steps)
    leg = _leg(run, phase, parameters, transformation)
    featured = time.monotonic()

    state = first_state(run.setup, phase, parameters, transformation)
    fresh = Progress(state, meshes.place(state.moved, run.setup.mesh), Memory(0, None, 0))
    told = len(run.log.rows_of(phase.name))
    progress = run.checkpoints.restore_latest(phase.first_step, phase.last_step, told, fresh) or fresh
    earlier = sum(row["seconds"] for row in run.log.rows_of(phase.name)[: progress.memory.epoch])
    progress = Epochs(run.setup, leg, run.checkpoints, run.log, run.interruption, run.begun).run(progress)

    ended = frozen | (progress.best if phase.patience else progress.state.kept)
    unchanged = _prove_freeze(phase, before, frozen, ended)
    wall = earlier + time.monotonic() - started
    _note(run, leg, ended, progress.memory, frozen_leaves_unchanged=unchanged, wall_seconds=wall)
    rundir.note(run.setup.workdir, timings={f"{phase.name}: features": featured - started})
    run.checkpoints.save_phase(run.setup.phases.index(phase) + 1, ended)
    return ended


def _leg(run: Run, phase: Phase, parameters: Flat, transformation: Any) -> Leg:
    setup = run.setup
    material = Material(setup, run.inputs, run.log.advancing, run.log.say)
    validation = material.clean("validation", phase.cut, parameters)
    way = material.way(phase, parameters, transformation)
    eval_step = steps.eval_step(setup.network.model, setup.mesh, phase.cut, validation.sharding(setup.mesh))
    return Leg(phase, way, validation, eval_step)


def _prove_freeze(phase: Phase, before: Mapping[str, str], frozen: Flat, ended: Flat) -> int:
    """Compare every frozen parameter, bit for bit, with what it was; returns how many there are."""
    after = digest({path: ended[path] for path in frozen})
    moved = sorted(path for path in before if before[path] != after[path])
    if moved:
        raise RuntimeError(f"frozen parameters changed in phase {phase.name}: {', '.join(moved)}")
    return len(before)


def _note(run: Run, leg: Leg, parameters: Flat, memory: Memory, **facts: Any) -> None:
    """The phase's entry in summary.json, with the measures of the epoch whose parameters the phase hands on."""
    phase = leg.phase
    kept = run.log.rows_of(phase.name)[(memory.best_epoch if phase.patience else memory.epoch) - 1]
    seen, n = phase.steps_per_epoch * run.setup.config.batch, len(leg.validation)
    rundir.note_phase(
        run.setup.workdir,
        phase.name,
        epochs=memory.epoch,
        steps=memory.epoch * phase.steps_per_epoch,
        best_epoch=memory.best_epoch,
        learning_parameters=sum(value.size for path, value in parameters.items() if phase.split.learns(path)),
        rates=dict(phase.split.rates),
        augment=phase.augment,
        train={"accuracy": kept["train_accuracy"], "loss": kept["train_loss"], "n": seen},
        validation={name: kept[f"validation_{name}"] for name in ("loss", "accuracy", "balanced_accuracy")} | {"n": n},
        **facts,
    )
    run.log.say(
        f"{phase.name}: validation accuracy {kept['validation_accuracy']:.2%} on {n} pictures; "
        f"{facts['frozen_leaves_unchanged']} frozen arrays are bit for bit what they were"
    )
