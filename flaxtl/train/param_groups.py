"""Parameter groups: one ordered rule list assigns every parameter to a group, and the groups' rates decide what trains.

Parameters are held in a flat dict by path, such as 'backbone/block5_conv3/kernel'. The functions of the Python API
(`param_groups`, `partition`, `merge`) take and return them nested, as Flax does.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple

from flaxtl.errors import UserError, unknown
from flaxtl.models.classifier import BATCH_STATS, Leaf, NestedParams, flatten_params, unflatten_params

Rule = tuple[str, str]
"""Name of a group, and a regular expression for paths."""


def assign_groups(paths: Sequence[str], rules: Sequence[Rule]) -> dict[str, str]:
    """Return path -> group, by the first rule that matches the whole path.

    Raises:
      UserError: for a path without a matching rule, a rule that matches no remaining path, or an invalid expression.
    """
    try:
        compiled = [(group, re.compile(pattern)) for group, pattern in rules]
    except (re.error, TypeError, ValueError) as error:
        raise UserError(f"param_groups must be pairs (name, regular expression): {error}") from error
    groups: dict[str, str] = {}
    used: set[int] = set()
    for path in paths:
        index = next((index for index, (_, pattern) in enumerate(compiled) if pattern.fullmatch(path)), None)
        if index is None:
            raise UserError(
                f"No rule in param_groups matches the parameter {path!r}. Add one, such as ('base', 'backbone/.*')."
            )
        used.add(index)
        groups[path] = compiled[index][0]
    for index, (group, pattern) in enumerate(compiled):
        if index not in used:
            raise UserError(
                f"The rule ({group!r}, {pattern.pattern!r}) in param_groups matches no parameter that is not matched "
                "by an earlier rule. Correct or remove it."
            )
    return groups


def param_groups(params: Mapping[str, Any], rules: Sequence[Rule]) -> NestedParams[str]:
    """Return the name of the group of every parameter, as a pytree with the structure of `params`.

        groups = flaxtl.param_groups(variables["params"], model.default_groups)

    Args:
      params: `variables["params"]` of a model of `flaxtl.create_model`: section -> layer -> leaf -> array.
      rules: pairs (group, regular expression) for 'section/layer/leaf', such as
        `("block5", "backbone/block5_.*")`; the first one that matches the whole path decides.

    Raises:
      UserError: for a parameter without a matching rule, a rule that matches nothing, or an invalid expression.
    """
    return unflatten_params(assign_groups(list(_flatten(params)), rules))


def partition(params: Mapping[str, Any], groups: Mapping[str, Any]) -> dict[str, NestedParams[Any]]:
    """Divide parameters by group, to differentiate with respect to some groups only. `merge` is the inverse.

        frozen = flaxtl.partition(variables["params"], groups)
        trained = {"head": frozen.pop("head")}
        grads = jax.grad(lambda trained: loss(flaxtl.merge(frozen | trained)))(trained)

    Args:
      params: nested parameters, section -> layer -> leaf -> array, or any values with this structure.
      groups: their groups, from `param_groups`.

    Returns:
      Group -> its parameters, nested in the same way, in the order of `params`.

    Raises:
      UserError: for a parameter without a group.
    """
    names = _flatten(groups)
    parts: dict[str, dict[str, Any]] = {}
    for path, value in _flatten(params).items():
        if path not in names:
            raise unknown("parameter in groups", path, names)
        parts.setdefault(names[path], {})[path] = value
    return {group: unflatten_params(part) for group, part in parts.items()}


def merge(parts: Mapping[str, Mapping[str, Any]]) -> NestedParams[Any]:
    """Join parameters that `partition` has divided; the order of the groups does not matter.

    Args:
      parts: group -> nested parameters.
    """
    return unflatten_params({path: leaf for part in parts.values() for path, leaf in _flatten(part).items()})


def _flatten(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return path -> value of nested parameters. Raises UserError if a level of them is missing."""
    try:
        return flatten_params(dict(params))
    except (AttributeError, TypeError) as error:
        raise UserError(
            "A level of the nested parameters is missing: they are section -> layer -> leaf -> value, as in "
            "variables['params'] of flaxtl.create_model."
        ) from error


