"""Fine-tuning of every family: head and last block are trained, including batch norms; nothing below changes."""

import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from helpers import compiling, tiny_run

from flaxtl.data.device_dataset import DeviceDataset
from flaxtl.data.loaders import DeviceLoader, ImageSet
from flaxtl.data.sampler import EpochSampler
from flaxtl.errors import UserError
from flaxtl.evaluation import predictions
from flaxtl.evaluation.evaluate import evaluate_run
from flaxtl.evaluation.predictor import load_run
from flaxtl.models import efficientnet, registry
from flaxtl.models.classifier import BATCH_STATS, flatten_params, forward, forward_logits, unflatten_params
from flaxtl.models.efficientnet import Block
from flaxtl.parallel import devices
from flaxtl.train import param_groups, train_step, trainer
from flaxtl.train.checkpoints import Checkpoints
from flaxtl.train.datasets import SplitData
from flaxtl.train.epoch_loop import PhaseTrainer
from flaxtl.train.feature_cache import param_digests
from flaxtl.train.metrics import MetricSums
from flaxtl.train.optimizers import NadamState, phase_optimizer
from flaxtl.train.phases import Phase, build_phases
from flaxtl.train.setup import build_model
from flaxtl.train.train_step import TrainState

SLOW = ("mobilenet_025", "vgg16", "alexnet", "resnet50", "efficientnet_b0", "vit_tiny_patch16_224")
EXHAUSTIVE = (
    *("googlenet", "resnet50_v2", "inception_v3", "inception_resnet_v2", "xception"),
    *("densenet121", "mobilenet_v2_035", "mobilenet_v3_small_100", "nasnet_mobile", "efficientnet_v2_b0"),
    "convnext_tiny",
)
FAMILIES = (
    *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW),
    *(pytest.param(name, marks=pytest.mark.exhaustive("networks")) for name in EXHAUSTIVE),
)
"""The smallest member of each."""

BATCH = 4


@pytest.fixture(scope="module", autouse=True)
def compile_quickly():
    with compiling.compiled_quickly():
        yield


def make_config(name, folder="unused", **changes):
    """Two phases with the model's own groups at the smallest size: train the head, then also the last block."""
    side = registry.get_spec(name).min_input_size
    settings = {
        "data": {"source": f"folder:{folder}", "height": side, "width": side},
        "model": {"name": name, "output_layer": ""},
        "head": {"pooling": "global_average", "units": (16,), "dropout": 0.4},
        "param_groups": (),
        "frozen": {"lr": {"head": 1e-3, "top": 0.0, "base": 0.0}},
        "finetune": {"lr": {"head": 1e-3, "top": 1e-3, "base": 0.0}},
    }
    return tiny_run.config(folder, **(settings | changes))


def drawn(shapes, seed=0):
    """Parameters by path that keep activations at their size: He's kernels, gains and variances about 1."""
    random = np.random.default_rng(seed)

    def draw(path, shape):
        if path.endswith(("/scale", "/var")):
            return random.uniform(0.5, 1.5, shape)
        return random.standard_normal(shape) * (0.1 if len(shape) == 1 else np.sqrt(2 / np.prod(shape[:-1])))

    return {path: jax.device_put(np.float32(draw(path, shape))) for path, shape in shapes.items()}


NORM = ("scale", "bias", "mean", "var")


class World:
    """One phase of a config, its drawn parameters, and noise for images."""

    def __init__(self, config, name="finetune"):
        self.model_info = build_model(config, num_classes=3)
        phases = build_phases(
            config, self.model_info.model, self.model_info.layers, self.model_info.groups, num_train=2 * BATCH
        )
        self.phase = next(phase for phase in phases if phase.name == name)
        self.parameters = drawn(self.model_info.shapes)
        shape = (2 * BATCH, config.data.height, config.data.width, 3)
        images = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
        labels = np.arange(2 * BATCH, dtype=np.int32) % 3
        self.loader = DeviceLoader(DeviceDataset(jax.device_put(images), jax.device_put(labels)))
        self.optimizer = phase_optimizer(config.optimizer, self.phase.param_groups, "constant", 2, 0)
        self.mesh = devices.make_mesh(BATCH)

    def run(self, seed=3):
        """Two steps: the step, the state after it and the frozen parameters."""
        trainable, batch_stats, frozen = self.phase.param_groups.partition(self.parameters)
        state = TrainState.create(0, trainable, batch_stats, self.optimizer.init(trainable), 3)
        task = train_step.StepConfig(self.model_info.model, self.optimizer, self.mesh, seed)
        step = train_step.make_train_step(task, self.loader.sharding(self.mesh))
        state = devices.replicate(state, self.mesh)
        for examples in self.loader.train_batches(EpochSampler(seed, BATCH, 2 * BATCH), 0, 2, None):
            state = step(state, frozen, examples)
            state = state._replace(metrics=devices.replicate(MetricSums.zero(3), self.mesh))
        return step, state, frozen


