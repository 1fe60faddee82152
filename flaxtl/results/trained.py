"""A run that was trained before, opened to be looked at."""

from pathlib import Path
from typing import NamedTuple

from flaxtl.data.manifest import Manifest
from flaxtl.errors import UserError
from flaxtl.results import confidence, run_files
from flaxtl.train import compiled, rundir
from flaxtl.train.checkpoint import Checkpoints
from flaxtl.train.groups import Flat
from flaxtl.train.setup import Setup, prepare


class Trained(NamedTuple):
    """The setup of a run and its parameters after the last phase that ended, and that phase's name."""

    setup: Setup
    parameters: Flat
    phase: str


def setup_of(workdir: Path) -> Setup:
    """The setup of the run in `workdir`, from its own recipe and manifest."""
    return prepare(rundir.config_of(workdir), workdir, Manifest.read(workdir / "manifest.csv"))


def temperature_of(workdir: Path) -> float:
    """The temperature of the finished run in `workdir`; raises UserError, saying why, if it has none."""
    summary = run_files.summary_of(workdir)
    if reason := confidence.reason(summary):
        raise UserError(f"{reason}; leave --calibrated out")
    return float(summary["calibration"]["temperature"])


def open_run(workdir: Path) -> Trained:
    """The run in `workdir`; raises UserError if no phase of it has ended."""
    compiled.keep()
    setup = setup_of(workdir)
    with Checkpoints(workdir) as checkpoints:
        done = checkpoints.phases_done()
        if not done:
            raise UserError(f"no phase of the run in {workdir} has ended yet; start the same flaxtl train again")
        parameters = checkpoints.restore_phase(done, setup.abstract_parameters())
        return Trained(setup, parameters, setup.phases[done - 1].name)
