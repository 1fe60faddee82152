"""Optimizers, learning-rate schedules and layer-wise decay: everything that a learning rate is computed from.

The rate of a parameter is the rate of its group x the schedule x the layer's decay x `TrainState.lr_scale`. The rates
in the log are values of the same schedules that the optimizer is built from.
"""

import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flaxtl.errors import UserError, unknown
from flaxtl.train.param_groups import ParamGroups, layer_of

Schedule = Callable[[jax.Array], jax.Array]
"""Step of the phase -> learning rate."""

OptimizerFactory = Callable[..., optax.GradientTransformation]
"""Learning rate or schedule -> optimizer, such as `optax.adam`."""

OPTIMIZERS = ("adabelief", "adam", "adamw", "lamb", "lion", "radam", "rmsprop", "sgd")
"""Optimizers of optax that a config may name, besides Keras' `nadam`."""

FRACTION_ARGUMENTS = frozenset({"b1", "b2", "decay", "momentum"})
"""Arguments of optimizers that are decay rates of running means: from 0 to below 1."""

MOMENT_DTYPES = ("float32", "bfloat16")
"""Dtypes that an optimizer may keep its running means in."""

STEP_DECAY = {0.5: 0.1, 0.75: 0.1}
"""Schedule `step`: fraction of the steps -> factor on the rate from there on (He et al. 2016, CIFAR-10)."""

SCHEDULES: dict[str, Callable[[float, int], Schedule]] = {
    "constant": lambda lr, steps: optax.constant_schedule(lr),
    "cosine": optax.cosine_decay_schedule,
    "linear": lambda lr, steps: optax.linear_schedule(lr, 0.0, steps),
    "step": lambda lr, steps: optax.piecewise_constant_schedule(lr, _step_factors(steps)),
    "plateau": lambda lr, steps: optax.constant_schedule(lr),  # the reductions are in `TrainState.lr_scale`
}
"""Name in the config -> schedule of a learning rate over the steps after the warm-up."""

_FROZEN = "<frozen>"  # label of parameters that get no update; not a valid group name


def phase_optimizer(
    settings: Mapping[str, Any],
    param_groups: ParamGroups,
    schedule: str,
    steps: int,
    warmup_steps: int,
    clip_norm: float = 0.0,
) -> optax.GradientTransformation:
    """Return the optimizer of a phase.

    Args:
      settings: the config's `optimizer`.
      param_groups: groups, their learning rates and the layers' decay.
      schedule: a key of SCHEDULES.
      steps: steps of the phase.
      warmup_steps: steps of linear warm-up.
      clip_norm: see `clip_grads`.
    """
    schedules = lr_schedules(param_groups, schedule, steps, warmup_steps)
    optimizer = make_optimizer(param_groups.labels, schedules, optimizer_factory(settings), param_groups.lr_scales)
    return clip_grads(optimizer, clip_norm)


def clip_grads(optimizer: optax.GradientTransformation, clip_norm: float) -> optax.GradientTransformation:
    """Return the optimizer behind gradient clipping (Pascanu et al. 2013), as Keras' `global_clipnorm`.

    If the norm of all gradients together, which are those of the trainable parameters, is above `clip_norm`, they are
    scaled down to it. 0 disables.
    """
    return optax.chain(optax.clip_by_global_norm(clip_norm), optimizer) if clip_norm else optimizer


def lr_schedules(param_groups: ParamGroups, schedule: str, steps: int, warmup_steps: int) -> dict[str, Schedule]:
    """Return the learning-rate schedule of each group that is trained."""
    return {group: make_schedule(schedule, lr, steps, warmup_steps) for group, lr in param_groups.lrs.items() if lr > 0}


def make_schedule(name: str, lr: float, steps: int, warmup_steps: int = 0) -> Schedule:
    """Return a schedule: linear warm-up from 0 to `lr`, then as named; 'cosine' and 'linear' reach 0 after `steps`."""
    if name not in SCHEDULES:
        raise unknown("schedule", name, SCHEDULES)
    schedule = SCHEDULES[name](lr, max(steps - warmup_steps, 1))
    if not warmup_steps:
        return schedule
    warmup = optax.linear_schedule(0.0, lr, warmup_steps)
    joined: Schedule = optax.join_schedules([warmup, schedule], [warmup_steps])
    return joined


def _step_factors(steps: int) -> dict[int, float]:
    """Return step -> factor on the rate from there on: that of STEP_DECAY, or the product of those of one step.

    The first step has the full rate, however short the phase is.
    """
    factors: dict[int, float] = {}
    for fraction, factor in STEP_DECAY.items():
        step = max(int(fraction * steps), 1)
        factors[step] = factors.get(step, 1.0) * factor
    return factors


