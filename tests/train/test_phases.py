"""Phases: cut layers, plateaus, learning rates, invalid settings."""

from types import SimpleNamespace

import numpy as np
import pytest
from helpers import tiny_run
from ml_collections import ConfigDict

from flaxtl.errors import UserError
from flaxtl.models import classifier, registry
from flaxtl.models.classifier import Classifier
from flaxtl.models.head import Head
from flaxtl.models.tracer import Layer
from flaxtl.train import param_groups, phases
from flaxtl.train.setup import build_model

MODEL = Classifier(registry.get_spec("vgg16"), Head(3, "global_average", (8,), 0.4))
GROUPS = (("head", "head/.*"), ("block5", "backbone/block5_.*"), ("block1", "backbone/block1_.*"), ("base", ".*"))


@pytest.fixture(scope="module")
def layers():
    return classifier.list_layers(MODEL, 32, 32)


@pytest.fixture(scope="module")
def net():
    return build_model(tiny_run.config("unused"), num_classes=3)


def plan(net, n_train=12, **changes):
    return phases.build_phases(tiny_run.config("unused", **changes), net.model, net.layers, net.groups, n_train)


@pytest.mark.parametrize(
    ("learning", "cut"),
    [
        (["head"], "block5_pool"),
        (["block5"], "block4_pool"),
        (["head", "block5"], "block4_pool"),
        (["base"], "block1_pool"),
        (["block1"], None),
        (["head", "block1"], None),
    ],
)
def test_find_cut_layer_is_below_lowest_trained_layer(layers, learning, cut):
    assigned = param_groups.assign_groups(
        list(classifier.flatten_params(classifier.param_shapes(MODEL, 32, 32))), GROUPS
    )
    rates = {group: 1e-3 if group in learning else 0.0 for group, _ in GROUPS}
    assert phases.find_cut_layer(MODEL, layers, param_groups.make_param_groups("tune", assigned, rates), 10) == cut


@pytest.mark.parametrize(("trained", "cut"), [("block1", None), ("block5", "block4_pool")])
def test_find_cut_layer_is_not_below_all_parameters(layers, trained, cut):
    pad = Layer("backbone", "pad", "pad", (34, 34, 3))  # as ResNet50 begins: caching its outputs would save nothing
    padded = [pad, layers[0]._replace(inputs=("pad",)), *layers[1:]]
    assigned = param_groups.assign_groups(
        list(classifier.flatten_params(classifier.param_shapes(MODEL, 32, 32))), GROUPS
    )
    rates = {group: 1e-3 if group == trained else 0.0 for group, _ in GROUPS}
    assert phases.find_cut_layer(MODEL, padded, param_groups.make_param_groups("tune", assigned, rates), 10) == cut


