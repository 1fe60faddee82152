"""A whole `flaxtl train` from start-up to report, and optionally the course's Keras script."""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from benchmarks import compare
from benchmarks.measure import spread
from benchmarks.peers import link_images
from benchmarks.subject import ENVIRONMENT

from flaxtl import console
from flaxtl.config import load_config
from flaxtl.data.manifest import Manifest
from flaxtl.errors import UserError
from flaxtl.models import registry
from flaxtl.train import run_dir

STARTUP = "start-up, finding and decoding images"
END = "importing libraries, test images, report"


class Run(NamedTuple):
    """Seconds of a run, in wall time and in processor time of all cores, to the first training step, and by part.

    `phases` are those of summary.json.
    """

    seconds: float
    cpu_seconds: float
    first_step: float
    parts: dict[str, float]
    phases: dict[str, Any]


def run_train(config: str, overrides: Sequence[str], workdir: Path, environment: Mapping[str, str]) -> Run:
    """Run `flaxtl train`; its output goes to stderr. Raises SystemExit if it fails."""
    command = [sys.executable, "-m", "flaxtl", "train", f"--config={config}", f"--workdir={workdir}", *overrides]
    start_time, cpu_start = time.perf_counter(), _children_seconds()
    environment = {**os.environ, "PYTHONPATH": ENVIRONMENT["PYTHONPATH"], **environment}
    process = subprocess.run(command, env=environment, stdout=sys.stderr, check=False)
    seconds, cpu_seconds = time.perf_counter() - start_time, _children_seconds() - cpu_start
    if process.returncode:
        raise SystemExit(f"flaxtl train failed with exit code {process.returncode}.")
    summary = json.loads((workdir / "summary.json").read_text(encoding="utf-8"))
    first_step = summary["timings"]["start to first step"]
    return Run(seconds, cpu_seconds, first_step, _parts(seconds, summary), summary["phases"])


def _children_seconds() -> float:
    times = os.times()
    return times.children_user + times.children_system


def _parts(seconds: float, summary: Mapping[str, Any]) -> dict[str, float]:
    """Divide the seconds of a run. The features of a phase are the outputs of its frozen layers."""
    parts = {STARTUP: summary["wall_seconds"] - sum(phase["wall_seconds"] for phase in summary["phases"].values())}
    for name, phase in summary["phases"].items():
        features = summary["timings"][f"{name}: features"]
        parts |= {f"{name}: features": features, f"{name}: steps, validation": phase["wall_seconds"] - features}
    return parts | {END: seconds - summary["wall_seconds"]}


