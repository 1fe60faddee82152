"""The built-in demo data: five kinds of flower, drawn, so that a first run needs no download.

An image is a background, one to five flowers of a kind, grass in front of them, and the light of the day. All of it
but the flower heads and their tilt comes from the same distributions for every kind: only the flowers tell.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from flaxtl import errors
from flaxtl.data.sources import flower_shapes
from flaxtl.data.sources.archive import atomic_folder
from flaxtl.data.sources.flower_shapes import Array, Canvas, Color, Pose

# Each kind with the range of tilts that it is usually photographed at. Sorted; the names of the TensorFlow flowers.
_KINDS: dict[str, tuple[flower_shapes.Head, tuple[float, float]]] = {
    "daisy": (flower_shapes.daisy, (0.0, 1.05)),
    "dandelion": (flower_shapes.dandelion, (0.0, 1.1)),
    "roses": (flower_shapes.rose, (0.0, 1.1)),
    "sunflowers": (flower_shapes.sunflower, (0.0, 0.95)),
    "tulips": (flower_shapes.tulip, (0.5, 1.6)),
}
CLASSES: tuple[str, ...] = tuple(_KINDS)

DATASET_VERSION = (
    1  # raise it when the same numbers draw other images, so that an older garden is not taken for this one
)
_OVERSAMPLING = 3  # the foreground is drawn so many times larger and then averaged: smooth edges
_RECORD = "garden.json"

_GREENS: tuple[Color, ...] = ((52, 92, 36), (86, 132, 52), (120, 152, 74), (64, 104, 70))
_BLOSSOMS: tuple[Color, ...] = (
    flower_shapes.WHITE,
    flower_shapes.YELLOW,
    flower_shapes.PINK,
    flower_shapes.CRIMSON,
    flower_shapes.PURPLE,
)


def draw_flower(kind: str, seed: int, size: int = 160) -> Image.Image:
    """One RGB image of `size` x `size` pixels: the first of its kind that `plant` would draw from this seed.

    A pure function of its arguments; `seed` is at least 0. Raises UserError for a kind that is not in `CLASSES`.
    """
    if kind not in CLASSES:
        raise errors.unknown("flower", kind, CLASSES)
    return _image(kind, seed, 0, size)


def generate_dataset(directory: Path, per_class: int = 80, seed: int = 0, size: int = 160) -> Path:
    """Writes `directory`/<class>/<class>_0000.jpg ... for every class, `per_class` images each; returns `directory`.

    The folder takes its name only when it is whole, and is left alone when it already is this very garden.

    Raises:
      UserError: `directory` holds something else or cannot be written, or the numbers make no garden.
    """
    if per_class < 1 or size < 1 or seed < 0:
        raise errors.UserError(
            f"no garden of {per_class} images a class, {size} pixels wide, from seed {seed}; use 1, 1 and 0 or more"
        )
    record = json.dumps({"edition": DATASET_VERSION, "per_class": per_class, "seed": seed, "size": size}) + "\n"
    if _holds(directory, record, per_class):
        return directory
    with atomic_folder(directory) as folder:
        for kind in CLASSES:
            (folder / kind).mkdir()
            for index in range(per_class):
                file = folder / kind / f"{kind}_{index:04d}.jpg"
                _image(kind, seed, index, size).save(file, quality=90)
        (folder / _RECORD).write_text(record, encoding="utf-8")
    return directory


def _holds(directory: Path, record: str, per_class: int) -> bool:
    """Whether `directory` is this garden; False where there is nothing yet, UserError where there is something else."""
    if not directory.is_dir() or not any(directory.iterdir()):
        return False
    file = directory / _RECORD
    same = file.is_file() and file.read_text(encoding="utf-8") == record
    if same and all(len(list((directory / kind).glob("*.jpg"))) == per_class for kind in CLASSES):
        return True
    raise errors.UserError(f"{directory} holds something other than this garden; move it away or name another folder")


def _image(kind: str, seed: int, index: int, size: int) -> Image.Image:
    rng = np.random.default_rng([seed, CLASSES.index(kind), index])
    light = np.array([rng.uniform(-0.8, 0.8), rng.uniform(-0.9, -0.2), 0.8])
    light /= np.linalg.norm(light)
    far = _background(rng, size, light)
    image = far.resize((size * _OVERSAMPLING, size * _OVERSAMPLING), Image.Resampling.BICUBIC)
    brush = Canvas(image, light)
    for pose in _poses(rng, _KINDS[kind][1]):
        _stem(rng, brush, pose)
        _KINDS[kind][0](rng, brush, pose)
    if rng.random() < 0.3:
        _grass(rng, brush, int(rng.integers(3, 22)), rng.uniform(0.2, 0.9))
    return _develop(rng, image.reduce(_OVERSAMPLING))


def _poses(rng: np.random.Generator, tilts: tuple[float, float]) -> list[Pose]:
    """One to five flowers, apart where there is room, the smallest first because it is the farthest."""
    count = int(rng.choice(5, p=(0.42, 0.2, 0.16, 0.12, 0.1))) + 1
    typical, tilt = rng.uniform(0.29, 0.47) / count**0.45, rng.uniform(*tilts)
    places = np.zeros((0, 2))
    for _ in range(count):
        candidates = rng.uniform(0.25, 0.75, (6, 2)) - (0.0, 0.05)
        crowding = np.linalg.norm(candidates[:, None] - places, axis=-1).min(axis=1, initial=1.0)
        places = np.vstack([places, candidates[np.argmax(crowding)]])
    poses = [
        Pose(
            x,
            y,
            typical * rng.uniform(0.7, 1.2),
            float(np.clip(tilt + rng.normal(0, 0.15), 0, 1.6)),
            rng.normal(0, 0.3),
        )
        for x, y in places
    ]
    return sorted(poses, key=lambda pose: pose.radius)


def _curve(start: Array, bend: Array, end: Array) -> Array:
    """A quadratic Bezier curve [9, 2]."""
    t = np.linspace(0.0, 1.0, 9)[:, None]
    path: Array = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
    return path


def _green(rng: np.random.Generator) -> Color:
    return np.multiply(_GREENS[int(rng.integers(len(_GREENS)))], rng.uniform(0.75, 1.25))


def _stem(rng: np.random.Generator, brush: Canvas, pose: Pose) -> None:
    """From under the flower down to the lower edge, with up to three leaves."""
    axis = pose.turn(np.array([0.0, 0.0, -0.5]))
    top = pose.place(axis)
    bend = pose.place(axis * 3.0) + np.array([0.0, 0.15])
    foot = np.array([top[0] + rng.normal(0, 0.12), 1.05])
    path, colour = _curve(top, bend, foot), _green(rng)
    brush.ribbon(path, np.full(len(path), pose.radius * rng.uniform(0.035, 0.07)), colour)
    for _ in range(int(rng.integers(4))):
        _leaf(rng, brush, path[int(rng.integers(3, len(path)))], pose.radius * rng.uniform(0.7, 1.8), colour)


def _leaf(rng: np.random.Generator, brush: Canvas, foot: Array, length: float, colour: Color) -> None:
    angle = rng.uniform(-2.9, -0.25)
    tip = foot + length * np.array([np.cos(angle), np.sin(angle)])
    path = _curve(foot, (foot + tip) / 2 + rng.normal(0, 0.15, 2) * length, tip)
    widths = length * rng.uniform(0.06, 0.26) * np.sin(np.pi * np.linspace(0.03, 1.0, len(path)) ** 0.8)
    brush.ribbon(path, widths, colour)


def _grass(rng: np.random.Generator, brush: Canvas, count: int, height: float) -> None:
    for _ in range(count):
        foot = np.array([rng.uniform(-0.1, 1.1), 1.03])
        tip = foot + np.array([rng.normal(0, 0.18), -height * rng.uniform(0.4, 1.1)])
        path = _curve(foot, np.array([foot[0], (foot[1] + tip[1]) / 2]), tip)
        brush.ribbon(path, rng.uniform(0.004, 0.012) * np.linspace(1.0, 0.0, len(path)), _green(rng))


def _noise(rng: np.random.Generator, size: int, cells: int) -> Array:
    """Smooth noise [size, size], about 0 to 1, of `cells` independent values a side."""
    coarse = Image.fromarray(rng.random((cells, cells), dtype=np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float64)


def _blend(mask: Array, low: Color, high: Color) -> Image.Image:
    """The RGB image that goes from `low` to `high` as `mask` [size, size] goes from 0 to 1."""
    mixed = np.asarray(low) + (np.asarray(high) - np.asarray(low)) * mask[..., None]
    return Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))


def _background(rng: np.random.Generator, size: int, light: Array) -> Image.Image:
    """One of six places, out of focus, often with other flowers' colours in it."""
    scene: Callable[[np.random.Generator, int, Array], Image.Image]
    scene = (_meadow, _sky, _soil, _wall, _bokeh, _foliage)[int(rng.integers(6))]
    image = scene(rng, size, light)
    if rng.random() < 0.5:
        brush = Canvas(image, light)
        for _ in range(int(rng.integers(2, 14))):
            colour = _BLOSSOMS[int(rng.integers(len(_BLOSSOMS)))]
            brush.dot(rng.random(2), rng.uniform(0.01, 0.07), np.multiply(colour, 0.85), opacity=0.7)
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
    brush = Canvas(image, light)
    for _ in range(40):
        brush.dot(rng.random(2), rng.uniform(0.004, 0.025), np.array([150, 130, 108]) * rng.uniform(0.5, 1.2))
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
    brush = Canvas(image, light)
    for _ in range(int(rng.integers(12, 34))):
        colour = np.add(_green(rng), rng.uniform(20, 110))
        brush.dot(rng.random(2), rng.uniform(0.03, 0.11), colour, opacity=rng.uniform(0.15, 0.5))
    return image


def _foliage(rng: np.random.Generator, size: int, light: Array) -> Image.Image:
    image = _blend(_noise(rng, size, 6), (16, 30, 16), (46, 70, 34))
    brush = Canvas(image, light)
    for _ in range(45):
        _leaf(rng, brush, rng.uniform(-0.1, 1.2, 2), rng.uniform(0.15, 0.4), _green(rng))
    return image


def _develop(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """What weather and camera do: focus, shadow, exposure, warmth, saturation, vignette, noise."""
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
