"""A thousand classes of four tiny images each, through every command."""

import math
from collections.abc import Iterator
from pathlib import Path

from loads.check import Row, ended
from loads.command import config, flaxtl
from loads.images import paint

CLASSES, EACH = 1_000, 4
LARGEST_PAGE = 4 * 2**20  # bytes: what opens at once, on a phone too


def run(folder: Path) -> Iterator[Row]:
    """Every command on them, and the size of the pages."""
    images = paint(folder / "images", (f"class {number:04}" for number in range(CLASSES)), EACH)
    cache, workdir, page = folder / "cache", folder / "run", folder / "doctor.html"
    source = f"folder:{images}"
    made = config(folder / "config.py", source)
    yield ended(flaxtl("doctor, 1,000 classes", "doctor", f"--data={source}", f"--html={page}", cache=cache))
    yield _page(page)
    split = ("--fractions=0.5,0.25,0.25", f"--output={folder / 'split'}")
    yield ended(flaxtl("split, 1,000 classes", "split", f"--source={source}", *split, cache=cache))
    folds = ("--kfold=4", f"--output={folder / 'folds'}")
    yield ended(flaxtl("split --kfold=4, 1,000 classes", "split", f"--source={source}", *folds, cache=cache))
    yield ended(flaxtl("train, 1,000 classes", "train", f"--config={made}", f"--workdir={workdir}", cache=cache))
    yield _page(workdir / "report" / "index.html")
    yield ended(flaxtl("evaluate, 1,000 classes", "evaluate", f"--workdir={workdir}", cache=cache))
    predict = (f"--workdir={workdir}", f"--input={images}", f"--csv={folder / 'answers.csv'}")
    yield ended(flaxtl("predict, 4,000 images", "predict", *predict, cache=cache))
    yield ended(flaxtl("report, 1,000 classes", "report", f"--workdir={workdir}", cache=cache))


def _page(page: Path) -> Row:
    size = page.stat().st_size if page.exists() else math.inf
    return Row(f"size of {page.name}", 0.0, math.nan, f"{size / 2**20:.2f} MiB", size <= LARGEST_PAGE)
