"""Images made quickly, no two alike to a perceptual hash."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image


def soft(number: int, side: int = 32) -> Image.Image:
    """Soft shapes in colour, another for every number."""
    cells = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((side, side), Image.Resampling.BICUBIC)


def paint(folder: Path, classes: Iterable[str], each: int, side: int = 32) -> Path:
    """FOLDER/CLASS/NUMBER.png, `each` of every class; returns `folder`."""
    for place, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(place * each, (place + 1) * each):
            soft(number, side).save(folder / name / f"{number:06}.png", compress_level=1)
    return folder