def gradients(state):
    """path -> Nadam's mean of the gradients, of everything that it keeps one of."""
    nadams = jax.tree.leaves(state.opt_state, is_leaf=lambda node: isinstance(node, NadamState))
    means = [item for node in nadams if isinstance(node, NadamState) for item in node.mu.items()]
    return {path: mean for path, mean in means if not isinstance(mean, optax.MaskedNode)}


def taken_out(net):
    """Paths of the biases that shift all of a channel on its way to a batch norm: it subtracts the mean again."""
    readers = {layer.name: [other for other in net.layers if layer.name in other.inputs] for layer in net.layers}

    def shifts(layer):
        """Whether a shift of the layer's input is one of its output."""
        pointwise = net.shapes.get(f"{layer.section}/{layer.name}/kernel", ())[:2] == (1, 1)
        return layer.kind in ("add", "scaled add") or (layer.kind == "conv" and pointwise)

    def lost(name):
        behind = readers[name]
        return all(reader.kind == "batch norm" or (shifts(reader) and lost(reader.name)) for reader in behind)

    return {
        path
        for path in net.shapes
        if path.endswith("/bias") and readers[path.split("/")[1]] and lost(path.split("/")[1])
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_train_step_every_family_updates_trainable_params_only(name):
    made = World(make_config(name))
    before = param_digests(made.parameters)
    step, state, frozen = made.run()
    assert step._cache_size() == 1
    split, own = made.phase.param_groups, registry.get_spec(name).last_block
    assert {group for group, rate in split.lrs.items() if rate} == {"head", own}
    assert {split.groups[path] for path in frozen} == {"base"}
    assert state.updated_params.keys() | frozen.keys() == made.parameters.keys()
    assert state.updated_params.keys().isdisjoint(frozen)
    assert {path.rsplit("/")[-1] in BATCH_STATS for path in state.params} == {False}

    grads, none = gradients(state), taken_out(made.model_info)
    assert grads.keys() == state.params.keys()
    assert [path for path in grads if path not in none and not np.any(grads[path])] == []
    after = param_digests(state.updated_params)
    assert [path for path in after if path not in none and after[path] == before[path]] == []
    assert param_digests(frozen) == {path: before[path] for path in frozen}
    assert all(np.isfinite(value).all() for value in state.updated_params.values())


# ---------------------------------------------------------------------- batch norm and dropout


def toy(net, x, top):
    """A convolution and two batch norms, one with other settings."""
    x = net.conv(x, 6, 3, name="conv")
    x = net.batch_norm(x, momentum=0.9, epsilon=0.01, name="first")
    x = net.activation(x, "relu", name="relu")
    return net.batch_norm(x, name="second")


TOY = replace(
    registry.get_spec("mobilenet_100"),
    name="toy",
    build=toy,
    min_input_size=8,
    groups=(("head", "head/.*"), ("all", "backbone/.*")),
)


def toy_blocks(net, x, top):
    """A stem and two residual blocks that drop whole examples."""
    x = net.batch_norm(net.conv(x, 8, 3, name="stem_conv"), name="stem_bn")
    for name in ("block5", "block6"):
        x = efficientnet.mbconv(net, x, Block(1, name, 3, 8, 8, 2, 1, drop_rate=DROP_RATE))
    return x


DROP_RATE = 0.4
TOY_BLOCKS = replace(
    TOY,
    name="toy_blocks",
    build=toy_blocks,
    groups=(("head", "head/.*"), ("top", "backbone/block6.*"), ("base", "backbone/.*")),
)


def keras_toy():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(6, 3, padding="same", name="conv")(inputs)
    x = keras.layers.BatchNormalization(momentum=0.9, epsilon=0.01, name="first")(x)
    x = keras.layers.Activation("relu")(x)
    x = keras.layers.BatchNormalization(name="second")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax", name="predictions")(x))
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    return model


def test_train_step_matches_keras(monkeypatch):
    """Two steps of SGD with the same examples: every weight and every statistic.

    Measured: 1.2e-7; the mean of 256 float32 values near 1 may be wrong by a few roundings of 6e-8. The unbiased
    variance would be 256 / 255 of the biased one: after two steps the statistics would differ by 1e-4.
    """
    monkeypatch.setitem(registry.MODELS, "toy", TOY)
    rates = {"head": 0.1, "all": 0.1}
    head = {"pooling": "global_average", "units": (), "dropout": 0.0}
    config = make_config("toy", head=head, optimizer={"name": "sgd"}, frozen={"lr": rates}, finetune={"lr": rates})
    made = World(config)
    reference = keras_toy()
    leaves = {"conv": ("kernel", "bias"), "first": NORM, "second": NORM, "predictions": ("kernel", "bias")}
    paths = {
        layer: [f"{'head' if layer == 'predictions' else 'backbone'}/{layer}/{name}" for name in names]
        for layer, names in leaves.items()
    }
    for layer, order in paths.items():
        reference.get_layer(layer).set_weights([np.asarray(made.parameters[path]) for path in order])
    for examples in made.loader.train_batches(EpochSampler(3, BATCH, 2 * BATCH), 0, 2, None):
        reference.train_on_batch(examples.inputs(0, None) / 127.5 - 1, np.asarray(examples.labels))
    _, state, frozen = made.run()
    assert not frozen
    for layer, order in paths.items():
        for path, expected in zip(order, reference.get_layer(layer).get_weights(), strict=True):
            np.testing.assert_allclose(state.updated_params[path], expected, rtol=0, atol=5e-7, err_msg=path)


# ---------------------------------------------------------------------- a frozen base is as in inference


class Dropping:
    """A network whose second block is trained, up to the layer that drops whole examples."""

    def __init__(self):
        self.made = World(make_config("toy_blocks"))
        params, batch_stats, frozen = self.made.phase.param_groups.partition(self.made.parameters)
        self.train_layers = param_groups.layers_in_train_mode([*params, *batch_stats], frozen)
        self.images = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 3), np.uint8)

    @partial(jax.jit, static_argnums=0, static_argnames=("stop", "start", "taps", "training"))
    def run(self, given, key, *, training=True, **cuts):
        params, keys = unflatten_params(self.made.parameters), jax.random.split(key, len(given))
        train_layers = self.train_layers if training else frozenset()
        model = self.made.model_info.model
        return forward(model, params, given, train_layers=train_layers, dropout_keys=keys, **cuts)


