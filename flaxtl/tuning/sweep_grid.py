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
from flaxtl.fileio import atomic_write_text
from flaxtl.train.run_records import Count, Record, load_json

SEED = "seed"
"""The setting whose values are not compared but averaged over."""

SAME_FOR_ALL = ("data.source", "data.classes", "data.fractions", "data.near_duplicates", "data.allow_leaks")
"""Settings that decide which images are learned from and judged by: points are compared on the same ones."""

LONGEST = 150
"""Bytes of a run's name; a file system allows 255, of which TensorBoard and others want some."""


class GridAxis(NamedTuple):
    """A setting and its values, as they were written."""

    key: str
    values: Sequence[str]


class SweepRun(Record, frozen=True):
    """One training run.

    `point` gives every setting of the grids, but for the seed, its JSON value: runs that share it are averaged. `fold`
    counts from 1, 0 where there are none. `settings` are the run's own overrides, as '--config.key=value'.
    """

    name: str
    point: dict[str, Any]
    fold: Count
    settings: list[str]


class SweepPlan(Record, frozen=True):
    """A sweep: the config before any grid, in JSON values; the settings that the grids are over; its runs in order."""

    config: dict[str, Any]
    keys: list[str]
    seeded: bool
    folds: Count
    runs: list[SweepRun]

    def write(self, file: Path) -> None:
        """As JSON, whole or not at all."""
        atomic_write_text(file, json.dumps(self.to_json(), indent=1) + "\n")


def read_plan(file: Path) -> SweepPlan:
    """Read sweep.json; raises UserError if `SweepPlan.write` did not write it."""
    return SweepPlan.from_json(load_json(file), file)


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
    if (earlier.keys, earlier.seeded, earlier.folds) != (now.keys, now.seeded, now.folds):
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
    return now.replace(runs=list(runs.values()))


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
