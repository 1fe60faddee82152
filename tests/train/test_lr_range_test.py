"""The range test: its rates, its steps, its smoothing and its end."""

import math
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_run

from flaxtl.errors import UserError
from flaxtl.train import lr_range_test, train_step
from flaxtl.train.feature_cache import param_digests
from flaxtl.train.lr_range_test import SMOOTHING, LrCurve, LrPoint, LrRange, followed, rising
from flaxtl.train.optimizers import make_optimizer, optimizer_factory
from flaxtl.train.param_groups import ParamGroups
from flaxtl.train.train_step import make_train_step
from flaxtl.train.trainer import Material, initial_state

pytestmark = pytest.mark.usefixtures("compile_once")

SPLIT = ParamGroups(
    {"head/a/kernel": "head", "backbone/b/kernel": "top", "backbone/c/kernel": "base"},
    {"head": 2e-3, "top": 5e-4, "base": 0.0},
)


@pytest.fixture(scope="module")
def material(folder, tmp_path_factory):
    prepared = tiny_run.setup(folder, tmp_path_factory.mktemp("run"))
    cuts = [phase.cut_layer for phase in prepared.phases if phase.cut_layer and not phase.augment]
    inputs = {"train": tiny_run.inputs(prepared, "train", prepared.workdir / "features", cuts)}
    return Material(prepared, inputs, tiny_run.bar, say=lambda sentence: None)


def test_rates_grow_by_one_factor_from_the_lowest_to_the_highest():
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
def test_rates_that_make_no_test(rates, facts):
    with pytest.raises(UserError, match=facts):
        rates.validate()


def test_groups_keep_their_ratio_and_a_frozen_one_stays():
    rates = LrRange(1e-4, 1.0, 10).lrs()
    transformation = rising({"name": "sgd"}, SPLIT, rates)
    ones = {path: np.ones((), np.float32) for path in SPLIT.groups}
    state, update = transformation.init(ones), jax.jit(transformation.update)
    for rate in rates:
        moved, state = update(ones, state, ones)
        expected = -np.float32(rate), -np.float32(rate * 0.25), 0.0
        assert tuple(float(moved[path]) for path in SPLIT.groups) == expected
    assert update._cache_size() == 1


def test_smoothing_is_the_bias_corrected_moving_average():
    losses = np.random.default_rng(0).uniform(0.9, 1.1, 50)
    points = list(followed(range(50), losses, 5))
    for k, point in enumerate(points):
        weights = (1 - SMOOTHING) * SMOOTHING ** np.arange(k, -1, -1)
        # sums of up to 50 float64 terms
        assert point.smoothed_loss == pytest.approx(weights @ losses[: k + 1] / (1 - SMOOTHING ** (k + 1)), rel=1e-13)
    assert points[0].smoothed_loss == pytest.approx(losses[0], rel=1e-15)
    assert [(point.lr, point.loss) for point in points] == list(enumerate(losses))


def test_a_loss_that_runs_away_ends_the_test():
    points = tuple(followed(range(100), [1.0] * 20 + [500.0] * 80, 10))
    smoothed = [point.smoothed_loss for point in points]
    assert LrCurve(points, 10).diverged
    assert smoothed[-1] > 4 * min(smoothed) >= smoothed[-2]
    assert not LrCurve(points[:-1], 10).diverged


def test_the_first_batches_do_not_end_the_test():
    """A network that is good already: the mean of the first batches rises 40 times, and that says nothing."""
    points = tuple(followed(range(100), [0.01, 0.79] + [0.02, 0.1] * 49, 10))
    assert len(points) == 100
    assert max(point.smoothed_loss for point in points[:10]) > 4 * points[0].smoothed_loss
    assert not LrCurve(points, 10).diverged


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("before", [0, 3])
def test_a_loss_that_is_no_number_ends_the_test(value, before):
    points = tuple(followed(range(100), [1.0] * before + [value] * 80, 10))
    assert len(points) == before + 1
    assert LrCurve(points, 10).diverged


def test_a_loss_that_stays_is_followed_to_the_end():
    points = tuple(followed(range(30), [0.5] * 30, 3))
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


@pytest.mark.parametrize("name", ["frozen", "finetune"])
def test_its_steps_are_those_of_training(material, parameters, seen, name):
    """Also in number: 14 steps are more than four passes over the images."""
    setup = material.setup
    phase = next(phase for phase in setup.phases if phase.name == name)
    rates, before, told = LrRange(1e-5, 1e-2, 14), param_digests(parameters), []
    curve = lr_range_test.range_test(material, phase, parameters, rates, told.append)
    states, (compiled,) = seen
    assert (len(curve.points), len(states), told, compiled._cache_size()) == (14, 14, [10, 4], 1)
    assert param_digests(parameters) == before

    fastest, first = max(phase.param_groups.lrs.values()), phase.first_step

    def scheduled(rate):
        return lambda taken: jnp.array([np.float32(each * (rate / fastest)) for each in rates.lrs()])[taken]

    groups = phase.param_groups
    schedules = {group: scheduled(lr) for group, lr in groups.lrs.items() if lr}
    transformation = make_optimizer(
        groups.labels, schedules, optimizer_factory(setup.config.optimizer), groups.lr_scales
    )
    way = material.way(phase, parameters, transformation)
    step = make_train_step(way.task, way.data.sharding(setup.mesh))
    state = initial_state(setup, phase, parameters, transformation)
    sums = [0.0]
    examples = way.data.train_batches(setup.sampler(), first, first + 14, way.task.augmentation)
    for given, after in zip(examples, states, strict=True):
        state = step(state, way.frozen, given)
        assert all(np.array_equal(after[path], value) for path, value in state.updated_params.items())
        sums.append(float(state.metrics.loss))
    assert after.keys() == state.updated_params.keys()
    # A running float32 sum of up to 56 losses below 4: its last bit is 2**-16, a mean of four loses two
    losses = [(after - before) / 4 for before, after in pairwise(sums)]
    np.testing.assert_allclose([point.loss for point in curve.points], losses, atol=2.0**-16)


def test_parameters_that_overflow_are_no_error(material, parameters):
    phase = material.setup.phases[0]
    curve = lr_range_test.range_test(material, phase, parameters, LrRange(1e-3, 1e38, 20), lambda done: None)
    assert curve.diverged
    assert len(curve.points) < 20
    assert all(math.isfinite(point.loss) for point in curve.points[:-1])
