"""Which runs a sweep consists of: the product of its grids, seeds and folds, each run under a name of its own."""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from flaxtl import config
from flaxtl.errors import UserError
from flaxtl.evaluation.run_files import Record, Shape, is_count, is_flag, is_text, shape_fault
from flaxtl.fileio import atomic_write_text

SEED = "seed"
"""The setting whose values are not compared but averaged over."""

SAME_FOR_ALL = ("data.source", "data.classes", "data.fractions", "data.near_duplicates", "data.allow_leaks")
"""Settings that decide which images are learned from and judged by: points are compared on the same ones."""

LONGEST = 150
"""Bytes of a run's name; a file system allows 255, of which TensorBoard and others want some."""

PLAN_SHAPE: Shape = Record(
    {
        "config": {},
        "keys": [is_text],
        "seeded": is_flag,
        "folds": is_count,
        "runs": [Record({"name": is_text, "point": {}, "fold": is_count, "settings": [is_text]})],
    }
)
"""Of sweep.json."""


class GridAxis(NamedTuple):
    """A setting and its values, as they were written."""

    key: str
    values: Sequence[str]


class SweepRun(NamedTuple):
    """One training run.

    `point` gives every setting of the grids, but for the seed, its JSON value: runs that share it are averaged. `fold`
    counts from 1, 0 where there are none. `settings` are the run's own overrides, as '--config.key=value'.
    """

    name: str
    point: Mapping[str, Any]
    fold: int
    settings: Sequence[str]


class SweepPlan(NamedTuple):
    """A sweep: the config before any grid, in JSON values; the settings that the grids are over; its runs in order."""

    config: Mapping[str, Any]
    keys: Sequence[str]
    seeded: bool
    folds: int
    runs: Sequence[SweepRun]

    def write(self, file: Path) -> None:
        """As JSON, whole or not at all."""
        told = self._asdict() | {"runs": [run._asdict() for run in self.runs]}
        atomic_write_text(file, json.dumps(told, indent=1) + "\n")


def read_plan(file: Path) -> SweepPlan:
    """What `Plan.write` wrote; raises UserError for anything else."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({error}); restore it, or choose another --workdir") from error
    if reason := shape_fault(found, PLAN_SHAPE):
        raise UserError(f"{file} is no plan of a sweep: {reason}; restore it, or choose another --workdir")
    fields = {name: found[name] for name in SweepPlan._fields}
    runs = [SweepRun(**{name: run[name] for name in SweepRun._fields}) for run in found["runs"]]
    return SweepPlan(**fields | {"runs": runs})


def make_plan(
    spec: str, overrides: Sequence[str], grids: Sequence[str], seeds: str | None, folds: int | None
) -> SweepPlan:
    """The runs that were asked for, each of whose configs can be loaded.

    Args:
      spec: the config, FILE or FILE:VARIANT.
      overrides: '--config.key=value', for all runs.
      grids: 'config.key=value,value,...', each value as an override has it; see `values_of`.
      seeds: 'value,value,...' of the setting `seed`, or None.
      folds: of a cross-validation, or None.

    Raises:
      UserError: a grid is none, is over what all points share, or has a value twice; as `config.load`, for any run.
    """
    axes = _axes(grids, seeds, overrides)
    if not axes and folds is None:
        raise UserError("there is nothing to sweep over; give --grid config.key=value,value, --seeds or --kfold")
    if folds is not None and folds < 2:
        raise UserError(f"--kfold={folds} leaves nothing to train on or nothing to validate with; give 2 or more")
    base = config.config_to_json(config.load_config(spec, overrides))
    runs: dict[str, SweepRun] = {}
    for texts in product(*(axis.values for axis in axes)):
        settings = [f"--config.{axis.key}={text}" for axis, text in zip(axes, texts, strict=True)]
        values = _values(spec, [*overrides, *settings], axes)
        for fold in range(1, folds + 1) if folds is not None else (0,):
            run = SweepRun(
                _name(values | ({"fold": fold} if fold else {})),
                {key: value for key, value in values.items() if key != SEED},
                fold,
                settings,
            )
            if run.name in runs:
                raise UserError(f"two values of a --grid give the same run, {run.name}; leave one of them out")
            runs[run.name] = run
    keys = [axis.key for axis in axes if axis.key != SEED]
    return SweepPlan(base, keys, len(keys) < len(axes), folds or 0, list(runs.values()))


def merge_plans(earlier: SweepPlan, now: SweepPlan, workdir: Path) -> SweepPlan:
    """All runs of `earlier` and of `now`; raises UserError unless both are of one sweep, whose grids may have grown."""
    if (*earlier[1:4],) != (*now[1:4],):
        raise UserError(f"{workdir} holds a sweep over {_told(earlier)}; choose another --workdir, or the same grids")
    before = config.config_to_json(config.config_from_json(earlier.config))
    changed = [
        line
        for line in config.config_differences(before, now.config)
        if not line.startswith(("feature_cache.dir", "checkpoint."))  # they change where and when, not what
    ]
    if changed:
        raise UserError(f"{workdir} holds a sweep of another config ({'; '.join(changed)}); choose another --workdir")
    runs = {run.name: run for run in (*earlier.runs, *now.runs)}
    return now._replace(runs=list(runs.values()))


def values_of(text: str) -> list[str]:
    """The parts of `text` between commas that lie outside all brackets: '64,(128,64)' -> '64' and '(128,64)'."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    if depth:
        raise UserError(f"the brackets in {text!r} do not match; write a tuple as (128,64)")
    return parts