def make_optimizer(
    groups: Any,
    lrs: Mapping[str, Schedule | float],
    optimizer: OptimizerFactory,
    lr_scales: Mapping[str, float] | None = None,
) -> optax.GradientTransformation:
    """Return an optimizer with a learning rate per parameter group (`optax.multi_transform`).

        groups = flaxtl.param_groups(variables["params"], model.default_groups)
        tx = flaxtl.make_optimizer(groups, {"head": 1e-3, "block5": 1e-6}, optax.adam)

    Args:
      groups: the group of each parameter: a pytree of names with the structure of the parameters, or of a prefix of it
        (`{"head": "head"}` for the parameters of a `flaxtl.partition`), or a function params -> such a pytree.
      lrs: group -> learning rate or schedule. Groups that are not listed, or have rate 0.0, are frozen: their updates
        are zero, and the optimizer holds no state for them.
      optimizer: learning rate -> optimizer, such as `optax.adam`.
      lr_scales: path -> factor on the updates of a parameter, for parameters in a flat dict; none if empty.

    Raises:
      UserError: for a rate of a group that does not exist in a pytree `groups`, a negative rate, or the name of an
        optimizer.
    """
    if not callable(optimizer):
        raise UserError(f"The optimizer is {optimizer!r}. Give a function of the learning rate, such as optax.adam.")
    _check_lrs(lrs, None if callable(groups) else set(jax.tree.leaves(groups)))
    transforms = {group: optimizer(lr) for group, lr in lrs.items() if callable(lr) or lr > 0}

    def labels(params: optax.Params) -> Any:
        names = groups(params) if callable(groups) else groups
        return jax.tree.map(lambda name: name if name in transforms else _FROZEN, names)

    by_group = optax.multi_transform({**transforms, _FROZEN: optax.set_to_zero()}, labels)
    return _scale_updates(by_group, lr_scales) if lr_scales else by_group


def _check_lrs(lrs: Mapping[str, Schedule | float], groups: Set[str] | None) -> None:
    for group, lr in lrs.items():
        if groups is not None and group not in groups:
            raise unknown("group", group, groups)
        if isinstance(lr, str) or (not callable(lr) and not lr >= 0):
            raise UserError(f"The learning rate of {group!r} is {lr!r}. Give 0.0 (frozen) or more.")