@pytest.fixture(scope="module")
def dropping():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.MODELS, "toy_blocks", TOY_BLOCKS)
        yield Dropping()


def test_drop_connect_acts_in_trained_layers_only(dropping):
    taps = ("block5_project_bn", "block5_drop", "block6_project_bn", "block6_drop")
    first, second = (
        dropping.run(dropping.images, jax.random.key(seed), stop=taps[-1], taps=taps).taps for seed in (1, 2)
    )
    for name in taps[:3]:
        assert param_digests({name: first[name]}) == param_digests({name: second[name]}), name
    assert np.array_equal(first["block5_drop"], first["block5_project_bn"])
    kept = np.any(np.asarray(first["block6_drop"]), axis=(1, 2, 3))
    assert 0 < kept.sum() < 32
    expected = np.where(kept[:, None, None, None], np.asarray(first["block6_project_bn"]) / (1 - DROP_RATE), 0)
    # The sum of the batch norm, rounded before the division or not: of terms up to the largest value.
    np.testing.assert_allclose(first["block6_drop"], expected, rtol=1e-6, atol=2.0**-23 * np.abs(expected).max())
    assert np.any(kept != np.any(np.asarray(second["block6_drop"]), axis=(1, 2, 3)))


def test_frozen_batch_norms_run_in_inference_mode(dropping):
    layers = ("stem_bn", "block5_project_bn", "block6_expand_bn")
    key, cuts = jax.random.key(1), {"stop": layers[-1], "taps": layers}
    trained, inferred = (dropping.run(dropping.images, key, training=t, **cuts) for t in (True, False))
    for name in layers[:2]:
        # the same float32 sums, compiled twice
        scale = float(jnp.abs(inferred.taps[name]).max())
        np.testing.assert_allclose(trained.taps[name], inferred.taps[name], rtol=0, atol=1e-6 * scale, err_msg=name)
    assert not np.allclose(trained.taps[layers[2]], inferred.taps[layers[2]], rtol=0.1)
    before = param_digests(dropping.made.parameters)
    after = param_digests(flatten_params(trained.batch_stats))
    moved = {path for path in after if after[path] != before[path]}
    assert moved == {"backbone/block6_expand_bn/mean", "backbone/block6_expand_bn/var"}


def test_dropout_does_not_depend_on_skipped_layers(dropping):
    cut, layer, key = "block5_add", "block6_drop", jax.random.key(1)
    whole = dropping.run(dropping.images, key, stop=layer, taps=(cut, layer)).taps
    rest = dropping.run(whole[cut], key, start=cut, stop=layer).output
    dropped = [np.any(np.asarray(output), axis=(1, 2, 3)).tolist() for output in (whole[layer], rest)]
    assert dropped[0] == dropped[1]
    assert not all(dropped[0])


