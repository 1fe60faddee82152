"""A whole `flaxtl train` from start to report, and the lecture's phase `frozen` in Keras 3 on TensorFlow beside it."""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import flaxtl_run, lecture
from benchmarks.flaxtl_run import Run
from benchmarks.measure import median, spread
from benchmarks.peers import installed
from flaxtl.config import load_config
from flaxtl.console import make_console, make_table
from flaxtl.errors import UserError


def define(parser: argparse.ArgumentParser) -> None:
    """The options of `benchmark.py job`; --config.key=value is handed on."""
    parser.add_argument("--config", default="configs/flowers_vgg16.py", metavar="FILE[:VARIANT]", help="the config")
    parser.add_argument(
        "--peer",
        action="store_true",
        help="the same with Keras 3 on TensorFlow, as the lecture has it; for a config of one phase without "
        "augmentation (--config.phases=\"('frozen',)\")",
    )
    parser.add_argument(
        "--peer-epochs", type=int, default=3, metavar="N", help="epochs of it that are measured, 2 or more"
    )
    parser.set_defaults(run=run, repeats=3)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print, and return the figures."""
    config = load_config(options.config, options.overrides)
    if options.peer:
        _check(config, options)
    runs, peers = [], []
    with TemporaryDirectory() as place:
        for turn in range(options.repeats):
            workdir = Path(place) / f"run_{turn}"
            runs.append(flaxtl_run.train(options.config, options.overrides, workdir, {}))
            if options.peer and installed("keras") and installed("tensorflow"):
                peers.append(lecture.measure(workdir, options.peer_epochs))
    ours = median([each.seconds for each in runs])
    found: dict[str, Any] = {"kind": "job", "config": options.config, "overrides": options.overrides, "seconds": ours}
    found |= {"runs": [_facts(each) for each in runs]}
    _print(options.config, runs)
    if options.peer:
        found |= {"peer": peers, "ratio": _compare(ours, peers)}
    return found


def _check(config: Any, options: argparse.Namespace) -> None:
    if len(config.phases) != 1 or config[config.phases[0]].augment:
        raise UserError(
            "--peer runs one phase without augmentation; add --config.phases=\"('frozen',)\", or leave --peer out"
        )
    if options.peer_epochs < 2:
        raise UserError("--peer-epochs is at least 2: the first one compiles, and is not what the others cost")


def _facts(done: Run) -> dict[str, Any]:
    return {"seconds": done.seconds, "first_step": done.first_step, "parts": done.parts, "phases": done.phases}


def _print(config: str, runs: list[Run]) -> None:
    first = runs[0]
    rows = [(part, f"{median([each.parts[part] for each in runs]):,.1f}", "") for part in first.parts]
    for name in first.phases:
        accuracies = [each.phases[name]["validation"]["accuracy"] for each in runs]
        rows.append((f"{name}: validation accuracy", "", f"{median(accuracies):.2%}"))
    rows.append(("to the first training step", f"{median([each.first_step for each in runs]):,.1f}", ""))
    seconds = [each.seconds for each in runs]
    rows.append(("from start to end", f"{median(seconds):,.1f}", f"± {spread(seconds):.0%}"))
    make_console().print(make_table(f"flaxtl train --config={config}, {len(runs)} runs", ("part", "seconds", ""), rows))


def _compare(ours: float, peers: list[dict[str, Any]]) -> float | None:
    """How many times longer the peer takes, extrapolated; printed with how it was had."""
    if not peers:
        make_console().print("Keras 3 on TensorFlow: not installed")
        return None
    theirs, first = median([each["seconds"] for each in peers]), peers[0]
    make_console().print(
        f"Keras 3 on TensorFlow: {theirs:,.1f} s, extrapolated to {first['epochs']} epochs from "
        f"{len(first['epoch_seconds'])} (an epoch after the first: "
        f"{median([each['later_epoch'] for each in peers]):,.1f} s), without test images and report; "
        f"{theirs / ours:.1f} times as long as flaxtl"
    )
    return theirs / ours
