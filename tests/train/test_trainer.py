import errno
import json
import re
import shutil
import weakref
from functools import partial

import jax
import pytest
from helpers import tiny_run

from flaxtl.data.sources import base
from flaxtl.errors import UserError
from flaxtl.train import eval_steps, run_dir, train_step, trainer
from flaxtl.train.checkpoints import Checkpoints
from flaxtl.train.epoch_loop import PhaseTrainer
from flaxtl.train.feature_cache import param_digests
from flaxtl.train.run_records import read_metrics
from flaxtl.train.setup import build_setup

# The best weights are handed on from `frozen`, the last ones from `finetune`.
PHASES = {
    "frozen": {"epochs": 2, "steps_per_epoch": 2, "patience": 9},
    "finetune": {"epochs": 2, "steps_per_epoch": 2, "schedule": "cosine", "warmup_steps": 2},
}
ALWAYS = {"every_seconds": 0.0}  # a checkpoint after every step


def make_config(folder):
    return tiny_run.config(folder, **PHASES, checkpoint=ALWAYS)


def train(config, workdir):
    return trainer.train(config, workdir, tiny_run.quiet(), "flaxtl train")


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """An uninterrupted run."""
    return train(tiny_run.config(folder, **PHASES), tmp_path_factory.mktemp("runs") / "whole")


def interrupt(monkeypatch, folder, workdir, owner, name, call, after=False):
    with monkeypatch.context() as patch:
        tiny_run.stop_at(patch, owner, name, call, after=after)
        with pytest.raises(KeyboardInterrupt):
            train(make_config(folder), workdir)


def test_train_writes_metrics_and_summary(whole):
    workdir = whole.setup.workdir
    epochs, phases = tiny_run.results(workdir)
    expected = [("frozen", 1, 2), ("frozen", 2, 4), ("finetune", 1, 6), ("finetune", 2, 8)]
    assert [(row["phase"], row["epoch"], row["step"]) for row in epochs] == expected
    losses = [row["validation_loss"] for row in epochs[:2]]
    best = losses.index(min(losses))
    assert phases["frozen"] == {
        "epochs": 2,
        "steps": 4,
        "best_epoch": best + 1,
        "trainable_params": 128 * 8 + 8 + 8 * 3 + 3,
        "frozen_arrays_verified": 8,
        "lrs": tiny_run.FROZEN,
        "augment": False,
        "train": {"accuracy": epochs[best]["train_accuracy"], "loss": epochs[best]["train_loss"], "n": 8},
        "validation": {
            "loss": losses[best],
            "accuracy": epochs[best]["validation_accuracy"],
            "balanced_accuracy": epochs[best]["validation_balanced_accuracy"],
            "n": 6,
        },
    }
    assert phases["finetune"]["frozen_arrays_verified"] == 4
    assert phases["finetune"]["validation"]["loss"] == epochs[3]["validation_loss"]
    assert json.loads((workdir / "config.json").read_text())["frozen"]["patience"] == 9
    assert run_dir.read_summary(workdir).command == "flaxtl train"