def test_feature_key_depends_on_batch_stats_below_the_cut(tmp_path):
    made = World(make_config("mobilenet_025"))
    held = ImageSet(np.asarray(made.loader.data.inputs), np.asarray(made.loader.data.labels))
    cut, net = made.phase.cut_layer, made.model_info
    inputs = SplitData("train", net.model, net.layers, made.mesh, held, [cut], tmp_path, BATCH)

    def key(path=None):
        changed = {} if path is None else {path: made.parameters[path] + 1}
        return inputs._key(cut, inputs._plain.views, param_digests(made.parameters | changed))

    assert key("backbone/conv1_bn/mean") != key() != key("backbone/conv_pw_11_bn/var")
    assert key("backbone/conv_dw_12_bn/mean") == key()


# ---------------------------------------------------------------------- whole runs


def train(folder, name, workdir):
    phases = {"frozen": {"epochs": 1}, "finetune": {"epochs": 3, "patience": 9, "augment": True}}
    rates = {"frozen": {"head": 1e-2, "top": 0.0, "base": 0.0}, "finetune": {"head": 1e-3, "top": 1e-3, "base": 0.0}}
    config = make_config(name, folder, **{phase: settings | {"lr": rates[phase]} for phase, settings in phases.items()})
    return trainer.train(config, workdir, tiny_run.quiet(), "flaxtl train")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_025", pytest.param("resnet50", marks=pytest.mark.exhaustive("networks"))])
def test_run_keeps_frozen_params_and_resumes_bit_identically(monkeypatch, folder, tmp_path, name):
    # The first epoch of a phase stays the best: what is handed on differs from what was trained last.
    monkeypatch.setattr(Phase, "is_improvement", lambda phase, value, best: best is None)
    whole = train(folder, name, tmp_path / "whole")
    split = whole.setup.phases[1].param_groups
    start, frozen, finetuned = tiny_run.digests(whole)
    assert {path.split("/")[0] for path in start if start[path] != frozen[path]} == {"head"}
    changed = {path for path in start if frozen[path] != finetuned[path]}
    assert changed <= {path for path in start if split.is_active(path)}
    assert {path for path in changed if param_groups.is_batch_stat(path)} == {
        path for path in start if split.is_active(path) and param_groups.is_batch_stat(path)
    }
    summary = tiny_run.results(tmp_path / "whole")[1]["finetune"]
    assert summary["best_epoch"] == 1
    assert summary["frozen_arrays_verified"] == sum(not split.is_active(path) for path in start)
    shapes = whole.setup.model_info.shapes
    assert summary["trainable_params"] == sum(math.prod(shapes[path]) for path in shapes if split.is_trainable(path))

    for number, (owner, call) in enumerate([(PhaseTrainer, ("_begin_epoch", 3)), (Checkpoints, ("save_phase", 3))]):
        workdir = tmp_path / f"{number}"
        with monkeypatch.context() as patch:
            tiny_run.stop_at(patch, owner, *call)
            with pytest.raises(KeyboardInterrupt):
                train(folder, name, workdir)
        resumed = train(folder, name, workdir)
        assert tiny_run.results(workdir) == tiny_run.results(tmp_path / "whole")
        assert tiny_run.digests(resumed) == tiny_run.digests(whole)

    evaluate_run(whole, tiny_run.quiet())
    opened = load_run(tmp_path / "whole")
    assert param_digests(opened.params) == finetuned
    images = np.concatenate([whole.splits[split].image_loader().data.inputs for split in ("validation", "test")])
    direct = jax.nn.softmax(forward_logits(opened.setup.model_info.model, unflatten_params(opened.params), images))
    probabilities = predictions.read_predictions(tmp_path / "whole" / "predictions.csv").probabilities
    np.testing.assert_allclose(
        probabilities, direct, rtol=0, atol=1e-5
    )  # six digits in the file, float32 in two orders


@pytest.mark.parametrize("last", ["conv4_block6_out", "conv5_block2_out"])
def test_output_layer_ends_the_backbone(last):
    made = make_config("resnet50")
    made.model.output_layer = last
    net = build_model(made, num_classes=3)
    names = [layer.name for layer in net.layers if layer.section == "backbone"]
    assert names[-1] == last
    assert {path.split("/")[1] for path in net.shapes if path.startswith("backbone/")} <= set(names)
    frozen, finetune = build_phases(made, net.model, net.layers, net.groups, 8, net.unused_groups)
    assert frozen.cut_layer == last
    assert finetune.cut_layer == "conv4_block6_out"
    trainable = {path.split("/")[1].split("_")[0] for path in net.shapes if finetune.param_groups.is_trainable(path)}
    assert trainable - {"dense", "predictions"} == ({"conv5"} if last.startswith("conv5") else set())


def test_output_layer_inside_a_branch_is_rejected():
    made = make_config("resnet50")
    made.model.output_layer = "conv5_block1_1_relu"
    with pytest.raises(UserError, match=r"'conv5_block1_1_relu'.*'conv5_block1_0_bn'.*'conv4_block6_out'"):
        build_model(made, num_classes=3)
