"""The legs of a run's schedule: what learns, at what rate, on what, how long."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import jax.numpy as jnp

from flaxtl.config import TOP_GROUP
from flaxtl.errors import UserError, unknown
from flaxtl.models.classifier import Classifier
from flaxtl.models.tracer import Layer, cut_points
from flaxtl.train.optimizers import SCHEDULES, optimizer_factory, schedule
from flaxtl.train.param_groups import ParamGroups, layer_decay_scales, make_param_groups

HIGHER_IS_BETTER = {
    "validation_loss": False,
    "validation_accuracy": True,
    "validation_balanced_accuracy": True,
    "train_loss": False,
    "train_accuracy": True,
}

SHARES: Mapping[str, tuple[Callable[[float], bool], str]] = {
    "plateau_factor": (lambda value: 0 < value < 1, "above 0 and below 1"),
    "layer_decay": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "ema": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
}
"""Settings of a phase that are fractions: which ones they may be, in a test and in words."""

FEATURE_CACHE_BYTES = 8 * 2**30
"""How large the outputs of a frozen prefix may be, for one view of each training image."""


@dataclass(frozen=True)
class Phase:
    """One leg. `cut` is the backbone layer whose outputs nothing below changes, or None if the whole base learns.

    Steps count over the whole run: a phase owns [first_step, last_step), also where it stops early.
    """

    name: str
    epochs: int
    steps_per_epoch: int
    augment: bool
    param_groups: ParamGroups
    schedule: str
    plateau_factor: float
    plateau_patience: int
    warmup_steps: int
    ema: float
    monitor: str
    patience: int
    first_step: int
    cut_layer: str | None

    def __post_init__(self) -> None:
        """Refuse a warm-up that never ends, and a plateau that early stopping never waits for."""
        if self.warmup_steps > self.steps:
            raise UserError(
                f"{self.name}.warmup_steps is {self.warmup_steps}, but the phase has only {self.steps} steps; lower it"
            )
        if self.schedule == "plateau" and 0 < self.patience <= self.plateau_patience:
            raise UserError(
                f"{self.name}.patience={self.patience} ends the phase before its schedule 'plateau' lowers the rate, "
                f"after {self.plateau_patience} epochs; lower {self.name}.plateau_patience"
            )

    @property
    def steps(self) -> int:
        """Steps of the whole phase."""
        return self.epochs * self.steps_per_epoch

    @property
    def last_step(self) -> int:
        """The first step of the next phase."""
        return self.first_step + self.steps

    def is_improvement(self, value: float, best: float | None) -> bool:
        """Whether `value` of the phase's metric beats the best so far."""
        if best is None:
            return True
        return value > best if HIGHER_IS_BETTER[self.monitor] else value < best

    def plateau_reached(self, waited: int) -> bool:
        """Whether the rates fall after the `waited`-th epoch since the best one.

        As Keras' ReduceLROnPlateau does it with a min_delta of 0: after plateau_patience epochs, and again after each
        as many, until one is better.
        """
        return self.schedule == "plateau" and waited > 0 and waited % self.plateau_patience == 0

    def lrs(self, steps: int, scale: float) -> dict[str, float]:
        """group -> rate of the last of the phase's first `steps` steps, of each group that learns, to 6 digits.

        `scale` is what plateaus have left of the rates.
        """
        found = {}
        for group, rate in self.param_groups.lrs.items():
            if rate:
                at_last = schedule(self.schedule, rate, self.steps, self.warmup_steps)(jnp.int32(steps - 1))
                found[group] = float(f"{scale * float(at_last):.6g}")
        return found


