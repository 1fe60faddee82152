"""The phases of a run: which parameter groups train, at what learning rate, on what data, for how long."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import dropwhile, takewhile
from typing import Any

import jax.numpy as jnp

from flaxtl.defaults import LAST_BLOCK
from flaxtl.errors import UserError, unknown
from flaxtl.models.classifier import Classifier
from flaxtl.models.tracer import Layer, cut_points
from flaxtl.parallel import devices
from flaxtl.train.optimizers import SCHEDULES, Schedule, layer_decay_scales, lr_schedules, optimizer_factory
from flaxtl.train.param_groups import ParamGroups, layer_of, make_param_groups

HIGHER_IS_BETTER = {
    "validation_loss": False,
    "validation_accuracy": True,
    "validation_balanced_accuracy": True,
    "train_loss": False,
    "train_accuracy": True,
}
"""The metrics that a phase can monitor."""

RANGES: Mapping[str, tuple[Callable[[float], bool], str]] = {
    "plateau_factor": (lambda value: 0 < value < 1, "above 0 and below 1"),
    "layer_decay": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "clip_norm": (lambda value: 0 <= value < math.inf, "at least 0, and finite; 0 disables it"),
    "ema": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
}
"""Settings of a phase that are numbers with a fraction: a check, and the range in words."""

FEATURE_CACHE_BYTES = 8 * 2**30
"""Maximum size of the cached outputs of a cut layer, for one view of each training image."""


@dataclass(frozen=True)
class Phase:
    """One stage of the schedule; see the settings of a phase in `defaults.py`.

    Steps are numbered over the whole run: a phase has the steps from `first_step` to below `last_step`, even if it
    stops early.

    Attributes:
      param_groups: the groups with the phase's learning rates.
      cut_layer: the last frozen layer below everything that trains; its outputs can be cached. None without one.
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
    clip_norm: float
    ema: float
    monitor: str
    patience: int
    first_step: int
    cut_layer: str | None

    def __post_init__(self) -> None:
        """Check that the warm-up ends, and that the plateau schedule acts before early stopping."""
        if self.warmup_steps > self.steps:
            raise UserError(
                f"{self.name}.warmup_steps is {self.warmup_steps}, but the phase has only {self.steps} steps. "
                f"Lower it to at most {self.steps}, or raise {self.name}.epochs or {self.name}.min_steps."
            )
        if self.schedule == "plateau" and 0 < self.patience <= self.plateau_patience:
            raise UserError(
                f"{self.name}.patience={self.patience} ends the phase before its schedule 'plateau' reduces the "
                f"learning rate, after {self.plateau_patience} epochs. Lower {self.name}.plateau_patience."
            )

    @property
    def steps(self) -> int:
        """Number of steps if the phase does not stop early."""
        return self.epochs * self.steps_per_epoch

    @property
    def last_step(self) -> int:
        """The step after the phase: the first step of the next one."""
        return self.first_step + self.steps

    @cached_property
    def lr_schedules(self) -> dict[str, Schedule]:
        """The learning-rate schedule of each group that is trained."""
        return lr_schedules(self.param_groups, self.schedule, self.steps, self.warmup_steps)

    def lrs(self, steps: int, lr_scale: float) -> dict[str, float]:
        """Return the learning rate of each trained group in the last of the phase's first `steps` steps, to 6 digits.

        Where layer decay gives the layers of a group different rates, `group` has the highest, `group (lowest)` the
        lowest of them.

        Args:
          steps: number of steps, at least 1.
          lr_scale: product of the reductions on plateaus so far.
        """
        last, rates = jnp.int32(steps - 1), dict[str, float]()
        for group, schedule in self.lr_schedules.items():
            rate = lr_scale * float(schedule(last))
            highest, lowest = (float(f"{scale * rate:.6g}") for scale in self.param_groups.scale_range(group))
            rates[group] = highest
            if lowest < highest:
                rates[f"{group} (lowest)"] = lowest
        return rates

    def is_improvement(self, value: float, best: float | None) -> bool:
        """Whether `value` of the monitored metric is better than the best one so far."""
        if best is None:
            return True
        return value > best if HIGHER_IS_BETTER[self.monitor] else value < best

    def plateau_reached(self, epochs_since_best: int) -> bool:
        """Whether the learning rates are reduced after this epoch.

        As Keras' ReduceLROnPlateau with min_delta=0: after every `plateau_patience` epochs without improvement.
        """
        return self.schedule == "plateau" and epochs_since_best > 0 and epochs_since_best % self.plateau_patience == 0


def build_phases(
    config: Any,
    model: Classifier,
    layers: Sequence[Layer],
    groups: Mapping[str, str],
    num_train: int,
    unused_groups: Collection[str] = (),
) -> tuple[Phase, ...]:
    """Return the config's phases, in order, with every setting checked.

    Args:
      config: the config.
      model: the classifier.
      layers: its layers, in order.
      groups: path -> group of every parameter.
      num_train: number of training images.
      unused_groups: groups that `model.output_layer` leaves without parameters; their learning rates are ignored.
    """
    check_training_settings(config)
    backbone_layers = [layer.name for layer in layers if layer.section == "backbone"]
    phases: list[Phase] = []
    for name in config.phases:
        settings = config[name]
        lrs = {group: lr for group, lr in _lrs(config, model, settings.lr).items() if group not in unused_groups}
        layer_decay = _in_range(name, "layer_decay", settings)
        lr_scales = layer_decay_scales(groups, backbone_layers, layer_decay, model.spec.blocks)
        param_groups = replace(make_param_groups(name, groups, lrs), lr_scales=lr_scales)
        epochs = _at_least(1, name, "epochs", settings)
        phase = Phase(
            name=name,
            epochs=epochs,
            steps_per_epoch=_steps_per_epoch(name, settings, epochs, num_train, config.batch_size),
            augment=bool(settings.augment),
            param_groups=param_groups,
            schedule=_one_of(tuple(SCHEDULES), name, "schedule", settings),
            plateau_factor=_in_range(name, "plateau_factor", settings),
            plateau_patience=_at_least(1, name, "plateau_patience", settings),
            warmup_steps=_at_least(0, name, "warmup_steps", settings),
            clip_norm=_in_range(name, "clip_norm", settings),
            ema=_in_range(name, "ema", settings),
            monitor=_one_of(tuple(HIGHER_IS_BETTER), name, "monitor", settings),
            patience=_at_least(0, name, "patience", settings),
            first_step=phases[-1].last_step if phases else 0,
            cut_layer=find_cut_layer(model, layers, param_groups, num_train),
        )
        phases.append(phase)
    if len({phase.name for phase in phases}) < len(phases):
        raise UserError(f"phases lists a phase twice: {', '.join(config.phases)}. Give each its own name and settings.")
    _check_views(config, phases, layers)
    return tuple(phases)