def test_train_phases_change_trained_layers_only(whole):
    start, frozen, finetuned = tiny_run.digests(whole)
    assert {path.split("/")[0] for path in start if start[path] != frozen[path]} == {"head"}
    changed = {path.split("/")[1] for path in start if frozen[path] != finetuned[path]}
    assert changed == {"block2_conv1", "block2_conv2", "dense_1", "predictions"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name", "call", "after"),
    [
        pytest.param(PhaseTrainer, "_begin_epoch", 2, False, id="within a phase"),
        pytest.param(PhaseTrainer, "_begin_epoch", 4, False, id="within the last phase"),
        pytest.param(Checkpoints, "save_latest", 2, False, id="before a checkpoint"),
        pytest.param(trainer, "_start_run", 1, True, id="after the start"),
        pytest.param(run_dir, "create_run_dir", 1, True, id="before the first checkpoint"),
        pytest.param(Checkpoints, "save_phase", 2, False, id="before the end of a phase is kept"),
        pytest.param(Checkpoints, "save_phase", 2, True, id="after the end of a phase is kept"),
        pytest.param(Checkpoints, "save_phase", 3, False, id="before the end of the run is kept"),
    ],
)
def test_train_interrupted_anywhere_resumes_bit_identically(
    monkeypatch, whole, folder, tmp_path, owner, name, call, after
):
    interrupt(monkeypatch, folder, tmp_path / "run", owner, name, call, after)
    made = []
    for maker in (eval_steps.make_eval_step, eval_steps.make_multi_eval_step):
        maker.cache_clear()  # what other tests of this process had compiled is not counted

    def kept(maker, *given, **named):
        made.append(maker(*given, **named))
        return made[-1]

    for module, names in (
        (train_step, ("make_train_step", "make_multi_step")),
        (eval_steps, ("make_eval_step", "make_multi_eval_step")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, partial(kept, getattr(module, name)))
    resumed = train(make_config(folder), tmp_path / "run")
    # A phase that had ended before needs no training step; no step is ever compiled twice.
    assert {step._cache_size() for step in made} <= {0, 1}
    assert tiny_run.results(tmp_path / "run") == tiny_run.results(whole.setup.workdir)
    assert tiny_run.digests(resumed) == tiny_run.digests(whole)


@pytest.mark.slow
def test_train_without_checkpoint_repeats_the_phase(monkeypatch, whole, folder, tmp_path):
    rarely = tiny_run.config(folder, **PHASES)
    with monkeypatch.context() as patch:
        tiny_run.stop_at(patch, PhaseTrainer, "_begin_epoch", 2)
        with pytest.raises(KeyboardInterrupt):
            train(rarely, tmp_path / "run")
    assert len(read_metrics(tmp_path / "run")) == 1
    resumed = train(rarely, tmp_path / "run")
    assert tiny_run.results(tmp_path / "run") == tiny_run.results(whole.setup.workdir)
    assert tiny_run.digests(resumed) == tiny_run.digests(whole)


@pytest.mark.slow
def test_train_partial_metrics_line_and_lost_phase_are_repeated(monkeypatch, whole, folder, tmp_path):
    interrupt(monkeypatch, folder, tmp_path / "run", PhaseTrainer, "_begin_epoch", 4)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "finet')
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "phases" / "1")
    resumed = train(make_config(folder), tmp_path / "run")
    assert tiny_run.results(tmp_path / "run") == tiny_run.results(whole.setup.workdir)
    assert tiny_run.digests(resumed) == tiny_run.digests(whole)


@pytest.mark.slow
def test_train_lost_metrics_repeat_the_phase(monkeypatch, whole, folder, tmp_path):
    workdir, console = tmp_path / "run", tiny_run.quiet()
    interrupt(monkeypatch, folder, workdir, PhaseTrainer, "_begin_epoch", 2)
    (workdir / "metrics.jsonl").unlink()
    resumed = trainer.train(make_config(folder), workdir, console, "flaxtl train")
    assert "metrics.jsonl" in tiny_run.texts(console)
    assert tiny_run.results(workdir) == tiny_run.results(whole.setup.workdir)
    assert tiny_run.digests(resumed) == tiny_run.digests(whole)


