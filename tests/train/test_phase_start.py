"""Where a phase begins: after its predecessors, as a run left them."""

import re

import jax.numpy as jnp
import pytest
from helpers import tiny_run

from flaxtl.errors import UserError
from flaxtl.pretrained import backbone
from flaxtl.train import run_dir, trainer
from flaxtl.train.feature_cache import param_digests
from flaxtl.train.lr_range_test import load_phase_start

pytestmark = pytest.mark.usefixtures("compile_once")


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """A run whose first phase has ended and which knows of no other."""
    settings = tiny_run.config(folder, phases=("frozen",))
    return trainer.train(settings, tmp_path_factory.mktemp("runs") / "run", tiny_run.quiet(), "flaxtl train")


def test_the_first_phase_begins_with_the_pretrained_network(folder, tmp_path):
    config = tiny_run.config(folder)
    start = load_phase_start(config, tmp_path / "new", None, tiny_run.quiet())
    expected = backbone.initial_params(config, start.material.setup.model_info.model, notify=print).params
    assert start.phase.name == "frozen"
    assert param_digests(start.parameters) == param_digests(expected)
    assert not (tmp_path / "new").exists()


def test_phases_begin_where_a_run_has_come_to(folder, run, monkeypatch):
    monkeypatch.setattr(backbone, "initial_params", None)  # not needed, and may be gone
    config = tiny_run.config(folder, finetune={"lr": tiny_run.FINETUNE | {"head": jnp.pi}})
    before, after = tiny_run.digests(run)
    for phase, expected in (("frozen", before), ("finetune", after)):
        start = load_phase_start(config, run.setup.workdir, phase, tiny_run.quiet())
        assert (start.phase.name, param_digests(start.parameters)) == (phase, expected)
    assert start.phase.first_step == run.setup.phases[0].last_step
    assert start.material.setup.manifest == run.setup.manifest


def test_a_phase_whose_predecessors_were_not_trained(folder, tmp_path):
    facts = rf"\bfinetune\b.*\bfrozen\b.*{re.escape(str(tmp_path / 'new'))} .*flaxtl train\b"
    with pytest.raises(UserError, match=facts):
        load_phase_start(tiny_run.config(folder), tmp_path / "new", "finetune", tiny_run.quiet())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "phase", "told"),
    [
        ({"batch_size": 2}, "frozen", r"\(batch\w*: 4 -> 2\)"),
        ({"frozen": {"epochs": 3}}, "finetune", r"\(frozen\.epochs: 2 -> 3\)"),
        ({"phases": ("finetune", "frozen")}, "frozen", r"\(phases: \['frozen'\] -> \['finetune'\]\)"),
        ({"frozen": {"epochs": 3}}, "frozen", None),
        ({"frozen": {"epochs": 3}, "feature_cache": {"dir": "elsewhere"}}, "frozen", None),
    ],
)
def test_a_run_of_another_config(folder, run, changes, phase, told):
    """Of this phase and later ones the settings may differ; that is what a test is for."""
    config, workdir = tiny_run.config(folder, **changes), run.setup.workdir
    if told is None:
        assert load_phase_start(config, workdir, phase, tiny_run.quiet()).phase.name == phase
    else:
        with pytest.raises(UserError, match=rf"{re.escape(str(workdir))} .*{told}"):
            load_phase_start(config, workdir, phase, tiny_run.quiet())


def test_a_misspelt_phase(folder, tmp_path):
    with pytest.raises(UserError, match=r"'fintune'.*'finetune'"):
        load_phase_start(tiny_run.config(folder), tmp_path / "new", "fintune", tiny_run.quiet())


def test_a_run_that_began_and_came_to_nothing(folder, tmp_path, prepared):
    """It has a config and images, but no checkpoint yet."""
    from flaxtl.config import config_to_json

    config = tiny_run.config(folder)
    run_dir.create_run_dir(tmp_path / "run", config_to_json(config), prepared.manifest, [])
    start = load_phase_start(config, tmp_path / "run", "frozen", tiny_run.quiet())
    assert param_digests(start.parameters) == param_digests(tiny_run.parameters(prepared.model_info, config))
