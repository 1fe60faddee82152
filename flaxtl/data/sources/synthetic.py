"""The built-in demo dataset: five classes of drawn flowers, so that a first run needs no download.

An image is a background, one to five flowers of one class, grass in front of them, and lighting. Everything
but the flower heads and their tilt comes from the same distributions for all classes: only the flowers carry the label.
"""

import json
import os
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from flaxtl.child_process import python_command
from flaxtl.data.sources import flower_shapes
from flaxtl.data.sources.flower_shapes import Array, Canvas, Color, Pose
from flaxtl.errors import UserError
from flaxtl.fileio import atomic_folder

# Each class with the range of tilts at which it is usually photographed. Sorted; names of the TensorFlow flowers.
_FLOWERS: dict[str, tuple[flower_shapes.DrawFn, tuple[float, float]]] = {
    "daisy": (flower_shapes.daisy, (0.0, 1.05)),
    "dandelion": (flower_shapes.dandelion, (0.0, 1.1)),
    "roses": (flower_shapes.rose, (0.0, 1.1)),
    "sunflowers": (flower_shapes.sunflower, (0.0, 0.95)),
    "tulips": (flower_shapes.tulip, (0.5, 1.6)),
}
CLASSES: tuple[str, ...] = tuple(_FLOWERS)

DATASET_VERSION = 1
"""Increase it whenever the same arguments give different images, so that a cached older dataset is not reused."""

_OVERSAMPLING = 3  # the foreground is drawn this many times larger and then averaged: smooth edges
_METADATA = "dataset.json"

_IMAGES_PER_PROCESS = 50  # starting a process takes as long as drawing about ten

_PROCESS_CODE = """
import json, sys
from flaxtl.data.sources import synthetic
synthetic.draw_part(*json.loads(sys.argv[1]))
"""

_GREENS: tuple[Color, ...] = ((52, 92, 36), (86, 132, 52), (120, 152, 74), (64, 104, 70))
_BLOSSOMS: tuple[Color, ...] = (
    flower_shapes.WHITE,
    flower_shapes.YELLOW,
    flower_shapes.PINK,
    flower_shapes.CRIMSON,
    flower_shapes.PURPLE,
)


def generate_dataset(directory: Path, per_class: int = 80, seed: int = 0, size: int = 160) -> Path:
    """Write `per_class` images of each class to `directory`/CLASS/CLASS_0000.jpg ..., and return `directory`.

    The folder appears only when it is complete. A folder that already contains this dataset is left unchanged.

    Raises:
      UserError: `directory` contains something else or cannot be written, or an argument is out of range.
    """
    if per_class < 1 or size < 1 or seed < 0:
        raise UserError(
            f"Cannot generate {per_class} images per class, {size} pixels wide, from seed {seed}. The minimum is 1, 1 "
            "and 0."
        )
    settings = {"version": DATASET_VERSION, "per_class": per_class, "seed": seed, "size": size}
    metadata = json.dumps(settings) + "\n"
    if _contains(directory, metadata, per_class):
        return directory
    with atomic_folder(directory) as folder:
        _draw_in_processes(folder, per_class, seed, size)
        (folder / _METADATA).write_text(metadata, encoding="utf-8")
    return directory


def draw_part(folder: str, per_class: int, seed: int, size: int, part: int, num_parts: int) -> None:
    """Draw every `num_parts`-th image of each class, from image `part` on; for the processes of `generate_dataset`."""
    for label in CLASSES:
        for index in range(part, per_class, num_parts):
            draw_image(label, seed, index, size).save(Path(folder, label, f"{label}_{index:04d}.jpg"), quality=90)


def draw_image(label: str, seed: int, index: int, size: int) -> Image.Image:
    """Draw image `index` of a class in the dataset of `seed`: RGB, `size` x `size` pixels; a pure function."""
    rng = np.random.default_rng([seed, CLASSES.index(label), index])
    light = np.array([rng.uniform(-0.8, 0.8), rng.uniform(-0.9, -0.2), 0.8])
    light /= np.linalg.norm(light)
    far = _background(rng, size, light)
    image = far.resize((size * _OVERSAMPLING, size * _OVERSAMPLING), Image.Resampling.BICUBIC)
    canvas = Canvas(image, light)
    for pose in _poses(rng, _FLOWERS[label][1]):
        _stem(rng, canvas, pose)
        _FLOWERS[label][0](rng, canvas, pose)
    if rng.random() < 0.3:
        _grass(rng, canvas, int(rng.integers(3, 22)), rng.uniform(0.2, 0.9))
    return _develop(rng, image.reduce(_OVERSAMPLING))