@pytest.mark.slow
@pytest.mark.parametrize(("which", "harm"), [("latest", "cut"), ("phases", "gone")])
def test_train_damaged_checkpoint_is_quarantined(monkeypatch, whole, folder, tmp_path, which, harm):
    workdir, console = tmp_path / "run", tiny_run.quiet()
    interrupt(monkeypatch, folder, workdir, PhaseTrainer, "_begin_epoch", 4)  # within the second phase
    newest = max((workdir / "checkpoints" / which).iterdir(), key=lambda place: int(place.name))
    files = sorted(file for file in newest.rglob("*") if file.is_file() and file.stat().st_size)
    largest = max(files, key=lambda file: file.stat().st_size)
    if harm == "gone":
        largest.unlink()
    else:
        size = largest.stat().st_size
        largest.write_bytes(largest.read_bytes()[: size // 2] if harm == "cut" else bytes(size))
    resumed = trainer.train(make_config(folder), workdir, console, "flaxtl train")
    assert str(workdir / "checkpoints" / "damaged" / f"{which}-{newest.name}") in tiny_run.texts(console)
    assert [place.name for place in (workdir / "checkpoints" / "damaged").iterdir()] == [f"{which}-{newest.name}"]
    assert tiny_run.results(workdir) == tiny_run.results(whole.setup.workdir)
    assert tiny_run.digests(resumed) == tiny_run.digests(whole)


def test_train_changed_images_are_rejected_on_resume(monkeypatch, folder, tmp_path):
    own = shutil.copytree(folder, tmp_path / "images")
    interrupt(monkeypatch, own, tmp_path / "run", PhaseTrainer, "_begin_epoch", 2)
    changed = own / "red" / "3.png"
    changed.write_bytes(changed.read_bytes() + b"\0")
    gone = own / "red" / "4.png"
    gone.unlink()
    message = f"2 of the 24 images of the run in {tmp_path}/run changed or disappeared since its start: "
    with pytest.raises(UserError, match=re.escape(f"{message}{changed}, {gone}. Restore them")):
        train(make_config(own), tmp_path / "run")


def test_train_complete_run_is_left_unchanged(whole, folder, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole.setup.workdir, workdir)
    run_dir.update_summary(workdir, complete=True)
    (workdir / "predictions.csv").touch()

    def contents():
        return {file: file.read_bytes() for file in workdir.rglob("*") if file.is_file()}

    before, console = contents(), tiny_run.quiet()
    assert trainer.train(tiny_run.config(folder, **PHASES), workdir, console, "flaxtl train") is None
    assert re.search(rf"{re.escape(str(workdir))}\b.*--workdir\b", " ".join(tiny_run.texts(console).split()))
    assert contents() == before


def test_train_finished_phases_are_not_repeated(monkeypatch, whole, folder):
    monkeypatch.setattr(PhaseTrainer, "_begin_epoch", None)
    before = tiny_run.results(whole.setup.workdir)
    assert train(tiny_run.config(folder, **PHASES), whole.setup.workdir) is not None
    assert tiny_run.results(whole.setup.workdir) == before


def test_train_other_config_is_rejected(whole, folder):
    other = tiny_run.config(folder, **PHASES, batch_size=2, seed=4)
    with pytest.raises(UserError, match=r"\(seed: 3 -> 4; batch\w*: 4 -> 2\).*--workdir\b"):
        train(other, whole.setup.workdir)


def test_train_early_stopping_keeps_best_params_and_step_numbers(folder, tmp_path):
    # The rate is too low to change a prediction: the first epoch stays the best. On CPU, saved buffers are not donated;
    # without checkpoints, best parameters that share the state's buffers would be lost.
    slow = {"lr": tiny_run.FROZEN | {"head": 1e-9}, "monitor": "validation_accuracy"}
    frozen = slow | {"epochs": 5, "patience": 2}
    settings = {"frozen": frozen, "finetune": slow | {"epochs": 1, "augment": False}}  # the same step, compiled once
    stopped = train(tiny_run.config(folder, **settings), tmp_path / "stopped")
    one_epoch = train(tiny_run.config(folder, frozen=frozen | {"epochs": 1}, phases=("frozen",)), tmp_path / "one")
    epochs, phases = tiny_run.results(tmp_path / "stopped")
    assert [(row["phase"], row["epoch"], row["step"]) for row in epochs] == [
        ("frozen", 1, 3),
        ("frozen", 2, 6),
        ("frozen", 3, 9),
        ("finetune", 1, 18),
    ]
    assert (phases["frozen"]["epochs"], phases["frozen"]["best_epoch"]) == (3, 1)
    assert phases["frozen"]["validation"]["loss"] == epochs[0]["validation_loss"]
    assert phases["frozen"]["train"]["loss"] == epochs[0]["train_loss"] != epochs[2]["train_loss"]
    assert tiny_run.digests(stopped)[:2] == tiny_run.digests(one_epoch)


def test_train_unknown_model_is_rejected_before_reading_images(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(base, "open_source", None)
    with pytest.raises(UserError, match=r"'vgg161'.*'vgg16'"):
        train(tiny_run.config(folder, model={"name": "vgg161", "output_layer": ""}), tmp_path / "run")
    assert not (tmp_path / "run" / "manifest.csv").exists()


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"optimizer": {"name": "adam", "lr": 1e-3}}, r"optimizer\.lr\b.*\bPHASE\.lr\.GROUP\b"),
        ({"batch_size": 1, "augmentation": {"mixup": 0.2}}, r"\bmixup\b.*\bbatch_size is 1\b"),
    ],
)
def test_train_invalid_setting_is_rejected_before_reading_images(folder, tmp_path, monkeypatch, changes, facts):
    monkeypatch.setattr(base, "open_source", None)
    with pytest.raises(UserError, match=facts):
        train(tiny_run.config(folder, **changes), tmp_path / "run")


