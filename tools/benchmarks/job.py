"""A whole `flaxtl train` from start-up to report, and optionally the course's Keras script."""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from benchmarks.compare import ENVIRONMENT, PEERS, spread
from fresh_process import ProcessError, call, run_command

from flaxtl import console
from flaxtl.errors import UserError

PEER_EPOCHS = 3
"""Epochs of the peer that are measured; the first includes compilation."""


class Run(NamedTuple):
    """Wall and processor seconds of a run, peak memory, seconds to the first train step and by part; its phases."""

    seconds: float
    cpu_seconds: float
    mebibytes: float
    first_step: float
    parts: dict[str, float]
    phases: dict[str, Any]


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print, and return the figures."""
    from flaxtl.config import load_config

    config = load_config(options.config, options.overrides)
    if options.peer and (len(config.phases) != 1 or config[config.phases[0]].augment):
        message = "--peer needs a config with one phase without augmentation. Add --config.phases=\"('frozen',)\"."
        raise UserError(message)
    runs, peers = [], []
    with TemporaryDirectory() as folder:
        for turn in range(options.repeats):
            workdir = Path(folder) / f"run_{turn}"
            runs.append(run_train(options.config, options.overrides, workdir))
            if options.peer:
                peers.append(measure_peer(workdir, options.peer))
    _print(options.config, runs)
    figures = {"config": options.config, "overrides": options.overrides, "runs": [run._asdict() for run in runs]}
    return figures | ({"peers": peers, "ratio": _compare(options.peer, runs, peers)} if peers else {})


def run_train(config: str, overrides: Sequence[str], workdir: Path, timeout: float | None = None) -> Run:
    """Run `flaxtl train`; its output goes to stderr. Raises UserError if it fails, or takes more seconds than given."""
    command = [sys.executable, "-m", "flaxtl", "train", f"--config={config}", f"--workdir={workdir}", *overrides]
    measured = run_command(command, folder=Path.cwd(), timeout=timeout)
    if timeout is not None and measured.code and measured.seconds >= timeout:
        raise UserError(f"flaxtl train was stopped after {timeout:.0f} s.")
    if measured.code:
        raise UserError(f"flaxtl train failed with exit code {measured.code}.")
    summary = json.loads((workdir / "summary.json").read_text(encoding="utf-8"))
    parts = _parts(measured.seconds, summary)
    return Run(*measured[1:], summary["timings"]["start to first step"], parts, summary["phases"])


def _parts(seconds: float, summary: Mapping[str, Any]) -> dict[str, float]:
    """Divide the seconds of a run. The features of a phase are the outputs of its frozen layers."""
    in_phases = sum(phase["wall_seconds"] for phase in summary["phases"].values())
    parts = {"start-up, finding and decoding images": summary["wall_seconds"] - in_phases}
    for name, phase in summary["phases"].items():
        features = summary["timings"][f"{name}: features"]
        parts |= {f"{name}: features": features, f"{name}: steps, validation": phase["wall_seconds"] - features}
    return parts | {"importing libraries, test images, report": seconds - summary["wall_seconds"]}


def _print(config: str, runs: Sequence[Run]) -> None:
    seconds = [run.seconds for run in runs]
    rows = [(part, f"{median(run.parts[part] for run in runs):,.1f} s") for part in runs[0].parts]
    rows.append(("to the first train step", f"{median(run.first_step for run in runs):,.1f} s"))
    rows.append(("total", f"{median(seconds):,.1f} s, spread {spread(seconds):.0%}"))
    rows.append(("processor time", f"{median(run.cpu_seconds for run in runs):,.1f} s"))
    rows.append(("peak memory", f"{median(run.mebibytes for run in runs):,.0f} MiB"))
    for name in runs[0].phases:
        accuracy = median(run.phases[name]["validation"]["accuracy"] for run in runs)
        rows.append((f"{name}: validation accuracy", f"{accuracy:.2%}"))
    title = f"flaxtl train --config={config}, median of {len(runs)}"
    console.make_console().print(console.make_table(title, ("part", "measured"), rows))


def measure_peer(workdir: Path, name: str) -> dict[str, Any]:
    """Train on the images of a run of flaxtl with the course's Keras script, and extrapolate to the run's epochs.

    Wall and processor seconds are those measured, plus the median of the epochs after the first for each epoch that was
    left out. The result is {"note": reason} if Keras cannot be run.
    """
    from flaxtl.models import registry
    from flaxtl.train import run_dir

    if note := PEERS[name].missing():
        return {"note": note}
    config, manifest = run_dir.load_config(workdir), run_dir.read_manifest(workdir)
    phase, spec, weights = config[config.phases[0]], registry.get_spec(config.model.name), str(config.weights.path)
    settings = {
        "model": spec.name,
        "preprocessing": spec.preprocessing,
        "weights": str(Path(weights).resolve()) if weights.endswith(".h5") else None,
        "size": config.data.height,
        "batch": config.batch_size,
        "classes": len(manifest.classes),
        "epochs": min(PEER_EPOCHS, phase.epochs),
        "steps": phase.steps_per_epoch or -(-len(manifest.of_split("train")) // config.batch_size),
    }
    with TemporaryDirectory() as folder:
        for split in ("train", "validation"):
            images = ((Path(example.path), example.label) for example in manifest.of_split(split))
            settings[split] = str(link_images(Path(folder) / split, images))
        start_time = time.perf_counter()
        environment = ENVIRONMENT | dict(PEERS[name].environment)
        try:
            result = call("benchmarks.with_keras:course", settings, environment=environment)
        except ProcessError as error:
            return {"note": f"failed: {error}"}
        seconds = time.perf_counter() - start_time
    left_out = phase.epochs - settings["epochs"]
    for key, measured in (("seconds", seconds), ("cpu_seconds", result["cpu_seconds"])):
        result[key] = measured + left_out * median(result[f"epoch_{key}"][1:] or result[f"epoch_{key}"])
    return result | {"epochs": phase.epochs}


def link_images(folder: Path, images: Iterable[tuple[Path, str]]) -> Path:
    """Write FOLDER/LABEL/NUMBER.EXT as links to (path, label) pairs, for flow_from_directory; return `folder`."""
    for number, (path, label) in enumerate(images):
        link = folder / label / f"{number:06}{path.suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.resolve())
    return folder


def _compare(name: str, runs: Sequence[Run], peers: Sequence[Mapping[str, Any]]) -> float | None:
    """Print and return how many times longer the peer takes: the median of all turns."""
    notes = [peer["note"] for peer in peers if "note" in peer]
    ratio = None if notes else median(peer["seconds"] / run.seconds for run, peer in zip(runs, peers, strict=True))
    text = f"{PEERS[name].name}: {''.join(notes[:1])}"
    if ratio:
        seconds, cpu, memory = (median(peer[key] for peer in peers) for key in ("seconds", "cpu_seconds", "mebibytes"))
        text += f"{seconds:,.1f} s ({cpu:,.1f} s of processor time, {memory:,.0f} MiB), extrapolated to "
        text += f"{peers[0]['epochs']} epochs from {len(peers[0]['epoch_seconds'])}, without test images and report; "
        text += f"{ratio:.1f} times as long as flaxtl"
    console.message(console.make_console(), text)
    return ratio
