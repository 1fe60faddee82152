"""Every config in configs/ is valid, and flowers_vgg16 has the numbers of the course exercise."""

import re
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest

from flaxtl.cli.main import main
from flaxtl.config import load_config
from flaxtl.data.augment.config import AugmentConfig
from flaxtl.data.decode import Resize
from flaxtl.errors import UserError
from flaxtl.models import registry
from flaxtl.models.classifier import Classifier
from flaxtl.train import run_dir
from flaxtl.train.metrics import class_weights
from flaxtl.train.optimizers import phase_optimizer
from flaxtl.train.phases import build_phases
from flaxtl.train.run_records import read_metrics
from flaxtl.train.setup import build_model

CONFIGS = Path(__file__).parents[2] / "configs"
VARIANTS = {
    "demo.py": [""],
    "flowers_tuned.py": [""],
    "flowers_vgg16.py": ["", "scratch", "smoke"],
    "folder.py": [""],
    "gradual.py": [""],
}
SPECS = [f"{file}:{variant}" if variant else file for file, variants in VARIANTS.items() for variant in variants]


def load(spec, *overrides):
    return load_config(str(CONFIGS / spec), overrides)


def model_and_phases(config, n_train=1835):
    net = build_model(config, num_classes=5)
    return net, build_phases(config, net.model, net.layers, net.groups, n_train)


def test_all_configs_are_tested():
    assert sorted(VARIANTS) == sorted(file.name for file in CONFIGS.glob("*.py"))


@pytest.mark.parametrize("spec", SPECS)
def test_config_gives_a_model_with_phases(spec):
    config = load(spec)
    net, phases = model_and_phases(config)
    assert isinstance(net.model, Classifier)
    assert [phase.name for phase in phases] == list(config.phases)
    assert any(settings.augment for settings in phases)
    Resize(config.data.height, config.data.width, config.data.resize, config.data.interpolation, config.data.crop_pct)
    AugmentConfig(**config.augmentation.to_dict())
    tree = {path: jax.ShapeDtypeStruct(shape, "float32") for path, shape in net.shapes.items()}
    for phase in phases:
        learning, _, frozen = phase.param_groups.partition(tree)
        assert learning
        assert frozen
        made = phase_optimizer(config.optimizer, phase.param_groups, phase.schedule, phase.steps, phase.warmup_steps)
        jax.eval_shape(made.init, learning)


@pytest.mark.parametrize("file", [file for file, variants in VARIANTS.items() if variants != [""]])
def test_config_with_an_unknown_variant_lists_the_known_ones(file):
    with pytest.raises(UserError, match="'nonsense'.*" + ", ".join(VARIANTS[file][1:])):
        load(f"{file}:nonsense")


def test_flowers_vgg16_has_the_model_of_the_exercise():
    net, _ = model_and_phases(load("flowers_vgg16.py"))
    assert net.count("head/") == 590_597
    assert net.count("backbone/") == 14_714_688
    assert net.count("backbone/block5_") == 7_079_424
    assert [layer[1:4] for layer in net.layers if layer.section == "head"] == [
        ("pool", "average pool", (3, 3, 512)),
        ("flatten", "flatten", (4608,)),
        ("dense_1", "dense", (128,)),
        ("dropout_1", "dropout", (128,)),
        ("predictions", "dense", (5,)),
    ]
    assert net.model.head.dropout == 0.4