def test_train_resident_images_with_loader_tfdata_is_rejected(folder, tmp_path):
    config = tiny_run.config(folder)
    config.data.update(pipeline="resident", loader="tfdata")
    with pytest.raises(UserError, match=r"data\.pipeline=resident.*data\.loader=tfdata"):
        train(config, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.needs_tf
def test_train_results_do_not_depend_on_the_loader(folder, tmp_path):
    results = []
    for number, settings in enumerate(({"pipeline": "resident"}, {"pipeline": "stream"}, {"loader": "tfdata"})):
        config = tiny_run.config(folder)
        config.data.update(settings)
        train(config, tmp_path / str(number))
        results.append([epoch.replace(seconds=0.0) for epoch in read_metrics(tmp_path / str(number))])
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("loader", ["decoded", pytest.param("tfdata", marks=[pytest.mark.needs_tf, pytest.mark.slow])])
def test_train_skips_unreadable_images_of_a_new_run_only(folder, tmp_path, monkeypatch, loader):
    images = shutil.copytree(folder, tmp_path / "images")
    damaged = images / "red" / "0.png"
    damaged.write_bytes(damaged.read_bytes()[:80])
    config = tiny_run.config(images)
    config.data.on_error, config.data.loader = "skip", loader
    tiny_run.stop_at(monkeypatch, trainer, "train_phase", 1)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run")
    assert list(run_dir.read_summary(tmp_path / "run").skipped) == [str(damaged)]
    other = images / "red" / "1.png"
    other.write_bytes(b"")
    with pytest.raises(UserError, match=r"\b1 of the 23 images\b.*\b1\.png\b"):
        train(config, tmp_path / "run")


def test_train_unknown_optimizer_creates_no_run(folder, tmp_path):
    with pytest.raises(UserError, match=r"'nadm'.*'nadam'"):
        train(tiny_run.config(folder, optimizer={"name": "nadm"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_verify_frozen_changed_param_raises(whole):
    phase = whole.setup.phases[0]
    parameters = tiny_run.parameters(whole.setup.model_info, whole.setup.config)
    *_, frozen = phase.param_groups.partition(parameters)
    path = "backbone/block1_conv1/bias"
    digests = param_digests(frozen)
    assert trainer.verify_frozen(phase, digests, parameters) == 8
    with pytest.raises(RuntimeError, match=rf"\bfrozen\b.*{path}"):
        trainer.verify_frozen(phase, digests, {**parameters, path: parameters[path] + 1})


def test_train_phase_holds_no_first_state_beside_a_restored_one(folder, tmp_path, monkeypatch):
    interrupt(monkeypatch, folder, tmp_path / "run", PhaseTrainer, "_begin_epoch", 2)
    restore, first_states = Checkpoints.restore_latest, []

    def noting(checkpoints, first, last, epochs, like):
        first_states.extend(map(weakref.ref, jax.tree.leaves(like.state)))
        return restore(checkpoints, first, last, epochs, like)

    def run(trainer, progress):
        assert int(progress.state.step) == 2
        assert [first() for first in first_states] == [None] * len(first_states)
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "restore_latest", noting)
    monkeypatch.setattr(PhaseTrainer, "run", run)
    with pytest.raises(KeyboardInterrupt):
        train(make_config(folder), tmp_path / "run")
    assert first_states


def test_build_setup_of_finished_run_is_equal(whole):
    again = build_setup(run_dir.load_config(whole.setup.workdir), whole.setup.workdir, whole.setup.manifest)
    assert again.phases == whole.setup.phases
    assert again.model_info.shapes == whole.setup.model_info.shapes


def test_train_with_a_batch_larger_than_the_set_says_so(folder, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "Checkpoints", stop)  # the next step of the start-up
    console = tiny_run.quiet()
    with pytest.raises(KeyboardInterrupt):
        trainer.train(tiny_run.config(folder, batch_size=16), tmp_path / "run", console, "flaxtl train")
    (line,) = re.findall(r"^Each batch of 16 repeats some of the 12 .*$", tiny_run.texts(console), re.MULTILINE)
    assert "--config.batch_size=12 " in line


def test_describe_resumption_names_finished_phases_and_the_epoch(whole):
    first, second = whole.setup.phases[:2]
    text = trainer._describe_resumption(whole.setup, second, 0)
    assert text == f"Resuming: {first.name} finished, {second.name} at epoch 1/{second.epochs}"


def test_train_killed_before_its_first_checkpoint_keeps_what_it_skipped(folder, tmp_path, monkeypatch):
    images = shutil.copytree(folder, tmp_path / "images")
    (images / "red" / "0.png").write_bytes(b"no image")
    (images / "red" / "notes.txt").touch()
    config = tiny_run.config(images)
    config.data.on_error = "skip"
    for owner, name in ((Checkpoints, "save_phase"), (trainer, "train_phase")):
        with monkeypatch.context() as patch:
            tiny_run.stop_at(patch, owner, name, 1)
            with pytest.raises(KeyboardInterrupt):
                train(config, tmp_path / "run")
        summary = run_dir.read_summary(tmp_path / "run")
        assert list(summary.skipped) == [str(images / "red" / "0.png")]
        assert summary.skipped_files == 1


def test_train_on_a_full_disk_reports_what_has_ended_it(folder, tmp_path, monkeypatch):
    update = run_dir.update_summary

    def full(workdir, **changes):
        if "wall_seconds" in changes:
            raise OSError(errno.ENOSPC, "No space left on device")
        update(workdir, **changes)

    monkeypatch.setattr(run_dir, "update_summary", full)
    tiny_run.stop_at(monkeypatch, trainer, "train_phase", 1)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_run.config(folder), tmp_path / "run")
