"""The legs of a run's schedule: what learns, at what rate, on what, how long."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from flaxtl.errors import UserError, unknown
from flaxtl.models.classifier import Classifier
from flaxtl.models.trace import Layer
from flaxtl.train import groups
from flaxtl.train.groups import Split
from flaxtl.train.optim import SCHEDULES, factory

HIGHER_IS_BETTER = {
    "validation_loss": False,
    "validation_accuracy": True,
    "validation_balanced_accuracy": True,
    "train_loss": False,
    "train_accuracy": True,
}

CACHE_BYTES = 8 * 2**30
"""How large the outputs of a frozen prefix may be: they lie in device memory, beside the pictures."""


@dataclass(frozen=True)
class Phase:
    """One leg. `cut` is the backbone layer whose outputs nothing below changes, or None if the whole base learns.

    Steps count over the whole run: a phase owns [first_step, last_step), also where it stops early.
    """

    name: str
    epochs: int
    steps_per_epoch: int
    augment: bool
    split: Split
    schedule: str
    warmup_steps: int
    metric: str
    patience: int
    first_step: int
    cut: str | None

    def __post_init__(self) -> None:
        """Refuse a warm-up that never ends."""
        if self.warmup_steps > self.steps:
            raise UserError(
                f"{self.name}.warmup_steps is {self.warmup_steps}, but the phase has only {self.steps} steps; lower it"
            )

    @property
    def steps(self) -> int:
        """Steps of the whole phase."""
        return self.epochs * self.steps_per_epoch

    @property
    def last_step(self) -> int:
        """The first step of the next phase."""
        return self.first_step + self.steps

    def better(self, value: float, best: float | None) -> bool:
        """Whether `value` of the phase's metric beats the best so far."""
        if best is None:
            return True
        return value > best if HIGHER_IS_BETTER[self.metric] else value < best


def plan(
    config: Any,
    model: Classifier,
    layers: Sequence[Layer],
    assigned: Mapping[str, str],
    n_train: int,
    cut_groups: Collection[str] = (),
) -> tuple[Phase, ...]:
    """The recipe's phases in order, checked; `n_train` is the number of training pictures.

    The rates of `cut_groups`, which model.stop leaves without parameters, are passed over.
    """
    factory(config.optimizer)  # made anew by each phase; here a misspelt one is found before anything is computed
    if config.batch < 1:
        raise UserError(f"batch is {config.batch}; a batch holds at least one picture")
    phases: list[Phase] = []
    for name in config.phases:
        if name not in config:
            raise UserError(f"phases names {name!r}, but the recipe has no settings c.{name}")
        settings = config[name]
        rates = {group: float(rate) for group, rate in settings.lr.items() if group not in cut_groups}
        split = groups.split(name, assigned, rates)
        phases.append(
            Phase(
                name=name,
                epochs=_at_least(1, name, "epochs", settings.epochs),
                steps_per_epoch=_at_least(0, name, "steps_per_epoch", settings.steps_per_epoch)
                or -(-n_train // config.batch),
                augment=bool(settings.augment),
                split=split,
                schedule=_known(name, "schedule", settings.schedule, SCHEDULES),
                warmup_steps=_at_least(0, name, "warmup_steps", settings.warmup_steps),
                metric=_known(name, "metric", settings.metric, tuple(HIGHER_IS_BETTER)),
                patience=_at_least(0, name, "patience", settings.patience),
                first_step=phases[-1].last_step if phases else 0,
                cut=frozen_prefix(model, layers, split, n_train),
            )
        )
    if len({phase.name for phase in phases}) < len(phases):
        raise UserError(f"phases names a phase twice: {', '.join(config.phases)}; give each its own name and settings")
    return tuple(phases)


def _at_least(least: int, phase: str, key: str, value: int) -> int:
    if value < least:
        raise UserError(f"{phase}.{key} is {value}; it must be at least {least}")
    return int(value)


def _known(phase: str, key: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise unknown(f"{phase}.{key}", value, known)
    return value


def frozen_prefix(model: Classifier, layers: Sequence[Layer], split: Split, n: int) -> str | None:
    """The highest backbone layer that everything passes through and at or below which nothing learns.

    None if there is no such layer, or if its outputs for `n` pictures would be larger than CACHE_BYTES.
    """
    learning = {path.split("/")[1] for path in split.groups if path.startswith("backbone/") and split.learns(path)}
    below: list[Layer] = []
    for layer in layers:
        if layer.section != "backbone" or layer.name in learning:
            break
        below.append(layer)
    cut = next((layer for layer in reversed(below) if _can_start(model, layer)), None)
    if cut is None or n * math.prod(cut.shape) * jnp.dtype(model.dtype).itemsize > CACHE_BYTES:
        return None
    return cut.name


def _can_start(model: Classifier, layer: Layer) -> bool:
    """Whether the network can go on from that layer's output alone."""
    features = jax.ShapeDtypeStruct((1, *layer.shape), jnp.float32)
    try:
        jax.eval_shape(lambda key, x: model.init(key, x, start=layer.name), jax.random.key(0), features)
    except UserError:
        return False
    return True