def define(parser: argparse.ArgumentParser) -> None:
    """Add the options of `benchmark.py job`; --config.key=value is passed to flaxtl."""
    parser.add_argument("--config", default="configs/flowers_vgg16.py", metavar="FILE[:VARIANT]")
    parser.add_argument(
        "--peer",
        action="store_true",
        help="also train with the course's script in Keras 3 on TensorFlow; needs a config with one phase without "
        "augmentation (--config.phases=\"('frozen',)\")",
    )
    parser.add_argument(
        "--peer-epochs", type=int, default=3, metavar="N", help="epochs measured, at least 2 (default: %(default)s)"
    )
    parser.set_defaults(run=run, repeats=3)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print, and return the figures."""
    config = load_config(options.config, options.overrides)
    if options.peer and (len(config.phases) != 1 or config[config.phases[0]].augment):
        raise UserError(
            "--peer needs a config with one phase without augmentation. Add --config.phases=\"('frozen',)\"."
        )
    if options.peer and options.peer_epochs < 2:
        raise UserError("--peer-epochs must be at least 2, because the first epoch includes compilation.")
    runs, peers = [], []
    with TemporaryDirectory() as folder:
        for turn in range(options.repeats):
            workdir = Path(folder) / f"run_{turn}"
            runs.append(run_train(options.config, options.overrides, workdir, {}))
            if options.peer:
                peers.append(measure_peer(workdir, options.peer_epochs))
    seconds = median(run.seconds for run in runs)
    _print(options.config, runs)
    figures = {"kind": "job", "config": options.config, "overrides": options.overrides, "seconds": seconds}
    figures |= {"runs": [run._asdict() for run in runs]}
    return figures | ({"peer": peers, "ratio": _compare(seconds, peers)} if options.peer else {})


def _print(config: str, runs: list[Run]) -> None:
    rows = [(part, f"{median(run.parts[part] for run in runs):,.1f}", "") for part in runs[0].parts]
    for name in runs[0].phases:
        accuracy = median(run.phases[name]["validation"]["accuracy"] for run in runs)
        rows.append((f"{name}: validation accuracy", "", f"{accuracy:.2%}"))
    rows.append(("to the first training step", f"{median(run.first_step for run in runs):,.1f}", ""))
    seconds = [run.seconds for run in runs]
    rows.append(("total", f"{median(seconds):,.1f}", f"spread {spread(seconds):.0%}"))
    rows.append(("processor time", f"{median(run.cpu_seconds for run in runs):,.1f}", ""))
    title = f"flaxtl train --config={config}, median of {len(runs)}"
    console.make_console().print(console.make_table(title, ("part", "seconds", ""), rows))


def measure_peer(workdir: Path, epochs: int) -> dict[str, Any]:
    """Train on the images of a run of flaxtl with the course's Keras script, and extrapolate to the run's epochs.

    'seconds' is the measured time plus the median of the epochs after the first (which compiles) for each epoch that
    was left out. The result is {"note": reason} if Keras cannot be run.
    """
    config = run_dir.load_config(workdir)
    phase, weights = config[config.phases[0]], str(config.weights.path)
    manifest, spec = Manifest.read(workdir / "manifest.csv"), registry.get_spec(config.model.name)
    settings = {
        "model": spec.name,
        "preprocessing": spec.preprocessing,
        "weights": str(Path(weights).resolve()) if weights.endswith(".h5") else None,
        "top": False,
        "size": config.data.height,
        "batch": config.batch_size,
        "classes": len(manifest.classes),
        "epochs": min(epochs, phase.epochs),
        "steps": phase.steps_per_epoch or -(-len(manifest.of_split("train")) // config.batch_size),
    }
    with TemporaryDirectory() as folder:
        for split in ("train", "validation"):
            images = ((Path(example.path), example.label) for example in manifest.of_split(split))
            settings[split] = str(link_images(Path(folder) / split, images))
        start_time = time.perf_counter()
        result = compare.PEERS["keras-tensorflow"].run("course", settings)
        seconds = time.perf_counter() - start_time
    if "note" in result:
        return result
    later_epoch = median(result["epoch_seconds"][1:])
    extrapolated = seconds + (phase.epochs - settings["epochs"]) * later_epoch
    return result | {"seconds": extrapolated, "epochs": phase.epochs, "later_epoch": later_epoch, "measured": seconds}


def _compare(seconds: float, peers: list[dict[str, Any]]) -> float | None:
    """Print and return how many times longer the peer takes."""
    terminal = console.make_console()
    if notes := [peer["note"] for peer in peers if "note" in peer]:
        console.message(terminal, f"Keras 3 on TensorFlow: {notes[0]}")
        return None
    peer_seconds, later_epoch = (median(peer[key] for peer in peers) for key in ("seconds", "later_epoch"))
    console.message(
        terminal,
        f"Keras 3 on TensorFlow: {peer_seconds:,.1f} s, extrapolated to {peers[0]['epochs']} epochs from "
        f"{len(peers[0]['epoch_seconds'])} ({later_epoch:,.1f} s per epoch after the first), without test images and "
        f"report; {peer_seconds / seconds:.1f} times as long as flaxtl",
    )
    return peer_seconds / seconds
