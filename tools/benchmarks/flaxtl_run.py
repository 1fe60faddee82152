"""A whole `flaxtl train` in a process of its own, timed from its start to its end, and where the time went."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.turns import ENVIRONMENT

AROUND = "start-up, looking for images, decoding"
AFTER = "loading of libraries, test images, report"


class Run(NamedTuple):
    """Seconds of a run, altogether, to its first training step, and part by part.

    `processor` are those that all cores worked for it, which other work on the machine hardly changes. `phases` are
    what became of them, as its summary.json has it.
    """

    seconds: float
    processor: float
    first_step: float
    parts: dict[str, float]
    phases: dict[str, Any]
    workdir: Path


def train(config: str, overrides: Sequence[str], workdir: Path, environment: Mapping[str, str]) -> Run:
    """Run it; what it says goes to the standard error. Raises SystemExit if it fails."""
    command = [sys.executable, "-m", "flaxtl", "train", f"--config={config}", f"--workdir={workdir}", *overrides]
    paths = {"PYTHONPATH": ENVIRONMENT["PYTHONPATH"]}
    started, before = time.perf_counter(), os.times()
    done = subprocess.run(command, env={**os.environ, **paths, **environment}, stdout=sys.stderr, check=False)
    seconds, after = time.perf_counter() - started, os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    if done.returncode:
        raise SystemExit(f"flaxtl train ended with exit code {done.returncode}")
    summary = json.loads((workdir / "summary.json").read_text(encoding="utf-8"))
    first_step = summary["timings"]["start to first step"]
    return Run(seconds, processor, first_step, _parts(seconds, summary), summary["phases"], workdir)


def _parts(seconds: float, summary: Mapping[str, Any]) -> dict[str, float]:
    """A phase's features are what its frozen layers make of the images; the rest of it are steps and validation."""
    parts = {AROUND: summary["wall_seconds"] - sum(phase["wall_seconds"] for phase in summary["phases"].values())}
    for name, phase in summary["phases"].items():
        features = summary["timings"][f"{name}: features"]
        parts |= {f"{name}: features": features, f"{name}: steps, validation": phase["wall_seconds"] - features}
    return parts | {AFTER: seconds - summary["wall_seconds"]}
