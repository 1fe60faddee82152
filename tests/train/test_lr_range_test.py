"""The learning-rate range test: rates, steps, smoothing, divergence, and the start of a phase."""

import math
import re
import shutil
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_run

from flaxtl.config import config_to_json
from flaxtl.errors import UserError
from flaxtl.pretrained import backbone
from flaxtl.train import lr_range_test, run_dir, train_step, trainer
from flaxtl.train.feature_cache import param_digests
from flaxtl.train.lr_range_test import (
    SMOOTHING,
    LrCurve,
    LrPoint,
    LrRange,
    PhaseStart,
    load_phase_start,
    lr_points,
    range_test_optimizer,
)
from flaxtl.train.optimizers import make_optimizer, optimizer_factory
from flaxtl.train.param_groups import ParamGroups
from flaxtl.train.run_records import RunSummary
from flaxtl.train.train_step import make_train_step
from flaxtl.train.trainer import initial_state, make_step_config, select_loader

SPLIT = ParamGroups(
    {"head/a/kernel": "head", "backbone/b/kernel": "top", "backbone/c/kernel": "base"},
    {"head": 2e-3, "top": 5e-4, "base": 0.0},
)


@pytest.fixture(scope="module")
def starts(folder, tmp_path_factory):
    """Phase name -> its start, with random weights."""
    prepared = tiny_run.setup(folder, tmp_path_factory.mktemp("run"))
    cuts = [phase.cut_layer for phase in prepared.phases if phase.cut_layer and not phase.augment]
    splits = {"train": tiny_run.inputs(prepared, "train", prepared.workdir / "features", cuts)}
    params = tiny_run.parameters(prepared.model_info, prepared.config)
    return {phase.name: PhaseStart(prepared, splits, phase, params) for phase in prepared.phases}


def test_lrs_are_evenly_spaced_on_a_log_scale():
    rates = LrRange(1e-7, 1.0, 15).lrs()
    assert (rates[0], rates[-1], len(rates)) == (1e-7, 1.0, 15)
    # 7 decades in 14 steps; powers of ten in float64
    np.testing.assert_allclose(rates, [10 ** (-7 + step / 2) for step in range(15)], rtol=1e-14)


@pytest.mark.parametrize(
    ("rates", "facts"),
    [
        (LrRange(1e-3, 1e-3, 100), r"(?=.*\b0\.001\b.*\b0\.001\b)(?=.*--min-lr\b)(?=.*--max-lr\b)"),
        (LrRange(1.0, 1e-3, 100), r"(?=.*\b1\b.*\b0\.001\b)(?=.*--min-lr\b)"),
        (LrRange(0.0, 1.0, 100), r"(?=.*\b0\b.*\b1\b)(?=.*--min-lr\b)"),
        (LrRange(-1.0, 1.0, 100), r"(?=.*-1\b.*\b1\b)(?=.*--min-lr\b)"),
        (LrRange(1e-7, math.inf, 100), r"(?=.*\b1e-07\b.*\binf\b)(?=.*--max-lr\b)"),
        (LrRange(math.nan, 1.0, 100), r"(?=.*\bnan\b.*\b1\b)(?=.*--min-lr\b)"),
        (LrRange(1e-7, 1.0, 9), r"--steps=9\b.*\b10\b"),
    ],
)
def test_validate_invalid_range_is_rejected(rates, facts):
    with pytest.raises(UserError, match=facts):
        rates.validate()


def test_range_test_optimizer_groups_keep_their_ratio():
    rates = LrRange(1e-4, 1.0, 10).lrs()
    transformation = range_test_optimizer({"name": "sgd"}, SPLIT, rates)
    ones = {path: np.ones((), np.float32) for path in SPLIT.groups}
    state, update = transformation.init(ones), jax.jit(transformation.update)
    for rate in rates:
        moved, state = update(ones, state, ones)
        expected = -np.float32(rate), -np.float32(rate * 0.25), 0.0
        assert tuple(float(moved[path]) for path in SPLIT.groups) == expected
    assert update._cache_size() == 1


