"""Which runs make up a sweep: the product of its grids, seeds and folds; and the plan of them in sweep.json."""

import hashlib
import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import field

from flaxtl.config import config_differences, config_from_json, config_to_json, flatten_config, load_config
from flaxtl.errors import UserError
from flaxtl.fileio import atomic_write_text, user_path
from flaxtl.models import registry
from flaxtl.train.run_dir import MUTABLE_SETTINGS, with_canonical_name
from flaxtl.train.run_records import Count, Record, load_json

SEED = "seed"
"""The setting whose values are averaged over instead of compared."""

WEIGHTS = "weights.path"

SHARED_SETTINGS = ("data.source", "data.classes", "data.fractions", "data.near_duplicates", "data.allow_leaks")
"""Settings that select the images of the splits: points are compared on the same images."""

MAX_NAME_BYTES = 150
"""Longest name of a run; a file system allows 255 bytes, of which TensorBoard and others need some."""


class GridAxis(NamedTuple):
    """A setting and its values, as they were written on the command line."""

    key: str
    values: Sequence[str]


class SweepRun(Record, frozen=True):
    """One training run of a sweep.

    Attributes:
      name: of the run directory.
      point: setting of a grid -> JSON value, without the seed. Runs with the same point are averaged.
      fold: number of the cross-validation fold, from 1; 0 without folds.
      overrides: '--config.key=value' of the grids and the seed.
    """

    name: str
    point: dict[str, Any]
    fold: Count
    overrides: list[str]


class SweepPlan(Record, frozen=True):
    """A sweep.

    Attributes:
      config: the config before any grid, as JSON values.
      keys: settings of the grids, without the seed.
      seeded: whether the runs have different seeds.
      folds: number of cross-validation folds; 0 without.
      runs: in the order of the grids.
      weights: weight file on this machine -> its SHA-256, in hex.
    """

    config: dict[str, Any]
    keys: list[str]
    seeded: bool
    folds: Count
    runs: list[SweepRun]
    weights: dict[str, str] = field(default_factory=dict)

    def write(self, file: Path) -> None:
        """Write the plan as JSON."""
        atomic_write_text(file, json.dumps(self.to_json(), indent=1) + "\n")


def read_plan(file: Path) -> SweepPlan:
    """Read a plan that `SweepPlan.write` wrote. Raises UserError for anything else."""
    return SweepPlan.from_json(load_json(file), file)


def make_plan(
    spec: str, overrides: Sequence[str], grids: Sequence[str], seeds: str | None, folds: int | None
) -> SweepPlan:
    """Return the requested runs, after loading the config of each.

    Args:
      spec: the config, as `load_config` takes it.
      overrides: '--config.key=value' for all runs.
      grids: 'config.key=value,value,...', with each value as an override has it; see `split_values`.
      seeds: 'value,value,...' for the setting `seed`, or None.
      folds: number of cross-validation folds, or None.

    Raises:
      UserError: a grid is malformed, over a shared setting or has a value twice; or the config of a run is invalid.
    """
    axes = _parse_axes(grids, seeds, overrides)
    if not axes and folds is None:
        raise UserError("Nothing to sweep over. Give --grid config.key=value,value, --seeds or --kfold.")
    if folds is not None and folds < 2:
        raise UserError(f"--kfold={folds} leaves no images for training or for validation. Give 2 or more.")
    base = _load_values(spec, overrides)
    runs: dict[str, SweepRun] = {}
    for texts in product(*(axis.values for axis in axes)):
        own_overrides = [f"--config.{axis.key}={text}" for axis, text in zip(axes, texts, strict=True)]
        values = _axis_values(spec, [*overrides, *own_overrides], axes)
        point = {key: value for key, value in values.items() if key != SEED}
        for fold in range(1, folds + 1) if folds is not None else (0,):
            name = _run_name(values | ({"fold": fold} if fold else {}))
            if name in runs:
                raise UserError(f"Two values of a --grid or of --seeds give the same run, {name}. Leave one out.")
            runs[name] = SweepRun(name, point, fold, own_overrides)
    keys = [axis.key for axis in axes if axis.key != SEED]
    paths = {base["weights"]["path"], *(run.point.get(WEIGHTS) for run in runs.values())}
    return SweepPlan(base, keys, len(keys) < len(axes), folds or 0, list(runs.values()), _weight_digests(paths))


def _weight_digests(paths: Collection[object]) -> dict[str, str]:
    """Return the SHA-256 of those values of `weights.path` that are files on this machine."""
    files = {path: user_path(path) for path in paths if isinstance(path, str)}
    return {
        path: hashlib.sha256(file.read_bytes()).hexdigest() for path, file in sorted(files.items()) if file.is_file()
    }


