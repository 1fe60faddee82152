"""The same work as others do it: Keras' ImageDataGenerator and PyTorch's DataLoader."""

import importlib.util
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from benchmarks.measure import Work

LECTURE = {
    "rotation": 30.0,
    "height_shift": 0.2,
    "width_shift": 0.2,
    "shear": 0.2,
    "zoom": 0.2,
    "horizontal_flip": True,
}
"""The lecture's augmentation, in flaxtl's words."""


def installed(package: str) -> bool:
    """Whether a peer can be measured."""
    return importlib.util.find_spec(package) is not None


@contextmanager
def folder_of(files: list[Path]) -> Iterator[Path]:
    """A folder of two classes that holds links to `files`, as Keras wants to be given them."""
    with TemporaryDirectory() as place:
        for number, file in enumerate(files):
            link = Path(place) / str(number % 2) / f"{number}{file.suffix}"
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(file.resolve())
        yield Path(place)


def keras(folder: Path, side: int, batch: int, *, augmented: bool) -> Work:
    """One pass of ImageDataGenerator.flow_from_directory."""
    from keras.src.legacy.preprocessing.image import ImageDataGenerator

    lecture = {
        "rotation_range": 30,
        "width_shift_range": 0.2,
        "height_shift_range": 0.2,
        "shear_range": 0.2,
        "zoom_range": 0.2,
        "horizontal_flip": True,
    }
    generator = ImageDataGenerator(**lecture if augmented else {})
    flow = generator.flow_from_directory(
        str(folder), target_size=(side, side), batch_size=batch, interpolation="nearest"
    )

    def work() -> int:
        return sum(len(next(flow)[1]) for _ in range(len(flow)))

    return work


def torch(files: list[Path], side: int, batch: int, workers: int, *, augmented: bool) -> Work:
    """One pass of a DataLoader with worker processes over Pillow's own decoding and affine transform."""
    from torch.utils.data import DataLoader

    loader = DataLoader(
        _Images(files, side, augmented),
        batch_size=batch,
        shuffle=True,
        num_workers=workers,
        persistent_workers=True,
        collate_fn=_collate,
        multiprocessing_context="spawn",  # JAX has threads, which a fork would break
    )

    def work() -> int:
        return sum(len(images) for images in loader)

    return work


def _collate(images: list[np.ndarray]) -> object:
    from torch import from_numpy

    return from_numpy(np.stack(images))


class _Images:
    """A map-style data set of image files."""

    def __init__(self, files: list[Path], side: int, augmented: bool) -> None:
        self._files, self._side, self._augmented = files, side, augmented

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> np.ndarray:
        with Image.open(self._files[index]) as file:
            image = file.convert("RGB").resize((self._side, self._side), Image.Resampling.NEAREST)
        if self._augmented:
            image = image.transform(image.size, Image.Transform.AFFINE, _affine(self._side), Image.Resampling.BILINEAR)
        return np.asarray(image)


def _affine(side: int) -> tuple[float, ...]:
    """A random rotation, shift, zoom and flip of the lecture's ranges, as Pillow takes them (output to input)."""
    angle = math.radians(random.uniform(-30, 30))
    zooms = random.uniform(0.8, 1.2) * random.choice((-1, 1)), random.uniform(0.8, 1.2)
    a, b = zooms[0] * math.cos(angle), -zooms[1] * math.sin(angle)
    d, e = zooms[0] * math.sin(angle), zooms[1] * math.cos(angle)
    centre = side / 2
    shifts = random.uniform(-0.2, 0.2) * side, random.uniform(-0.2, 0.2) * side
    return a, b, centre - (a + b) * centre + shifts[0], d, e, centre - (d + e) * centre + shifts[1]