def test_lr_points_smoothing_is_bias_corrected_average():
    losses = np.random.default_rng(0).uniform(0.9, 1.1, 50)
    points = list(lr_points(range(50), losses, 5))
    for k, point in enumerate(points):
        weights = (1 - SMOOTHING) * SMOOTHING ** np.arange(k, -1, -1)
        # sums of up to 50 float64 terms
        assert point.smoothed_loss == pytest.approx(weights @ losses[: k + 1] / (1 - SMOOTHING ** (k + 1)), rel=1e-13)
    assert points[0].smoothed_loss == pytest.approx(losses[0], rel=1e-15)
    assert [(point.lr, point.loss) for point in points] == list(enumerate(losses))


def test_lr_points_end_at_divergence():
    points = tuple(lr_points(range(100), [1.0] * 20 + [500.0] * 80, 10))
    smoothed = [point.smoothed_loss for point in points]
    assert LrCurve(points, 10).diverged
    assert smoothed[-1] > 4 * min(smoothed) >= smoothed[-2]
    assert not LrCurve(points[:-1], 10).diverged


def test_lr_points_noisy_first_batches_do_not_end_the_curve():
    """A model that is good already: the mean of the first batches rises 40 times, which means nothing."""
    points = tuple(lr_points(range(100), [0.01, 0.79] + [0.02, 0.1] * 49, 10))
    assert len(points) == 100
    assert max(point.smoothed_loss for point in points[:10]) > 4 * points[0].smoothed_loss
    assert not LrCurve(points, 10).diverged


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("before", [0, 3])
def test_lr_points_nonfinite_loss_ends_the_curve(value, before):
    points = tuple(lr_points(range(100), [1.0] * before + [value] * 80, 10))
    assert len(points) == before + 1
    assert LrCurve(points, 10).diverged


def test_lr_points_constant_loss_reaches_the_end():
    points = tuple(lr_points(range(30), [0.5] * 30, 3))
    assert len(points) == 30
    assert not LrCurve(points, 3).diverged
    assert LrCurve((LrPoint(1.0, 0.0, 0.0),), 0).diverged is False


@pytest.fixture
def seen(monkeypatch):
    """The states that the steps of a range test are given, and the compiled step."""
    states, made, original = [], [], train_step.make_train_step

    def recording(task, sharding):
        compiled = original(task, sharding)
        made.append(compiled)

        def step(state, frozen, examples):
            moved = compiled(state, frozen, examples)
            states.append({path: np.array(value) for path, value in moved.updated_params.items()})
            return moved

        return step

    monkeypatch.setattr(train_step, "make_train_step", recording)
    return states, made


@pytest.mark.parametrize("name", ["frozen", pytest.param("finetune", marks=pytest.mark.slow)])
def test_range_test_makes_the_steps_of_training(starts, seen, name):
    """14 steps are more than four epochs."""
    start = starts[name]
    setup, splits, phase, params = start
    lr_range, before, advanced = LrRange(1e-5, 1e-2, 14), param_digests(params), []
    curve = lr_range_test.range_test(start, lr_range, tiny_run.bar, advanced.append)
    states, (compiled,) = seen
    assert (len(curve.points), len(states), advanced, compiled._cache_size()) == (14, 14, [10, 4], 1)
    assert param_digests(params) == before

    groups, fastest = phase.param_groups, max(phase.param_groups.lrs.values())

    def lookup(lr):
        return lambda step: jnp.array([np.float32(each * (lr / fastest)) for each in lr_range.lrs()])[step]

    schedules = {group: lookup(lr) for group, lr in groups.lrs.items() if lr}
    optimizer = make_optimizer(groups.labels, schedules, optimizer_factory(setup.config.optimizer), groups.lr_scales)
    loader, start_layer = select_loader(splits, phase, params, 0, tiny_run.bar)
    cfg = make_step_config(setup, phase, optimizer, start_layer)
    step, frozen = make_train_step(cfg, loader.sharding(setup.mesh)), groups.partition(params).frozen
    state, sums = initial_state(setup, phase, params, optimizer), [0.0]
    first = phase.first_step
    batches = loader.train_batches(setup.sampler(), first, first + 14, cfg.augmentation)
    for batch, after in zip(batches, states, strict=True):
        state = step(state, frozen, batch)
        assert all(np.array_equal(after[path], value) for path, value in state.updated_params.items())
        sums.append(float(state.metrics.loss))
    assert after.keys() == state.updated_params.keys()
    # A running float32 sum of up to 56 losses below 4: its last bit is 2**-16, a mean of four loses two
    losses = [(after - before) / 4 for before, after in pairwise(sums)]
    np.testing.assert_allclose([point.loss for point in curve.points], losses, atol=2.0**-16)


