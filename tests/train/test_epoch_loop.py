"""What changes from epoch to epoch beside the weights: rates on a plateau, and averages of what learns."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import tiny_run

from flaxtl.train import train_step, trainer
from flaxtl.train.checkpoints import Checkpoints
from flaxtl.train.epoch_loop import EpochLoop
from flaxtl.train.eval_loop import evaluate_metrics

pytestmark = pytest.mark.usefixtures("compile_once")

# Accuracies of 6 images: they are equal more often than not.
PLATEAU = {"schedule": "plateau", "monitor": "validation_accuracy", "plateau_factor": 0.5, "plateau_patience": 2}
PHASES = {
    "frozen": PLATEAU | {"epochs": 6, "ema": 0.5},
    "finetune": PLATEAU | {"epochs": 4, "plateau_patience": 1, "ema": 0.8, "layer_decay": 0.5, "patience": 3},
}


def train(folder, workdir, console=None, **phases):
    config = tiny_run.config(folder, **(phases or PHASES))
    return trainer.train(config, workdir, console or tiny_run.quiet(), "flaxtl train")


@pytest.fixture(scope="module")
def told():
    return tiny_run.quiet()


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory, told):
    return train(folder, tmp_path_factory.mktemp("runs") / "whole", told)


def keras_rates(values, rate, patience):
    """The rate in every epoch of a model that ReduceLROnPlateau watches."""
    import keras

    model = SimpleNamespace(optimizer=keras.optimizers.SGD(rate))
    watch = keras.callbacks.ReduceLROnPlateau("value", factor=0.5, patience=patience, mode="max", min_delta=0)
    watch.set_model(model)
    watch.on_train_begin()
    found = []
    for epoch, value in enumerate(values):
        found.append(float(model.optimizer.learning_rate))
        watch.on_epoch_end(epoch, {"value": value})
    return found


@pytest.mark.parametrize("name", list(PHASES))
def test_rates_fall_where_keras_lets_them_fall(whole, told, name):
    (phase,) = (phase for phase in whole.setup.phases if phase.name == name)
    found = [row for row in tiny_run.metrics(whole.setup.workdir) if row["phase"] == name]
    values = [row["validation_accuracy"] for row in found]
    for group, rate in phase.param_groups.lrs.items():
        if rate:
            expected = keras_rates(values, rate, phase.plateau_patience)
            assert [row["lrs"][group] for row in found] == pytest.approx(expected, rel=1e-6)  # Keras': float32
            assert expected[-1] < rate
        else:
            assert all(group not in row["lrs"] for row in found)
    falls = len(re.findall(rf"^.*\b{name}\b.*\bvalidation_accuracy\b.*\bepoch \d", tiny_run.texts(told), re.MULTILINE))
    last = keras_rates([*values, 0.0], 1.0, phase.plateau_patience)[-1]  # the last epoch's own fall is told too
    assert falls == -np.log2(last)


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        pytest.param(EpochLoop, "_after_epoch", 3, id="while it waits on a plateau"),
        pytest.param(EpochLoop, "_between_steps", 8, id="within an epoch", marks=pytest.mark.slow),
    ],
)
def test_a_broken_run_goes_on_bit_for_bit_and_compiles_nothing_twice(
    monkeypatch, whole, folder, tmp_path, owner, name, call
):
    with monkeypatch.context() as patch:
        tiny_run.stop_at(patch, owner, name, call, after=True)
        with pytest.raises(KeyboardInterrupt):
            train(folder, tmp_path / "run")
    made = []
    for maker in ("make_train_step", "make_scanned_steps"):
        make = getattr(train_step, maker)
        monkeypatch.setattr(train_step, maker, lambda *given, make=make: made.append(make(*given)) or made[-1])
    resumed = train(folder, tmp_path / "run")
    assert {step._cache_size() for step in made} == {1}
    assert tiny_run.told(tmp_path / "run") == tiny_run.told(whole.setup.workdir)
    assert tiny_run.digests(resumed) == tiny_run.digests(whole)


def test_averages_are_measured_and_kept_and_what_learns_goes_its_way(folder, tmp_path):
    rows_of, kept = [], []
    for decay in (0.0, 0.9):
        workdir = tmp_path / str(decay)
        run = train(folder, workdir, phases=("frozen",), frozen={"epochs": 1, "ema": decay})
        rows_of += tiny_run.metrics(workdir)
        with Checkpoints(workdir) as checkpoints:
            kept.append(checkpoints.restore_phase(1, run.setup.abstract_params()))
    plain, averaged = rows_of
    assert averaged["train_loss"] == plain["train_loss"]
    assert averaged["validation_loss"] != plain["validation_loss"]
    data = tiny_run.inputs(run.setup, "validation", tmp_path, []).image_loader()
    step = train_step.make_eval_step(run.setup.model_info.model, run.setup.mesh, None, data.sharding(run.setup.mesh))
    for row, parameters in zip(rows_of, kept, strict=True):
        # Of images here, of features there: float32 sums in another order.
        assert evaluate_metrics(step, parameters, data, 4).loss == pytest.approx(row["validation_loss"], rel=1e-5)
