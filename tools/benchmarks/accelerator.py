"""All figures of an accelerator in one run of a few minutes, measured part by part.

Each model of each framework has a process of its own, and each figure is written to the JSON file at once. A later run
with the same file measures only what is missing, so that a run may be stopped at any time.
"""

import argparse
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from benchmarks import job
from benchmarks.compare import ENVIRONMENT, PEERS
from fresh_process import ProcessError, call, stream

from flaxtl import console
from flaxtl.errors import UserError
from flaxtl.fileio import atomic_write

MIN_SECONDS = 30.0
"""A part is not started in the last seconds of the time limit."""

WORK = {"forward": "forward", "frozen": "frozen: cached features", "augmented": "augmented: head from images",
        "finetune": "finetune: last block from images"}  # fmt: skip
"""Key of the figures -> name in the table."""

TORCH_WORK = ("forward", "augmented", "finetune")
"""What PyTorch is measured in."""

BARS = {"finetune_images_per_second": 10_000.0, "times_torch": 1.3, "course_seconds": 60.0}
"""The goals for one GPU of the H200's class: at least, at least, and at most."""

NO_DOWNLOADS = ("--config.data.source=synthetic", "--config.weights.path=builtin")
"""Settings of the course's run if none are given: 400 drawn images and weights that come with flaxtl."""

SETTINGS = ("batch", "size", "dtype", "seconds", "steps")


class Part(NamedTuple):
    """A part of the measurements.

    Attributes:
      name: key in the JSON file.
      work: keys that its figures have when it is complete.
      measure: yields figures of the kinds of work that are missing; stopped after a number of seconds.
    """

    name: str
    work: tuple[str, ...]
    measure: Callable[[Sequence[str], float], Iterator[Mapping[str, Any]]]


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure what is missing, print all, and return it."""
    from flaxtl.models import registry

    for model in options.models.split(","):
        registry.get_spec(model)  # a misspelt name is refused before anything is measured
    settings = {name: getattr(options, name) for name in SETTINGS}
    parts = _load(options.json, settings)
    deadline, terminal = time.monotonic() + 60 * options.minutes, console.make_console()
    for part in _parts(options, settings):
        done = parts.get(part.name, {})
        missing = [work for work in part.work if work not in done]
        if done and not missing and "failed" not in done.get("note", ""):
            continue
        left = deadline - time.monotonic()
        if left < min(MIN_SECONDS, 30 * options.minutes) or not options.minutes:
            message = f"Not measured for lack of time: {part.name}. The same command with --json continues."
            console.message(terminal, message)
            continue
        console.message(terminal, f"Measuring {part.name} ...")
        for figures in _measure(part, missing, left, done):
            parts[part.name] = figures
            if options.json:
                with atomic_write(options.json) as file:
                    file.write(json.dumps({"kind": "accelerator", "settings": settings, "parts": parts}, indent=1))
    _print(terminal, parts, settings)
    return {"settings": settings, "parts": parts, "bars": bars(parts)}


def _measure(part: Part, missing: Sequence[str], left: float, done: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the figures of a part whenever there are more of them; a failure becomes their note."""
    figures = {key: value for key, value in done.items() if key != "note"}
    start_time, earlier_seconds = time.monotonic(), figures.get("measured_in", 0.0)
    try:
        for more in part.measure(missing, left):
            figures |= more | {"measured_in": earlier_seconds + time.monotonic() - start_time}
            yield figures
    except (ProcessError, UserError) as error:
        reason = re.sub(r"^[\w.]*\b(UserError|Unsupported): ", "", str(error))
        yield figures | {"note": f"failed: {reason}"}


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
    """Yield all parts, the most important first."""

    def device(missing: Sequence[str], timeout: float) -> Iterator[Mapping[str, Any]]:
        yield call("benchmarks.with_flaxtl:describe_device", {}, environment=ENVIRONMENT, timeout=timeout)

    def network(module: str, **more: Any) -> Callable[[Sequence[str], float], Iterator[Mapping[str, Any]]]:
        def measure(missing: Sequence[str], timeout: float) -> Iterator[Mapping[str, Any]]:
            arguments = {**settings, **more, "work": missing}
            for work, figures in stream(
                f"benchmarks.{module}:measure_work", arguments, environment=ENVIRONMENT, timeout=timeout
            ):
                yield {work: figures}

        return measure

    overrides = [f"--config.dtype={settings['dtype']}", *(options.overrides or NO_DOWNLOADS)]

    def course(missing: Sequence[str], timeout: float) -> Iterator[Mapping[str, Any]]:
        with TemporaryDirectory() as folder:
            yield job.run_train(options.config, overrides, Path(folder) / "run", timeout)._asdict()

    torch = PEERS["torch-compiled"]
    yield Part("device", (), device)
    for number, model in enumerate(options.models.split(",")):
        yield Part(f"flaxtl: {model}", tuple(WORK), network("with_flaxtl", model=model))
        if note := torch.missing():
            yield Part(f"PyTorch: {model}", (), lambda missing, timeout, note=note: iter([{"note": note}]))
        else:
            yield Part(f"PyTorch: {model}", TORCH_WORK, network("with_torch", model=model, **torch.settings))
        if number == 0 and options.config:
            yield Part(f"course: {' '.join([options.config, *overrides])}", (), course)


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
