"""docs/migrating.md: its settings are valid, its table of optimizers is true, and a test compares what is equal."""

import ast
import inspect
import re

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import doc_pages

from flaxtl.config import load_config
from flaxtl.data.augment.config import AugmentConfig
from flaxtl.models import registry
from flaxtl.train import optimizers
from flaxtl.train.metrics import class_weights, cross_entropy
from flaxtl.train.phases import build_phases
from flaxtl.train.setup import build_model

PAGE = (doc_pages.ROOT / "docs" / "migrating.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in PAGE.splitlines() if line.startswith("| ")]
TABLES = {"numbers": 3, "updates": 6}
"""Last column -> number of columns."""

KERAS_NAMES = {
    "nadam": "Nadam",
    "adam": "Adam",
    "adamw": "AdamW",
    "rmsprop": "RMSprop",
    "sgd": "SGD",
    "lion": "Lion",
    "lamb": "Lamb",
}
LR, STEPS = 1e-3, 10

COMPARISONS = {
    "keras.applications.EfficientNetB0": "models/test_keras_parity.py::test_outputs_equal_keras",
    'weights="imagenet"': "models/test_registry.py::test_weights_files_are_those_of_keras",
    "your own trained model": "pretrained/test_loader.py::test_load_flat_model_returns_its_weights",
    "preprocess_input": "models/test_imagenet.py::test_preprocessing_equals_keras",
    "include_top=True": "evaluation/test_predictor.py::test_predict_classes_and_scores_equal_keras",
    "AveragePooling2D": "models/test_head.py::test_head_equals_keras_layers",
    "keras.Model(base.input": "evaluation/test_predictor.py::test_predict_taps_equal_keras_layer_outputs",
    "the same, for feature": "evaluation/test_predictor.py::test_predict_taps_equal_keras_layer_outputs",
    "load_img": "data/test_decode.py::test_decode_squash_is_keras_load_img",
    "ImageDataGenerator": "data/augment/test_ops.py::test_augment_all_of_keras_matches_keras",
    "layer.trainable": "train/test_finetune.py::test_train_step_matches_keras",
    "base(x, training=False)": "train/test_finetune.py::test_train_step_matches_keras",
    "optimizer=Nadam": "train/test_optimizers.py::test_nadam_matches_keras",
    "Nadam(weight_decay": "train/test_optimizers.py::test_nadam_matches_keras",
    "Nadam(global_clipnorm": "train/test_optimizers.py::test_clip_norm_clips_trainable_gradients_as_optax_and_keras",
    "CosineDecay": "e2e/test_migrating.py::test_cosine_schedule_matches_keras",
    "ReduceLROnPlateau": "train/test_epoch_loop.py::test_plateau_reduces_rates_where_keras_does",
    "Adam(use_ema=True": "train/test_train_step.py::test_ema_update_matches_keras",
    "class_weight": "e2e/test_migrating.py::test_smoothed_weighted_loss_matches_keras",
    "CategoricalCrossentropy": "e2e/test_migrating.py::test_smoothed_weighted_loss_matches_keras",
    "model.summary()": "cli/test_commands.py::test_summary_counts_parameters_as_keras_does",
    "vit_base_patch16_224": "models/test_vit.py::test_network_equals_timm",
    "a timm or torchvision": "pretrained/test_timm.py::test_converted_model_with_torch_preprocessing_equals_pytorch",
    "--crop-pct": "data/test_decode.py::test_crop_box_is_that_of_torchvision",
}
"""Beginning of a row whose numbers are equal -> the test that compares them."""


def rows_of(last_column):
    """Return the rows below each header that ends with this column, up to the next header."""
    inside, found = False, []
    for row in ROWS:
        if row[-1] in TABLES:
            inside = row[-1] == last_column
        elif inside and not set("".join(row)) <= set("-"):
            found.append(row)
    return found


def test_rows_that_are_equal_have_a_test_that_compares():
    rows = rows_of("numbers")
    assert len(rows) > 80
    assert {row[2] for row in rows} == {"equal", "same", "similar"}
    equal = [row[0].strip("`") for row in rows if row[2] == "equal"]
    assert [next((start for start in COMPARISONS if row.startswith(start)), row) for row in equal] == list(COMPARISONS)
    for test in COMPARISONS.values():
        file, name = test.split("::")
        tree = ast.parse((doc_pages.ROOT / "tests" / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, test


def settings_of_the_page():
    """Return the `--config.KEY=VALUE` of each piece of code, without those that hold a placeholder."""
    for piece in doc_pages.code(PAGE):
        flags = re.findall(r"--config\.[\w.]+=(?:'[^']*'|\"[^\"]*\"|\S+)", piece)
        flags = [flag for flag in flags if not re.search(r"=(FILE|NAME)$|PATH", flag)]
        if flags:
            yield flags


def test_settings_of_the_page_are_valid():
    """With VGG16 in place of other networks, which take a second each to trace."""
    pieces = list(settings_of_the_page())
    assert len(pieces) > 35
    models = {}
    for flags in pieces:
        for name in re.findall(r"model\.name=(\S+)", " ".join(flags)):
            registry.get_spec(name)
        flags = [flag for flag in flags if not re.search(r"model\.name|data\.(height|width)", flag)]
        values = [flag.replace('"', "") if "class_weights" in flag else re.sub(r"[\"']", "", flag) for flag in flags]
        config = load_config("folder", values)
        key = str((config.model, config.head))
        model = models[key] = models.get(key) or build_model(config, num_classes=5)
        build_phases(config, model.model, model.layers, model.groups, 1835, model.unused_groups)
        AugmentConfig(**config.augmentation.to_dict())
        class_weights(config.class_weights, ("daisy", "roses"), np.array([0, 1, 1]))


def as_number(cell):
    return None if cell == "–" else float(cell)


@pytest.mark.parametrize("row", rows_of("updates"), ids=lambda row: row[0].strip("`"))
def test_defaults_of_optimizers_are_those_of_the_table(row):
    import keras

    name = row[0].strip("`")
    ours = inspect.signature(optimizers.nadam if name == "nadam" else getattr(optax, name)).parameters
    theirs = getattr(keras.optimizers, KERAS_NAMES[name])().get_config()
    defaults = [ours[key].default if key in ours else None for key in ("eps", "weight_decay")]
    assert [as_number(row[1]), as_number(row[3])] == defaults
    assert [as_number(row[2]), as_number(row[4])] == [theirs.get("epsilon"), theirs["weight_decay"] or 0]


@pytest.mark.parametrize(
    ("name", "settings"),
    [("adam", {"eps": 1e-7}), ("rmsprop", {"eps": 1e-7}), ("sgd", {}), ("lion", {"weight_decay": 0.0})],
)
def test_optimizer_updates_match_keras(name, settings):
    """Gradients are 1 to 2 in size, so that epsilon, where Keras' Adam adds it, is at most 3e-6 of a step."""
    import keras

    ours = jnp.zeros(5)
    theirs = keras.Variable(ours)
    reference = getattr(keras.optimizers, KERAS_NAMES[name])(LR)
    reference.build([theirs])
    transformation = optimizers.optimizer_factory({"name": name, **settings})(optax.constant_schedule(LR))
    state = transformation.init({"w": ours})
    generator = np.random.default_rng(0)
    for _ in range(STEPS):
        gradient = jnp.asarray(generator.uniform(1, 2, 5) * generator.choice([-1, 1], 5), jnp.float32)
        reference.apply([gradient])
        updates, state = transformation.update({"w": gradient}, state, {"w": ours})
        ours = ours + updates["w"]
    assert np.abs(ours).max() > LR
    size = LR * (3.2 if name == "rmsprop" else 2)  # of a step: rmsprop's first is 1 / sqrt(0.1) of the rate
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=STEPS * size * 4e-6)


def test_cosine_schedule_matches_keras():
    import keras

    ours = optimizers.make_schedule("cosine", 1e-5, 400, 50)
    theirs = keras.optimizers.schedules.CosineDecay(0.0, 350, warmup_target=1e-5, warmup_steps=50)
    steps = [0, 1, 49, 50, 51, 225, 399, 400]
    rates = [[float(schedule(step)) for step in steps] for schedule in (ours, theirs)]
    np.testing.assert_allclose(*rates, rtol=0, atol=1e-5 * 2.0**-22)  # of the highest rate: float32


def test_smoothed_weighted_loss_matches_keras():
    import keras

    generator = np.random.default_rng(0)
    logits = generator.normal(size=(64, 5)).astype(np.float32)
    labels = generator.integers(0, 5, 64).astype(np.int32)
    weights = class_weights("{'b': 2.0, 'd': 0.5}", "abcde", labels)
    ours = np.array(weights)[labels] * np.asarray(cross_entropy(jnp.asarray(logits), jnp.asarray(labels), 0.1))
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1, reduction="none")
    theirs = np.array([1, 2, 1, 0.5, 1])[labels] * np.asarray(loss(np.eye(5, dtype=np.float32)[labels], logits))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
