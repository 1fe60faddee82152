"""A run from start to end: the order of its start-up, then its phases."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console

from flaxtl import recipe
from flaxtl.train import hosts, pretrained, rundir
from flaxtl.train import mesh as meshes
from flaxtl.train.checkpoint import Checkpoints
from flaxtl.train.features import Inputs, digest
from flaxtl.train.groups import Flat
from flaxtl.train.inputs import decode_splits
from flaxtl.train.interruption import Interruption
from flaxtl.train.log import Log
from flaxtl.train.pretrained import Start
from flaxtl.train.run_phase import Run, run_phase
from flaxtl.train.setup import Setup, check_names, kept_manifest, manifest_of, prepare
from flaxtl.train.table import group_table, layer_rows


class Outcome(NamedTuple):
    """A finished run: its setup and its decoded pictures by split; its parameters are in the checkpoints."""

    setup: Setup
    inputs: Mapping[str, Inputs]


def train(
    config: Any, workdir: Path, console: Console, command: str, interruption: Interruption | None = None
) -> Outcome | None:
    """Run the recipe's phases in `workdir`, going on from its last checkpoint if there is one.

    Returns None, having said so, for a run that was trained and judged before. Raises Stopped when `interruption` is
    asked to end it.

    DO NOT change the order: whatever can be wrong with the user's input is found before anything is computed, and
    nothing is written before all of it is right.
    """
    started, say = time.monotonic(), _sayer(console)
    # 1. The run directory: new, or of this same recipe.
    resumes = hosts.any_of(rundir.is_run(workdir))
    if resumes:
        rundir.check_recipe(workdir, recipe.to_json(config))
        if rundir.summary(workdir).get("complete") and (workdir / "predictions.csv").is_file():
            say(f"{workdir} is complete: flaxtl report writes its page again, another --workdir begins anew.")
            return None
    # 2. Which pictures: the manifest is made once and then belongs to the run. They may be many, and take minutes.
    check_names(config)
    manifest = kept_manifest(workdir) if resumes else manifest_of(config, workdir, console)
    # 3. Every setting of the recipe.
    setup = prepare(config, workdir, manifest)
    meshes.check_batch(jax.device_count(), config.batch, config.accumulate)
    with Checkpoints(workdir, say) as checkpoints:
        # 4. Pretrained weights, unless there is a checkpoint.
        last = checkpoints.restore_last_phase(setup.abstract_parameters()) if resumes else None
        start = None if last else pretrained.parameters(config, setup.network, say)
        # 5. Every picture of every split.
        setup, inputs, skipped = decode_splits(setup, manifest.splits, console, may_skip=not resumes)
        _agree(setup, inputs, start)
        # 6. From here on things are written.
        if start is not None:
            last = 0, _begin(setup, start, checkpoints, command, skipped)
        assert last is not None, "either there was a checkpoint or there is one now"
        done, parameters = last
        # 7. What learns, said before it does.
        console.print(group_table(setup.network, setup.phases, rundir.summary(workdir)["weights"]["origin"]))
        # 8. The phases, each from the one before.
        try:
            with Log(workdir, console) as log:
                run = Run(setup, inputs, checkpoints, log, interruption or Interruption(), started)
                for phase in setup.phases[done:]:
                    parameters = run_phase(run, phase, parameters)
                    run = run._replace(begun=None)
        finally:
            spent = rundir.summary(workdir).get("wall_seconds", 0.0)
            rundir.note(workdir, wall_seconds=spent + time.monotonic() - started)
    return Outcome(setup, inputs)


def _agree(setup: Setup, inputs: Mapping[str, Inputs], start: Start | None) -> None:
    """Raise UserError if the processes of a run do not hold the same recipe, pictures and weights."""
    if hosts.count() == 1:
        return
    hosts.same("the recipe", json.dumps(recipe.to_json(setup.config)))
    hosts.same("the list of pictures", repr(setup.manifest.examples))
    hosts.same("what pictures look like", repr([inputs[split].digest for split in inputs]))
    hosts.same("the pretrained weights", repr(start and digest(start.parameters)))


def _sayer(console: Console) -> Callable[[str], None]:
    return lambda text: console.print(text, highlight=False, markup=False)


def _begin(setup: Setup, start: Start, checkpoints: Checkpoints, command: str, skipped: Mapping[str, str]) -> Flat:
    """Write the files that make a directory a run, and its first checkpoint; returns the parameters on the mesh."""
    config, workdir = setup.config, setup.workdir
    rows = layer_rows(setup.network, setup.phases, start.origin)
    rundir.create(workdir, recipe.to_json(config), setup.manifest, rows)
    rundir.note(
        workdir, command=command, weights={"path": config.weights.path, "origin": start.origin}, skipped=dict(skipped)
    )
    parameters = meshes.place(start.parameters, setup.mesh)
    checkpoints.save_phase(0, parameters)
    return parameters
