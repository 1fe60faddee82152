"""Where a phase begins: after its predecessors, as a run left them."""

import re

import jax.numpy as jnp
import pytest
import small

from flaxtl.errors import UserError
from flaxtl.train import loop, pretrained, rundir
from flaxtl.train.features import digest
from flaxtl.train.phase_start import open_phase

pytestmark = pytest.mark.usefixtures("compile_once")


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """A run whose first phase has ended and which knows of no other."""
    settings = small.config(folder, phases=("frozen",))
    return loop.train(settings, tmp_path_factory.mktemp("runs") / "run", small.quiet(), "flaxtl train")


def test_the_first_phase_begins_with_the_pretrained_network(folder, tmp_path):
    config = small.config(folder)
    start = open_phase(config, tmp_path / "new", None, small.quiet())
    expected = pretrained.parameters(config, start.material.setup.network, say=print).parameters
    assert start.phase.name == "frozen"
    assert digest(start.parameters) == digest(expected)
    assert not (tmp_path / "new").exists()


def test_phases_begin_where_a_run_has_come_to(folder, run, monkeypatch):
    monkeypatch.setattr(pretrained, "parameters", None)  # not needed, and may be gone
    config = small.config(folder, finetune={"lr": small.FINETUNE | {"head": jnp.pi}})
    before, after = small.digests(run)
    for phase, expected in (("frozen", before), ("finetune", after)):
        start = open_phase(config, run.setup.workdir, phase, small.quiet())
        assert (start.phase.name, digest(start.parameters)) == (phase, expected)
    assert start.phase.first_step == run.setup.phases[0].last_step
    assert start.material.setup.manifest == run.setup.manifest


def test_a_phase_whose_predecessors_were_not_trained(folder, tmp_path):
    facts = rf"\bfinetune\b.*\bfrozen\b.*{re.escape(str(tmp_path / 'new'))} .*flaxtl train\b"
    with pytest.raises(UserError, match=facts):
        open_phase(small.config(folder), tmp_path / "new", "finetune", small.quiet())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "phase", "told"),
    [
        ({"batch": 2}, "frozen", r"\(batch\w*: 4 -> 2\)"),
        ({"frozen": {"epochs": 3}}, "finetune", r"\(frozen\.epochs: 2 -> 3\)"),
        ({"phases": ("finetune", "frozen")}, "frozen", r"\(phases: \['frozen'\] -> \['finetune'\]\)"),
        ({"frozen": {"epochs": 3}}, "frozen", None),
        ({"frozen": {"epochs": 3}, "features": {"directory": "elsewhere"}}, "frozen", None),
    ],
)
def test_a_run_of_another_recipe(folder, run, changes, phase, told):
    """Of this phase and later ones the settings may differ; that is what a test is for."""
    config, workdir = small.config(folder, **changes), run.setup.workdir
    if told is None:
        assert open_phase(config, workdir, phase, small.quiet()).phase.name == phase
    else:
        with pytest.raises(UserError, match=rf"{re.escape(str(workdir))} .*{told}"):
            open_phase(config, workdir, phase, small.quiet())


def test_a_misspelt_phase(folder, tmp_path):
    with pytest.raises(UserError, match=r"'fintune'.*'finetune'"):
        open_phase(small.config(folder), tmp_path / "new", "fintune", small.quiet())


def test_a_run_that_began_and_came_to_nothing(folder, tmp_path, prepared):
    """It has a recipe and pictures, but no checkpoint yet."""
    from flaxtl import recipe

    config = small.config(folder)
    rundir.create(tmp_path / "run", recipe.to_json(config), prepared.manifest, [])
    start = open_phase(config, tmp_path / "run", "frozen", small.quiet())
    assert digest(start.parameters) == digest(small.parameters(prepared.network, config))
