"""What `flaxtl train photos/` leaves out: the data source of the config, and the run directory."""

import argparse
import re
from datetime import date
from pathlib import Path
from typing import Any

from flaxtl.cli.parser import DEFAULT_CONFIG
from flaxtl.config import config_to_json, load_config
from flaxtl.data.sources.base import with_scheme
from flaxtl.errors import UserError
from flaxtl.fileio import suggest_path, user_path
from flaxtl.train import run_dir

RUNS = Path("runs")
"""Folder of the runs that are started without --workdir."""

MAX_NAME = 60
"""Characters of the name of a source or config in that of its run: with the date, they are less than 255 bytes."""


def load_train_config(options: argparse.Namespace) -> Any:
    """Return the complete config of `flaxtl train`, with the images that the command line names.

    Raises:
      UserError: the images are named twice or not at all, a distributed run has no --workdir, or the config is invalid.
    """
    sources = [source for source in (options.images, options.data) if source is not None]
    overrides = list(options.overrides)
    is_set = any(override.startswith("--config.data.source=") for override in overrides)
    if len(sources) + is_set > 1:
        raise UserError("The images are named more than once. Give one of PATH, --data and --config.data.source.")
    if not sources and not is_set and options.config is None:
        raise UserError("Which images? Give a folder with one subfolder per class: flaxtl train photos/")
    if options.workdir is None and (options.distributed or options.coordinator):
        raise UserError("A distributed run needs a run directory that all processes share: --workdir=DIR")
    if sources:
        overrides.append(f"--config.data.source={_existing_source(sources[0])}")
    return load_config(options.config or DEFAULT_CONFIG, overrides)


def choose_workdir(config: Any, config_name: str | None) -> tuple[Path, str]:
    """Choose the run directory of a run that is started without one.

    The latest unfinished run of the same images and the same config is resumed, also one of an earlier day: it is what
    "run the same command to resume" promises. Otherwise it is a new folder; no run is ever overwritten.

    Args:
      config: a complete config.
      config_name: the value of --config; names the run if its images have no path.

    Returns:
      runs/NAME-DATE, or runs/NAME-DATE-2 and so on, and why it was chosen.
    """
    name = _run_name(config.data.source) or _as_name(Path(config_name or DEFAULT_CONFIG).stem)
    earlier = [folder for folder in RUNS.glob("*/") if re.fullmatch(rf"{re.escape(name)}-\d{{4}}-.*", folder.name)]
    for folder in sorted(earlier, key=lambda folder: folder.stat().st_mtime, reverse=True):
        if _is_unfinished(folder, config):
            return folder, "unfinished run of the same command, resumed"
    first = RUNS / f"{name}-{date.today().isoformat()}"
    folder, number = first, 1
    while folder.exists() or folder.is_symlink():  # also a link to a disk that is not mounted
        number += 1
        folder = first.with_name(f"{first.name}-{number}")
    return folder, "new run" if number == 1 else f"new run; {first} exists and is kept"


def _existing_source(text: str) -> str:
    source = with_scheme(text)
    if ":" not in source and source != "synthetic":
        raise UserError(
            f"{text} does not exist. {suggest_path(user_path(text))} Give a folder with one subfolder per class, an "
            "archive or a CSV file."
        )
    return source


def _run_name(source: str) -> str:
    """Return the name of the folder or file of a source, or of its data set; empty if it has none."""
    scheme, _, location = source.partition(":")
    if scheme in ("folder", "archive", "csv"):
        location = user_path(location).resolve().name.split(".")[0]
    return _as_name(location)


def _as_name(text: str) -> str:
    return re.sub(r"\W+", "-", text)[:MAX_NAME].strip("-")


def _is_unfinished(folder: Path, config: Any) -> bool:
    """Return whether `folder` has a run with this config that is not complete, or has no report yet."""
    try:
        if not run_dir.is_run(folder) or (run_dir.is_complete(folder) and run_dir.has_report(folder)):
            return False
        run_dir.check_config(folder, config_to_json(run_dir.with_canonical_name(config)))
    except UserError:
        return False
    return True
