"""The run directory: its lock, and the files that identify and summarize a run."""

import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from flaxtl import fileio
from flaxtl.config import config_differences, config_from_json, config_to_json
from flaxtl.data.manifest import Manifest
from flaxtl.errors import UserError, join_names
from flaxtl.models import registry
from flaxtl.parallel import processes
from flaxtl.train.phases import Phase
from flaxtl.train.run_records import LayerRecord, PhaseSummary, RunSummary, load_versioned, with_version
from flaxtl.train.setup import ModelInfo

LOCK_NAME = ".lock"

PACKAGES = ("flaxtl", "jax", "flax", "optax", "orbax-checkpoint", "numpy", "pillow")
"""Packages whose versions are in summary.json."""

MUTABLE_SETTINGS = ("feature_cache.dir", "checkpoint.")
"""Settings that a resumed run may change: they affect where and when files are written, not the result."""


OUTPUT_FILES = (
    "config.json",
    "summary.json",
    "layers.json",
    "manifest.csv",
    "metrics.jsonl",
    "predictions.csv",
    "report/index.html",
    "report/model_card.md",
    "report/label_issues.csv",
)
"""Files that a run writes; it would replace a user's own files of these names."""


@contextmanager
def run_dir_lock(workdir: Path) -> Iterator[None]:
    """Lock `workdir` for this process; create it if needed, and remove it again if nothing was written.

    The lock ends with the process, however that ends.

    Raises:
      UserError: another process holds the lock, or the folder is not writable.
    """
    created = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = fileio.file_lock(workdir / LOCK_NAME, wait=False)
    except OSError as error:
        raise UserError(f"Cannot write to {workdir} ({error.strerror}). Use another --workdir.") from error
    if file is None:
        holder = _lock_holder(workdir)
        raise UserError(f"{workdir} is in use ({holder}). Wait until it is done, or use another --workdir.")
    with file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}".encode())
        file.flush()
        try:
            yield
        finally:
            with suppress(OSError):
                (workdir / LOCK_NAME).unlink()
                for folder in created:
                    folder.rmdir()


def _lock_holder(workdir: Path) -> str:
    try:
        text = (workdir / LOCK_NAME).read_text(encoding="utf-8", errors="replace")[:200]
    except FileNotFoundError:
        text = ""  # it has just ended
    return text or "another process"


def is_run(workdir: Path) -> bool:
    """Return whether `workdir` belongs to a run.

    Raises:
      UserError: it has checkpoints but no config.json.
    """
    has_config = (workdir / "config.json").is_file()
    if not has_config and any((workdir / "checkpoints").glob("*/*")):
        raise UserError(f"{workdir} has the checkpoints of a run but no config.json. Use another --workdir.")
    return has_config


def check_unused(workdir: Path) -> None:
    """Check that a new run in `workdir` overwrites nothing.

    After a start that was interrupted before config.json was written, summary.json is a run's, and so are the others.

    Raises:
      UserError: the folder has files with the names of a run's.
    """
    names = [name for name in OUTPUT_FILES if (workdir / name).exists()]
    if names and not _has_own_summary(workdir):
        raise UserError(
            f"{workdir} is not a run directory, but has {join_names(names)}, which a run would overwrite. "
            "Use another --workdir."
        )


def _has_own_summary(workdir: Path) -> bool:
    try:
        return bool(load_versioned(workdir / "summary.json"))
    except UserError:
        return False


