import json
import re
import shutil
from functools import partial

import pytest
import small

from flaxtl.errors import UserError
from flaxtl.train import loop, run_phase, rundir, steps
from flaxtl.train.checkpoint import Checkpoints
from flaxtl.train.features import digest
from flaxtl.train.log import rows
from flaxtl.train.setup import prepare

# The best weights are handed on from `frozen`, the last ones from `finetune`.
PHASES = {"frozen": {"epochs": 3, "patience": 9}, "finetune": {"epochs": 2, "schedule": "cosine", "warmup_steps": 2}}


@pytest.fixture(scope="module", autouse=True)
def compile_once(tmp_path_factory):
    with small.compiled_once(tmp_path_factory.mktemp("compiled")):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small.pictures(tmp_path_factory.mktemp("pictures"))


def train(config, workdir):
    return loop.train(config, workdir, small.quiet(), "flaxtl train")


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """A run that nothing disturbed."""
    return train(small.config(folder, **PHASES), tmp_path_factory.mktemp("runs") / "whole")


def interrupt(monkeypatch, folder, workdir, owner, name, call, after=False):
    with monkeypatch.context() as patch:
        small.stop_at(patch, owner, name, call, after=after)
        with pytest.raises(KeyboardInterrupt):
            train(small.config(folder, **PHASES), workdir)


def test_a_run_tells_what_it_did(whole):
    workdir = whole.setup.workdir
    epochs, phases = small.told(workdir)
    expected = [("frozen", 1, 3), ("frozen", 2, 6), ("frozen", 3, 9), ("finetune", 1, 12), ("finetune", 2, 15)]
    assert [(row["phase"], row["epoch"], row["step"]) for row in epochs] == expected
    losses = [row["validation_loss"] for row in epochs[:3]]
    best = losses.index(min(losses))
    assert phases["frozen"] == {
        "epochs": 3,
        "steps": 9,
        "best_epoch": best + 1,
        "learning_parameters": 128 * 8 + 8 + 8 * 3 + 3,
        "frozen_leaves_unchanged": 8,
        "rates": small.FROZEN,
        "augment": False,
        "train": {"accuracy": epochs[best]["train_accuracy"], "loss": epochs[best]["train_loss"], "n": 12},
        "validation": {
            "loss": losses[best],
            "accuracy": epochs[best]["validation_accuracy"],
            "balanced_accuracy": epochs[best]["validation_balanced_accuracy"],
            "n": 6,
        },
    }
    assert phases["finetune"]["frozen_leaves_unchanged"] == 4
    assert phases["finetune"]["validation"]["loss"] == epochs[4]["validation_loss"]
    assert json.loads((workdir / "config.json").read_text())["frozen"]["patience"] == 9
    assert rundir.summary(workdir)["command"] == "flaxtl train"


def test_phases_change_what_they_say_they_change(whole):
    start, frozen, finetuned = small.digests(whole)
    assert {path.split("/")[0] for path in start if start[path] != frozen[path]} == {"head"}
    changed = {path.split("/")[1] for path in start if frozen[path] != finetuned[path]}
    assert changed == {"block2_conv1", "block2_conv2", "dense_1", "predictions"}


@pytest.mark.parametrize(
    ("owner", "name", "call", "after"),
    [
        pytest.param(run_phase, "_epoch", 2, False, id="within a phase"),
        pytest.param(run_phase, "_epoch", 5, False, id="within the last phase"),
        pytest.param(Checkpoints, "save_latest", 2, False, id="between a row and its checkpoint"),
        pytest.param(loop, "_begin", 1, True, id="after the start"),
        pytest.param(rundir, "create", 1, True, id="before the first checkpoint"),
        pytest.param(Checkpoints, "save_phase", 2, False, id="before the end of a phase is kept"),
        pytest.param(Checkpoints, "save_phase", 2, True, id="after the end of a phase is kept"),
        pytest.param(Checkpoints, "save_phase", 3, False, id="before the end of the run is kept"),
    ],
)
def test_an_interrupted_run_ends_as_if_nothing_had_been(monkeypatch, whole, folder, tmp_path, owner, name, call, after):
    interrupt(monkeypatch, folder, tmp_path / "run", owner, name, call, after)
    made = []

    def kept(maker, *given, **named):
        made.append(maker(*given, **named))
        return made[-1]

    for maker in (steps.train_step, steps.eval_step):
        monkeypatch.setattr(steps, maker.__name__, partial(kept, maker))
    resumed = train(small.config(folder, **PHASES), tmp_path / "run")
    # A phase that had ended before needs no training step; no step is ever compiled twice.
    assert {step._cache_size() for step in made} <= {0, 1}
    assert small.told(tmp_path / "run") == small.told(whole.setup.workdir)
    assert small.digests(resumed) == small.digests(whole)


def test_a_run_without_checkpoints_between_goes_back_to_the_start_of_its_phase(monkeypatch, whole, folder, tmp_path):
    rarely = small.config(folder, **PHASES, checkpoint={"every_seconds": 3600.0})
    with monkeypatch.context() as patch:
        small.stop_at(patch, run_phase, "_epoch", 3)
        with pytest.raises(KeyboardInterrupt):
            train(rarely, tmp_path / "run")
    assert len(rows(tmp_path / "run")) == 2
    resumed = train(rarely, tmp_path / "run")
    assert small.told(tmp_path / "run") == small.told(whole.setup.workdir)
    assert small.digests(resumed) == small.digests(whole)