def shard_runs(text: str, runs: Sequence[SweepRun]) -> list[SweepRun]:
    """Of the text 'I/N' the I-th, from 1, of N shares: every N-th run. Raises UserError for anything else."""
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(f"--shard={text} is no share of the runs; give 1/N to N/N, such as --shard=1/4")
    return list(runs[int(found[1]) - 1 :: int(found[2])])


def text_of(value: Any) -> str:
    """A JSON value of a setting as a person writes it: true, 0.4, (128, 64), and 64 for the tuple of it alone."""
    if isinstance(value, list):
        inside = ", ".join(map(text_of, value))
        return inside if len(value) == 1 else f"({inside})"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _axes(grids: Sequence[str], seeds: str | None, overrides: Sequence[str]) -> list[GridAxis]:
    """The seed, if it has an axis, comes last."""
    axes = [_axis(grid) for grid in grids]
    if seeds is not None:
        axes.append(GridAxis(SEED, values_of(seeds)))
    given = [override.removeprefix("--config.").split("=")[0] for override in overrides]
    for axis in axes:
        if axis.key in SAME_FOR_ALL or axis.key.startswith("data.fractions."):
            raise UserError(
                f"{axis.key} is the same for all points of a sweep, which are compared; sweep once for each"
            )
        others = [other.key for other in axes] + [key for key in given if key != SEED]  # which deals out the images
        if others.count(axis.key) > 1:
            raise UserError(f"the setting {axis.key} is given twice; leave all but one --grid of it out")
    return sorted(axes, key=lambda axis: axis.key == SEED)


def _axis(grid: str) -> GridAxis:
    found = re.fullmatch(r"config\.([^=]+)=(.*)", grid, re.DOTALL)
    if not found:
        raise UserError(f"--grid {grid} names no setting and its values; write --grid config.head.units=64,128")
    if not found[2]:
        raise UserError(f"--grid {grid} gives no values; write --grid config.{found[1]}=VALUE,VALUE")
    return GridAxis(found[1], values_of(found[2]))


def _values(spec: str, overrides: Sequence[str], axes: Sequence[GridAxis]) -> dict[str, Any]:
    """The JSON values that a run has on all axes."""
    known = dict(config.flatten_config(config.config_to_json(config.load_config(spec, overrides))))
    for axis in axes:
        if axis.key not in known:
            raise UserError(
                f"the grid over {axis.key} meets a config without that setting, whose phases are "
                f"{text_of(known['phases'])}; sweep over one of both"
            )
    return {axis.key: known[axis.key] for axis in axes}


def _name(values: Mapping[str, Any]) -> str:
    name = ",".join(f"{key}={_plain(value)}" for key, value in values.items())
    if len(os.fsencode(name)) <= LONGEST:
        return name
    return f"{name[: LONGEST // 4]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"  # a letter has up to 4 bytes


def _plain(value: Any) -> str:
    """A value in letters that every file system and shell takes as they are."""
    if isinstance(value, int | float):
        return text_of(value)
    return re.sub(r"[^\w.+-]+", "-", text_of(value)).strip("-") or "none"


def _told(plan: SweepPlan) -> str:
    parts = [*plan.keys, *(["seeds"] if plan.seeded else []), *([f"{plan.folds} folds"] if plan.folds else [])]
    return ", ".join(parts)