def _scale_updates(
    transformation: optax.GradientTransformation, scales: Mapping[str, float]
) -> optax.GradientTransformation:
    """Multiply the update of each path by its factor; the optimizer's state does not depend on it."""

    def update(
        grads: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        updates, new_state = transformation.update(grads, state, params)
        return {path: scales[path] * value for path, value in updates.items()}, new_state

    return optax.GradientTransformation(transformation.init, update)


def layer_decay_scales(
    paths: Iterable[str], backbone_layers: Sequence[str], decay: float, blocks: str = ""
) -> dict[str, float]:
    """Return path -> decay**k for the k-th block below the head, 1 for the head; empty if decay is 1.

    Blocks count, as in Clark et al. 2020 (ELECTRA), Bao et al. 2021 (BEiT) and timm, not single layers.

    Args:
      paths: paths of all parameters.
      backbone_layers: names of the backbone's layers, from input to output.
      decay: in (0, 1].
      blocks: see `ModelSpec.blocks`.
    """
    if decay == 1:
        return {}
    layers = {path: layer_of(path) for path in paths}
    with_params = set(layers.values())
    block_of = _blocks(backbone_layers, blocks)
    in_order = list(dict.fromkeys(block_of[layer] for layer in backbone_layers if layer in with_params))
    depth = {block: k for k, block in enumerate(reversed(in_order), start=1)}
    return {path: decay ** (depth[block_of[layer]] if layer in block_of else 0) for path, layer in layers.items()}


def _blocks(layers: Sequence[str], pattern: str) -> dict[str, str]:
    """Return layer -> name of its block; see `ModelSpec.blocks`."""
    if not pattern:
        return {layer: layer for layer in layers}
    block_of, block = {}, ""  # the stem
    for layer in layers:
        if match := re.match(pattern, layer):
            block = match[match.lastindex or 0]
        block_of[layer] = block
    return block_of


def optimizer_factory(settings: Mapping[str, Any]) -> OptimizerFactory:
    """Return the optimizer of a config as a function of the learning rate.

    Args:
      settings: the config's `optimizer`: a name, and keyword arguments of the optimizer.

    Raises:
      UserError: for an unknown optimizer or argument, or a value that it cannot have.
    """
    name = str(settings.get("name", ""))
    arguments = {key: value for key, value in settings.items() if key != "name"}
    make = _optimizer(name)
    signature = inspect.signature(make).parameters
    known = signature.keys() - {"learning_rate", "mask"}
    for key, value in arguments.items():
        if key in ("lr", "learning_rate"):
            raise UserError(
                f"optimizer.{key} is not a setting of {name}: each phase sets the learning rate of each of its groups. "
                "Set PHASE.lr.GROUP, such as --config.frozen.lr.head=1e-3."
            )
        if key not in known:
            raise unknown(f"setting of the optimizer {name}", key, known)
        _check_argument(key, value, signature[key].default)
    if "mask" in signature:
        arguments["mask"] = _weight_decay_mask
    return lambda lr: make(lr, **arguments)


def weight_decay(settings: Mapping[str, Any]) -> float:
    """Return the weight decay of a config's optimizer, which may be its default; 0.0 if it has none."""
    parameter = inspect.signature(_optimizer(str(settings["name"]))).parameters.get("weight_decay")
    return 0.0 if parameter is None else float(settings.get("weight_decay", parameter.default))


def has_weight_decay(path: str) -> bool:
    """Whether weight decay applies to a parameter: to kernels, not to biases, norms, class token and positions."""
    return path.endswith("kernel")


def _optimizer(name: str) -> OptimizerFactory:
    if name != "nadam" and name not in OPTIMIZERS:
        raise unknown("optimizer", name, ("nadam", *OPTIMIZERS))
    make: OptimizerFactory = nadam if name == "nadam" else getattr(optax, name)
    return make


def _check_argument(key: str, value: Any, default: Any) -> None:
    """Raise UserError for a value that an argument of an optimizer cannot have; `default` gives its type."""
    if value == default:
        return
    if key.endswith("dtype"):  # of a running mean, which an integer type would round to 0
        is_valid, allowed = value in MOMENT_DTYPES, f"one of {', '.join(MOMENT_DTYPES)}"
    elif isinstance(default, bool):
        is_valid, allowed = isinstance(value, bool), "True or False"
    else:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        is_fraction = key in FRACTION_ARGUMENTS
        is_valid = is_number and (0 <= value < 1 if is_fraction else 0 <= value < math.inf)
        allowed = "a number of at least 0 and below 1" if is_fraction else "a number of at least 0"
    if not is_valid:
        raise UserError(f"optimizer.{key} is {value!r}; it must be {allowed}.")


def _weight_decay_mask(params: optax.Params) -> optax.Params:
    """Return whether each of the parameters, a flat dict in which `multi_transform` masks some, has weight decay."""
    return jax.tree.map_with_path(lambda path, _: has_weight_decay(path[-1].key), params)


class NadamState(NamedTuple):
    """Number of steps, product of the momentum schedule so far, first and second moments."""

    num_steps: jax.Array
    momentum_product: jax.Array
    mu: optax.Updates
    nu: optax.Updates


def nadam(
    learning_rate: Schedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-7,
    weight_decay: float = 0.0,
    mask: Callable[[optax.Params], Any] = lambda params: jax.tree.map(lambda _: True, params),
) -> optax.GradientTransformation:
    """Nadam as in Keras 3 (keras/src/optimizers/nadam.py; Dozat 2016), with its defaults.

    It differs from optax.nadam: the momentum warms up as u_t = b1 * (1 - 0.5 * 0.96**t), and eps is added outside the
    square root. With `weight_decay`, each step also subtracts learning rate * weight_decay * parameter from those that
    `mask` selects (keras/src/optimizers/base_optimizer.py; decoupled as in AdamW).
    """

    def init(params: optax.Params) -> NadamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return NadamState(jnp.zeros((), jnp.int32), jnp.ones(()), zeros, jax.tree.map(jnp.zeros_like, params))

    def update(
        grads: optax.Updates, state: NadamState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, NadamState]:
        t = (state.num_steps + 1).astype(jnp.float32)
        momentum, next_momentum = (b1 * (1 - 0.5 * 0.96**step) for step in (t, t + 1))
        product = state.momentum_product * momentum
        mu = jax.tree.map(lambda m, g: m + (g - m) * (1 - b1), state.mu, grads)
        nu = jax.tree.map(lambda v, g: v + (g * g - v) * (1 - b2), state.nu, grads)
        lr = learning_rate(state.num_steps)

        def step(g: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
            m_hat = next_momentum * m / (1 - product * next_momentum) + (1 - momentum) * g / (1 - product)
            return -lr * m_hat / (jnp.sqrt(v / (1 - b2**t)) + eps)

        updates = jax.tree.map(step, grads, mu, nu)
        if weight_decay:
            assert params is not None, "weight decay depends on the parameters"
            decay = lr * weight_decay
            updates = jax.tree.map(lambda u, p, use: u - decay * p if use else u, updates, params, mask(params))
        return updates, NadamState(state.num_steps + 1, product, mu, nu)

    return optax.GradientTransformation(init, update)