def _draw_in_processes(folder: Path, per_class: int, seed: int, size: int) -> None:
    """Draw all images, a part of them in each of several processes: most of the work is Python's, which has one thread.

    This process draws the first part, and those of processes that fail: if the reason is here, too, it raises.
    """
    for label in CLASSES:
        (folder / label).mkdir()
    num_parts = max(1, min(os.cpu_count() or 1, per_class * len(CLASSES) // _IMAGES_PER_PROCESS))
    parts = [(str(folder), per_class, seed, size, part, num_parts) for part in range(num_parts)]
    with ExitStack() as stack:
        started = []
        for part in parts[1:]:
            command = python_command(_PROCESS_CODE, json.dumps(part))
            process = stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
            stack.callback(process.kill)
            started.append((part, process))
        draw_part(*parts[0])
        for part, process in started:
            if process.wait():
                draw_part(*part)


def _contains(directory: Path, metadata: str, per_class: int) -> bool:
    """Whether `directory` is this dataset; False if it is missing or empty. Raises UserError if it is anything else."""
    if not directory.is_dir() or not any(directory.iterdir()):
        return False
    file = directory / _METADATA
    same = file.is_file() and file.read_text(encoding="utf-8") == metadata
    if same and all(len(list((directory / label).glob("*.jpg"))) == per_class for label in CLASSES):
        return True
    raise UserError(f"{directory} contains something other than this dataset. Move it away or use another folder.")


def _poses(rng: np.random.Generator, tilts: tuple[float, float]) -> list[Pose]:
    """Place one to five flowers, as far apart as space allows; the smallest, which is the farthest, comes first."""
    count = int(rng.choice(5, p=(0.42, 0.2, 0.16, 0.12, 0.1))) + 1
    typical, tilt = rng.uniform(0.29, 0.47) / count**0.45, rng.uniform(*tilts)
    positions = np.zeros((0, 2))
    for _ in range(count):
        candidates = rng.uniform(0.25, 0.75, (6, 2)) - (0.0, 0.05)
        crowding = np.linalg.norm(candidates[:, None] - positions, axis=-1).min(axis=1, initial=1.0)
        positions = np.vstack([positions, candidates[np.argmax(crowding)]])
    poses = [
        Pose(
            x,
            y,
            typical * rng.uniform(0.7, 1.2),
            float(np.clip(tilt + rng.normal(0, 0.15), 0, 1.6)),
            rng.normal(0, 0.3),
        )
        for x, y in positions
    ]
    return sorted(poses, key=lambda pose: pose.radius)


def _curve(start: Array, bend: Array, end: Array) -> Array:
    """Return a quadratic Bezier curve [9, 2]."""
    t = np.linspace(0.0, 1.0, 9)[:, None]
    path: Array = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
    return path


def _green(rng: np.random.Generator) -> Color:
    return np.multiply(_GREENS[int(rng.integers(len(_GREENS)))], rng.uniform(0.75, 1.25))


def _stem(rng: np.random.Generator, canvas: Canvas, pose: Pose) -> None:
    """Draw a stem from the flower to the lower edge, with up to three leaves."""
    axis = pose.turn(np.array([0.0, 0.0, -0.5]))
    top = pose.place(axis)
    bend = pose.place(axis * 3.0) + np.array([0.0, 0.15])
    foot = np.array([top[0] + rng.normal(0, 0.12), 1.05])
    path, color = _curve(top, bend, foot), _green(rng)
    canvas.ribbon(path, np.full(len(path), pose.radius * rng.uniform(0.035, 0.07)), color)
    for _ in range(int(rng.integers(4))):
        _leaf(rng, canvas, path[int(rng.integers(3, len(path)))], pose.radius * rng.uniform(0.7, 1.8), color)


def _leaf(rng: np.random.Generator, canvas: Canvas, foot: Array, length: float, color: Color) -> None:
    angle = rng.uniform(-2.9, -0.25)
    tip = foot + length * np.array([np.cos(angle), np.sin(angle)])
    path = _curve(foot, (foot + tip) / 2 + rng.normal(0, 0.15, 2) * length, tip)
    widths = length * rng.uniform(0.06, 0.26) * np.sin(np.pi * np.linspace(0.03, 1.0, len(path)) ** 0.8)
    canvas.ribbon(path, widths, color)


def _grass(rng: np.random.Generator, canvas: Canvas, count: int, height: float) -> None:
    for _ in range(count):
        foot = np.array([rng.uniform(-0.1, 1.1), 1.03])
        tip = foot + np.array([rng.normal(0, 0.18), -height * rng.uniform(0.4, 1.1)])
        path = _curve(foot, np.array([foot[0], (foot[1] + tip[1]) / 2]), tip)
        canvas.ribbon(path, rng.uniform(0.004, 0.012) * np.linspace(1.0, 0.0, len(path)), _green(rng))


def _noise(rng: np.random.Generator, size: int, cells: int) -> Array:
    """Return smooth noise [size, size], about 0 to 1, of `cells` independent values per side."""
    coarse = Image.fromarray(rng.random((cells, cells), dtype=np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float64)


def _blend(mask: Array, low: Color, high: Color) -> Image.Image:
    """Return the RGB image that blends from `low` to `high` where `mask` [size, size] goes from 0 to 1."""
    mixed = np.asarray(low) + (np.asarray(high) - np.asarray(low)) * mask[..., None]
    return Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))


def _background(rng: np.random.Generator, size: int, light: Array) -> Image.Image:
    """Draw one of six scenes, out of focus, often with spots in the colors of other flowers."""
    scene: Callable[[np.random.Generator, int, Array], Image.Image]
    scene = (_meadow, _sky, _soil, _wall, _bokeh, _foliage)[int(rng.integers(6))]
    image = scene(rng, size, light)
    if rng.random() < 0.5:
        canvas = Canvas(image, light)
        for _ in range(int(rng.integers(2, 14))):
            color = _BLOSSOMS[int(rng.integers(len(_BLOSSOMS)))]
            canvas.dot(rng.random(2), rng.uniform(0.01, 0.07), np.multiply(color, 0.85), opacity=0.7)
    return image.filter(ImageFilter.GaussianBlur(size * rng.uniform(0.01, 0.035)))


def _meadow(rng: np.random.Generator, size: int, light: Array) -> Image.Image:
    mask = 0.5 * _noise(rng, size, 5) + 0.5 * _noise(rng, size, 40)
    image = _blend(mask, np.multiply(_green(rng), 0.7), _green(rng))
    _grass(rng, Canvas(image, light), 60, 1.1)
    return image


def _sky(rng: np.random.Generator, size: int, light: Array) -> Image.Image:
    height = np.linspace(0.0, 1.0, size)[:, None]
    clouds = np.clip(1.6 * _noise(rng, size, 4) + 0.4 * _noise(rng, size, 12) - 0.9, 0, 1)
    image = _blend(np.clip(0.7 * height + 0.8 * clouds, 0, 1), (70, 130, 205), (226, 234, 240))
    if rng.random() < 0.6:
        horizon = round(size * rng.uniform(0.55, 0.95))
        image.paste(_meadow(rng, size, light).crop((0, horizon, size, size)), (0, horizon))
    return image


def _soil(rng: np.random.Generator, size: int, light: Array) -> Image.Image:
    image = _blend(0.4 * _noise(rng, size, 6) + 0.6 * _noise(rng, size, 50), (54, 38, 26), (150, 116, 84))
    canvas = Canvas(image, light)
    for _ in range(40):
        canvas.dot(rng.random(2), rng.uniform(0.004, 0.025), np.array([150, 130, 108]) * rng.uniform(0.5, 1.2))
    return image


def _wall(rng: np.random.Generator, size: int, light: Array) -> Image.Image:
    lit = np.linspace(0.0, 1.0, size) if light[0] > 0 else np.linspace(1.0, 0.0, size)
    paint = rng.uniform(60, 235) + rng.normal(0, 22, 3)
    image = _blend(0.8 * lit + 0.2 * _noise(rng, size, 3), paint * 0.65, paint)
    if rng.random() < 0.5:
        table = np.array([[-0.1, rng.uniform(0.7, 0.9)], [1.1, rng.uniform(0.7, 0.9)], [1.1, 1.1], [-0.1, 1.1]])
        Canvas(image, light).polygon(table, np.array([140, 98, 62]) * rng.uniform(0.5, 1.3))
    return image


def _bokeh(rng: np.random.Generator, size: int, light: Array) -> Image.Image:
    image = _blend(_noise(rng, size, 4), (24, 34, 24), _green(rng))
    canvas = Canvas(image, light)
    for _ in range(int(rng.integers(12, 34))):
        color = np.add(_green(rng), rng.uniform(20, 110))
        canvas.dot(rng.random(2), rng.uniform(0.03, 0.11), color, opacity=rng.uniform(0.15, 0.5))
    return image


def _foliage(rng: np.random.Generator, size: int, light: Array) -> Image.Image:
    image = _blend(_noise(rng, size, 6), (16, 30, 16), (46, 70, 34))
    canvas = Canvas(image, light)
    for _ in range(45):
        _leaf(rng, canvas, rng.uniform(-0.1, 1.2, 2), rng.uniform(0.15, 0.4), _green(rng))
    return image


def _develop(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """Apply the effects of weather and camera: focus, shadow, exposure, warmth, saturation, vignette, noise."""
    size = image.width
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(size * rng.uniform(0.002, 0.01)))
    pixels = np.asarray(image, dtype=np.float64)
    if rng.random() < 0.35:
        pixels = pixels * (1 - 0.5 * np.clip(2 * _noise(rng, size, 3) - 0.7, 0, 1))[..., None]
    warmth = rng.normal(0, 0.06)
    pixels = pixels * np.exp(rng.normal(0.12, 0.15)) * (1 + warmth, 1.0, 1 - warmth)
    pixels += (pixels.mean(axis=-1, keepdims=True) - pixels) * rng.uniform(0.0, 0.25)
    across = np.linspace(-1.0, 1.0, size)
    pixels *= 1 - rng.uniform(0.0, 0.3) * (across**2 + across[:, None] ** 2)[..., None]
    pixels += rng.normal(0, rng.uniform(1, 7), pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