def test_a_half_written_row_and_a_lost_phase_do_not_matter(monkeypatch, whole, folder, tmp_path):
    interrupt(monkeypatch, folder, tmp_path / "run", run_phase, "_epoch", 5)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "finet')
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "phases" / "1")
    resumed = train(small.config(folder, **PHASES), tmp_path / "run")
    assert small.told(tmp_path / "run") == small.told(whole.setup.workdir)
    assert small.digests(resumed) == small.digests(whole)


def test_lost_rows_are_told_before_training_goes_on(monkeypatch, whole, folder, tmp_path):
    workdir = tmp_path / "run"
    interrupt(monkeypatch, folder, workdir, run_phase, "_epoch", 3)
    (workdir / "metrics.jsonl").unlink()
    latest = workdir / "checkpoints" / "latest"
    with pytest.raises(
        UserError, match=re.escape(f"has lost epochs of phase frozen; bring it back, or delete {latest}")
    ):
        train(small.config(folder, **PHASES), workdir)
    shutil.rmtree(latest)
    resumed = train(small.config(folder, **PHASES), workdir)
    assert small.told(workdir) == small.told(whole.setup.workdir)
    assert small.digests(resumed) == small.digests(whole)


def test_a_complete_run_is_left_alone(whole, folder, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole.setup.workdir, workdir)
    rundir.note(workdir, complete=True)
    (workdir / "predictions.csv").touch()

    def contents():
        return {file: file.read_bytes() for file in workdir.rglob("*") if file.is_file()}

    before, console = contents(), small.quiet()
    assert loop.train(small.config(folder, **PHASES), workdir, console, "flaxtl train") is None
    assert "is complete" in small.texts(console)
    assert contents() == before


def test_a_trained_run_is_not_trained_again(monkeypatch, whole, folder):
    monkeypatch.setattr(run_phase, "_epoch", None)
    before = small.told(whole.setup.workdir)
    assert train(small.config(folder, **PHASES), whole.setup.workdir) is not None
    assert small.told(whole.setup.workdir) == before


def test_another_recipe_needs_another_workdir(whole, folder):
    other = small.config(folder, **PHASES, batch=2, seed=4)
    with pytest.raises(UserError, match=r"another recipe \(seed: 3 -> 4; batch: 4 -> 2\); choose another --workdir"):
        train(other, whole.setup.workdir)


def test_early_stopping_hands_on_the_best_and_keeps_the_numbers_of_steps(folder, tmp_path):
    # Too slow to change an answer: the first epoch stays the best. On a CPU, buffers that a checkpoint has seen are
    # not donated; without checkpoints a best that shared the state's buffers would be lost.
    frozen = {"lr": small.FROZEN | {"head": 1e-9}, "metric": "validation_accuracy", "epochs": 5, "patience": 2}
    settings = {"frozen": frozen, "finetune": {"epochs": 1}, "checkpoint": {"every_seconds": 3600.0}}
    stopped = train(small.config(folder, **settings), tmp_path / "stopped")
    one_epoch = train(small.config(folder, frozen=frozen | {"epochs": 1}, phases=("frozen",)), tmp_path / "one")
    epochs, phases = small.told(tmp_path / "stopped")
    assert [(row["phase"], row["epoch"], row["step"]) for row in epochs] == [
        ("frozen", 1, 3),
        ("frozen", 2, 6),
        ("frozen", 3, 9),
        ("finetune", 1, 18),
    ]
    assert (phases["frozen"]["epochs"], phases["frozen"]["best_epoch"]) == (3, 1)
    assert phases["frozen"]["validation"]["loss"] == epochs[0]["validation_loss"]
    assert phases["frozen"]["train"]["loss"] == epochs[0]["train_loss"] != epochs[2]["train_loss"]
    assert small.digests(stopped)[:2] == small.digests(one_epoch)


@pytest.mark.parametrize(
    ("length", "sentence"),
    [(3, "phase frozen, epoch 1 (steps 0 to 2)"), (1, "phase frozen, epoch 1 (steps 0 to 0)")],
    ids=["in training", "by the very last step"],
)
def test_a_loss_that_is_no_number(folder, tmp_path, length, sentence):
    fast = {"epochs": 1, "steps_per_epoch": length, "lr": small.FROZEN | {"head": 1e38}}
    with pytest.raises(UserError, match=re.escape(sentence) + r".*frozen\.lr\.head=1e\+38"):
        train(small.config(folder, frozen=fast, phases=("frozen",)), tmp_path / "run")
    assert rows(tmp_path / "run") == []


def test_a_misspelt_optimizer_begins_no_run(folder, tmp_path):
    with pytest.raises(UserError, match="did you mean 'nadam'"):
        train(small.config(folder, optimizer={"name": "nadm"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_cannot_be_written_to(folder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=re.escape(f"cannot write to {tmp_path / 'file'}")):
        train(small.config(folder), tmp_path / "file")


def test_a_frozen_parameter_that_moved_is_found(whole):
    phase = whole.setup.phases[0]
    parameters = small.parameters(whole.setup.network, whole.setup.config)
    *_, frozen = phase.split.part(parameters)
    path = "backbone/block1_conv1/bias"
    assert run_phase._prove_freeze(phase, digest(frozen), frozen, parameters) == 8
    with pytest.raises(RuntimeError, match=f"phase frozen: {path}"):
        run_phase._prove_freeze(phase, digest(frozen), frozen, {**parameters, path: parameters[path] + 1})


def test_a_run_is_opened_as_it_ended(whole):
    again = prepare(rundir.config_of(whole.setup.workdir), whole.setup.workdir, whole.setup.manifest)
    assert again.phases == whole.setup.phases
    assert again.network.shapes == whole.setup.network.shapes