def test_find_cut_layer_too_large_outputs_gives_none(layers):
    assigned = param_groups.assign_groups(
        list(classifier.flatten_params(classifier.param_shapes(MODEL, 32, 32))), GROUPS
    )
    split = param_groups.make_param_groups(
        "tune", assigned, {group: 1e-3 if group == "head" else 0.0 for group, _ in GROUPS}
    )
    image = 512 * 4  # block5_pool of 32x32 images is 1x1x512, float32
    assert phases.find_cut_layer(MODEL, layers, split, phases.FEATURE_CACHE_BYTES // image) == "block5_pool"
    assert phases.find_cut_layer(MODEL, layers, split, phases.FEATURE_CACHE_BYTES // image + 1) is None


@pytest.mark.parametrize(
    ("own", "lr", "facts"),
    [
        ((), {"head": 0.1, "top": 0.2, "base": 0.0}, None),
        ((), {"head": 0.1, "block5": 0.2, "base": 0.0}, None),
        ((), {"haed": 0.1, "top": 0.2, "base": 0.0}, r"frozen\.lr\b.*'haed'.*'head'"),
        ((*GROUPS[:1], ("base", ".*")), {"head": 0.1, "top": 0.2, "base": 0.0}, r"frozen\.lr\b.*'top'"),
    ],
)
def test_build_phases_top_is_the_last_block(own, lr, facts):
    config = tiny_run.config(
        "unused", param_groups=own, model={"name": "vgg16", "output_layer": ""}, phases=("frozen",)
    )
    config.frozen.lr = ConfigDict(lr)
    net = build_model(config, num_classes=3)
    if facts is None:
        (frozen,) = phases.build_phases(config, net.model, net.layers, net.groups, 12)
        assert frozen.param_groups.lrs == {"head": 0.1, "block5": 0.2, "base": 0.0}
    else:
        with pytest.raises(UserError, match=facts):
            phases.build_phases(config, net.model, net.layers, net.groups, 12)


@pytest.mark.parametrize(("n_train", "steps"), [(12, 3), (13, 4), (1, 1)])
def test_build_phases_steps_per_epoch_default_covers_all_images(net, n_train, steps):
    frozen, finetune = plan(net, n_train, finetune={"steps_per_epoch": 20})
    assert (frozen.steps_per_epoch, finetune.steps_per_epoch) == (steps, 20)
    assert (frozen.first_step, frozen.steps, frozen.last_step) == (0, 2 * steps, 2 * steps)
    assert (finetune.first_step, finetune.steps, finetune.last_step) == (2 * steps, 40, 2 * steps + 40)
    assert (frozen.cut_layer, finetune.cut_layer) == ("block2_pool", "block1_pool")


@pytest.mark.parametrize(
    ("n_train", "settings", "steps"),
    [
        (12, {"min_steps": 20}, 10),  # 2 epochs of 3 steps would be 6
        (12, {"min_steps": 21}, 11),
        (12, {"min_steps": 6}, 3),
        (12, {"min_steps": 20, "epochs": 1}, 20),
        (12, {"min_steps": 20, "steps_per_epoch": 4}, 4),
    ],
)
def test_build_phases_min_steps_makes_epochs_longer(net, n_train, settings, steps):
    frozen, finetune = plan(net, n_train, frozen=settings)
    assert (frozen.epochs, frozen.steps_per_epoch) == (settings.get("epochs", 2), steps)
    assert finetune.first_step == frozen.epochs * steps


@pytest.mark.parametrize(
    ("metric", "value", "best", "better"),
    [
        ("validation_loss", 0.5, None, True),
        ("validation_loss", 0.4, 0.5, True),
        ("validation_loss", 0.5, 0.5, False),
        ("train_accuracy", 0.6, 0.5, True),
        ("validation_accuracy", 0.5, 0.5, False),
        ("validation_accuracy", 0.4, 0.5, False),
    ],
)
def test_is_improvement_follows_the_metric(net, metric, value, best, better):
    frozen, _ = plan(net, frozen={"monitor": metric})
    assert frozen.is_improvement(value, best) == better


@pytest.mark.parametrize(("mode", "metric"), [("min", "validation_loss"), ("max", "validation_accuracy")])
@pytest.mark.parametrize("patience", [1, 2, 3])
def test_plateau_reached_matches_keras(net, mode, metric, patience):
    import keras

    frozen, _ = plan(net, frozen={"schedule": "plateau", "monitor": metric, "plateau_patience": patience})
    model = SimpleNamespace(optimizer=keras.optimizers.SGD(0.5))
    watch = keras.callbacks.ReduceLROnPlateau(metric, factor=0.5, patience=patience, mode=mode, min_delta=0)
    watch.set_model(model)
    watch.on_train_begin()
    best, best_epoch, rate = None, 0, 0.5
    # Few values, so that some are equal; a trend, so that some are better.
    values = (np.random.default_rng(0).integers(0, 6, 60) - np.arange(60) // 15) / 8 * (1 if mode == "min" else -1)
    for epoch, value in enumerate(values.tolist(), start=1):
        watch.on_epoch_end(epoch - 1, {metric: value})
        if frozen.is_improvement(value, best):
            best, best_epoch = value, epoch
        rate *= 0.5 if frozen.plateau_reached(epoch - best_epoch) else 1.0
        assert rate == float(model.optimizer.learning_rate)  # a power of 2 in both
    assert 2**-60 < rate < 2**-8


def test_plateau_reached_other_schedule_is_false(net):
    frozen, _ = plan(net, frozen={"plateau_patience": 1})
    assert not any(frozen.plateau_reached(waited) for waited in range(20))


def test_lrs_are_those_of_the_last_step(net):
    frozen, finetune = plan(net, frozen={"schedule": "linear", "warmup_steps": 2}, finetune={"schedule": "plateau"})
    assert frozen.lrs(1, 1.0) == {"head": 0.0}
    assert frozen.lrs(3, 1.0) == {"head": 0.01}
    assert frozen.lrs(6, 1.0) == {"head": 0.0025}  # the 4th of 4 steps down to 0
    assert finetune.lrs(6, 0.1) == {"head": 1e-4, "block2": 1e-5}


def test_lrs_with_layer_decay_are_those_of_the_highest_and_lowest_layer(net):
    _, finetune = plan(
        net, finetune={"layer_decay": 0.5, "schedule": "linear", "lr": {"head": 1e-3, "block2": 1e-4, "base": 1e-5}}
    )
    assert finetune.lrs(1, 1.0) == {"head": 1e-3, "block2": 5e-5, "base": 2.5e-6}
    assert finetune.lrs(4, 0.1) == {"head": 5e-5, "block2": 2.5e-6, "base": 1.25e-7}  # the 4th of 6 steps down to 0


def test_lrs_of_a_group_with_several_blocks_are_a_range(net):
    groups = (("head", "head/.*"), ("base", "backbone/.*"))
    config = tiny_run.config(
        "unused",
        param_groups=groups,
        phases=("frozen",),
        frozen={"layer_decay": 0.5, "lr": {"head": 1e-3, "base": 1e-4}},
    )
    whole = build_model(config, num_classes=3)
    (phase,) = phases.build_phases(config, whole.model, whole.layers, whole.groups, 12)
    assert phase.lrs(1, 1.0) == {"head": 1e-3, "base": 5e-5, "base (lowest)": 2.5e-5}


def test_build_phases_layer_decay_counts_blocks_up_to_output_layer(net):
    _, finetune = plan(net, finetune={"layer_decay": 0.5})
    factors = {path.split("/")[1]: factor for path, factor in finetune.param_groups.lr_scales.items()}
    assert factors == {
        "predictions": 1.0,
        "dense_1": 1.0,
        "block2_conv2": 0.5,
        "block2_conv1": 0.5,
        "block1_conv2": 0.25,
        "block1_conv1": 0.25,
    }
    assert plan(net)[1].param_groups.lr_scales == {}


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"frozen": {"epochs": 0}}, r"frozen\.epochs\b.*\b0\b"),
        ({"frozen": {"steps_per_epoch": -1}}, r"frozen\.steps_per_epoch\b.*-1\b"),
        ({"frozen": {"min_steps": -1}}, r"frozen\.min_steps\b.*-1\b"),
        ({"finetune": {"patience": -2}}, r"finetune\.patience\b.*-2\b"),
        ({"finetune": {"warmup_steps": -1}}, r"finetune\.warmup_steps\b.*-1\b"),
        ({"frozen": {"warmup_steps": 99}}, r"frozen\.warmup_steps\b.*\b99\b.*\bat most 6\b.*\bfrozen\.min_steps\b"),
        ({"frozen": {"monitor": "validation_los"}}, "'validation_los'.*'validation_loss'"),
        ({"frozen": {"schedule": "cosin"}}, r"frozen\.schedule\b.*'cosin'.*'cosine'"),
        ({"frozen": {"lr": {"head": 0.1, "base": 0.0}}}, r"frozen\.lr\b.*\bblock2\b"),
        ({"frozen": {"lr": tiny_run.FROZEN | {"head": 0.0}}}, r"'frozen'.*\bfrozen\.lr\b"),
        ({"frozen": {"plateau_factor": 1.0}}, r"frozen\.plateau_factor\b.*\b1\b"),
        ({"frozen": {"plateau_factor": 0.0}}, r"frozen\.plateau_factor\b.*\b0\b"),
        ({"frozen": {"plateau_patience": 0}}, r"frozen\.plateau_patience\b.*\b0\b"),
        ({"frozen": {"clip_norm": -1.0}}, r"frozen\.clip_norm\b.*-1\b"),
        ({"frozen": {"ema": 1.0}}, r"frozen\.ema\b.*\b1\b"),
        ({"frozen": {"ema": -0.5}}, r"frozen\.ema\b.*-0\.5\b"),
        ({"frozen": {"ema": float("nan")}}, r"frozen\.ema\b.*\b(?i:nan)\b"),
        ({"frozen": {"layer_decay": 0.0}}, r"frozen\.layer_decay\b.*\b0\b"),
        ({"frozen": {"layer_decay": 1.5}}, r"frozen\.layer_decay\b.*\b1\.5\b"),
        (
            {"frozen": {"schedule": "plateau", "patience": 10}},
            r"(?=.*'plateau')(?=.*\bfrozen\.plateau_patience\b).*\bfrozen\.patience\b\D*10\b",
        ),
        ({"batch_size": 0}, r"\bbatch\w*\b.*\b0\b"),
        ({"accum_steps": 0}, r"\baccum_steps\b.*\b0\b"),
        ({"batch_size": 16, "accum_steps": 3}, r"\bbatch_size 16\b.*\b3\b.*\b15 or 18\b"),
        ({"batch_size": 1, "augmentation": {"cutmix": 1.0}}, r"\baugmentation\.cutmix\b.*\bbatch_size\b.*\b1\b"),
        ({"label_smoothing": 1.0}, r"\blabel_smoothing\b.*\b1\b"),
        ({"optimizer": {"name": "nadm"}}, "optimizer.*'nadm'.*'nadam'"),
        ({"phases": ("frozen", "finetune", "frozen")}, "phases.*frozen, finetune, frozen"),
    ],
)
def test_build_phases_invalid_setting_is_rejected(net, changes, facts):
    with pytest.raises(UserError, match=facts):
        plan(net, **changes)
