"""As many drawn flower pictures as are wanted, kept from one benchmark to the next."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from flaxtl import cache
from flaxtl.data import garden


def pictures(n: int, side: int) -> list[Path]:
    """The first `n` of an endless row of different pictures, the kinds taking turns; those not yet there are drawn."""
    folder = cache.directory("benchmarks") / f"drawn_{garden.EDITION}_{side}"
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number:06d}.jpg" for number in range(n)]
    missing = [number for number, file in enumerate(files) if not file.exists()]
    # Forked, a process would take over JAX's locks; and a few pictures are drawn before others have started.
    if len(missing) < 100:
        for number in missing:
            _draw(folder, side, number)
    else:
        with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
            list(pool.map(partial(_draw, folder, side), missing, chunksize=64))
    return files


def _draw(folder: Path, side: int, number: int) -> None:
    kind = garden.CLASSES[number % len(garden.CLASSES)]
    unfinished = folder / f"{number:06d}.part"
    garden.draw(kind, number, side).save(unfinished, format="JPEG", quality=90)
    unfinished.rename(folder / f"{number:06d}.jpg")
