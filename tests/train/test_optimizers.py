"""Optimizers against Keras and Optax: frozen groups, rates, schedules, settings."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxtl.defaults import DEFAULTS
from flaxtl.errors import UserError
from flaxtl.models import classifier, registry
from flaxtl.pretrained.backbone import headless_model
from flaxtl.train import optimizers
from flaxtl.train.param_groups import ParamGroups

SHAPES = {"head/out/kernel": (5, 3), "head/out/bias": (3,)}
NADAM = {"name": "nadam", "b1": 0.9, "b2": 0.99}


def random(seed, shapes=SHAPES):
    generator = np.random.default_rng(seed)
    return {path: jax.device_put(np.float32(generator.normal(size=shape))) for path, shape in shapes.items()}


class KerasSteps:
    """The steps of one of Keras' optimizers, as one program; `variables` has their results."""

    def __init__(self, optimizer, values):
        import keras

        self.variables = {path: keras.Variable(value, name=path.rpartition("/")[2]) for path, value in values.items()}
        optimizer.build(list(self.variables.values()))
        self._optimizer, self._apply = optimizer, jax.jit(optimizer.stateless_apply)

    def apply(self, gradients):
        trainable = list(self.variables.values())
        results = self._apply(
            [variable.value for variable in self._optimizer.variables],
            [gradients[path] for path in self.variables],
            [variable.value for variable in trainable],
        )
        for variables, values in zip((trainable, self._optimizer.variables), results, strict=True):
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_nadam_matches_keras(weight_decay):
    """With weight decay of kernels only: Keras' exclude_from_weight_decay(var_names=["bias"])."""
    import keras

    ours = {path: jax.device_put(np.zeros(shape, np.float32)) for path, shape in SHAPES.items()}
    reference = keras.optimizers.Nadam(1e-3, beta_1=0.9, beta_2=0.99, weight_decay=weight_decay or None)
    reference.exclude_from_weight_decay(var_names=["bias"])
    theirs = KerasSteps(reference, ours)
    make = optimizers.optimizer_factory(NADAM | {"weight_decay": weight_decay})
    transformation = make(optax.constant_schedule(1e-3))

    @jax.jit
    def update(gradients, state, params):
        updates, state = transformation.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    state = transformation.init(ours)
    for step in range(1, 21):
        theirs.apply(random(step))
        ours, state = update(random(step), state, ours)
        for path, variable in theirs.variables.items():
            # 1 - 0.99 in float32 is off by 2**-24 / 0.01 = 6e-6 of itself; half of that under the root, of a step of
            # 1e-3, is 3e-9 in a step. The values stay below 0.01, where their own rounding is 5e-10.
            np.testing.assert_allclose(ours[path], variable.numpy(), rtol=0, atol=step * 3e-9)
    assert state.num_steps == 20


@pytest.mark.parametrize("clip_norm", [0.5, 100.0])
def test_clip_norm_clips_trainable_gradients_as_optax_and_keras(clip_norm):
    """A frozen gradient, were there one, would not count; the optimizer sees clipped gradients."""
    import keras

    shapes = {"head/out/kernel": (5, 3), "backbone/conv/kernel": (7, 2)}
    params, sgd = random(0, shapes), {"name": "sgd"}
    optimizer = optimizers.phase_optimizer(sgd, two_groups(1e-2), "constant", 10, 0, clip_norm)
    grads = random(1, shapes)
    norm = float(np.sqrt(sum(np.square(grad, dtype=np.float64).sum() for grad in grads.values())))
    assert 0.5 < norm < 100
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    by_hand, _ = optax.clip_by_global_norm(clip_norm).update(grads, optax.EmptyState())
    theirs = KerasSteps(keras.optimizers.SGD(1e-2, global_clipnorm=clip_norm), params)
    theirs.apply(grads)
    for path, update in updates.items():
        np.testing.assert_array_equal(update, -np.float32(1e-2) * np.asarray(by_hand[path]))
        np.testing.assert_allclose(update, -1e-2 * min(1, clip_norm / norm) * np.asarray(grads[path]), rtol=3e-7)
        np.testing.assert_allclose(
            np.asarray(params[path]) + update, theirs.variables[path].numpy(), rtol=0, atol=2.5e-7
        )  # values below 4


def test_clip_norm_zero_leaves_the_optimizer_as_it_is():
    optimizer = optax.sgd(1.0)
    assert optimizers.clip_grads(optimizer, 0.0) is optimizer


