"""The epochs of a phase: plateaus, EMA, resuming; and their calls to the device, of one or many steps each."""

import re
from contextlib import closing
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from helpers import compiling, tiny_run

from flaxtl.data.sampler import EpochSampler
from flaxtl.errors import UserError
from flaxtl.parallel import devices, processes
from flaxtl.train import device_calls, eval_steps, run_dir, train_step, trainer
from flaxtl.train.checkpoints import Checkpoints
from flaxtl.train.epoch_loop import MultiStepCalls, PhaseTrainer, SingleStepCalls, uses_multi_step
from flaxtl.train.eval_loop import evaluate_metrics
from flaxtl.train.optimizers import phase_optimizer
from flaxtl.train.run_records import read_metrics
from flaxtl.train.setup import build_setup
from flaxtl.train.train_step import StepConfig, TrainState

# Accuracies of 6 images: they are equal more often than not.
PLATEAU = {"schedule": "plateau", "monitor": "validation_accuracy", "plateau_factor": 0.5, "plateau_patience": 2}
PHASES = {
    "frozen": PLATEAU | {"epochs": 6, "ema": 0.5},
    "finetune": PLATEAU | {"epochs": 4, "plateau_patience": 1, "ema": 0.8, "layer_decay": 0.5, "patience": 3},
}


def train(folder, workdir, console=None, every_seconds=3600.0, **phases):
    return run(
        tiny_run.config(folder, checkpoint={"every_seconds": every_seconds}, **(phases or PHASES)), workdir, console
    )


def run(config, workdir, console=None):
    return trainer.train(config, workdir, console or tiny_run.quiet(), "flaxtl train")


@pytest.fixture(scope="module")
def log():
    return tiny_run.quiet()


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory, log):
    return train(folder, tmp_path_factory.mktemp("runs") / "whole", log)


def keras_lrs(values, rate, patience):
    """The rate in every epoch of a model that ReduceLROnPlateau watches."""
    import keras

    model = SimpleNamespace(optimizer=keras.optimizers.SGD(rate))
    watch = keras.callbacks.ReduceLROnPlateau("value", factor=0.5, patience=patience, mode="max", min_delta=0)
    watch.set_model(model)
    watch.on_train_begin()
    lrs = []
    for epoch, value in enumerate(values):
        lrs.append(float(model.optimizer.learning_rate))
        watch.on_epoch_end(epoch, {"value": value})
    return lrs


@pytest.mark.parametrize("name", list(PHASES))
def test_plateau_reduces_rates_where_keras_does(whole, log, name):
    (phase,) = (phase for phase in whole.setup.phases if phase.name == name)
    epochs = [row for row in tiny_run.metrics(whole.setup.workdir) if row["phase"] == name]
    values = [row["validation_accuracy"] for row in epochs]
    for group, rate in phase.param_groups.lrs.items():
        if rate:
            highest = rate * phase.param_groups.scale_range(group)[0]  # of the group's layers, after layer decay
            expected = keras_lrs(values, highest, phase.plateau_patience)
            assert [row["lrs"][group] for row in epochs] == pytest.approx(expected, rel=1e-6)  # Keras': float32
            assert expected[-1] < rate
        else:
            assert all(group not in row["lrs"] for row in epochs)
    falls = len(re.findall(rf"^.*\b{name}\b.*\bvalidation_accuracy\b.*\bepoch \d", tiny_run.texts(log), re.MULTILINE))
    last = keras_lrs([*values, 0.0], 1.0, phase.plateau_patience)[-1]  # the reduction in the last epoch is logged too
    assert falls == -np.log2(last)


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        pytest.param(PhaseTrainer, "_after_epoch", 3, id="on a plateau"),
        # The first call makes one step, whatever the number of steps of later calls.
        pytest.param(PhaseTrainer, "_maybe_checkpoint", 1, id="within an epoch", marks=pytest.mark.slow),
    ],
)
def test_resume_is_bit_identical_and_compiles_each_step_once(monkeypatch, whole, folder, tmp_path, owner, name, call):
    with monkeypatch.context() as patch:
        tiny_run.stop_at(patch, owner, name, call, after=True)
        with pytest.raises(KeyboardInterrupt):
            train(folder, tmp_path / "run", every_seconds=0.0)
    assert list((tmp_path / "run" / "checkpoints" / "latest").iterdir())  # else the phase would be repeated
    made = []
    for maker in ("make_train_step", "make_multi_step"):
        make = getattr(train_step, maker)
        monkeypatch.setattr(train_step, maker, lambda *given, make=make: made.append(make(*given)) or made[-1])
    resumed = train(folder, tmp_path / "run")
    assert {step._cache_size() for step in made} == {1}
    assert tiny_run.results(tmp_path / "run") == tiny_run.results(whole.setup.workdir)
    assert tiny_run.digests(resumed) == tiny_run.digests(whole)