def create_run_dir(
    workdir: Path, config: Mapping[str, Any], manifest: Manifest, layers: Sequence[LayerRecord], summary: RunSummary
) -> None:
    """Write the files that identify a run. config.json is written last, so if it exists, all others do."""
    if not processes.is_main_process():
        return
    workdir.mkdir(parents=True, exist_ok=True)
    summary = summary.replace(
        seed=config["seed"],
        dtype=config["dtype"],
        precision=config["precision"],
        classes=list(manifest.classes),
        data_root=str(manifest.root or ""),
        devices=[device.device_kind for device in jax.devices()],
        versions={"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    )
    _write_summary(workdir, summary)  # first: it shows that the other files are a run's
    _write_json(workdir / "layers.json", [layer.to_json() for layer in layers])
    manifest.write(workdir / "manifest.csv")
    _write_json(workdir / "config.json", with_version(config))


def read_manifest(workdir: Path) -> Manifest:
    """Return the manifest of the run in `workdir`, with absolute paths.

    Raises:
      UserError: summary.json, which has the folder of the images, or manifest.csv is missing or damaged.
    """
    if not (workdir / "summary.json").is_file():
        raise UserError(f"{workdir} has no summary.json. Restore it, or start a new --workdir.")
    root = read_summary(workdir).data_root
    return Manifest.read(workdir / "manifest.csv", Path(root) if root else None)


def write_manifest(workdir: Path, manifest: Manifest) -> None:
    """Write manifest.csv, and the folder that its paths are relative to into summary.json.

    In between the paths are absolute, which fits the former folder and the new one: a kill leaves no mixture.
    """
    replace(manifest, root=None).write(workdir / "manifest.csv")
    update_summary(workdir, data_root=str(manifest.root or ""))
    manifest.write(workdir / "manifest.csv")


def layer_records(model_info: ModelInfo, phases: Sequence[Phase], weights_source: str) -> list[LayerRecord]:
    """Return the entries of layers.json, for the run directory and for `flaxtl summary`."""
    records = []
    for layer in model_info.layers:
        prefix = f"{layer.section}/{layer.name}/"
        paths = [path for path in model_info.shapes if path.startswith(prefix)]
        record = LayerRecord(
            layer=layer.name,
            kind=layer.kind,
            shape=list(layer.shape),
            params=model_info.count(prefix),
            group=model_info.groups[paths[0]] if paths else "",
            trained_in=[phase.name for phase in phases if any(map(phase.param_groups.is_trainable, paths))],
            source="" if not paths else weights_source if layer.section == "backbone" else "random",
        )
        records.append(record)
    return records


def load_config(workdir: Path) -> Any:
    """Return the config of the run in `workdir`, with the registry's name of the model; older runs have another."""
    if not (workdir / "config.json").is_file():
        raise UserError(f"{workdir} is not a run directory: it has no config.json. Use the --workdir of a run.")
    return with_canonical_name(config_from_json(load_versioned(workdir / "config.json")))


def with_canonical_name(config: Any) -> Any:
    """Return a copy of a config in which the model has its name in the registry; an unknown name stays."""
    config = config.copy_and_resolve_references()
    config.model.name = registry.canonical_name(config.model.name)
    return config


def check_config(workdir: Path, config: Mapping[str, Any], num_phases: int | None = None) -> None:
    """Raise UserError, listing the differences, if the run in `workdir` has another config.

    Args:
      workdir: a run directory.
      config: the config to compare, as JSON values.
      num_phases: compare only that many phases, and the settings that all phases share.
    """
    saved = config_to_json(load_config(workdir))
    differences = [
        line
        for line in config_differences(_with_phases(saved, num_phases), _with_phases(config, num_phases))
        if not line.startswith(MUTABLE_SETTINGS)
    ]
    if differences:
        raise UserError(
            f"{workdir} has a run with another config ({'; '.join(differences)}). "
            "Use another --workdir, or the settings that the run was started with."
        )


def replace_source(workdir: Path, config: Mapping[str, Any], manifest: Manifest) -> None:
    """Write the config and the manifest of a run again, with its images at another place."""
    write_manifest(workdir, manifest)
    _write_json(workdir / "config.json", with_version(config))


def is_complete(workdir: Path) -> bool:
    """Return whether the run in `workdir` was trained and evaluated, and still has its predictions and parameters."""
    summary = read_summary(workdir)
    kept = (workdir / "predictions.csv", workdir / "checkpoints" / "phases" / str(len(summary.phases)))
    return summary.complete and all(path.exists() for path in kept)


def report_path(workdir: Path) -> Path:
    """Return the path of the HTML report, which `flaxtl train` writes last."""
    return workdir / "report" / "index.html"


def has_report(workdir: Path) -> bool:
    """Return whether the report of the run in `workdir` was written."""
    return report_path(workdir).is_file()


def read_summary(workdir: Path) -> RunSummary:
    """Return summary.json; an empty summary if there is none."""
    file = workdir / "summary.json"
    return RunSummary.from_json(load_versioned(file), file) if file.is_file() else RunSummary()


def update_summary(workdir: Path, **changes: Any) -> None:
    """Set fields of summary.json; a dict is merged into the one that is there."""
    if not processes.is_main_process():
        return
    summary = read_summary(workdir)
    merged = {
        name: {**getattr(summary, name), **value} if isinstance(value, dict) else value
        for name, value in changes.items()
    }
    _write_summary(workdir, summary.replace(**merged))


def update_phase_summary(workdir: Path, phase: str, **changes: Any) -> None:
    """Set fields of a phase in summary.json; the first call for a phase sets all that are required."""
    if not processes.is_main_process():
        return
    saved = read_summary(workdir).phases.get(phase)
    update_summary(workdir, phases={phase: saved.replace(**changes) if saved else PhaseSummary(**changes)})


def _with_phases(config: Mapping[str, Any], num_phases: int | None) -> Mapping[str, Any]:
    """Return the config with its first phases only."""
    phases = config["phases"][:num_phases]
    removed = set(config["phases"]) - set(phases)
    return {key: value for key, value in config.items() if key not in removed} | {"phases": phases}


def _write_summary(workdir: Path, summary: RunSummary) -> None:
    _write_json(workdir / "summary.json", with_version(summary.to_json()))


def _write_json(file: Path, value: Any) -> None:
    fileio.atomic_write_text(file, json.dumps(value, indent=1) + "\n")  # ASCII, because file names need not be Unicode
