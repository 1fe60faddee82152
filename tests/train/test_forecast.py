from dataclasses import replace

import pytest
from helpers import tiny_run

from flaxtl.train.forecast import PhaseWork, RunWork, describe_time, forecast, run_work

FROZEN = PhaseWork("frozen", steps=100, flops=1e9, features=2e9, on_features=True)
AUGMENTED = PhaseWork("augmented", steps=50, flops=400e9, features=2e9, on_features=False)
FINETUNE = PhaseWork("finetune", steps=50, flops=600e9, features=0.0, on_features=False)
WORK = RunWork((FROZEN, AUGMENTED, FINETUNE), evaluation=20e9)


def test_seconds_left_on_features_uses_the_speed_of_the_feature_cache():
    # 5 images/s * 2e9 = 10 GFLOP/s: 2 s of steps, 40 s and 60 s of the later phases, 2 s of evaluation
    assert WORK.seconds_left("frozen", 0, steps_per_second=50.0, images_per_second=5.0) == pytest.approx(104)
    assert WORK.seconds_left("frozen", 50, steps_per_second=50.0, images_per_second=5.0) == pytest.approx(103)


def test_seconds_left_is_unknown_until_the_backbone_has_run():
    assert WORK.seconds_left("frozen", 0, steps_per_second=50.0, images_per_second=None) is None
    views = replace(AUGMENTED, on_features=True, computes_views=True)
    work = RunWork((FROZEN, views), evaluation=0.0)
    assert work.seconds_left("frozen", 0, steps_per_second=50.0, images_per_second=None) is None
    assert work.seconds_left("frozen", 0, steps_per_second=50.0, images_per_second=5.0) == pytest.approx(2 + 40)


def test_seconds_left_on_images_uses_the_speed_of_the_steps():
    # 50 steps of 8 GFLOP each, 1 s each: 8 GFLOP/s
    assert WORK.seconds_left("augmented", 10, 1.0, images_per_second=None) == pytest.approx(40 + 75 + 2.5)
    assert WORK.seconds_left("finetune", 10, 1.0, images_per_second=None) == pytest.approx(40 + 20 / 12)


def test_seconds_left_of_phases_on_features_is_the_time_of_their_steps():
    work = RunWork((FROZEN, replace(FROZEN, name="second", steps=300)), evaluation=0.0)
    assert work.seconds_left("frozen", 0, steps_per_second=50.0, images_per_second=None) == pytest.approx(8)


def test_seconds_left_counts_operations_of_layers_above_features():
    work = RunWork((FROZEN, replace(FINETUNE, on_features=True)), evaluation=0.0)
    # 2 s of steps, and 60 s of 600e9 operations at 10 GFLOP/s instead of 1 s of steps
    assert work.seconds_left("frozen", 0, steps_per_second=50.0, images_per_second=5.0) == pytest.approx(62)


def test_seconds_left_of_a_resumed_run_uses_features_of_its_phase():
    # a first phase without a cut layer; then, at 10 GFLOP/s, 2 s of steps and 2 s of evaluation
    work = RunWork((FINETUNE, FROZEN), evaluation=20e9)
    assert work.seconds_left("frozen", 0, steps_per_second=50.0, images_per_second=5.0) == pytest.approx(4)


def test_run_work_counts_steps_validation_and_evaluation(folder, tmp_path):
    work = run_work(tiny_run.setup(folder, tmp_path))
    positions, half = 32 * 32, 16 * 16
    block1 = 2 * positions * 9 * (3 * 64 + 64 * 64)
    block2 = 2 * half * 9 * (64 * 128 + 128 * 128)
    head = 2 * (128 * 8 + 8 * 3)
    frozen, finetune = work.phases
    assert (frozen.steps, frozen.on_features, finetune.steps, finetune.on_features) == (6, True, 6, False)
    assert frozen.flops == 6 * 4 * 3 * head + 2 * 6 * head
    assert finetune.flops == 6 * 4 * (block1 + 3 * (block2 + head)) + 2 * 6 * (block2 + head)
    assert work.evaluation == 6 * (block1 + block2 + head)
    assert frozen.features == block1 + block2
    assert finetune.features == block1


def test_run_work_adds_cached_views_to_the_first_phase_that_reads_them(folder, tmp_path):
    block1, block2 = 2 * 32 * 32 * 9 * (3 * 64 + 64 * 64), 2 * 16 * 16 * 9 * (64 * 128 + 128 * 128)
    head = 2 * (128 * 8 + 8 * 3)
    _, finetune = run_work(tiny_run.setup(folder, tmp_path, feature_cache={"views": 5})).phases
    assert finetune.on_features
    assert finetune.computes_views
    assert finetune.flops == 12 * 5 * block1 + 6 * 4 * 3 * (block2 + head) + 2 * 6 * (block2 + head)


def test_forecast_names_the_phases_that_are_left(folder, tmp_path):
    setup = tiny_run.setup(folder, tmp_path, finetune={"patience": 1, "epochs": 3})
    first, second = setup.phases
    assert forecast(setup, first, 0, 10.0, None) is None
    assert forecast(setup, first, 0, 10.0, 1e6) == "Less than a minute for 2 phases, less if one stops early."
    assert forecast(setup, second, 0, 1 / 60, None) == "About 10 minutes for the last phase, less if it stops early."
    short = tiny_run.setup(folder, tmp_path, finetune={"patience": 1, "epochs": 2})  # it cannot stop before its end
    assert forecast(short, short.phases[1], 0, 1 / 60, None) == "About 7 minutes for the last phase."


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (3, "Less than a minute"),
        (60, "About a minute"),
        (700, "About 12 minutes"),
        (5300, "About 88 minutes"),
        (9000, "About 2.5 hours"),
    ],
)
def test_describe_time_rounds_to_what_is_known(seconds, text):
    assert describe_time(seconds) == text
