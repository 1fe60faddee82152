"""Folders of test files: empty ones, or smooth images that are not similar to each other."""

from pathlib import Path

import numpy as np
from PIL import Image


def fill(folder: Path, n: int, prefix: str = "", suffix: str = ".jpg") -> None:
    """Write n different files that are not images to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        (folder / f"{prefix}{i:04d}{suffix}").write_bytes(f"{folder.name}/{prefix}{i}".encode())


def image(number: int, side: int = 64) -> Image.Image:
    """Smooth colored shapes; the perceptual hashes of any two numbers are far apart."""
    cells = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((side, side), Image.Resampling.BICUBIC)


def paint(folder: Path, numbers: range) -> None:
    """FOLDER/NUMBER.png for each of them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        image(number).save(folder / f"{number}.png")