def test_flowers_vgg16_has_the_phases_of_the_exercise():
    config = load("flowers_vgg16.py")
    _, phases = model_and_phases(config)
    rows = [
        (phase.name, phase.epochs, phase.steps_per_epoch, phase.augment, phase.param_groups.lrs) for phase in phases
    ]
    assert rows == [
        ("frozen", 100, 20, False, {"head": 1e-3, "block5": 0.0, "base": 0.0}),
        ("augmented", 100, 20, True, {"head": 1e-3, "block5": 0.0, "base": 0.0}),
        ("finetune", 250, 20, True, {"head": 1e-6, "block5": 1e-6, "base": 0.0}),
    ]
    assert [(phase.first_step, phase.last_step) for phase in phases] == [(0, 2000), (2000, 4000), (4000, 9000)]
    assert [phase.cut_layer for phase in phases] == ["block5_pool", "block5_pool", "block4_pool"]
    assert {phase.schedule for phase in phases} == {"constant"}
    assert {phase.patience for phase in phases} == {0}
    assert config.optimizer.to_dict() == {"name": "nadam", "b1": 0.9, "b2": 0.99, "eps": 1e-7}
    assert config.batch_size == 32


def test_flowers_vgg16_has_the_data_of_the_exercise():
    config = load("flowers_vgg16.py")
    assert config.data.source == "tfds:tf_flowers"
    assert config.data.classes == ("daisy", "dandelion", "roses", "sunflowers", "tulips")
    assert (config.data.height, config.data.width) == (200, 200)
    assert config.data.fractions.to_dict() == {"train": 0.5, "validation": 0.2, "test": 0.3}
    assert AugmentConfig(**config.augmentation.to_dict()) == AugmentConfig(
        rotation=30.0,
        height_shift=0.2,
        width_shift=0.2,
        shear=0.2,
        zoom=0.2,
        horizontal_flip=True,
    )


def test_flowers_vgg16_scratch_skips_the_frozen_phase():
    _, phases = model_and_phases(load("flowers_vgg16.py:scratch"))
    assert [(phase.name, phase.epochs) for phase in phases] == [("augmented", 250), ("finetune", 250)]


def test_flowers_tuned_trains_block5_on_cached_views():
    config = load("flowers_tuned.py")
    net, (phase,) = model_and_phases(config)
    trained = {path.split("/")[1] for path in net.shapes if phase.param_groups.is_trainable(path)}
    assert trained == {"block5_conv1", "block5_conv2", "block5_conv3", "predictions"}
    assert net.count("head/") == 512 * 5 + 5
    assert (phase.cut_layer, config.feature_cache.views, phase.steps) == ("block4_pool", 6, 6 * 58)


def test_flowers_configs_use_the_same_images():
    data = [load(file).data.to_dict() for file in ("flowers_vgg16.py", "flowers_tuned.py")]
    for settings in ("source", "classes", "fractions"):
        assert data[0][settings] == data[1][settings]


QUICK = ("vgg16", "mobilenet_025")


@pytest.mark.parametrize(
    "name",
    [
        *QUICK,
        *(
            pytest.param(name, marks=pytest.mark.exhaustive("networks"))
            for name in registry.MODELS
            if name not in QUICK
        ),
    ],
)
def test_folder_config_works_with_every_model(name):
    net, phases = model_and_phases(load("folder.py", f"--config.model.name={name}"))
    assert net.model.spec.name == name
    top = net.model.spec.last_block
    assert [group for group, rate in phases[-1].param_groups.lrs.items() if rate] == ["head", top]
    assert {group: rate for group, rate in phases[0].param_groups.lrs.items() if rate} == {"head": 1e-3}
    assert any(net.groups[path] == top and phases[-1].param_groups.is_trainable(path) for path in net.groups)


def test_gradual_config_unfreezes_one_block_per_phase():
    net, phases = model_and_phases(load("gradual.py"))
    learning = [{group for group, rate in phase.param_groups.lrs.items() if rate} for phase in phases]
    assert learning == [{"head"}, {"head", "block5"}, {"head", "block5", "block4"}]
    assert [phase.cut_layer for phase in phases] == ["block5_pool", "block4_pool", "block3_pool"]
    last = phases[-1].param_groups
    assert last.lr_range("head") == (2e-5, 2e-5)
    assert last.lr_range("block5") == (1e-5, 1e-5)
    assert last.lr_range("block4") == (5e-6, 5e-6)
    assert all(last.lrs[net.groups[path]] == 0 for path in net.groups if "/block3_" in path)