def test_nadam_defaults_are_those_of_the_config():
    """So a config without an argument is the same as one with its default: runs may resume with either."""
    defaults = {name: argument.default for name, argument in inspect.signature(optimizers.nadam).parameters.items()}
    settings = {key: value for key, value in DEFAULTS.optimizer.items() if key != "name"}
    assert settings == {key: defaults[key] for key in settings}


def test_nadam_differs_from_optax():
    parameters, gradients = random(0), random(1)
    steps = [make(1e-3, 0.9, 0.99) for make in (lambda rate, *b: optimizers.nadam(lambda _: rate, *b), optax.nadam)]
    ours, theirs = (jax.jit(step.update)(gradients, step.init(parameters))[0] for step in steps)
    assert not np.allclose(ours["head/out/bias"], theirs["head/out/bias"], rtol=1e-2)


def two_groups(rate_of_base):
    groups = {"head/out/kernel": "head", "backbone/conv/kernel": "base"}
    return ParamGroups(groups, {"head": 1e-2, "base": rate_of_base})


def test_make_optimizer_frozen_group_has_no_update_and_no_state():
    shapes = {"head/out/kernel": (5, 3), "backbone/conv/kernel": (7, 11)}
    parameters = random(0, shapes)
    transformation = optimizers.phase_optimizer(NADAM, two_groups(0.0), "constant", 10, 0)
    state, update = transformation.init(parameters), jax.jit(transformation.update)
    assert (7, 11) not in {leaf.shape for leaf in jax.tree.leaves(state)}
    assert not jax.tree.leaves(state.inner_states["<frozen>"])
    for step in range(1, 4):
        updates, state = update(random(step, shapes), state, parameters)
        assert np.array_equal(updates["backbone/conv/kernel"], np.zeros((7, 11)))
        assert np.all(np.asarray(updates["head/out/kernel"]) != 0)


def test_make_optimizer_uses_the_rate_of_each_group():
    shapes = {"head/out/kernel": (4,), "backbone/conv/kernel": (4,)}
    same = {path: np.full(4, 0.3, np.float32) for path in shapes}
    transformation = optimizers.phase_optimizer(NADAM, two_groups(1e-4), "constant", 10, 0)
    updates, _ = jax.jit(transformation.update)(same, transformation.init(same), same)
    # One float32 product by the rate each: their ratio is exact to three roundings.
    np.testing.assert_allclose(updates["head/out/kernel"], 100 * np.asarray(updates["backbone/conv/kernel"]), rtol=2e-7)


def test_make_optimizer_takes_a_prefix_of_the_groups():
    """As for the parameters of a partition: {"head": {...}}."""
    params = {"head": {"head": {"out": {"bias": jnp.zeros(3)}}}}
    transformation = optimizers.make_optimizer({"head": "head"}, {"head": 0.5}, optax.sgd)
    updates, _ = transformation.update(params, transformation.init(params))
    assert jax.tree.structure(updates) == jax.tree.structure(params)


@pytest.mark.parametrize(
    ("lrs", "fact"),
    [
        ({"haed": 1e-3}, "'haed'.*'head'"),
        ({"head": -1.0}, "'head'.*-1.0"),
        ({"head": "1e-3"}, "'head'.*'1e-3'"),
    ],
)
def test_make_optimizer_wrong_rate_is_a_user_error(lrs, fact):
    with pytest.raises(UserError, match=fact):
        optimizers.make_optimizer({"a": "head", "b": "base"}, lrs, optax.sgd)


def test_make_optimizer_name_of_an_optimizer_is_a_user_error():
    with pytest.raises(UserError, match=r"optimizer is 'adam'.*optax\.adam"):
        optimizers.make_optimizer({"a": "head"}, {"head": 1e-3}, "adam")


def test_make_optimizer_negative_rate_with_a_function_is_refused():
    with pytest.raises(UserError, match=r"'head' is -0\.5"):
        optimizers.make_optimizer(lambda params: dict.fromkeys(params, "head"), {"head": -0.5}, optax.sgd)