@pytest.mark.slow
@compiling.compiled_as_users_do()
def test_ema_params_are_validated_and_saved(folder, tmp_path):
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
    step = eval_steps.make_eval_step(run.setup.model_info.model, run.setup.mesh, None, data.sharding(run.setup.mesh))
    for row, parameters in zip(rows_of, kept, strict=True):
        # Of images here, of features there: float32 sums in another order.
        assert evaluate_metrics(step, parameters, data, 4).loss == pytest.approx(row["validation_loss"], rel=1e-5)


def test_train_nonfinite_loss_reports_the_batch(folder, tmp_path):
    fast = {"epochs": 1, "lr": tiny_run.FROZEN | {"head": 1e38}}
    workdir = tmp_path / "run"
    settings = tiny_run.config(folder, frozen=fast, phases=("frozen",))
    with pytest.raises(UserError, match=r"frozen\b.*epoch 1\b.*step 1\b.*frozen\.lr\.head=1e\+38") as error:
        run(settings, workdir)
    assert read_metrics(workdir) == []
    facts = run_dir.read_summary(workdir).nonfinite_step.to_json()
    setup = build_setup(settings, workdir, run_dir.read_manifest(workdir))
    train_images = setup.manifest.of_split("train")
    expected = [train_images[index].path for index in setup.sampler().batch(1).indices]
    assert facts == {"phase": "frozen", "epoch": 1, "step": 1, "images": expected}
    assert ", ".join(expected) in str(error.value)
    # The state before the step that failed: one step was made. The same command fails again at the same step.
    with pytest.raises(UserError, match=r"frozen\b.*epoch 1\b.*step 1\b"):
        run(settings, workdir)


def test_train_nonfinite_loss_of_a_large_batch_names_five_images(folder, tmp_path):
    fast = {"epochs": 1, "lr": tiny_run.FROZEN | {"head": 1e38}}
    settings = tiny_run.config(folder, frozen=fast, phases=("frozen",), batch_size=8)
    with pytest.raises(
        UserError, match=r"than frozen\.lr\.head=1e\+38\. .* and 3 more, listed in summary\.json\.$"
    ) as error:
        run(settings, tmp_path / "run")
    images = run_dir.read_summary(tmp_path / "run").nonfinite_step.images
    assert [image in str(error.value) for image in images] == [True] * 5 + [False] * 3


def test_train_nonfinite_validation_loss_is_reported(folder, tmp_path):
    ruin = {"epochs": 1, "steps_per_epoch": 1, "lr": tiny_run.FROZEN | {"head": 1e38}}
    with pytest.raises(UserError, match=r"\b(nan|inf)\b.*frozen\b.*epoch 1\b.*step 0\b"):
        run(tiny_run.config(folder, frozen=ruin, phases=("frozen",)), tmp_path / "run")
    assert read_metrics(tmp_path / "run") == []
    facts = run_dir.read_summary(tmp_path / "run").nonfinite_step.to_json()
    assert facts == {"phase": "frozen", "epoch": 1, "step": 0, "images": []}


CUT = "block2_pool"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tiny_run.images(tmp_path_factory.mktemp("images")), tmp_path_factory.mktemp("run"))


class World:
    """The phases of a small run on features of the whole backbone, and on images."""

    def __init__(self, folder, workdir):
        self.setup = tiny_run.setup(folder, workdir)
        self.params = tiny_run.parameters(self.setup.model_info, self.setup.config)
        data = tiny_run.inputs(self.setup, "train", workdir / "features", [CUT])
        self.images, self.features = data.image_loader(), data.feature_loader(CUT, self.params, tiny_run.bar)
        self.sampler = EpochSampler(3, 4, len(self.images))

    def start(self, phase, **options):
        """Return (step config, frozen parameters, first state)."""
        setup = self.setup
        params, batch_stats, frozen = phase.param_groups.partition(self.params)
        optimizer = phase_optimizer(setup.config.optimizer, phase.param_groups, "cosine", phase.steps, 0)
        cfg = StepConfig(setup.model_info.model, optimizer, setup.mesh, 3, **options)
        state = TrainState.create(phase.first_step, params, batch_stats, optimizer.init(params), 3)
        return cfg, frozen, devices.replicate(state, setup.mesh)

    def multi_step(self, phase, loader, **options):
        cfg, frozen, state = self.start(phase, **options)
        return MultiStepCalls(cfg, loader, self.sampler, phase.steps_per_epoch), frozen, state


