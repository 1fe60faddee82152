"""Folders of files for tests of what is made of them: names alone, or soft images that no two are alike."""

from pathlib import Path

import numpy as np
from PIL import Image


def fill(folder: Path, n: int, prefix: str = "", suffix: str = ".jpg") -> None:
    """n files in `folder` that differ from each other and are no images."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        (folder / f"{prefix}{i:04d}{suffix}").write_bytes(f"{folder.name}/{prefix}{i}".encode())


def image(number: int, side: int = 64) -> Image.Image:
    """Soft shapes in colour; those of any two numbers are far apart to a perceptual hash."""
    cells = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((side, side), Image.Resampling.BICUBIC)


def paint(folder: Path, numbers: range) -> None:
    """FOLDER/NUMBER.png for each of them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        image(number).save(folder / f"{number}.png")