def test_make_optimizer_lr_scales_change_updates_not_state():
    shapes = {"head/out/kernel": (4,), "backbone/conv/kernel": (4,), "backbone/stem/kernel": (4,)}
    parameters = random(0, shapes)
    groups = dict(zip(shapes, ("head", "base", "frozen"), strict=True))
    rates, factors = {"head": 1e-2, "base": 1e-3, "frozen": 0.0}, dict(zip(shapes, (1.0, 0.5, 0.25), strict=True))
    plain, scaled = (
        optimizers.phase_optimizer(NADAM, ParamGroups(groups, rates, given), "cosine", 10, 0) for given in ({}, factors)
    )
    one, other = plain.init(parameters), scaled.init(parameters)
    update_plain, update_scaled = jax.jit(plain.update), jax.jit(scaled.update)
    for step in range(1, 4):
        expected, one = update_plain(random(step, shapes), one, parameters)
        found, other = update_scaled(random(step, shapes), other, parameters)
        assert all(np.array_equal(found[path], factors[path] * expected[path]) for path in shapes)
        assert not np.any(found["backbone/stem/kernel"])
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(other)))


@pytest.mark.parametrize(
    ("name", "warmup", "expected"),
    [
        ("constant", 0, {0: 0.5, 5: 0.5, 10: 0.5}),
        ("linear", 0, {0: 0.5, 5: 0.25, 10: 0.0}),
        ("cosine", 0, {0: 0.5, 5: 0.25, 10: 0.0}),
        ("constant", 4, {0: 0.0, 1: 0.125, 3: 0.375, 4: 0.5, 10: 0.5}),
        ("linear", 2, {0: 0.0, 1: 0.25, 2: 0.5, 6: 0.25, 10: 0.0}),
        ("cosine", 2, {0: 0.0, 1: 0.25, 2: 0.5, 6: 0.25, 10: 0.0}),
        ("step", 0, {0: 0.5, 4: 0.5, 5: 0.05, 6: 0.05, 7: 0.005, 10: 0.005}),
        ("plateau", 2, {0: 0.0, 1: 0.25, 2: 0.5, 10: 0.5}),
        ("step", 2, {0: 0.0, 2: 0.5, 5: 0.5, 6: 0.05, 7: 0.05, 8: 0.005}),
    ],
)
def test_make_schedule_values(name, warmup, expected):
    rate = optimizers.make_schedule(name, 0.5, steps=10, warmup_steps=warmup)
    found = {step: float(rate(jnp.int32(step))) for step in expected}
    # cos(pi / 2) in float32 is 4e-8 off zero; everything else here is exact
    assert found == pytest.approx(expected, rel=0, abs=2e-8)


@pytest.mark.parametrize(("steps", "expected"), [(1, [0.5]), (2, [0.5, 0.005]), (3, [0.5, 0.05, 0.005])])
def test_make_schedule_step_factors_of_one_step_multiply(steps, expected):
    rate = optimizers.make_schedule("step", 0.5, steps)
    assert [float(rate(jnp.int32(step))) for step in range(steps)] == pytest.approx(expected, rel=1e-6)


def test_make_schedule_unknown_name_suggests_similar():
    with pytest.raises(UserError, match=r"'cosin'.*'cosine'"):
        optimizers.make_schedule("cosin", 0.5, 10, 0)


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        ({"name": "nadm"}, "'nadm'.*'nadam'"),
        ({"b1": 0.9}, r"''.*\badabelief\b"),
        ({"name": "nadam", "bb1": 0.9}, r"(?=.*\bnadam\b).*'bb1'.*'b1'"),
        ({"name": "sgd", "momentun": 0.9}, r"(?=.*\bsgd\b).*'momentun'.*'momentum'"),
        ({"name": "adam", "learning_rate": 1.0}, r"optimizer\.learning_rate\b.*\badam\b.*\bfrozen\.lr\.head\b"),
        ({"name": "nadam", "lr": 1.0}, r"optimizer\.lr\b.*\bnadam\b.*\bfrozen\.lr\.head\b"),
        ({"name": "nadam", "b1": 2}, r"optimizer\.b1 is 2\b.*\bbelow 1\b"),
        ({"name": "adam", "b2": float("nan")}, r"optimizer\.b2 is nan\b.*\bbelow 1\b"),
        ({"name": "sgd", "momentum": True}, r"optimizer\.momentum is True\b.*\bnumber\b"),
        ({"name": "sgd", "nesterov": 1.5}, r"optimizer\.nesterov is 1\.5\b.*\bTrue or False\b"),
        ({"name": "adamw", "weight_decay": -0.1}, r"optimizer\.weight_decay is -0\.1\b.*\bat least 0\b"),
        ({"name": "adamw", "eps": None}, r"optimizer\.eps is None\b.*\bnumber\b"),
        ({"name": "rmsprop", "decay": "0.9"}, r"optimizer\.decay is '0\.9'.*\bnumber\b"),
        ({"name": "adamw", "mask": None}, r"(?=.*\badamw\b).*'mask'"),
        ({"name": "adam", "mu_dtype": "int32"}, r"optimizer\.mu_dtype.*'int32'.*\bbfloat16\b"),
        ({"name": "sgd", "accumulator_dtype": "flaot32"}, r"optimizer\.accumulator_dtype.*'flaot32'.*\bfloat32\b"),
    ],
)
def test_optimizer_factory_unknown_name_or_argument_is_rejected(settings, facts):
    with pytest.raises(UserError, match=facts):
        optimizers.optimizer_factory(settings)


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_optimizer_factory_every_name_updates_params(name):
    parameters, gradients = random(0), random(1)
    split = ParamGroups(dict.fromkeys(SHAPES, "head"), {"head": 1e-2})
    transformation = optimizers.phase_optimizer({"name": name}, split, "constant", 10, 0)
    updates, _ = jax.jit(transformation.update)(gradients, transformation.init(parameters), parameters)
    assert all(np.any(np.asarray(update) != 0) for update in updates.values())


