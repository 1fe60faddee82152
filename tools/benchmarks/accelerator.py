"""All figures of an accelerator in one run of a few minutes, measured part by part.

Each part runs in a process of its own and is written to the JSON file at once. A later run with the same file measures
only the parts that are missing, so that a run may be stopped at any time.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import job
from benchmarks.compare import ENVIRONMENT, PEERS
from fresh_process import ProcessError, call

from flaxtl import console
from flaxtl.errors import UserError

MIN_SECONDS = 30.0
"""A part is not started in the last seconds of the time limit."""

WORK = {"forward": "forward", "frozen": "frozen: cached features", "augmented": "augmented: head from images",
        "finetune": "finetune: last block from images"}  # fmt: skip
"""Key of the figures -> name in the table."""

BARS = {"finetune_images_per_second": 10_000.0, "times_torch": 1.3, "course_seconds": 60.0}
"""The goals for one GPU of the H200's class: at least, at least, and at most."""

NO_DOWNLOADS = ("--config.data.source=synthetic", "--config.weights.path=builtin")
"""Settings of the course's run if none are given: 400 drawn images and weights that come with flaxtl."""

SETTINGS = ("batch", "size", "dtype", "seconds", "steps")

Part = tuple[str, Callable[[float], dict[str, Any]]]


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure what is missing, print all, and return it."""
    settings = {name: getattr(options, name) for name in SETTINGS}
    parts = _load(options.json, settings)
    deadline, terminal = time.monotonic() + 60 * options.minutes, console.make_console()
    for name, measure in _parts(options, settings):
        if name in parts and "failed" not in parts[name].get("note", ""):
            continue
        left = deadline - time.monotonic()
        if left < min(MIN_SECONDS, 30 * options.minutes) or not options.minutes:
            console.message(terminal, f"Not measured for lack of time: {name}. The same command with --json continues.")
            continue
        console.message(terminal, f"Measuring {name} ...")
        start_time = time.monotonic()
        parts[name] = measure(left) | {"measured_in": time.monotonic() - start_time}
        figures = {"kind": "accelerator", "settings": settings, "parts": parts}
        if options.json:
            options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    _print(terminal, parts, settings)
    return {"settings": settings, "parts": parts, "bars": bars(parts)}


def _load(file: Path | None, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the parts that an earlier run has measured."""
    if file is None or not file.is_file():
        return {}
    try:
        figures = json.loads(file.read_text(encoding="utf-8"))
        if figures["settings"] == settings:
            return dict(figures["parts"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is not a file of `benchmark.py accelerator`. Choose another --json.") from error
    raise UserError(f"{file} was measured with {figures['settings']}. Use the same options, or another --json.")


def _parts(options: argparse.Namespace, settings: Mapping[str, Any]) -> Iterator[Part]:
    """Yield name and measurement of each part, the most important first."""

    def process(module: str, function: str, settings: Mapping[str, Any]) -> Callable[[float], dict[str, Any]]:
        def measure(timeout: float) -> dict[str, Any]:
            try:
                return dict(call(f"benchmarks.{module}:{function}", settings, environment=ENVIRONMENT, timeout=timeout))
            except ProcessError as error:
                return {"note": f"failed: {error}"}

        return measure

    overrides = [f"--config.dtype={settings['dtype']}", *(options.overrides or NO_DOWNLOADS)]

    def course(timeout: float) -> dict[str, Any]:
        with TemporaryDirectory() as folder, suppress(UserError):
            return job.run_train(options.config, overrides, Path(folder) / "run", timeout)._asdict()
        return {"note": "failed: flaxtl train did not end, see above; is there enough time?"}

    yield "device", process("with_flaxtl", "describe_device", {})
    for number, model in enumerate(options.models.split(",")):
        yield f"flaxtl: {model}", process("with_flaxtl", "phases", {"model": model, **settings})
        torch = PEERS["torch-compiled"]
        if note := torch.missing():
            yield f"PyTorch: {model}", lambda timeout, note=note: {"note": note}
        else:
            yield f"PyTorch: {model}", process("with_torch", "phases", {"model": model, **settings, **torch.settings})
        if number == 0 and options.config:
            yield f"course: {' '.join([options.config, *overrides])}", course


def bars(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the figures that BARS sets goals for, as far as they were measured."""
    reached = {}
    for name, figures in parts.items():
        kind, _, model = name.partition(": ")
        if kind == "course" and "seconds" in figures and "phases" in figures:
            reached["course_seconds"] = figures["seconds"]
        elif kind == "flaxtl" and "finetune" in figures and "finetune_images_per_second" not in reached:
            reached["finetune_images_per_second"] = figures["finetune"]["images_per_second"]
            peer = parts.get(f"PyTorch: {model}", {})
            if "finetune" in peer:
                reached["times_torch"] = _times(figures["finetune"], peer["finetune"])
    return reached


def _times(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float:
    return float(ours["images_per_second"] / theirs["images_per_second"])


def _print(terminal: Any, parts: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]) -> None:
    device = parts.get("device", {})
    if "kind" in device:
        rates = ", ".join(f"{dtype} {rate / 1e12:,.1f} TFLOP/s" for dtype, rate in device["matmul"].items())
        memory = f"{device['bytes_per_second'] / 1e9:,.0f} GB/s"
        console.message(terminal, f"{device['count']} x {device['kind']}: matrix product {rates}; memory {memory}")
    rows = [row for name in parts if name.startswith("flaxtl: ") for row in _rows(parts, name.removeprefix("flaxtl: "))]
    columns = ("model", "work", "images/s", "ms/batch", "of a matmul", "PyTorch, compiled", "x PyTorch")
    size = settings["size"]
    title = f"batch size {settings['batch']}, {size} x {size}, {settings['dtype']}"
    if rows:
        terminal.print(console.make_table(title, columns, rows))
    for name, figures in parts.items():
        if name.startswith("course: ") and "phases" in figures:
            stages = ", ".join(f"{part} {seconds:,.1f} s" for part, seconds in figures["parts"].items())
            console.message(terminal, f"{name}: {figures['seconds']:,.1f} s ({stages})")
        elif note := figures.get("note"):
            console.message(terminal, f"{name}: {note}")
    goals = {name: f"{value:,.1f} (goal {BARS[name]:g})" for name, value in bars(parts).items()}
    if goals:
        console.message(terminal, "; ".join(f"{name.replace('_', ' ')} {text}" for name, text in goals.items()))


def _rows(parts: Mapping[str, Mapping[str, Any]], model: str) -> Iterator[tuple[str, ...]]:
    """Yield a row of the table for each kind of work that was measured."""
    ours, theirs = parts[f"flaxtl: {model}"], parts.get(f"PyTorch: {model}", {})
    for work, title in WORK.items():
        if figures := ours.get(work):
            rate, peak = figures["images_per_second"], figures["matmul_flop_per_second"]
            share = f"{rate * figures['flop_per_image'] / peak:.0%}"
            peer = theirs.get(work)
            compared = (f"{peer['images_per_second']:,.0f}", f"{_times(figures, peer):.2f}") if peer else ("", "")
            yield model, title, f"{rate:,.0f}", f"{1000 * figures['images'] / rate:,.2f}", share, *compared
