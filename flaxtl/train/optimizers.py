"""From a phase's rates to one optax transformation over named groups."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flaxtl.errors import unknown
from flaxtl.train.param_groups import ParamGroups

Rate = Callable[[jax.Array], jax.Array]

OPTIMIZERS = ("adabelief", "adam", "adamw", "lamb", "lion", "radam", "rmsprop", "sgd")
"""optax optimizers that a config may name, beside Keras' `nadam`."""

SCHEDULES = ("constant", "cosine", "linear", "step", "plateau")

STEPS = {0.5: 0.1, 0.75: 0.1}
"""Of the schedule `step`: which share of the way -> by what the rate is multiplied (He et al. 2016, CIFAR-10)."""


class NadamState(NamedTuple):
    """Steps taken, product of the momentum schedule so far, and the two running means."""

    taken: jax.Array
    product: jax.Array
    first: optax.Updates
    second: optax.Updates


def nadam(learning_rate: Rate, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-7) -> optax.GradientTransformation:
    """Nadam as Keras 3 computes it (keras/src/optimizers/nadam.py; Dozat 2016), defaults as there.

    It is not optax.nadam: the momentum warms up as u_t = b1 * (1 - 0.5 * 0.96**t) and eps stands outside the root.
    """

    def init(parameters: optax.Params) -> NadamState:
        zeros = jax.tree.map(jnp.zeros_like, parameters)
        return NadamState(jnp.zeros((), jnp.int32), jnp.ones(()), zeros, jax.tree.map(jnp.zeros_like, parameters))

    def update(
        gradients: optax.Updates, state: NadamState, parameters: optax.Params | None = None
    ) -> tuple[optax.Updates, NadamState]:
        del parameters
        t = (state.taken + 1).astype(jnp.float32)
        now, after = (b1 * (1 - 0.5 * 0.96**step) for step in (t, t + 1))
        product = state.product * now
        first = jax.tree.map(lambda m, g: m + (g - m) * (1 - b1), state.first, gradients)
        second = jax.tree.map(lambda v, g: v + (g * g - v) * (1 - b2), state.second, gradients)
        rate = learning_rate(state.taken)

        def step(g: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
            ahead = after * m / (1 - product * after) + (1 - now) * g / (1 - product)
            return -rate * ahead / (jnp.sqrt(v / (1 - b2**t)) + eps)

        updates = jax.tree.map(step, gradients, first, second)
        return updates, NadamState(state.taken + 1, product, first, second)

    return optax.GradientTransformation(init, update)


def schedule(name: str, rate: float, steps: int, warmup: int) -> Rate:
    """step -> learning rate: from 0 up to `rate` over `warmup` steps, then on as named, to 0 at `steps` or by STEPS.

    `plateau` is constant here: what validation makes of it is in the state (steps.State.scale).
    """
    rest = max(steps - warmup, 1)
    shapes: dict[str, Callable[[], Rate]] = {
        "constant": lambda: optax.constant_schedule(rate),
        "cosine": lambda: optax.cosine_decay_schedule(rate, rest),
        "linear": lambda: optax.linear_schedule(rate, 0.0, rest),
        "step": lambda: optax.piecewise_constant_schedule(rate, {int(share * rest): by for share, by in STEPS.items()}),
        "plateau": lambda: optax.constant_schedule(rate),
    }
    if name not in shapes:
        raise unknown("schedule", name, SCHEDULES)
    if not warmup:
        return shapes[name]()
    joined: Rate = optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), shapes[name]()], [warmup])
    return joined


def optimizer_factory(settings: Mapping[str, Any]) -> Callable[[Rate], optax.GradientTransformation]:
    """Learning rate -> optimizer, for a config's `optimizer` settings (a name and its keyword arguments).

    Raises UserError for an optimizer or an argument that does not exist.
    """
    name = str(settings.get("name", ""))
    arguments = {key: value for key, value in settings.items() if key != "name"}
    if name != "nadam" and name not in OPTIMIZERS:
        raise unknown("optimizer", name, ("nadam", *OPTIMIZERS))
    make: Callable[..., optax.GradientTransformation] = nadam if name == "nadam" else getattr(optax, name)
    parameters = set(inspect.signature(make).parameters)
    known = parameters - {"learning_rate", "mask"}
    for key in arguments:
        if key not in known:
            raise unknown(f"setting of the optimizer {name}", key, known)
    if "mask" in parameters:
        arguments["mask"] = _decays
    return lambda rate: make(rate, **arguments)


def _decays(parameters: optax.Params) -> optax.Params:
    """Which parameters a weight decay is for: kernels, but no biases and nothing of a batch norm, which are vectors."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, parameters)


def phase_optimizer(
    settings: Mapping[str, Any], split: ParamGroups, schedule_name: str, steps: int, warmup: int
) -> optax.GradientTransformation:
    """One optimizer a group at its own rate, by the named schedule; see `by_groups`."""
    return make_optimizer(settings, split, lambda rate: schedule(schedule_name, rate, steps, warmup))


def make_optimizer(
    settings: Mapping[str, Any], split: ParamGroups, scheduled: Callable[[float], Rate]
) -> optax.GradientTransformation:
    """One optimizer a group, by what `scheduled` makes of the group's rate; a frozen group is set to zero.

    The labels follow from each parameter's path, so the same transformation serves the whole tree and the learning
    part alone; of a frozen group it holds no state. Where layers of a group have factors, their updates are multiplied
    by them, and the state knows nothing of it.
    """
    make = optimizer_factory(settings)
    transforms = {group: make(scheduled(rate)) if rate else optax.set_to_zero() for group, rate in split.lrs.items()}
    by_group = optax.multi_transform(transforms, split.labels)
    return _scaled(by_group, split.lr_scales) if split.lr_scales else by_group


def _scaled(transformation: optax.GradientTransformation, factors: Mapping[str, float]) -> optax.GradientTransformation:
    """The transformation with the update of every path multiplied by its factor."""

    def update(
        gradients: optax.Updates, state: optax.OptState, parameters: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        updates, moved = transformation.update(gradients, state, parameters)
        return {path: factors[path] * value for path, value in updates.items()}, moved

    return optax.GradientTransformation(transformation.init, update)