def merge_plans(old: SweepPlan, new: SweepPlan, workdir: Path) -> SweepPlan:
    """Return a plan with the runs of both. Raises UserError if they differ in more than the values of their grids."""
    if (old.keys, old.seeded, old.folds) != (new.keys, new.seeded, new.folds):
        raise UserError(f"{workdir} holds a sweep over {_describe(old)}. Use the same grids, or another --workdir.")
    differences = [
        difference
        for difference in config_differences(
            config_to_json(with_canonical_name(config_from_json(old.config))), new.config
        )
        if not difference.startswith(MUTABLE_SETTINGS)
    ]
    if differences:
        raise UserError(f"{workdir} holds a sweep of another config ({'; '.join(differences)}). Use another --workdir.")
    if changed := [path for path in old.weights if new.weights.get(path, old.weights[path]) != old.weights[path]]:
        raise UserError(
            f"{changed[0]} has changed since the sweep in {workdir} was started, so its runs could not be compared. "
            "Use another --workdir."
        )
    runs = {run.name: run for run in (*old.runs, *new.runs)}
    return new.replace(runs=list(runs.values()), weights=old.weights | new.weights)


def keep_run_names(new: SweepPlan, old: SweepPlan) -> SweepPlan:
    """Return `new` with the names, and so the directories, of runs that `old` has under another name of their model."""
    names = {_canonical_run_name(run): run.name for run in old.runs}
    return new.replace(runs=[run.replace(name=names.get(run.name, run.name)) for run in new.runs])


def _canonical_run_name(run: SweepRun) -> str:
    """Return a run's name with the registry's name of its model; earlier versions kept the name that was given."""
    model = run.point.get("model.name")
    if not isinstance(model, str):
        return run.name
    given, own = (f"model.name={_format_in_name(name)}" for name in (model, registry.canonical_name(model)))
    return run.name.replace(given, own, 1)


def shard_runs(shard: str, runs: Sequence[SweepRun]) -> list[SweepRun]:
    """Return the runs of shard 'I/N': every N-th one, from the I-th on. Raises UserError for an invalid shard."""
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", shard)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--shard={shard} is invalid. Give 1/N to N/N, such as --shard=1/4.")
    return list(runs[int(match[1]) - 1 :: int(match[2])])


def split_values(text: str) -> list[str]:
    """Split at commas outside brackets: '64,(128,64)' gives '64' and '(128,64)'."""
    parts, depth = [""], 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        if char == "," and not depth:
            parts.append("")
        else:
            parts[-1] += char
    if depth:
        raise UserError(f"Unbalanced brackets in {text!r}. Write a tuple as (128,64).")
    return parts


def format_value(value: Any) -> str:
    """Format a JSON value of a setting: true, 0.4, (128, 64); a list with one element as this element alone."""
    if isinstance(value, list):
        elements = ", ".join(map(format_value, value))
        return elements if len(value) == 1 else f"({elements})"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _parse_axes(grids: Sequence[str], seeds: str | None, overrides: Sequence[str]) -> list[GridAxis]:
    """Return the axes of the product; the seed, if it is one of them, comes last."""
    axes = [_parse_grid(grid) for grid in grids]
    if seeds is not None:
        axes.append(GridAxis(SEED, split_values(seeds)))
    overridden = [override.removeprefix("--config.").split("=")[0] for override in overrides]
    for axis in axes:
        if axis.key in SHARED_SETTINGS or axis.key.startswith("data.fractions."):
            raise UserError(f"{axis.key} must be the same for all runs of a sweep. Start one sweep for each value.")
        # A seed among the overrides is allowed beside --seeds: it splits the images.
        others = [other.key for other in axes] + [key for key in overridden if key != SEED]
        if others.count(axis.key) > 1:
            raise UserError(f"Setting {axis.key} is given twice. Keep one --grid or override of it.")
    return sorted(axes, key=lambda axis: axis.key == SEED)


def _parse_grid(grid: str) -> GridAxis:
    match = re.fullmatch(r"config\.([^=]+)=(.*)", grid, re.DOTALL)
    if not match:
        raise UserError(f"--grid {grid} is not a setting with values. Write --grid config.head.units=64,128.")
    if not match[2]:
        raise UserError(f"--grid {grid} has no values. Write --grid config.{match[1]}=VALUE,VALUE.")
    return GridAxis(match[1], split_values(match[2]))


def _load_values(spec: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Return a config as JSON values; the model has its own name, so that other spellings of it are the same run."""
    return config_to_json(with_canonical_name(load_config(spec, overrides)))


def _axis_values(spec: str, overrides: Sequence[str], axes: Sequence[GridAxis]) -> dict[str, Any]:
    """Return the JSON value of every axis in a run's config."""
    values = dict(flatten_config(_load_values(spec, overrides)))
    for axis in axes:
        if axis.key not in values:
            phases = format_value(values["phases"])
            raise UserError(f"The grid over {axis.key} needs a setting that a config with the phases {phases} lacks.")
    return {axis.key: values[axis.key] for axis in axes}


def _run_name(values: Mapping[str, Any]) -> str:
    name = ",".join(f"{key}={_format_in_name(value)}" for key, value in values.items())
    if len(os.fsencode(name)) <= MAX_NAME_BYTES:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return f"{name[: MAX_NAME_BYTES // 4]}-{digest}"  # a character has up to 4 bytes


def _format_in_name(value: Any) -> str:
    """Format a value with characters that need no quoting in file systems and shells."""
    if isinstance(value, int | float):
        return format_value(value)
    return re.sub(r"[^\w.+-]+", "-", format_value(value)).strip("-") or "none"


def _describe(plan: SweepPlan) -> str:
    parts = [*plan.keys, *(["seeds"] if plan.seeded else []), *([f"{plan.folds} folds"] if plan.folds else [])]
    return ", ".join(parts)
