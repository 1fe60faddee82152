"""Data pipelines of others: Keras' ImageDataGenerator and PyTorch's DataLoader."""

import math
import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from benchmarks.measure import Work
from PIL import Image

COURSE_AUGMENTATION = {
    "rotation": 30.0,
    "height_shift": 0.2,
    "width_shift": 0.2,
    "shear": 0.2,
    "zoom": 0.2,
    "horizontal_flip": True,
}
"""Augmentation of the course (configs/flowers_vgg16.py)."""


def link_images(folder: Path, images: Iterable[tuple[Path, str]]) -> Path:
    """Write FOLDER/LABEL/NUMBER.EXT as links to (path, label) pairs, for flow_from_directory; return `folder`."""
    for number, (path, label) in enumerate(images):
        link = folder / label / f"{number}{path.suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.resolve())
    return folder


def keras_work(folder: Path, side: int, batch: int, *, augmented: bool) -> Work:
    """Return one epoch of ImageDataGenerator.flow_from_directory."""
    from keras.src.legacy.preprocessing.image import ImageDataGenerator

    augmentation = {
        "rotation_range": 30,
        "width_shift_range": 0.2,
        "height_shift_range": 0.2,
        "shear_range": 0.2,
        "zoom_range": 0.2,
        "horizontal_flip": True,
    }
    generator = ImageDataGenerator(**augmentation if augmented else {})
    flow = generator.flow_from_directory(str(folder), (side, side), batch_size=batch, interpolation="nearest")
    return lambda: sum(len(next(flow)[1]) for _ in range(len(flow)))


def torch_work(files: list[Path], side: int, batch: int, workers: int, *, augmented: bool) -> Work:
    """Return one epoch of a DataLoader with worker processes, Pillow's decoding and Pillow's affine transform."""
    from torch.utils.data import DataLoader

    loader = DataLoader(
        _ImageFiles(files, side, augmented),
        batch_size=batch,
        shuffle=True,
        num_workers=workers,
        persistent_workers=True,
        collate_fn=_collate,
        multiprocessing_context="spawn",  # JAX has threads, which a fork would break
    )
    return lambda: sum(len(images) for images in loader)


def _collate(images: list[np.ndarray]) -> object:
    from torch import from_numpy

    return from_numpy(np.stack(images))


class _ImageFiles:
    """A map-style dataset of image files."""

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
    """Draw a rotation, shift, zoom and flip in the course's ranges, as Pillow takes them (output to input)."""
    angle = math.radians(random.uniform(-30, 30))
    zooms = random.uniform(0.8, 1.2) * random.choice((-1, 1)), random.uniform(0.8, 1.2)
    a, b = zooms[0] * math.cos(angle), -zooms[1] * math.sin(angle)
    d, e = zooms[0] * math.sin(angle), zooms[1] * math.cos(angle)
    center = side / 2
    shifts = random.uniform(-0.2, 0.2) * side, random.uniform(-0.2, 0.2) * side
    return a, b, center - (a + b) * center + shifts[0], d, e, center - (d + e) * center + shifts[1]