def check_training_settings(config: Any) -> None:
    """Check the settings that concern neither images nor the model. Raises UserError for the first that is invalid."""
    optimizer_factory(config.optimizer)  # each phase creates its own
    if config.batch_size < 1:
        raise UserError(f"batch_size is {config.batch_size}; it must be at least 1.")
    devices.check_batch_size(1, config.batch_size, config.accum_steps)
    if not 0 <= config.label_smoothing < 1:
        raise UserError(f"label_smoothing is {config.label_smoothing:g}; it must be at least 0 and below 1.")
    mixing = [name for name in ("mixup", "cutmix") if config.augmentation[name]]
    if config.batch_size == 1 and mixing and any(config[name].augment for name in config.phases):
        raise UserError(
            f"augmentation.{mixing[0]} mixes the images of a batch, but batch_size is 1. Set batch_size to at least 2, "
            f"or augmentation.{mixing[0]}=0."
        )


def find_cut_layer(
    model: Classifier, layers: Sequence[Layer], param_groups: ParamGroups, num_images: int
) -> str | None:
    """Return the last backbone layer that all paths pass through and that, with all layers below, is frozen.

    None if there is no such layer, if no layer up to it has parameters (ResNet's first one only pads the images), or if
    its outputs for `num_images` images would exceed FEATURE_CACHE_BYTES.
    """
    paths = [path for path in param_groups.groups if path.startswith("backbone/")]
    with_params, active = set(map(layer_of, paths)), set(map(layer_of, filter(param_groups.is_active, paths)))
    frozen = takewhile(lambda layer: layer.section == "backbone" and layer.name not in active, layers)
    computed = dropwhile(lambda layer: layer.name not in with_params, frozen)
    candidates = set(cut_points(layers))
    *_, cut_layer = None, *(layer for layer in computed if layer.name in candidates)
    if cut_layer is None:
        return None
    image_bytes = math.prod(cut_layer.shape) * jnp.dtype(model.dtype).itemsize
    return cut_layer.name if num_images * image_bytes <= FEATURE_CACHE_BYTES else None


def _steps_per_epoch(phase: str, settings: Any, epochs: int, num_train: int, batch_size: int) -> int:
    """Return `steps_per_epoch`; if it is 0, as many steps as use every image once, or as `min_steps` needs.

    `min_steps` makes epochs longer instead of adding some: patience and plateaus, which count epochs, and schedules,
    which act at fractions of the phase, keep their meaning, and there are not more validations.
    """
    steps, min_steps = (_at_least(0, phase, key, settings) for key in ("steps_per_epoch", "min_steps"))
    return steps or max(math.ceil(num_train / batch_size), math.ceil(min_steps / epochs))


def _lrs(config: Any, model: Classifier, lrs: Mapping[str, float]) -> dict[str, float]:
    """Return group -> learning rate; `top` is replaced by its group's name, unless the config has its own groups."""
    last_block = LAST_BLOCK if config.param_groups else model.spec.last_block
    return {last_block if group == LAST_BLOCK else group: float(lr) for group, lr in lrs.items()}


def _check_views(config: Any, phases: Sequence[Phase], layers: Sequence[Layer]) -> None:
    """Check the number of cached views, and that CutMix finds places in their features."""
    num_views = config.feature_cache.views
    if num_views < 0:
        raise UserError(
            f"feature_cache.views is {num_views}. Set 0 for fresh augmentation, or the number of views to cache."
        )
    if not (num_views and config.augmentation.cutmix):
        return
    without_places = {layer.name for layer in layers if len(layer.shape) != 3}
    for phase in phases:
        if phase.augment and phase.cut_layer in without_places:
            raise UserError(
                f"augmentation.cutmix pastes a box of another image, but the cached features of phase {phase.name} "
                f"({phase.cut_layer}) have no rows and columns. Use augmentation.mixup, or set feature_cache.views=0."
            )


def _at_least(minimum: int, phase: str, key: str, settings: Any) -> int:
    value = settings[key]
    if value < minimum:
        raise UserError(f"{phase}.{key} is {value}; it must be at least {minimum}.")
    return int(value)


def _in_range(phase: str, key: str, settings: Any) -> float:
    value, (is_valid, allowed) = float(settings[key]), RANGES[key]
    if not is_valid(value):
        raise UserError(f"{phase}.{key} is {value:g}; it must be {allowed}.")
    return value


def _one_of(known: Sequence[str], phase: str, key: str, settings: Any) -> str:
    value = str(settings[key])
    if value not in known:
        raise unknown(f"{phase}.{key}", value, known)
    return value
