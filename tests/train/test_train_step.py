"""The compiled steps: gradients, dropout, metrics, EMA, accumulation, non-finite values, evaluation."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import compiling, tiny_run

from flaxtl.data.device_dataset import DeviceDataset
from flaxtl.data.loaders import DeviceLoader, HostBatch, HostLoader, IndexBatch
from flaxtl.data.sampler import EpochSampler
from flaxtl.models.classifier import forward_logits, unflatten_params
from flaxtl.parallel import devices
from flaxtl.train import eval_steps, train_step
from flaxtl.train.eval_loop import ResidentEvaluator, evaluate, evaluate_metrics
from flaxtl.train.feature_cache import param_digests
from flaxtl.train.metrics import MetricSums
from flaxtl.train.optimizers import phase_optimizer
from flaxtl.train.train_step import Ema, TrainState

CUT = "block2_pool"


class World:
    """A prepared run with its parameters, its training images and their features."""

    def __init__(self, folder, workdir):
        self.setup = tiny_run.setup(folder, workdir)
        self.parameters = tiny_run.parameters(self.setup.model_info, self.setup.config)
        data = tiny_run.inputs(self.setup, "train", workdir / "features", [CUT])
        self.images = data.image_loader()
        self.features = data.feature_loader(CUT, self.parameters, tiny_run.bar)
        self.frozen, self.finetune = self.setup.phases
        self._steps = {}

    def start(self, phase, step=0):
        """(first state, frozen parameters)."""
        trainable, batch_stats, frozen = phase.param_groups.partition(self.parameters)
        state = TrainState.create(step, trainable, batch_stats, self.optimizer(phase).init(trainable), 3)
        return devices.replicate(state, self.setup.mesh), frozen

    def optimizer(self, phase):
        return phase_optimizer(self.setup.config.optimizer, phase.param_groups, "constant", phase.steps, 0)

    def step(self, phase, *, loader=None, **options):
        """Return the step with these options; the same step for the same options."""
        key = phase.name, type(loader), *sorted(options.items())
        return self._steps.setdefault(key, self.new_step(phase, loader=loader, **options))

    def new_step(self, phase, *, seed=3, loader=None, **options):
        setup = self.setup
        sharding = (self.images if loader is None else loader).sharding(setup.mesh)
        task = train_step.StepConfig(setup.model_info.model, self.optimizer(phase), setup.mesh, seed, **options)
        return train_step.make_train_step(task, sharding)

    def losses(self, phase, data, first=0, **settings):
        """Of three steps over four examples, the loss summed up to each, and the last state."""
        step = self.step(phase, **settings)
        state, frozen = self.start(phase, first)
        found = []
        for examples in data.train_batches(EpochSampler(3, 4, len(data)), 0, 3, None):
            state = step(state, frozen, examples)
            found.append(float(state.metrics.loss))
        return found, state


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tiny_run.images(tmp_path_factory.mktemp("images")), tmp_path_factory.mktemp("run"))


def test_train_step_updates_trainable_params_only(world):
    step = world.step(world.finetune, augmentation=world.setup.augmentation)
    state, frozen = world.start(world.finetune)
    before, old = param_digests(frozen), {path: np.array(value) for path, value in state.params.items()}
    for examples in world.images.train_batches(EpochSampler(3, 4, len(world.images)), 0, 4, world.setup.augmentation):
        state = step(state, frozen, examples)
        # as at the start of an epoch
        state = state._replace(metrics=devices.replicate(MetricSums.zero(3), world.setup.mesh))
    assert param_digests(frozen) == before
    assert {path.split("/")[1] for path in frozen} == {"block1_conv1", "block1_conv2"}
    assert len(old) == 8
    assert [path for path, value in state.params.items() if np.array_equal(value, old[path])] == []
    assert int(state.step) == 4
    assert step._cache_size() == 1


def test_opt_state_covers_trainable_params_only(world):
    trainable, *_ = world.frozen.param_groups.partition(world.parameters)
    state = world.optimizer(world.frozen).init(trainable)
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(state))
    # nadam: the count, the momentum product and two means of each leaf
    assert sizes == sorted([1, 1] + 2 * [leaf.size for leaf in trainable.values()])
    assert sum(leaf.size for leaf in trainable.values()) == 128 * 8 + 8 + 8 * 3 + 3


def test_train_step_on_features_equals_step_on_images(world):
    from_images, state = world.losses(world.frozen, world.images)
    from_features, other = world.losses(world.frozen, world.features, start_layer=CUT)
    # The same float32 sums in another order: measured 0; the 12 terms of a loss explain 12 x 2**-24.
    np.testing.assert_allclose(from_features, from_images, rtol=12 * 2.0**-24)
    assert state.metrics.count.sum() == other.metrics.count.sum() == 12
    assert state.metrics.correct.tolist() == other.metrics.correct.tolist()


def test_train_step_infers_frozen_layers_in_chunks_on_a_cpu(world, monkeypatch):
    calls, infer = [], train_step.infer
    monkeypatch.setattr(train_step, "infer", lambda *given, **cuts: calls.append(cuts) or infer(*given, **cuts))
    expected, whole = world.losses(world.frozen, world.images)
    found, state = world.losses(world.frozen, world.images, cut_layer=CUT)
    assert calls == [{"in_chunks": True, "stop": CUT}]
    # The same float32 sums in another order, as from features.
    np.testing.assert_allclose(found, expected, rtol=12 * 2.0**-24)
    assert state.metrics.correct.tolist() == whole.metrics.correct.tolist()


def test_train_step_dropout_depends_on_seed_and_step_only(world):
    losses, _ = world.losses(world.frozen, world.features, start_layer=CUT)
    assert world.losses(world.frozen, world.features, start_layer=CUT)[0] == losses
    assert world.losses(world.frozen, world.features, start_layer=CUT, seed=4)[0][0] != losses[0]
    assert world.losses(world.frozen, world.features, start_layer=CUT, first=1)[0][0] != losses[0]


def test_train_step_augmentation_depends_on_seed_epoch_and_image(world):
    augmented = {"augmentation": world.setup.augmentation}
    step = world.step(world.finetune, **augmented)
    indices = np.array([0, 1, 2, 3], np.int32)

    def loss(epochs):
        given = IndexBatch(world.images.data, indices, np.array(epochs, np.int32))
        return float(step(*world.start(world.finetune), given).metrics.loss)

    first = loss([0, 0, 0, 0])
    assert loss([0, 0, 0, 0]) == first
    assert loss([0, 0, 0, 1]) != first  # dropout is that of the step: only augmentation knows the pass


def test_train_step_keeps_caller_arrays_valid(world):
    state, frozen = world.start(world.frozen)
    before = param_digests(world.parameters)
    (examples,) = world.features.train_batches(EpochSampler(3, 4, len(world.features)), 0, 1, None)
    after = world.step(world.frozen, start_layer=CUT)(state, frozen, examples)
    assert all(leaf.is_deleted() for leaf in state.params.values())  # so it was donated
    assert not any(leaf.is_deleted() for leaf in (*world.parameters.values(), *after.params.values()))
    assert param_digests(world.parameters) == before


@pytest.mark.parametrize("n", [*(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3, 4)), 5])
def test_evaluate_padded_batches_counts_each_example_once(world, n):
    data = DeviceLoader(DeviceDataset(world.features.data.inputs[:n], world.features.data.labels[:n]))
    step = eval_steps.make_eval_step(
        world.setup.model_info.model, world.setup.mesh, CUT, data.sharding(world.setup.mesh)
    )
    probabilities, log_softmax, measures = evaluate(step, world.parameters, data, batch_size=4)
    images = world.images.data.inputs[:n]
    model = world.setup.model_info.model
    direct = jax.jit(lambda params: jax.nn.softmax(forward_logits(model, params, images)))(
        unflatten_params(world.parameters)
    )
    labels = np.asarray(data.data.labels)
    # Logits up to 30 are rounded to 2e-6, and a probability moves by at most a quarter of that: measured 5e-7.
    np.testing.assert_allclose(probabilities, direct, rtol=0, atol=2e-6)
    np.testing.assert_allclose(np.exp(log_softmax), direct, rtol=0, atol=2e-6)
    assert measures.n == len(probabilities) == n
    assert measures.accuracy == (probabilities.argmax(1) == labels).mean()
    assert measures.loss == pytest.approx(-np.log(probabilities[np.arange(n), labels]).mean(), rel=1e-5)
    assert evaluate_metrics(step, world.parameters, data, batch_size=4) == measures
    many = eval_steps.make_multi_eval_step.__wrapped__(  # not one of another size
        world.setup.model_info.model, world.setup.mesh, CUT, data.sharding(world.setup.mesh)
    )
    resident = ResidentEvaluator(many, data, 4, devices.replicate(MetricSums.zero(3), world.setup.mesh))
    assert [resident(world.parameters) for _ in range(3)] == [measures] * 3  # in calls of one batch, then of several
    assert many._cache_size() == 1


def test_train_step_on_host_batch_equals_step_on_index_batch(world):
    order = EpochSampler(3, 4, len(world.images))
    step = world.step(world.frozen, loader=HostLoader(None, None, world.setup.mesh))
    state, frozen = world.start(world.frozen)
    for number in range(3):
        batch, data = order.batch(number), world.images.data
        inputs, labels = (np.asarray(part)[batch.indices] for part in (data.inputs, data.labels))
        state = step(state, frozen, HostBatch(inputs, labels, batch.indices, batch.epochs))
    _, picked = world.losses(world.frozen, world.images)
    assert param_digests(state.params) == param_digests(picked.params)
    assert float(state.metrics.loss) == float(picked.metrics.loss)


def test_train_step_class_weights_change_gradients_not_metrics(world):
    plain, _ = world.losses(world.frozen, world.features, start_layer=CUT)
    weighed, other = world.losses(world.frozen, world.features, start_layer=CUT, class_weights=(0.0, 0.0, 5.0))
    assert weighed[0] == plain[0]  # before the first update the totals are of the same network
    assert weighed[1] != plain[1]
    bias = "head/predictions/bias"
    # Only class 2 is learned: its output rises, the others fall.
    assert np.sign(np.asarray(other.params[bias] - world.parameters[bias])).tolist() == [-1, -1, 1]


@pytest.mark.slow
def test_train_step_class_weights_of_one_change_nothing(world):
    plain, even = world.losses(world.frozen, world.features, start_layer=CUT)
    ones, same = world.losses(world.frozen, world.features, start_layer=CUT, class_weights=(1.0, 1.0, 1.0))
    assert param_digests(even.params) == param_digests(same.params)
    assert plain == ones


def test_train_step_label_smoothing_changes_gradients_not_metrics(world):
    plain, _ = world.losses(world.frozen, world.features, start_layer=CUT)
    smoothed, _ = world.losses(world.frozen, world.features, start_layer=CUT, label_smoothing=0.5)
    assert smoothed[0] == plain[0]  # before the first update the totals are of the same network
    assert smoothed[2] != plain[2]  # the first update is almost the signs of the gradients, which may be the same


def test_weighted_losses_mixed_images_use_both_labels(world):
    goals = (
        train_step.Target(np.array([0, 1]), np.array([0.75, 1.0])),
        train_step.Target(np.array([2, 0]), np.array([0.25, 0.0])),
    )
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]], np.float32))
    found = train_step._weighted_losses(logits, goals, (1.0, 2.0, 4.0))
    # float32 logarithms of values up to 1.4, weighed by at most 2
    np.testing.assert_allclose(found, [-0.75 * np.log(0.5) - np.log(0.25), -2 * np.log(0.75)], atol=5e-7)


@pytest.mark.slow
def test_train_step_applies_mixing(world):
    mixing = replace(world.setup.augmentation, mixup=0.4)
    mixed, _ = world.losses(world.finetune, world.images, augmentation=mixing)
    again, _ = world.losses(world.finetune, world.images, augmentation=mixing)
    plain, _ = world.losses(world.finetune, world.images, augmentation=world.setup.augmentation)
    assert mixed == again
    assert mixed[0] != plain[0]


@pytest.mark.slow
@compiling.compiled_as_users_do()
def test_train_step_ema_averages_params_and_leaves_training_alone(world):
    average, phase, options = Ema(0.5, first_step=7), world.frozen, {"loader": world.features, "start_layer": CUT}
    state, frozen = world.start(phase, 7)
    state = state._replace(ema_params=devices.replicate(state.params, world.setup.mesh))
    step, plain = world.new_step(phase, ema=average, **options), world.new_step(phase, **options)
    other, expected = world.start(phase, 7)[0], None
    for examples in world.features.train_batches(EpochSampler(3, 4, len(world.features)), 0, 3, None):
        state, other = step(state, frozen, examples), plain(other, frozen, examples)
        now = {path: np.array(value) for path, value in other.params.items()}
        expected = now if expected is None else {path: 0.5 * expected[path] + 0.5 * now[path] for path in now}
        assert param_digests(state.params) == param_digests(other.params)
        assert state.eval_params.keys() == state.updated_params.keys()
        # Halves are exact: one rounding, of the sum.
        assert all(np.array_equal(state.eval_params[path], value) for path, value in expected.items())
    assert other.ema_params == {}
    assert param_digests(other.eval_params) == param_digests(other.updated_params)
    assert step._cache_size() == 1


def test_train_step_lr_scale_multiplies_updates_without_recompiling(world):
    """Plain gradient descent from equal weights: half the learning rate gives half the update."""
    phase, settings = world.frozen, {"name": "sgd"}
    transformation = phase_optimizer(settings, phase.param_groups, "constant", phase.steps, 0)
    task = train_step.StepConfig(world.setup.model_info.model, transformation, world.setup.mesh, 3, start_layer=CUT)
    step = train_step.make_train_step(task, world.features.sharding(world.setup.mesh))
    trainable, batch_stats, frozen = phase.param_groups.partition(world.parameters)
    (examples,) = world.features.train_batches(EpochSampler(3, 4, len(world.features)), 0, 1, None)
    moved = {}
    for scale in (1.0, 0.5, 0.0):
        state = TrainState.create(0, trainable, batch_stats, transformation.init(trainable), 3)._replace(
            lr_scale=jnp.float32(scale)
        )
        state = step(devices.replicate(state, world.setup.mesh), frozen, examples)
        moved[scale] = {path: np.asarray(state.params[path]) - trainable[path] for path in trainable}
        assert float(state.lr_scale) == scale
    for path, whole in moved[1.0].items():
        assert np.any(whole)
        # Two sums near values below 2, each rounded to 2**-24 of it.
        np.testing.assert_allclose(moved[0.5][path], whole / 2, rtol=0, atol=2e-7)
        assert not np.any(moved[0.0][path])
    assert step._cache_size() == 1


@pytest.mark.parametrize(("phase", "parts"), [("frozen", 4), pytest.param("finetune", 2, marks=pytest.mark.slow)])
def test_train_step_accum_steps_equal_whole_batch(world, phase, parts):
    """With dropout and augmentation: the result for an image does not depend on the others in its batch."""
    which, data, options = world.frozen, world.features, {"start_layer": CUT}
    if phase == "finetune":
        which, data, options = world.finetune, world.images, {"augmentation": world.setup.augmentation}
    whole, expected = world.losses(which, data, **options)
    found, state = world.losses(which, data, accum_steps=parts, **options)
    # Sums of four examples in another order, for three steps; Nadam divides by roots of small numbers: measured 2e-7.
    np.testing.assert_allclose(found, whole, rtol=2e-6)
    for path, value in expected.params.items():
        np.testing.assert_allclose(state.params[path], value, rtol=0, atol=5e-6, err_msg=path)
    assert state.metrics.count.tolist() == expected.metrics.count.tolist()
    assert state.metrics.correct.tolist() == expected.metrics.correct.tolist()


@pytest.mark.parametrize(
    "kinds",
    [
        pytest.param({"mixup": 0.4}, marks=pytest.mark.slow),
        pytest.param({"cutmix": 1.0}, marks=pytest.mark.exhaustive("runs")),
        pytest.param({"mixup": 0.4, "cutmix": 1.0}, marks=pytest.mark.exhaustive("runs")),
    ],
    ids=str,
)
def test_train_step_accum_steps_with_mixing_equal_whole_batch(world, kinds):
    """With microbatches of one image, too: partners are drawn from the whole batch."""
    options = {"augmentation": replace(world.setup.augmentation, **kinds)}
    whole, expected = world.losses(world.finetune, world.images, **options)
    parts, state = world.losses(world.finetune, world.images, accum_steps=4, **options)
    np.testing.assert_allclose(parts, whole, rtol=2e-6)  # as without mixing
    for path, value in expected.params.items():
        np.testing.assert_allclose(state.params[path], value, rtol=0, atol=5e-6, err_msg=path)
    assert state.metrics.correct.tolist() == expected.metrics.correct.tolist()


def test_main_labels_are_those_of_the_larger_weight():
    """An oracle that knows the larger part of every mixed image has an accuracy of 1."""
    weight = jnp.array([0.9, 0.5, 0.2])
    targets = train_step.Target(jnp.array([0, 1, 2]), weight), train_step.Target(jnp.array([1, 2, 0]), 1 - weight)
    assert train_step._main_labels(targets).tolist() == [0, 1, 0]
    assert train_step._main_labels(targets[:1]).tolist() == [0, 1, 2]


def test_train_step_nonfinite_loss_freezes_state(world):
    step = world.step(world.frozen, loader=world.features, start_layer=CUT)
    state, frozen = world.start(world.frozen)
    order = EpochSampler(3, 4, len(world.features))
    good, bad, after = (examples for examples in world.features.train_batches(order, 0, 3, None))
    state = step(state, frozen, good)
    before = {path: np.array(value) for path, value in state.params.items()}
    broken = bad._replace(data=DeviceDataset(bad.data.inputs.at[bad.indices[1]].set(jnp.nan), bad.data.labels))
    for examples in (broken, after):
        state = step(state, frozen, examples)
        assert (int(state.nonfinite_step), int(state.step)) == (1, 1)
        assert all(np.array_equal(state.params[path], value) for path, value in before.items())
    assert state.metrics.count.sum() == 4
    assert step._cache_size() == 1


def test_train_step_nonfinite_gradient_is_recorded(world, monkeypatch):
    def steep(logits, labels, smoothing):  # 0 with an infinite slope
        return jnp.sqrt(jnp.abs(logits - jax.lax.stop_gradient(logits)).sum(-1)) + 1.0

    monkeypatch.setattr(train_step, "cross_entropy", steep)
    step = world.new_step(world.frozen, loader=world.features, start_layer=CUT)
    state, frozen = world.start(world.frozen)
    state = step(state, frozen, next(world.features.train_batches(EpochSampler(3, 4, len(world.features)), 0, 1, None)))
    assert int(state.nonfinite_step) == 0


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize(("value", "expected"), [(1e38, True), (np.inf, False), (-np.inf, False), (np.nan, False)])
def test_all_finite_finds_one_value_in_any_array(world, monkeypatch, platform, value, expected):
    monkeypatch.setattr(devices, "platform_of", lambda mesh: platform)  # each platform has its own reduction
    for bad in ("loss", "kernel"):
        tree = {"loss": jnp.float32(1e38), "kernel": jnp.full((2, 3), 1e38)}  # their sum is not finite
        tree[bad] = tree[bad].at[(1, 2) if bad == "kernel" else ()].set(value)
        assert bool(train_step.all_finite(tree, world.setup.mesh)) is expected


DENSE_SHAPES = {"head/out/kernel": (5, 3), "head/out/bias": (3,)}
EMA_DECAY = 0.7


def test_ema_update_matches_keras():
    """Ten updates of a dense layer by Keras; flaxtl's EMA is computed from its weights after each."""
    import keras

    random = np.random.default_rng(0)
    theirs = {path: keras.Variable(random.normal(size=shape)) for path, shape in DENSE_SHAPES.items()}
    optimizer = keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=EMA_DECAY)
    optimizer.build(list(theirs.values()))
    paths = list(DENSE_SHAPES)
    average, after = dict.fromkeys(paths, jnp.zeros(())), jax.jit(Ema(EMA_DECAY, first_step=20).update)
    for step in range(20, 30):
        optimizer.apply([0.1 * random.standard_normal(shape, np.float32) for shape in DENSE_SHAPES.values()])
        weights = {path: variable.value for path, variable in theirs.items()}
        average = after(jnp.int32(step), average, weights)
        if step == 20:
            assert all(np.array_equal(average[path], weights[path]) for path in paths)
    optimizer.finalize_variable_values(list(theirs.values()))  # what `fit` does in the end
    for path, kept in theirs.items():
        assert not np.allclose(average[path], weights[path], atol=1e-3)
        # Two products and a sum a step of values below 2, each step's error shrinking by EMA_DECAY: 3 * 2**-24 / 0.3
        np.testing.assert_allclose(average[path], kept.numpy(), rtol=0, atol=6e-7)


def test_ema_update_weight_of_first_step():
    average = {"w": jnp.zeros(())}
    for step in range(5):
        average = Ema(0.5, 0).update(jnp.int32(step), average, {"w": jnp.float32(step == 0)})
    assert float(average["w"]) == 0.5**4