def make_param_groups(phase: str, groups: Mapping[str, str], lrs: Mapping[str, float]) -> "ParamGroups":
    """Return the groups with the learning rates of a phase.

    Args:
      phase: the phase's name, for messages.
      groups: path -> group.
      lrs: group -> learning rate; 0.0 freezes the group.

    Raises:
      UserError: for an unknown group, a group without a rate, a negative rate, or if nothing would be trained.
    """
    names = set(groups.values())
    for group, lr in lrs.items():
        if group not in names:
            raise unknown(f"group (in {phase}.lr)", group, names)
        if not lr >= 0:
            raise UserError(f"{phase}.lr.{group} is {lr}; a learning rate is 0.0 (frozen) or above.")
    if missing := sorted(names - set(lrs)):
        raise UserError(f"{phase}.lr has no learning rate for {', '.join(missing)}. 0.0 freezes a group.")
    if not any(lrs[group] for path, group in groups.items() if not is_batch_stat(path)):
        raise UserError(f"Nothing is trained in phase {phase!r}. Set a learning rate above 0.0 in {phase}.lr.")
    return ParamGroups(groups, dict(lrs))


class ParamPartition(NamedTuple, Generic[Leaf]):
    """The parameters of a phase, by path: trained by gradients, updated batch statistics, and frozen."""

    params: dict[str, Leaf]
    batch_stats: dict[str, Leaf]
    frozen: dict[str, Leaf]


@dataclass(frozen=True)
class ParamGroups:
    """The group of every parameter, and the learning rates of a phase.

    Attributes:
      groups: path -> group.
      lrs: group -> learning rate; 0.0: frozen.
      lr_scales: path -> factor on the group's rate, from layer-wise decay; empty without decay.
    """

    groups: Mapping[str, str]
    lrs: Mapping[str, float]
    lr_scales: Mapping[str, float] = field(default_factory=dict)

    def is_active(self, path: str) -> bool:
        """Whether the phase changes this parameter or statistic: its group is not frozen."""
        return self.lrs[self.groups[path]] > 0

    def is_trainable(self, path: str) -> bool:
        """Whether this parameter is trained by gradients."""
        return self.is_active(path) and not is_batch_stat(path)

    def partition(self, params: Mapping[str, Leaf]) -> ParamPartition[Leaf]:
        """Divide parameters into trainable ones, batch statistics that are updated with them, and frozen ones."""
        return ParamPartition(
            {path: value for path, value in params.items() if self.is_trainable(path)},
            {path: value for path, value in params.items() if self.is_active(path) and is_batch_stat(path)},
            {path: value for path, value in params.items() if not self.is_active(path)},
        )

    def scale_range(self, group: str) -> tuple[float, float]:
        """Return the highest and the lowest factor on the rate of `group` among its layers."""
        scales = [self.lr_scales.get(path, 1.0) for path, name in self.groups.items() if name == group]
        return max(scales), min(scales)

    def lr_range(self, group: str) -> tuple[float, float]:
        """Return the highest and the lowest learning rate of the layers of `group`."""
        highest, lowest = self.scale_range(group)
        return self.lrs[group] * highest, self.lrs[group] * lowest

    def labels(self, params: Mapping[str, Leaf]) -> dict[str, str]:
        """Return path -> group of the given parameters, as optax.multi_transform needs it."""
        return {path: self.groups[path] for path in params}


def is_batch_stat(path: str) -> bool:
    """Whether `path` is a running mean or variance of a batch norm, which has no gradient."""
    return path.rsplit("/", 1)[1] in BATCH_STATS


def layers_in_train_mode(active: Iterable[str], frozen: Iterable[str]) -> frozenset[str]:
    """Return the layers that run in training mode: all active ones, except batch norms with frozen statistics.

    Args:
      active: paths of the parameters that the phase changes.
      frozen: paths of all others.
    """
    return frozenset(map(layer_of, active)) - frozenset(layer_of(path) for path in frozen if is_batch_stat(path))


def layer_of(path: str) -> str:
    """Return the layer's name in 'section/layer/leaf'."""
    return path.split("/")[1]
