"""A run from start to end: the order of its start-up, then its phases."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from flaxtl import recipe
from flaxtl.data.manifest import Manifest
from flaxtl.train import mesh as meshes
from flaxtl.train import pretrained, rundir
from flaxtl.train.checkpoint import Checkpoints
from flaxtl.train.features import Inputs
from flaxtl.train.groups import Flat
from flaxtl.train.inputs import decode_splits
from flaxtl.train.log import Log
from flaxtl.train.run_phase import Run, run_phase
from flaxtl.train.setup import Setup, manifest_of, prepare
from flaxtl.train.table import group_table, layer_rows


class Outcome(NamedTuple):
    """A finished run: its setup, its decoded pictures by split, and its parameters after each phase."""

    setup: Setup
    inputs: Mapping[str, Inputs]


def train(config: Any, workdir: Path, console: Console, command: str) -> Outcome | None:
    """Run the recipe's phases in `workdir`, going on from its last checkpoint if there is one.

    Returns None, having said so, for a run that was trained and judged before.

    DO NOT change the order: whatever can be wrong with the user's input is found before anything is computed, and
    nothing is written before all of it is right.
    """
    started = time.monotonic()
    # 1. The run directory: new, or of this same recipe.
    resumes = rundir.is_run(workdir)
    if resumes:
        rundir.check_recipe(workdir, recipe.to_json(config))
        if rundir.summary(workdir).get("complete"):
            console.print(f"{workdir} is complete; for another run choose another --workdir.", highlight=False)
            return None
    # 2. Which pictures: the manifest is made once and then belongs to the run.
    manifest = Manifest.read(workdir / "manifest.csv") if resumes else manifest_of(config)
    # 3. Every setting of the recipe.
    setup = prepare(config, workdir, manifest)
    # 4. Every picture of every split.
    inputs = decode_splits(setup, manifest.splits, console)
    decoded = time.monotonic()
    with Checkpoints(workdir) as checkpoints:
        # 5. Parameters: a checkpoint before pretrained weights.
        done = checkpoints.phases_done() if resumes else None
        if done is None:
            parameters = _begin(setup, checkpoints, console, command)
            done = 0
            rundir.note(workdir, timings={"decode": decoded - started, "weights": time.monotonic() - decoded})
        else:
            parameters = checkpoints.restore_phase(done, setup.abstract_parameters())
        # 6. What learns, said before it does.
        console.print(group_table(setup.network, setup.phases, rundir.summary(workdir)["weights"]["origin"]))
        # 7. The phases, each from the one before.
        with Log(workdir, console) as log:
            for phase in setup.phases[done:]:
                parameters = run_phase(Run(setup, inputs, checkpoints, log), phase, parameters)
    if done < len(setup.phases):
        spent = rundir.summary(workdir).get("wall_seconds", 0.0)
        rundir.note(workdir, wall_seconds=spent + time.monotonic() - started)
    return Outcome(setup, inputs)


def _begin(setup: Setup, checkpoints: Checkpoints, console: Console, command: str) -> Flat:
    """A new run's first parameters, and the files that make its directory a run."""
    config, workdir = setup.config, setup.workdir
    start = pretrained.parameters(config, setup.network, lambda text: console.print(text, highlight=False))
    rows = layer_rows(setup.network, setup.phases, start.origin)
    rundir.create(workdir, recipe.to_json(config), setup.manifest, rows)
    rundir.note(workdir, command=command, weights={"path": config.weights.path, "origin": start.origin})
    parameters = meshes.place(start.parameters, setup.mesh)
    checkpoints.save_phase(0, parameters)
    return parameters
