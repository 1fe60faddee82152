"""One process at a time in a run directory."""

import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from flaxtl import fileio
from flaxtl.config import config_differences, config_from_json, config_to_json
from flaxtl.data.manifest import Manifest
from flaxtl.errors import UserError
from flaxtl.fileio import atomic_write_text
from flaxtl.parallel import processes

LOCK_NAME = ".lock"


@contextmanager
def run_dir_lock(workdir: Path) -> Iterator[None]:
    """`workdir`, which is made if it does not exist, for this process alone.

    The system lets go of the lock when the process ends, however it ends. A new directory in which nothing was written
    is removed again. Raises UserError if another process holds it, or if nothing can be written there.
    """
    new = [place for place in (workdir, *workdir.parents) if not place.exists()]
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = fileio.file_lock(workdir / LOCK_NAME, wait=False)
    except OSError as error:
        raise UserError(f"cannot write to {workdir} ({error.strerror}); choose another --workdir") from error
    if file is None:
        holder = (workdir / LOCK_NAME).read_text(encoding="utf-8", errors="replace")[:200] or "another process"
        raise UserError(f"another flaxtl is at work in {workdir} ({holder}); wait for it, or choose another --workdir")
    with file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}".encode())
        file.flush()
        try:
            yield
        finally:
            with suppress(OSError):
                (workdir / LOCK_NAME).unlink()
                for place in new:
                    place.rmdir()


PACKAGES = ("flaxtl", "jax", "flax", "optax", "orbax-checkpoint", "numpy", "pillow")


def is_run(workdir: Path) -> bool:
    """Whether `workdir` belongs to a run.

    Raises UserError if it holds the checkpoints of a run that has lost its config.json.
    """
    found = (workdir / "config.json").is_file()
    if not found and any((workdir / "checkpoints").glob("*/*")):
        raise UserError(f"{workdir} holds checkpoints of a run but no config.json; choose another --workdir")
    return found


def check_config(workdir: Path, config: Mapping[str, Any], phases: int | None = None) -> None:
    """Raise UserError, listing what differs, if the run in `workdir` has another config than `config`.

    With `phases` only that many of the phases have to be the same, and what all phases share.
    """
    theirs = _completed(_json(workdir / "config.json"))
    changed = [
        line
        for line in config_differences(_shortened(theirs, phases), _shortened(config, phases))
        if not line.startswith(("feature_cache.dir", "checkpoint."))  # they change where and when, not what
    ]
    if changed:
        raise UserError(
            f"{workdir} holds a run of another config ({'; '.join(changed)}); "
            "choose another --workdir, or start with the settings it was begun with"
        )


def _completed(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """With the defaults of settings that did not exist when the run began."""
    return config_to_json(config_from_json(config))


def _shortened(config: Mapping[str, Any], phases: int | None) -> Mapping[str, Any]:
    """With the first `phases` phases only."""
    kept = config["phases"][:phases]
    left_out = set(config["phases"]) - set(kept)
    return {key: value for key, value in config.items() if key not in left_out} | {"phases": kept}


def create_run_dir(
    workdir: Path, config: Mapping[str, Any], manifest: Manifest, layers: Sequence[Mapping[str, Any]]
) -> None:
    """Write what identifies a run; config.json comes last, as the sign that the rest is there."""
    if not processes.is_main_process():
        return
    workdir.mkdir(parents=True, exist_ok=True)
    manifest.write(workdir / "manifest.csv")
    _write(workdir / "layers.json", layers)
    update_summary(
        workdir,
        seed=config["seed"],
        classes=list(manifest.classes),
        devices=[device.device_kind for device in jax.devices()],
        versions={"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        phases={},
    )
    _write(workdir / "config.json", config)


def read_summary(workdir: Path) -> dict[str, Any]:
    """summary.json, or {} before it is there."""
    file = workdir / "summary.json"
    return _json(file) if file.is_file() else {}


def update_summary(workdir: Path, **values: Any) -> None:
    """Set top-level entries of summary.json; a mapping is merged into the one that is there."""
    if not processes.is_main_process():
        return
    known = read_summary(workdir)
    for key, value in values.items():
        known[key] = {**known[key], **value} if isinstance(value, dict) and key in known else value
    _write(workdir / "summary.json", known)


def update_phase_summary(workdir: Path, phase: str, **values: Any) -> None:
    """Set entries of one phase in summary.json."""
    phases = read_summary(workdir).get("phases", {})
    update_summary(workdir, phases={phase: {**phases.get(phase, {}), **values}})


def load_config(workdir: Path) -> Any:
    """The config of the run in `workdir`."""
    if not (workdir / "config.json").is_file():
        raise UserError(f"{workdir} is no run directory (it has no config.json); give the --workdir of a training run")
    return config_from_json(_json(workdir / "config.json"))


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
    atomic_write_text(file, json.dumps(value, indent=1) + "\n")  # ASCII: names of files need not be Unicode