@pytest.mark.parametrize("name", ["adamw", "lamb", "lion"])
def test_weight_decay_applies_to_trained_kernels_only(name):
    """Without gradients nothing but the decay moves a parameter."""
    shapes = {
        "head/out/kernel": (2, 3),
        "head/out/bias": (3,),
        "backbone/bn/scale": (4,),
        "backbone/cls/token": (1, 1, 4),
        "backbone/posembed_input/pos_embedding": (1, 5, 4),
        "backbone/separable/depthwise_kernel": (3, 3, 4, 1),
        "backbone/conv/kernel": (2, 2),
    }
    parameters = {path: np.full(shape, 2.0, np.float32) for path, shape in shapes.items()}
    groups = {path: "frozen" if path == "backbone/conv/kernel" else "head" for path in shapes}
    transformation = optimizers.phase_optimizer(
        {"name": name, "weight_decay": 0.5}, ParamGroups(groups, {"head": 0.1, "frozen": 0.0}), "constant", 10, 0
    )
    nothing = {path: np.zeros(shape, np.float32) for path, shape in shapes.items()}
    updates, _ = jax.jit(transformation.update)(nothing, transformation.init(parameters), parameters)
    moved = sorted(path for path, update in updates.items() if np.any(np.asarray(update) != 0))
    assert moved == ["backbone/separable/depthwise_kernel", "head/out/kernel"]


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "sgd", "momentum": None, "nesterov": True},
        {"name": "adam", "b1": 0, "eps": 1, "mu_dtype": "bfloat16"},
        {"name": "rmsprop", "momentum": 0.9, "centered": True},
    ],
)
def test_optimizer_factory_takes_valid_arguments(settings):
    assert optimizers.optimizer_factory(settings)(0.1).init({"w": jnp.ones(2)}) is not None


def test_layer_decay_scales_fall_from_the_head_down():
    paths = ["backbone/conv1/kernel", "backbone/conv5/kernel", "backbone/conv5/bias", "head/out/kernel"]
    layers = ["conv1", "pool1", "conv5", "pool5"]  # two of them have parameters
    assert optimizers.layer_decay_scales(paths, layers, 0.5) == dict(zip(paths, [0.25, 0.5, 0.5, 1.0], strict=True))
    assert optimizers.layer_decay_scales(paths, layers, 1.0) == {}


@pytest.mark.parametrize(
    ("name", "num_blocks"),
    [
        pytest.param("efficientnet_b0", 17, marks=pytest.mark.slow),  # the stem and 16 MBConv blocks
        ("resnet50", 17),  # the stem and 3 + 4 + 6 + 3
        ("vit_tiny_patch16_224", 13),  # the embeddings and 12 encoder blocks
        # the stem and 3 + 3 + 9 + 3; downsampling belongs to the block before it
        pytest.param("convnext_tiny", 19, marks=pytest.mark.slow),
        ("mobilenet", 14),  # the stem and 13
        pytest.param("inception_v3", 12, marks=pytest.mark.slow),  # the stem and mixed0 to mixed10
    ],
)
def test_layer_decay_scales_of_a_network_count_its_blocks(name, num_blocks):
    model = headless_model(registry.get_spec(name))
    size = model.spec.input_size
    layers = [layer.name for layer in classifier.list_layers(model, size, size)]
    paths = list(classifier.flatten_params(classifier.param_shapes(model, size, size)))
    scales = optimizers.layer_decay_scales(paths, layers, 0.7, model.spec.blocks)
    assert sorted(set(scales.values())) == [0.7**k for k in range(num_blocks, 0, -1)]
