"""Where a phase begins: its pictures, and the network that the phases before it have left, or the pretrained one."""

from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from flaxtl import recipe
from flaxtl.errors import UserError, listed, unknown
from flaxtl.terminal import advancing
from flaxtl.train import mesh as meshes
from flaxtl.train import pretrained, rundir
from flaxtl.train.checkpoint import Checkpoints
from flaxtl.train.groups import Flat
from flaxtl.train.inputs import decode_splits
from flaxtl.train.phases import Phase
from flaxtl.train.setup import Setup, kept_manifest, manifest_of, prepare
from flaxtl.train.ways import Material


class PhaseStart(NamedTuple):
    """What the steps of a phase are made from."""

    material: Material
    phase: Phase
    parameters: Flat


def open_phase(config: Any, workdir: Path, name: str | None, console: Console) -> PhaseStart:
    """The recipe's phase of that name, its first one without, as it would begin in `workdir`; nothing is written there.

    Pictures, as in a run, and features aside. Raises UserError for a phase whose predecessors were not trained in
    `workdir`, and where these, or what all phases share, have other settings there.
    """
    number = _number(config, name)
    is_run = rundir.is_run(workdir)
    if is_run:
        rundir.check_recipe(workdir, recipe.to_json(config), phases=number)
    manifest = kept_manifest(workdir) if is_run else manifest_of(config, workdir, console)
    setup = prepare(config, workdir, manifest)

    def say(sentence: str) -> None:
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)

    parameters = _left_by(setup, number) if is_run else None
    if parameters is None and number:
        before, phase = listed(config.phases[:number]), config.phases[number]
        raise UserError(
            f"{phase} begins with the network that {before} leave{'s' if number == 1 else ''}, and {workdir} holds "
            "none; let flaxtl train come so far there, or give the --workdir of a run that did"
        )
    if parameters is None:
        parameters = meshes.place(pretrained.parameters(config, setup.network, say).parameters, setup.mesh)
    setup, inputs, _ = decode_splits(setup, manifest.splits, console, may_skip=not is_run)
    material = Material(setup, inputs, lambda title, n: advancing(console, title, n), say)
    return PhaseStart(material, setup.phases[number], parameters)


def _number(config: Any, name: str | None) -> int:
    names = list(config.phases)
    if name is not None and name not in names:
        raise unknown("phase", name, names)
    return names.index(name) if name is not None else 0


def _left_by(setup: Setup, phases: int) -> Flat | None:
    """The parameters after so many phases of the run, if it came so far."""
    with Checkpoints(setup.workdir) as checkpoints:
        done = checkpoints.phases_done()
        if done is None or done < phases:
            return None
        return checkpoints.restore_phase(phases, setup.abstract_parameters())
