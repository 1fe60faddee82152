"""The run directory: what is written there besides checkpoints and metrics, and whether it may be used.

Of a run of many processes the first one writes, and all read.
"""

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from flaxtl import recipe
from flaxtl.data.manifest import Manifest
from flaxtl.errors import UserError
from flaxtl.files import write_text
from flaxtl.train import hosts

PACKAGES = ("flaxtl", "jax", "flax", "optax", "orbax-checkpoint", "numpy", "pillow")


def is_run(workdir: Path) -> bool:
    """Whether `workdir` belongs to a run.

    Raises UserError if it holds the checkpoints of a run that has lost its config.json.
    """
    found = (workdir / "config.json").is_file()
    if not found and any((workdir / "checkpoints").glob("*/*")):
        raise UserError(f"{workdir} holds checkpoints of a run but no config.json; choose another --workdir")
    return found


def check_recipe(workdir: Path, config: Mapping[str, Any], phases: int | None = None) -> None:
    """Raise UserError, listing what differs, if the run in `workdir` has another recipe than `config`.

    With `phases` only that many of the phases have to be the same, and what all phases share.
    """
    theirs = _completed(_json(workdir / "config.json"))
    changed = [
        line
        for line in recipe.differences(_shortened(theirs, phases), _shortened(config, phases))
        if not line.startswith(("features.directory", "checkpoint."))  # they change where and when, not what
    ]
    if changed:
        raise UserError(
            f"{workdir} holds a run of another recipe ({'; '.join(changed)}); "
            "choose another --workdir, or start with the settings it was begun with"
        )


def _completed(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """With the defaults of settings that did not exist when the run began."""
    return recipe.to_json(recipe.from_json(config))


def _shortened(config: Mapping[str, Any], phases: int | None) -> Mapping[str, Any]:
    """With the first `phases` phases only."""
    kept = config["phases"][:phases]
    left_out = set(config["phases"]) - set(kept)
    return {key: value for key, value in config.items() if key not in left_out} | {"phases": kept}


def create(workdir: Path, config: Mapping[str, Any], manifest: Manifest, layers: Sequence[Mapping[str, Any]]) -> None:
    """Write what identifies a run; config.json comes last, as the sign that the rest is there."""
    if not hosts.writes():
        return
    workdir.mkdir(parents=True, exist_ok=True)
    manifest.write(workdir / "manifest.csv")
    _write(workdir / "layers.json", layers)
    note(
        workdir,
        seed=config["seed"],
        classes=list(manifest.classes),
        devices=[device.device_kind for device in jax.devices()],
        versions={"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        phases={},
    )
    _write(workdir / "config.json", config)


def summary(workdir: Path) -> dict[str, Any]:
    """summary.json, or {} before it is there."""
    file = workdir / "summary.json"
    return _json(file) if file.is_file() else {}


def note(workdir: Path, **values: Any) -> None:
    """Set top-level entries of summary.json; a mapping is merged into the one that is there."""
    if not hosts.writes():
        return
    known = summary(workdir)
    for key, value in values.items():
        known[key] = {**known[key], **value} if isinstance(value, dict) and key in known else value
    _write(workdir / "summary.json", known)


def note_phase(workdir: Path, phase: str, **values: Any) -> None:
    """Set entries of one phase in summary.json."""
    phases = summary(workdir).get("phases", {})
    note(workdir, phases={phase: {**phases.get(phase, {}), **values}})


def config_of(workdir: Path) -> Any:
    """The recipe of the run in `workdir`."""
    if not (workdir / "config.json").is_file():
        raise UserError(f"{workdir} is no run directory (it has no config.json); give the --workdir of a training run")
    return recipe.from_json(_json(workdir / "config.json"))


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{file} cannot be read as JSON ({error}); restore it or start anew in another --workdir"
        ) from error
    return found


def _write(file: Path, value: Any) -> None:
    write_text(file, json.dumps(value, indent=1) + "\n")  # ASCII: names of files need not be Unicode
