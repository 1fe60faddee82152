"""Time of a whole `flaxtl train` against the number of images, classes or simulated devices, as a plot."""

import argparse
import csv
import math
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import job
from benchmarks.job import Run
from PIL import Image

from flaxtl import console, fileio
from flaxtl.data.sources import synthetic

SIZES = {
    "images": (1_000, 3_000, 10_000, 30_000, 100_000),
    "classes": (2, 10, 30, 100, 300, 1_000),
    "devices": (1, 2, 4, 8),
}
"""Axis -> default sizes."""

OVERRIDES = (
    "--config.model.name=mobilenet",
    "--config.weights.path=random",
    "--config.head.pooling=global_average",
    "--config.phases=('frozen',)",
    "--config.frozen.epochs=1",
)
"""A small base processes every image once, and the head once more, in training or evaluation."""

TOTALS = ("total", "processor time")

DRAWN_IMAGES = 1_000
"""Number of drawn flowers. Further images are blends of two of them: 1,000 times faster, and not near-duplicates."""


def define(parser: argparse.ArgumentParser) -> None:
    """Add the options of `benchmark.py growth`; --config.key=value is passed to flaxtl."""
    parser.add_argument("--axis", choices=tuple(SIZES), required=True)
    parser.add_argument("--sizes", type=_numbers, metavar="N,N,...", help="along the axis")
    parser.add_argument("--config", default="configs/folder.py", metavar="FILE[:VARIANT]")
    parser.add_argument("--images", type=int, default=10_000, help="for the axes classes and devices")
    parser.add_argument("--classes", type=int, default=5, help="for the axes images and devices")
    parser.add_argument("--side", type=int, default=32, help="height and width of the images (default: %(default)s)")
    parser.add_argument("--plot", type=Path, default=Path("growth.svg"), metavar="FILE")
    parser.add_argument("--shared", action="store_true", help="plot only processor time, if the machine is busy")
    parser.set_defaults(run=run, repeats=3)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print, plot, and return the figures."""
    sizes = options.sizes or SIZES[options.axis]
    files = synthetic_images(max(sizes) if options.axis == "images" else options.images, options.side)
    runs: dict[int, list[Run]] = {size: [] for size in sizes}
    with TemporaryDirectory() as folder:
        for turn in range(options.repeats):
            for size in sizes:
                runs[size].append(_run_size(options, size, files, Path(folder) / f"{size}_{turn}"))
    columns = {"total": [median(run.seconds for run in runs[size]) for size in sizes]}
    columns["processor time"] = [median(run.cpu_seconds for run in runs[size]) for size in sizes]
    for part in runs[sizes[0]][0].parts:
        columns[part] = [median(run.parts[part] for run in runs[size]) for size in sizes]
    _print(options, sizes, columns)
    _plot(options, sizes, columns)
    figures = {"kind": "growth", "axis": options.axis, "sizes": sizes, "seconds": columns, "side": options.side}
    return figures | {"runs": {size: [(run.seconds, run.cpu_seconds) for run in runs[size]] for size in sizes}}


def _run_size(options: argparse.Namespace, size: int, files: list[Path], folder: Path) -> Run:
    """Run once on the first images of `files`, with classes assigned in turn."""
    n = size if options.axis == "images" else options.images
    classes = size if options.axis == "classes" else options.classes
    folder.mkdir()
    with (folder / "images.csv").open("w", encoding="utf-8", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(("path", "label"))
        rows.writerows((file.resolve(), f"class_{number % classes:04d}") for number, file in enumerate(files[:n]))
    data = (f"source=csv:{folder / 'images.csv'}", f"height={options.side}", f"width={options.side}")
    overrides = (*(f"--config.data.{setting}" for setting in data), *OVERRIDES, *options.overrides)
    environment = {}
    if options.axis == "devices":
        environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={size}"}
    return job.run_train(options.config, overrides, folder / "run", environment)


def _print(options: argparse.Namespace, sizes: Sequence[int], columns: dict[str, list[float]]) -> None:
    rows = [(f"{size:,}", *(f"{column[i]:,.1f}" for column in columns.values())) for i, size in enumerate(sizes)]
    if len(sizes) > 1:
        rows.append(("exponent", *(f"{growth_exponent(sizes, column):.2f}" for column in columns.values())))
    title = f"seconds of flaxtl train --config={options.config} {' '.join((*OVERRIDES, *options.overrides))}"
    console.make_console().print(console.make_table(title, (options.axis, *columns), rows))


def growth_exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Return the exponent of the growth between the last two sizes: 1 is linear."""
    return math.log(seconds[-1] / seconds[-2]) / math.log(sizes[-1] / sizes[-2])


def _plot(options: argparse.Namespace, sizes: Sequence[int], columns: dict[str, list[float]]) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    for title, column in columns.items():
        if title == "processor time" or not options.shared:
            axes.plot(sizes, column, "o-", linewidth=2 if title in TOTALS else 1, label=title)
    axes.set(xscale="log", yscale="log", xlabel=options.axis, ylabel="seconds")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=2, fontsize="small", frameon=False)
    with mpl.rc_context({"svg.fonttype": "none"}):  # text instead of outlines
        figure.savefig(options.plot, dpi=150)
    console.message(console.make_console(), f"plot: {options.plot}")


def synthetic_images(n: int, side: int) -> list[Path]:
    """Return n different images, cached between benchmarks; at most DRAWN_IMAGES ** 2 / 2."""
    if n > DRAWN_IMAGES**2 // 2:
        raise ValueError(f"At most {DRAWN_IMAGES**2 // 2:,} different images are available, not {n:,}.")
    folder = fileio.cache_dir("benchmarks") / f"drawn_{synthetic.DATASET_VERSION}_{side}"
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number:06d}.jpg" for number in range(n)]
    missing = [number for number, file in enumerate(files) if not file.exists()]
    to_draw = [number for number in missing if number < DRAWN_IMAGES]
    if len(to_draw) < 100:
        for number in to_draw:
            _draw(folder, side, number)
    else:
        with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
            list(pool.map(partial(_draw, folder, side), to_draw, chunksize=64))
    if to_blend := missing[len(to_draw) :]:
        images = [Image.open(file).copy() for file in files[:DRAWN_IMAGES]]
        for number in to_blend:
            _save(blend_pair(images, number), files[number])
    return files


def _draw(folder: Path, side: int, number: int) -> None:
    label = synthetic.CLASSES[number % len(synthetic.CLASSES)]
    _save(synthetic.draw_flower(label, number, side), folder / f"{number:06d}.jpg")


def blend_pair(images: Sequence[Image.Image], number: int) -> Image.Image:
    """Blend two of n images; numbers from n to n ** 2 / 2 give every pair once."""
    distance, first = divmod(number, len(images))
    return Image.blend(images[first], images[(first + distance) % len(images)], 0.5)


def _save(image: Image.Image, file: Path) -> None:
    partial_file = file.with_suffix(".part")
    image.save(partial_file, format="JPEG", quality=90)
    partial_file.rename(file)
