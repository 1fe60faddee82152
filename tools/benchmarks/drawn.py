"""As many different images as are wanted, kept from one benchmark to the next.

The first BASE are drawn flowers. Each of the others is two of those seen through one another, which takes a thousandth
of the time and, unlike a copy, is a near-duplicate of none.
"""

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from PIL import Image

from flaxtl import fileio
from flaxtl.data.sources import synthetic

BASE = 1_000

LARGEST = BASE**2 // 2
"""So many images there are; then come pairs that were there before, the other way round."""


def images(n: int, side: int) -> list[Path]:
    """The first `n` of a row of LARGEST different images; those not yet there are made."""
    if n > LARGEST:
        raise ValueError(f"{n:,} images are wanted, and there are {LARGEST:,} different ones")
    folder = fileio.cache_dir("benchmarks") / f"drawn_{synthetic.DATASET_VERSION}_{side}"
    blended = folder / "blended"
    blended.mkdir(parents=True, exist_ok=True)
    base = [folder / f"{number:06d}.jpg" for number in range(min(n, BASE))]
    others = [blended / f"{number:06d}.jpg" for number in range(BASE, n)]
    _draw_all(folder, side, [number for number, file in enumerate(base) if not file.exists()])
    if missing := [number for number, file in enumerate(others, start=BASE) if not file.exists()]:
        loaded = [Image.open(file).copy() for file in base]
        for number in missing:
            _save(_blended(loaded, number), blended / f"{number:06d}.jpg")
    return base + others


def _draw_all(folder: Path, side: int, numbers: Sequence[int]) -> None:
    # Forked, a process would take over JAX's locks; and a few images are drawn before others have started.
    if len(numbers) < 100:
        for number in numbers:
            _draw(folder, side, number)
    else:
        with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
            list(pool.map(partial(_draw, folder, side), numbers, chunksize=64))


def _draw(folder: Path, side: int, number: int) -> None:
    """The kinds of flower take turns."""
    _save(
        synthetic.draw_flower(synthetic.CLASSES[number % len(synthetic.CLASSES)], number, side),
        folder / f"{number:06d}.jpg",
    )


def _blended(base: Sequence[Image.Image], number: int) -> Image.Image:
    """`number` BASE or more: every pair of base images comes once, first those next to one another."""
    apart, first = divmod(number, BASE)
    return Image.blend(base[first], base[(first + apart) % BASE], 0.5)


def _save(image: Image.Image, file: Path) -> None:
    unfinished = file.with_suffix(".part")
    image.save(unfinished, format="JPEG", quality=90)
    unfinished.rename(file)