@pytest.mark.slow
def test_range_test_overflowing_params_end_the_curve(starts):
    curve = lr_range_test.range_test(starts["frozen"], LrRange(1e-3, 1e38, 20), tiny_run.bar, lambda done: None)
    assert curve.diverged
    assert len(curve.points) < 20
    assert all(math.isfinite(point.loss) for point in curve.points[:-1])


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """A finished run with only the first phase."""
    settings = tiny_run.config(folder, phases=("frozen",))
    return trainer.train(settings, tmp_path_factory.mktemp("runs") / "run", tiny_run.quiet(), "flaxtl train")


@pytest.fixture(scope="module")
def written(folder, tmp_path_factory):
    """The directory of a run with only the first phase; its parameters are drawn, and the same before and after."""
    workdir = tiny_run.untrained(folder, tmp_path_factory.mktemp("runs") / "written", phases=("frozen",))
    phases = workdir / "checkpoints" / "phases"
    shutil.copytree(phases / "1", phases / "0")
    return workdir


def test_load_phase_start_first_phase_has_initial_params(folder, tmp_path):
    config = tiny_run.config(folder)
    start = load_phase_start(config, tmp_path / "new", None, tiny_run.quiet())
    expected = backbone.initial_params(config, start.setup.model_info.model, notify=print).params
    assert start.phase.name == "frozen"
    assert param_digests(start.params) == param_digests(expected)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_load_phase_start_of_run_has_its_params(folder, run, monkeypatch):
    monkeypatch.setattr(backbone, "initial_params", None)  # not needed, and may be gone
    config = tiny_run.config(folder, finetune={"lr": tiny_run.FINETUNE | {"head": jnp.pi}})
    before, after = tiny_run.digests(run)
    for phase, expected in (("frozen", before), ("finetune", after)):
        start = load_phase_start(config, run.setup.workdir, phase, tiny_run.quiet())
        assert (start.phase.name, param_digests(start.params)) == (phase, expected)
    assert start.phase.first_step == run.setup.phases[0].last_step
    assert start.setup.manifest == run.setup.manifest


def test_load_phase_start_untrained_earlier_phase_is_rejected(folder, tmp_path):
    facts = rf"\bfinetune\b.*\bfrozen\b.*{re.escape(str(tmp_path / 'new'))} .*flaxtl train\b"
    with pytest.raises(UserError, match=facts):
        load_phase_start(tiny_run.config(folder), tmp_path / "new", "finetune", tiny_run.quiet())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "phase", "facts"),
    [
        ({"batch_size": 2}, "frozen", r"\(batch\w*: 4 -> 2\)"),
        ({"frozen": {"epochs": 3}}, "finetune", r"\(frozen\.epochs: 2 -> 3\)"),
        ({"phases": ("finetune", "frozen")}, "frozen", r"\(phases: \['frozen'\] -> \['finetune'\]\)"),
        ({"frozen": {"epochs": 3}}, "frozen", None),
        ({"frozen": {"epochs": 3}, "feature_cache": {"dir": "elsewhere"}}, "frozen", None),
    ],
)
def test_load_phase_start_other_config_is_rejected(folder, written, changes, phase, facts):
    """The settings of the tested phase and of later ones may differ."""
    config, workdir = tiny_run.config(folder, **changes), written
    if facts is None:
        assert load_phase_start(config, workdir, phase, tiny_run.quiet()).phase.name == phase
    else:
        with pytest.raises(UserError, match=rf"{re.escape(str(workdir))} .*{facts}"):
            load_phase_start(config, workdir, phase, tiny_run.quiet())


def test_load_phase_start_unknown_phase_suggests_similar(folder, tmp_path):
    with pytest.raises(UserError, match=r"'fintune'.*'finetune'"):
        load_phase_start(tiny_run.config(folder), tmp_path / "new", "fintune", tiny_run.quiet())


def test_load_phase_start_run_without_checkpoint_has_initial_params(folder, tmp_path, prepared):
    """The run has a config and a manifest, but no checkpoint."""
    config = tiny_run.config(folder)
    run_dir.create_run_dir(tmp_path / "run", config_to_json(config), prepared.manifest, [], RunSummary())
    start = load_phase_start(config, tmp_path / "run", "frozen", tiny_run.quiet())
    assert param_digests(start.params) == param_digests(tiny_run.parameters(prepared.model_info, config))
