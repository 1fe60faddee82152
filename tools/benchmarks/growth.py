"""Wall time of a whole `flaxtl train` against the number of images, classes or simulated devices, as a plot."""

import argparse
import csv
import math
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import drawn, flaxtl_run
from benchmarks.flaxtl_run import Run
from benchmarks.measure import median
from flaxtl.console import make_console, make_table

SIZES = {
    "images": (1_000, 3_000, 10_000, 30_000, 100_000),
    "classes": (2, 10, 30, 100, 300, 1_000),
    "devices": (1, 2, 4, 8),
}
"""axis -> what is measured unless told."""

JOB = (
    "--config.model.name=mobilenet",
    "--config.weights.path=random",
    "--config.head.pooling=global_average",
    "--config.phases=('frozen',)",
    "--config.frozen.epochs=1",
)
"""Every image passes a small base once, and the head once or is judged by it: no part has another number of them."""

TOTALS = ("from start to end", "of processor time")


def define(parser: argparse.ArgumentParser) -> None:
    """The options of `benchmark.py growth`; --config.key=value is handed on."""
    parser.add_argument("--axis", choices=tuple(SIZES), required=True)
    parser.add_argument("--sizes", type=_numbers, metavar="N,N,...", help="along the axis")
    parser.add_argument("--config", default="configs/folder.py", metavar="FILE[:VARIANT]", help="the config")
    parser.add_argument("--images", type=int, default=10_000, help="of the axes classes and devices")
    parser.add_argument("--classes", type=int, default=5, help="of the axes images and devices")
    parser.add_argument("--side", type=int, default=32, help="pixels of a side")
    parser.add_argument("--plot", type=Path, default=Path("growth.svg"), metavar="FILE")
    parser.add_argument("--shared", action="store_true", help="the machine has other work: plot processor time alone")
    parser.set_defaults(run=run, repeats=3)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print, plot, and return the figures."""
    sizes = options.sizes or SIZES[options.axis]
    most = max(sizes) if options.axis == "images" else options.images
    files = drawn.images(most, options.side)
    runs: dict[int, list[Run]] = {size: [] for size in sizes}
    with TemporaryDirectory() as place:
        for turn in range(options.repeats):
            for size in sizes:
                runs[size].append(_job(options, size, files, Path(place) / f"{size}_{turn}"))
    columns = _columns([runs[size] for size in sizes])
    _print(options, sizes, columns)
    _plot(options, sizes, columns)
    found = {"kind": "growth", "axis": options.axis, "sizes": sizes, "seconds": columns, "side": options.side}
    return found | {"runs": {size: [(each.seconds, each.processor) for each in runs[size]] for size in sizes}}


def _columns(runs: Sequence[Sequence[Run]]) -> dict[str, list[float]]:
    """By title the seconds at each size, medians of its runs: TOTALS first, then the parts of the first of these."""
    whole = [[each.seconds for each in some] for some in runs], [[each.processor for each in some] for some in runs]
    columns = dict(zip(TOTALS, whole, strict=True))
    columns |= {part: [[each.parts[part] for each in some] for some in runs] for part in runs[0][0].parts}
    return {title: [median(seconds) for seconds in column] for title, column in columns.items()}


def _job(options: argparse.Namespace, size: int, files: list[Path], place: Path) -> Run:
    """One run: the first images of `files`, dealt out to the classes in turn."""
    n = size if options.axis == "images" else options.images
    classes = size if options.axis == "classes" else options.classes
    place.mkdir()
    listing = place / "images.csv"
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


def _print(options: argparse.Namespace, sizes: Sequence[int], columns: dict[str, list[float]]) -> None:
    rows = [(f"{size:,}", *(f"{column[i]:,.1f}" for column in columns.values())) for i, size in enumerate(sizes)]
    if len(sizes) > 1:
        rows.append(("exponent", *(f"{_exponent(sizes, column):.2f}" for column in columns.values())))
    title = f"seconds of flaxtl train --config={options.config} {' '.join((*JOB, *options.overrides))}"
    make_console().print(make_table(title, (options.axis, *columns), rows))


def _exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """From the last size but one to the last: 1 is linear."""
    return math.log(seconds[-1] / seconds[-2]) / math.log(sizes[-1] / sizes[-2])


def _plot(options: argparse.Namespace, sizes: Sequence[int], columns: dict[str, list[float]]) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    for title, column in columns.items() if not options.shared else [(TOTALS[1], columns[TOTALS[1]])]:
        axes.plot(sizes, column, "o-", linewidth=2 if title in TOTALS else 1, label=title)
    axes.set(xscale="log", yscale="log", xlabel=options.axis, ylabel="seconds")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=2, fontsize="small", frameon=False)
    with mpl.rc_context({"svg.fonttype": "none"}):  # text, not outlines of letters
        figure.savefig(options.plot, dpi=150)
    make_console().print(f"plot: {options.plot}", highlight=False, markup=False, soft_wrap=True)
