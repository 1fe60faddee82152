"""One ordered rule list decides the group of every parameter, and the groups' rates decide what learns.

Parameters are held flat, by path: 'backbone/block5_conv3/kernel'.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple

from flaxtl.errors import UserError, unknown
from flaxtl.models.classifier import BATCH_STATS, Leaf

Rule = tuple[str, str]


def assign_groups(paths: Sequence[str], rules: Sequence[Rule]) -> dict[str, str]:
    """path -> group, by the first rule (group, regular expression) that matches the whole path.

    Raises UserError for a path that no rule matches, a rule that matches nothing and a broken expression.
    """
    try:
        compiled = [(group, re.compile(pattern)) for group, pattern in rules]
    except (re.error, TypeError, ValueError) as error:
        raise UserError(f"groups must be pairs (name, regular expression): {error}") from error
    groups: dict[str, str] = {}
    used: set[int] = set()
    for path in paths:
        number = next((number for number, (_, pattern) in enumerate(compiled) if pattern.fullmatch(path)), None)
        if number is None:
            raise UserError(
                f"no rule in groups matches the parameter {path!r}; add one, such as ('base', 'backbone/.*')"
            )
        used.add(number)
        groups[path] = compiled[number][0]
    for number, (group, pattern) in enumerate(rules):
        if number not in used:
            raise UserError(
                f"the rule ({group!r}, {pattern!r}) in groups matches no parameter that an earlier rule left; "
                "remove or correct it"
            )
    return groups


def is_batch_stat(path: str) -> bool:
    """Whether `path` is a batch norm's running mean or variance, which no gradient moves."""
    return path.rsplit("/", 1)[1] in BATCH_STATS


def layers_in_train_mode(moving: Iterable[str], still: Iterable[str]) -> frozenset[str]:
    """Names of the layers that run as in training, by the paths of what moves and of what stays.

    A batch norm does if its statistics move: else what it learns by the batch would be judged by other statistics.
    """
    return frozenset(map(_layer, moving)) - frozenset(_layer(path) for path in still if is_batch_stat(path))


def _layer(path: str) -> str:
    return path.split("/")[1]


class ParamPartition(NamedTuple, Generic[Leaf]):
    """The parameters of one phase, by path, in three."""

    params: dict[str, Leaf]
    batch_stats: dict[str, Leaf]
    frozen: dict[str, Leaf]


@dataclass(frozen=True)
class ParamGroups:
    """Which group every parameter belongs to in one phase, and at which rate each group learns (0.0: frozen).

    With layer decay every path has a factor by which the rate of its group is multiplied; else there are none.
    """

    groups: Mapping[str, str]
    lrs: Mapping[str, float]
    lr_scales: Mapping[str, float] = field(default_factory=dict)

    def is_active(self, path: str) -> bool:
        """Whether the phase changes what is at `path`: its group learns."""
        return self.lrs[self.groups[path]] > 0

    def is_trainable(self, path: str) -> bool:
        """Whether gradients change what is at `path`."""
        return self.is_active(path) and not is_batch_stat(path)

    def partition(self, parameters: Mapping[str, Leaf]) -> ParamPartition[Leaf]:
        """What learns, the statistics that move with it, and what is frozen."""
        return ParamPartition(
            {path: value for path, value in parameters.items() if self.is_trainable(path)},
            {path: value for path, value in parameters.items() if self.is_active(path) and is_batch_stat(path)},
            {path: value for path, value in parameters.items() if not self.is_active(path)},
        )

    def lr_range(self, group: str) -> tuple[float, float]:
        """The highest and the lowest rate at which layers of `group` learn."""
        factors = [self.lr_scales.get(path, 1.0) for path, name in self.groups.items() if name == group]
        return self.lrs[group] * max(factors), self.lrs[group] * min(factors)

    def labels(self, parameters: Mapping[str, Leaf]) -> dict[str, str]:
        """path -> group, for the tree that optax.multi_transform is given."""
        return {path: self.groups[path] for path in parameters}


def layer_decay_scales(paths: Iterable[str], base: Sequence[str], decay: float) -> dict[str, float]:
    """path -> decay**k in the k-th layer with parameters below the head, 1 in the head itself; nothing if decay is 1.

    `base` names the backbone's layers, low to high. Each of those that have parameters counts as one, a batch norm too
    (layer-wise decay as of Howard and Ruder 2018, Clark et al. 2020 and Bao et al. 2021, who have a block as a layer).
    """
    if decay == 1:
        return {}
    owner = {path: _layer(path) for path in paths}
    with_parameters = set(owner.values())
    below = [layer for layer in reversed(base) if layer in with_parameters]
    depth = {layer: k for k, layer in enumerate(below, start=1)}
    return {path: decay ** depth.get(layer, 0) for path, layer in owner.items()}


def make_param_groups(phase: str, groups: Mapping[str, str], rates: Mapping[str, float]) -> ParamGroups:
    """The groups under one phase's rates.

    Raises UserError for a rate of an unknown group, a group without a rate, a negative rate, and a phase in which
    nothing learns.
    """
    names = set(groups.values())
    for group, rate in rates.items():
        if group not in names:
            raise unknown(f"group (in {phase}.lr)", group, names)
        if not rate >= 0:
            raise UserError(f"{phase}.lr.{group} is {rate}; a learning rate is 0.0 (frozen) or above")
    missing = sorted(names - set(rates))
    if missing:
        raise UserError(f"{phase}.lr gives no rate for {', '.join(missing)}; 0.0 freezes a group")
    if not any(rates[group] for path, group in groups.items() if not is_batch_stat(path)):
        raise UserError(f"nothing learns in phase {phase!r}: give a group a rate above 0.0 in {phase}.lr")
    return ParamGroups(groups, dict(rates))
