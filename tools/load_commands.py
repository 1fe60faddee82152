"""Run `flaxtl` commands and measure them; write images and a config for them."""

import math
import multiprocessing
import os
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image

from flaxtl.data.image_file import MAX_PIXELS

T = TypeVar("T")
ROOT = Path(__file__).parents[1]

MAX_MIB = 2048
MAX_LINES = 120
"""Limits of a command: peak memory, and lines on the console."""

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({config!r})
"""

GIANT_SIDE = 20_000
LARGEST_SIDE = int(MAX_PIXELS**0.5)
SPARSE_BYTES = 3 * 2**30


@dataclass(frozen=True)
class Row:
    """One check: wall seconds, peak memory in MiB (nan: not measured), what was seen, and whether it passed."""

    name: str
    seconds: float
    mebibytes: float
    note: str
    passed: bool

    def __str__(self) -> str:
        """Return one line of the table."""
        memory = "" if math.isnan(self.mebibytes) else f"{self.mebibytes:.0f}"
        return f"{'ok' if self.passed else 'BAD':4}{self.name:44}{self.seconds:9.1f}{memory:>8}  {self.note}"


class Commands:
    """Run `flaxtl` commands in a folder, which also holds their cache.

    Args:
      prefix: words in front of each command, such as those of setpriv.
      cache: the cache folder (default: FOLDER/cache).
    """

    def __init__(self, folder: Path, prefix: Sequence[str] = (), cache: Path | None = None) -> None:
        self.folder, self._prefix, self._cache = folder, prefix, cache or folder / "cache"

    def run(self, name: str, *arguments: object, codes: Collection[int] = (0,), max_lines: int = MAX_LINES) -> Row:
        """Run `flaxtl ARGUMENTS`. It must end with one of `codes`, without traceback or Python warning."""
        command = [*self._prefix, sys.executable, "-m", "flaxtl", *map(str, arguments)]
        environment = {"JAX_PLATFORMS": "cpu", **os.environ, "FLAXTL_CACHE": str(self._cache), "PYTHONPATH": str(ROOT)}
        with tempfile.NamedTemporaryFile() as file:
            # A new process inherits the peak memory of its parent; `in_process` puts a small one between.
            seconds, peak, code = in_process(_measure, command, file.name, environment, self.folder)
            lines = file.read().decode(errors="replace").strip().splitlines()
        output, last = "\n".join(lines), lines[-1] if lines else ""
        mebibytes = peak / (2**20 if sys.platform == "darwin" else 2**10)
        failures = {
            f"exit code {code}": code not in codes,
            "internal error": "internal error" in output,
            "traceback": "Traceback (most recent call last)" in output,
            "Python warning": "Warning:" in output,
            f"{len(lines):,} lines on the console": len(lines) > max_lines,
            f"more than {MAX_MIB:,} MiB": mebibytes > MAX_MIB,
        }
        failed = [failure for failure, happened in failures.items() if happened]
        note = f"{', '.join(failed)}: {last[:200]}" if failed else last[:150] if code else f"{len(lines)} lines"
        return Row(name, seconds, mebibytes, note, not failed)


def _measure(command: list[str], output: str, environment: dict[str, str], folder: Path) -> tuple[float, int, int]:
    """Return the seconds, the peak memory in the system's unit, and the exit code of a command."""
    start_time = time.perf_counter()
    with Path(output).open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=folder)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return time.perf_counter() - start_time, usage.ru_maxrss, process.returncode


def in_process(function: Callable[..., T], *arguments: object) -> T:
    """Call a function in a process of its own, so that its memory is not counted for later commands."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def write_config(file: Path, source: str, **data: object) -> Path:
    """Write a config of one short phase on one block of VGG16 with random weights; `data` adds settings of data."""
    values = {
        "batch_size": 32,
        "data": {"source": source, "height": 32, "width": 32, **data},
        "weights": {"path": "random"},
        "model": {"name": "vgg16", "output_layer": "block1_pool"},
        "head": {"pooling": "global_average", "units": (16,), "dropout": 0.0},
        "param_groups": (("head", "head/.*"), ("base", "backbone/.*")),
        "phases": ("frozen",),
        "frozen": {"epochs": 1, "steps_per_epoch": 4, "lr": {"head": 1e-3, "base": 0.0}},
    }
    file.write_text(CONFIG.format(config=values), encoding="utf-8")
    return file


def draw_image(seed: int, side: int = 32) -> Image.Image:
    """Draw smooth color patches; the perceptual hashes of different seeds are far apart."""
    cells = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((side, side), Image.Resampling.BICUBIC)


def write_images(folder: Path, classes: Iterable[str], per_class: int, side: int = 32) -> Path:
    """Write FOLDER/CLASS/NUMBER.png and return `folder`."""
    for index, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(index * per_class, (index + 1) * per_class):
            draw_image(number, side).save(folder / name / f"{number:06}.png", compress_level=1)
    return folder


def write_too_large_images(folder: Path) -> None:
    """Write small images, and some that are too large to be decoded or read."""
    Image.MAX_IMAGE_PIXELS = None
    write_images(folder, ("a", "b"), 10)
    write_png_bomb(folder / "a" / "bomb.png", GIANT_SIDE)
    Image.new("RGB", (GIANT_SIDE, GIANT_SIDE), "green").save(folder / "a" / "giant.jpg")
    Image.new("L", (GIANT_SIDE, GIANT_SIDE), 77).save(folder / "b" / "giant.png", compress_level=1)
    with (folder / "b" / "sparse.jpg").open("wb") as file:
        file.truncate(SPARSE_BYTES)


def write_largest_images(folder: Path) -> None:
    """Write small images, and images of the largest size allowed in several formats, one with an EXIF rotation."""
    write_images(folder, ("a", "b"), 10)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for number, (mode, suffix, options) in enumerate(
        (
            ("RGB", "jpg", {}),
            ("RGB", "jpg", {"progressive": True}),
            ("RGBA", "png", {"compress_level": 1}),
            ("I;16", "png", {"compress_level": 1}),
            ("CMYK", "jpg", {}),
            ("P", "gif", {}),
            ("RGBA", "png", {"compress_level": 1, "exif": exif}),
        )
    ):
        image = Image.new(mode, (LARGEST_SIDE, LARGEST_SIDE), 40 * number)
        image.save(folder / "ab"[number % 2] / f"large{number}.{suffix}", **options)


def write_png_bomb(file: Path, side: int) -> None:
    """Write a valid PNG of side x side black pixels, a few kilobytes large."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    compressor, row = zlib.compressobj(9), bytes(1 + side // 8)  # one bit per pixel
    content = b"".join(compressor.compress(row) for _ in range(side)) + compressor.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b""))