def build_phases(
    config: Any,
    model: Classifier,
    layers: Sequence[Layer],
    assigned: Mapping[str, str],
    n_train: int,
    cut_groups: Collection[str] = (),
) -> tuple[Phase, ...]:
    """The config's phases in order, checked; `n_train` is the number of training images.

    The rates of `cut_groups`, which model.output_layer leaves without parameters, are passed over.
    """
    optimizer_factory(
        config.optimizer
    )  # made anew by each phase; here a misspelt one is found before anything is computed
    if config.batch_size < 1:
        raise UserError(f"batch is {config.batch_size}; a batch holds at least one image")
    if not 0 <= config.label_smoothing < 1:
        raise UserError(f"label_smoothing is {config.label_smoothing:g}; it is a share, from 0 to below 1")
    backbone = [layer.name for layer in layers if layer.section == "backbone"]
    phases: list[Phase] = []
    for name in config.phases:
        if name not in config:
            raise UserError(f"phases names {name!r}, but the config has no settings c.{name}")
        settings = config[name]
        rates = _rates(config, model, settings.lr)
        split = make_param_groups(name, assigned, {group: rates[group] for group in rates if group not in cut_groups})
        decay = _share(name, "layer_decay", settings)
        split = replace(split, lr_scales=layer_decay_scales(assigned, backbone, decay))
        phases.append(
            Phase(
                name=name,
                epochs=_at_least(1, name, "epochs", settings.epochs),
                steps_per_epoch=_at_least(0, name, "steps_per_epoch", settings.steps_per_epoch)
                or -(-n_train // config.batch_size),
                augment=bool(settings.augment),
                param_groups=split,
                schedule=_known(name, "schedule", settings.schedule, SCHEDULES),
                plateau_factor=_share(name, "plateau_factor", settings),
                plateau_patience=_at_least(1, name, "plateau_patience", settings.plateau_patience),
                warmup_steps=_at_least(0, name, "warmup_steps", settings.warmup_steps),
                ema=_share(name, "ema", settings),
                monitor=_known(name, "monitor", settings.monitor, tuple(HIGHER_IS_BETTER)),
                patience=_at_least(0, name, "patience", settings.patience),
                first_step=phases[-1].last_step if phases else 0,
                cut_layer=frozen_prefix(model, layers, split, n_train),
            )
        )
    if len({phase.name for phase in phases}) < len(phases):
        raise UserError(f"phases names a phase twice: {', '.join(config.phases)}; give each its own name and settings")
    _check_views(config, phases)
    return tuple(phases)


def _check_views(config: Any, phases: Sequence[Phase]) -> None:
    """Refuse what cannot be kept: mixtures are of images that meet in a batch."""
    views, mixing = config.feature_cache.views, [name for name in ("mixup", "cutmix") if config.augmentation[name]]
    if views < 0:
        raise UserError(
            f"feature_cache.views is {views}; give 0 for fresh augmentation, or the number of views to keep"
        )
    if views and mixing and any(phase.augment and phase.cut_layer for phase in phases):
        raise UserError(
            f"feature_cache.views={views} keeps views of single images, but augmentation.{mixing[0]} mixes two anew in "
            f"every step; set feature_cache.views=0 or augmentation.{mixing[0]}=0"
        )


def _rates(config: Any, model: Classifier, lr: Mapping[str, float]) -> dict[str, float]:
    """group -> learning rate; `top` under its own name, unless the config has groups of its own."""
    top = TOP_GROUP if config.param_groups else model.spec.top_group
    return {top if group == TOP_GROUP else group: float(rate) for group, rate in lr.items()}


def _at_least(least: int, phase: str, key: str, value: int) -> int:
    if value < least:
        raise UserError(f"{phase}.{key} is {value}; it must be at least {least}")
    return int(value)


def _share(phase: str, key: str, settings: Any) -> float:
    value, (fits, words) = float(settings[key]), SHARES[key]
    if not fits(value):
        raise UserError(f"{phase}.{key} is {value:g}; it must be {words}")
    return value


def _known(phase: str, key: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise unknown(f"{phase}.{key}", value, known)
    return value


def frozen_prefix(model: Classifier, layers: Sequence[Layer], split: ParamGroups, n: int) -> str | None:
    """The highest backbone layer that everything passes through and at or below which nothing moves.

    None if there is no such layer, or if its outputs for `n` images would be larger than CACHE_BYTES.
    """
    moving = {path.split("/")[1] for path in split.groups if path.startswith("backbone/") and split.is_active(path)}
    below = takewhile(lambda layer: layer.section == "backbone" and layer.name not in moving, layers)
    clean = set(cut_points(layers))
    *_, cut = None, *(layer for layer in below if layer.name in clean)
    if cut is None or n * math.prod(cut.shape) * jnp.dtype(model.dtype).itemsize > FEATURE_CACHE_BYTES:
        return None
    return cut.name