@pytest.mark.parametrize(("n_train", "steps"), [(32, [1020, 200, 200]), (1835, [1740, 580, 580])])
def test_gradual_config_warms_up_a_tenth_of_a_phase_at_most(n_train, steps):
    _, phases = model_and_phases(load("gradual.py"), n_train)
    assert [phase.steps for phase in phases] == steps
    assert [phase.warmup_steps for phase in phases] == [0, 20, 20]


@pytest.mark.exhaustive("runs")
def test_gradual_config_trains_on_synthetic_images(tmp_path, capsys):
    overrides = [
        "--config.data.source=synthetic",
        "--config.data.height=32",
        "--config.data.width=32",
        "--config.batch_size=8",
    ]
    overrides += ["--config.head.pooling=global_average", "--config.weights.path=random"]
    overrides += [f"--config.{phase}.epochs=1" for phase in ("frozen", "thaw5", "thaw4")]
    overrides += [f"--config.{phase}.steps_per_epoch=2" for phase in ("frozen", "thaw5", "thaw4")]
    overrides += [f"--config.{phase}.warmup_steps=1" for phase in ("thaw5", "thaw4")]
    main(["train", f"--config={CONFIGS / 'gradual.py'}", f"--workdir={tmp_path / 'run'}", *overrides])
    output = capsys.readouterr().out
    assert re.search(r"^ +block4 .* 5e-06 ", output, re.MULTILINE)
    assert re.search(r"^ +block5 .* 1e-05 ", output, re.MULTILINE)
    phases = run_dir.read_summary(tmp_path / "run").phases
    assert [phases[name].frozen_arrays_verified for name in phases] == [26, 20, 14]
    assert [row.lrs for row in read_metrics(tmp_path / "run")][-1] == {
        "head": 2e-5,
        "block5": 1e-5,
        "block4": 5e-6,
    }


def test_overrides_on_the_configuration_page_are_valid():
    page = (CONFIGS.parent / "docs" / "configuration.md").read_text(encoding="utf-8")
    lines = re.findall(r"^--config\..*", page, re.MULTILINE)
    assert len(lines) > 10
    net = build_model(load("folder.py"), num_classes=5)
    for line in lines:
        config = load("folder.py", *shlex.split(line))
        build_phases(config, net.model, net.layers, net.groups, 1835)
        class_weights(config.class_weights, ("daisy", "roses"), np.array([0, 1, 1]))


def test_demo_config_needs_no_downloads():
    config = load("demo.py")
    assert config.data.source == "synthetic"
    assert config.weights.path == "builtin"


def test_demo_config_runs_frozen_layers_on_cached_views_only():
    config = load("demo.py")
    _, phases = model_and_phases(config, 200)
    assert [(phase.cut_layer, phase.augment) for phase in phases] == [
        ("block5_pool", False),
        ("block5_pool", True),
        ("block4_pool", True),
    ]
    assert all(config.feature_cache.views < phase.epochs for phase in phases)  # otherwise they save nothing


@pytest.mark.parametrize("spec", SPECS)
def test_config_accepts_the_overrides_of_the_checks(spec):
    phase = load(spec).phases[-1]
    config = load(
        spec,
        "--config.seed=1",
        "--config.weights.path=random",
        "--config.data.source=folder:x",
        "--config.data.height=64",
        "--config.batch_size=8",
        f"--config.{phase}.epochs=1",
        f"--config.{phase}.steps_per_epoch=2",
        f"--config.{phase}.lr.block5=3e-6",
        f"--config.{phase}.augment=False",
    )
    assert config.data.source == "folder:x"
    settings = config[phase]
    assert (settings.epochs, settings.steps_per_epoch, settings.lr.block5, settings.augment) == (1, 2, 3e-6, False)