def advance(calls, frozen, state, spans):
    """Return the steps after which calls returned, and the last state, of going through spans of steps."""
    returned = []
    with closing(calls):
        for first, last in spans:
            for step, inputs in calls.inputs(first, last):
                state = calls.train_step(state, frozen, *inputs)
                returned.append(step)
            calls.end_epoch(state)
    return returned, state


def equal(ours, theirs):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True))


@pytest.mark.slow
def test_multi_step_calls_of_any_length_are_bit_identical(world, monkeypatch):
    phase, spans = world.setup.phases[0], [(0, 2), (2, 4), (4, 6)]
    made, make = [], train_step.make_multi_step
    monkeypatch.setattr(train_step, "make_multi_step", lambda *given: made.append(make(*given)) or made[-1])
    monkeypatch.setattr(device_calls, "CALL_SECONDS", 1e-9)  # one step per call
    returned, one_by_one = advance(*world.multi_step(phase, world.features, start_layer=CUT), spans)
    assert returned == [1, 2, 3, 4, 5, 6]
    monkeypatch.setattr(device_calls, "CALL_SECONDS", 1e9)  # from the second epoch on, one epoch per call
    returned, at_once = advance(*world.multi_step(phase, world.features, start_layer=CUT), spans)
    assert returned == [1, 2, 4, 6]
    assert equal(one_by_one, at_once)
    resumed_spans = [(0, 1), (1, 2), *spans[1:]]
    returned, resumed = advance(*world.multi_step(phase, world.features, start_layer=CUT), resumed_spans)
    assert returned == [1, 2, 4, 6]  # an epoch that was interrupted
    assert equal(one_by_one, resumed)
    assert [run._cache_size() for run in made] == [1, 1, 1]


def test_multi_step_calls_make_the_steps_of_single_ones(world):
    phase = world.setup.phases[0]
    _, many = advance(*world.multi_step(phase, world.features, start_layer=CUT), [(0, 2), (2, 4)])
    cfg, frozen, state = world.start(phase, start_layer=CUT)
    calls = SingleStepCalls(cfg, world.features, world.sampler, 0, 4)
    returned, stepped = advance(calls, frozen, state, [(0, 2), (2, 4)])
    assert returned == [1, 2, 3, 4]
    assert int(stepped.step) == int(many.step) == 4
    # Measured 0. XLA may fuse the two programs differently, and a loss is a sum of 16 terms.
    np.testing.assert_allclose(many.metrics.loss, stepped.metrics.loss, rtol=16 * 2.0**-24)


def test_uses_multi_step_trained_convolutions_on_cpu_is_false(world, monkeypatch):
    cfg, *_ = world.start(world.setup.phases[1])
    assert not uses_multi_step(cfg.mesh, cfg.start_layer, CUT)
    monkeypatch.setattr(devices, "platform_of", lambda mesh: "gpu")
    assert uses_multi_step(cfg.mesh, cfg.start_layer, CUT)


@pytest.mark.slow
def test_multi_step_calls_of_trained_convolutions_make_the_same_steps(world):
    phase, options = world.setup.phases[1], {"augmentation": world.setup.augmentation}
    cfg, frozen, state = world.start(phase, **options)
    first = phase.first_step
    calls = SingleStepCalls(cfg, world.images, world.sampler, first, phase.last_step)
    _, stepped = advance(calls, frozen, state, [(first, first + 2)])
    _, many = advance(*world.multi_step(phase, world.images, **options), [(first, first + 2)])
    # Losses of 8 images, summed: convolutions inside a loop add up in another order.
    np.testing.assert_allclose(many.metrics.loss, stepped.metrics.loss, rtol=1e-5)
    assert many.metrics.count.sum() == 8


def test_uses_multi_step_several_processes_is_false(world, monkeypatch):
    cfg, *_ = world.start(world.setup.phases[0], start_layer=CUT)
    assert uses_multi_step(cfg.mesh, cfg.start_layer, CUT)
    monkeypatch.setattr(processes, "process_count", lambda: 2)
    assert not uses_multi_step(cfg.mesh, cfg.start_layer, CUT)


def test_stacked_batches_are_the_batches_of_the_steps(world):
    stacked = world.images.stacked_batches(world.sampler, 5, 8, 4)
    batches = list(world.images.train_batches(world.sampler, 5, 8, None))
    assert stacked.indices.shape == stacked.epochs.shape == (4, 4)
    for row, batch in enumerate([*batches, batches[-1]]):
        assert stacked.indices[row].tolist() == batch.indices.tolist()
        assert stacked.epochs[row].tolist() == batch.epochs.tolist()
