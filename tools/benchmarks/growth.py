"""Wall time of a whole `flaxtl train` against the number of pictures, classes or simulated devices, as a plot."""

import argparse
import csv
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import drawn, flaxtl_run
from benchmarks.flaxtl_run import Run
from benchmarks.measure import median
from flaxtl.terminal import console, table

SIZES = {
    "pictures": (1_000, 3_000, 10_000, 30_000, 100_000),
    "classes": (2, 5, 10, 50, 100),
    "devices": (1, 2, 4, 8),
}
"""axis -> what is measured unless told."""

JOB = (
    "--config.weights.path=builtin",
    "--config.phases=('frozen',)",
    "--config.frozen.epochs=1",
    "--config.frozen.steps_per_epoch=20",
)
"""Every picture is decoded and passes the frozen base once; the steps are as many for any number of pictures."""


def define(parser: argparse.ArgumentParser) -> None:
    """The options of `benchmark.py growth`; --config.key=value is handed on."""
    parser.add_argument("--axis", choices=tuple(SIZES), required=True)
    parser.add_argument("--sizes", type=_numbers, metavar="N,N,...", help="along the axis")
    parser.add_argument("--config", default="configs/folder.py", metavar="FILE[:VARIANT]", help="the recipe")
    parser.add_argument("--pictures", type=int, default=1_000, help="of the axes classes and devices")
    parser.add_argument("--classes", type=int, default=5, help="of the axes pictures and devices")
    parser.add_argument("--side", type=int, default=96, help="pixels of a side")
    parser.add_argument("--plot", type=Path, default=Path("growth.png"), metavar="FILE.png")
    parser.set_defaults(run=run, repeats=3)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print, plot, and return the figures."""
    sizes = options.sizes or SIZES[options.axis]
    most = max(sizes) if options.axis == "pictures" else options.pictures
    files = drawn.pictures(most, options.side)
    runs: dict[int, list[Run]] = {size: [] for size in sizes}
    with TemporaryDirectory() as place:
        for turn in range(options.repeats):
            for size in sizes:
                runs[size].append(_job(options, size, files, Path(place) / f"{size}_{turn}"))
    parts = {
        part: [median([each.parts[part] for each in runs[size]]) for size in sizes] for part in runs[sizes[0]][0].parts
    }
    totals = [median([each.seconds for each in runs[size]]) for size in sizes]
    _print(options, sizes, parts, totals)
    _plot(options, sizes, parts, totals)
    found = {"kind": "growth", "axis": options.axis, "sizes": sizes, "seconds": totals, "parts": parts}
    return found | {"side": options.side, "runs": {size: [each.seconds for each in runs[size]] for size in sizes}}


def _job(options: argparse.Namespace, size: int, files: list[Path], place: Path) -> Run:
    """One run: the first pictures of `files`, dealt out to the classes in turn."""
    n = size if options.axis == "pictures" else options.pictures
    classes = size if options.axis == "classes" else options.classes
    place.mkdir()
    listing = place / "pictures.csv"
    with listing.open("w", encoding="utf-8", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(("path", "label"))
        rows.writerows((file.resolve(), f"class_{number % classes:04d}") for number, file in enumerate(files[:n]))
    side = (f"--config.data.height={options.side}", f"--config.data.width={options.side}")
    overrides = (f"--config.data.source=csv:{listing}", *side, *JOB, *options.overrides)
    environment = _devices(size) if options.axis == "devices" else {}
    return flaxtl_run.train(options.config, overrides, place / "run", environment)


def _devices(n: int) -> dict[str, str]:
    """A processor that acts as `n` devices."""
    return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={n}"}


def _print(
    options: argparse.Namespace, sizes: tuple[int, ...], parts: dict[str, list[float]], totals: list[float]
) -> None:
    rows = [
        (f"{size:,}", f"{totals[i]:,.1f}", *(f"{values[i]:,.1f}" for values in parts.values()))
        for i, size in enumerate(sizes)
    ]
    title = f"seconds of flaxtl train --config={options.config} {' '.join((*JOB, *options.overrides))}"
    console().print(table(title, (options.axis, "from start to end", *parts), rows))


def _plot(
    options: argparse.Namespace, sizes: tuple[int, ...], parts: dict[str, list[float]], totals: list[float]
) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(sizes, totals, "o-", color="black", linewidth=2, label="from start to end")
    for part, values in parts.items():
        axes.plot(sizes, values, "o-", linewidth=1, label=part)
    axes.set(xscale="log", yscale="log", xlabel=options.axis, ylabel="seconds")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=2, fontsize="small", frameon=False)
    figure.savefig(options.plot, dpi=150)
    console().print(f"plot: {options.plot}", highlight=False, markup=False, soft_wrap=True)
