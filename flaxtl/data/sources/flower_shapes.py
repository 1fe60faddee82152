"""The five flowers as curved petals in space, projected and shaded on a Pillow canvas.

Lengths are fractions of the image's side on the canvas (x to the right, y downwards) and fractions of the flower's
radius in the flower's own axes (z towards the tip of the flower). Angles are radians. Colors are RGB in 0..255.
Proportions and colors are chosen by eye.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Array = npt.NDArray[np.float64]
Color = tuple[float, float, float] | Array

GOLDEN_ANGLE = np.pi * (3.0 - np.sqrt(5.0))  # 137.5 degrees: neighboring florets never line up

WHITE, CREAM, PINK, CRIMSON = (246, 245, 240), (246, 232, 190), (236, 138, 170), (186, 16, 40)
YELLOW, GOLD, ORANGE, PURPLE = (250, 210, 40), (240, 170, 20), (236, 120, 36), (120, 48, 138)
LEAF, BROWN = (78, 122, 50), (74, 46, 24)


@dataclass(frozen=True)
class Pose:
    """Position, size and orientation of a flower.

    `tilt` 0 shows the face, pi/2 the profile with the tip up; `roll` turns the result clockwise in the image.
    """

    x: float
    y: float
    radius: float
    tilt: float
    roll: float

    def turn(self, points: Array) -> Array:
        """Rotate flower axes [..., 3] to right, down and towards the viewer [..., 3], in units of the radius."""
        x, y, z = points[..., 0], points[..., 1], points[..., 2]
        up, near = y * np.cos(self.tilt) + z * np.sin(self.tilt), z * np.cos(self.tilt) - y * np.sin(self.tilt)
        right = x * np.cos(self.roll) + up * np.sin(self.roll)
        down = x * np.sin(self.roll) - up * np.cos(self.roll)
        return np.stack([right, down, near], axis=-1)

    def place(self, turned: Array) -> Array:
        """Project the result of `turn` [..., 3] to canvas positions [..., 2]."""
        placed: Array = turned[..., :2] * self.radius + (self.x, self.y)
        return placed


class Canvas:
    """Draws shapes in fractions of the canvas, lit from one direction."""

    def __init__(self, image: Image.Image, light: Array) -> None:
        """`image` is RGB and square; `light` is a unit vector [3]: right, down, towards the viewer."""
        self.side = image.width
        self.light = light
        self.solid = ImageDraw.Draw(image)
        self.glaze = ImageDraw.Draw(image, "RGBA")

    def polygon(self, points: Array, color: Color) -> None:
        """Fill the polygon [n, 2]."""
        self.solid.polygon((points * self.side).ravel().tolist(), fill=_rgb(color))

    def line(self, points: Array, color: Color, width: float, opacity: float = 1.0) -> None:
        """Draw the open line [n, 2]."""
        pixels = (points * self.side).ravel().tolist()
        self.glaze.line(pixels, fill=(*_rgb(color), int(255 * opacity)), width=max(1, round(width * self.side)))

    def dot(self, center: Array, radius: float, color: Color, opacity: float = 1.0) -> None:
        """Fill a circle around `center` [2]."""
        box = np.concatenate([center - radius, center + radius]) * self.side
        if opacity < 1:
            self.glaze.ellipse(box.tolist(), fill=(*_rgb(color), int(255 * opacity)))
        else:
            self.solid.ellipse(box.tolist(), fill=_rgb(color))

    def ribbon(self, path: Array, widths: Array, color: Color) -> None:
        """Draw a stem or a leaf along `path` [n, 2] with half `widths` [n]; the side facing the light is brighter."""
        along = np.gradient(path, axis=0)
        across = np.stack([-along[:, 1], along[:, 0]], axis=-1)
        across /= np.linalg.norm(across, axis=-1, keepdims=True) + 1e-9
        facing = float(np.sign(np.mean(across @ self.light[:2])) or 1.0)
        for side, shade in ((facing, 1.12), (-facing, 0.8)):
            edge = path + side * across * widths[:, None]
            self.polygon(np.concatenate([path, edge[::-1]]), np.multiply(color, shade))

    def surface(self, pose: Pose, points: Array, colors: Array) -> None:
        """Draw petals [petals, along, across, 3] with colors [petals, along, 3], the farthest first."""
        turned = pose.turn(points)
        flat = pose.place(turned)
        quads = np.stack([flat[:, :-1, :-1], flat[:, 1:, :-1], flat[:, 1:, 1:], flat[:, :-1, 1:]], axis=3) * self.side
        tints = np.clip(colors[:, :-1, None] * self._shading(turned)[..., None], 0, 255).astype(np.int64)
        depth = turned[..., 2].mean(axis=(1, 2))
        nearness = turned[:, :-1, :-1, 2] + turned[:, 1:, 1:, 2]
        for petal in np.argsort(depth):
            rim = np.concatenate([flat[petal, :, 0], flat[petal, ::-1, -1]])
            self.line(rim, colors[petal].mean(axis=0) * 0.55, 0.025 * pose.radius, opacity=0.55)
            order = np.argsort(nearness[petal], axis=None)
            corners, fills = quads[petal].reshape(-1, 8)[order], tints[petal].reshape(-1, 3)[order]
            for quad, fill in zip(corners.tolist(), fills.tolist(), strict=True):  # thousands in an image
                self.solid.polygon(quad, fill=tuple(fill))

    def _shading(self, turned: Array) -> Array:
        """Return the brightness [petals, along - 1, across - 1] of each face; both sides of a petal are lit."""
        normal = np.cross(turned[:, 1:, 1:] - turned[:, :-1, :-1], turned[:, 1:, :-1] - turned[:, :-1, 1:])
        normal /= np.linalg.norm(normal, axis=-1, keepdims=True) + 1e-9
        shading: Array = 0.62 + 0.42 * np.abs(normal @ self.light)
        return shading


def _rgb(color: Color) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, int(channel))) for channel in color)
    return red, green, blue


def petals(
    angles: Array,
    *,
    length: Array | float,
    width: Array | float,
    lift: Array | float,
    curl: Array | float = 0.0,
    cup: Array | float = 0.0,
    start: Array | float = 0.0,
    base: Array | float = 0.0,
    shape: tuple[float, float] = (1.0, 0.6),
    grid: tuple[int, int] = (5, 3),
) -> Array:
    """Return points [petals, along, across, 3] of petals at `angles` [petals]; `grid` is (along - 1, across).

    A petal leaves the axis at radius `start` and height `base`, rises at `lift`, and has risen by `curl` more at its
    tip. Its half width is `width * sin(pi s^a)^b`, (a, b) = `shape`, s along the petal; `cup` bends its edges inwards.
    """

    def column(value: Array | float) -> Array:
        return np.broadcast_to(np.asarray(value, np.float64), angles.shape)[:, None]

    steps, across = grid
    s = np.sin(np.linspace(0.0, np.pi / 2, steps + 1))  # denser towards the tip, which is round
    rise = column(lift) + column(curl) * s
    step = column(length) * np.diff(s, prepend=0.0)
    radius = column(start) + np.cumsum(step * np.cos(rise), axis=1)
    height = column(base) + np.cumsum(step * np.sin(rise), axis=1)
    spread = column(width) * np.sin(np.pi * (0.04 + 0.95 * s) ** shape[0]) ** shape[1]
    t = np.linspace(-1.0, 1.0, across)
    bend = column(cup)[:, :, None] * spread[:, :, None] * t**2
    r = radius[:, :, None] - bend * np.sin(rise)[:, :, None]
    z = height[:, :, None] + bend * np.cos(rise)[:, :, None]
    sideways = spread[:, :, None] * t
    cos, sin = np.cos(angles)[:, None, None], np.sin(angles)[:, None, None]
    return np.stack([r * cos - sideways * sin, r * sin + sideways * cos, z], axis=-1)


def tint(rng: np.random.Generator, points: Array, inner: Color, outer: Color, jitter: float = 0.06) -> Array:
    """Return colors [petals, along, 3] from `inner` at the foot to `outer` at the tip, with jitter per petal."""
    count, along = points.shape[:2]
    s = np.linspace(0.0, 1.0, along)[:, None]
    blend = np.asarray(inner) * (1 - s) + np.asarray(outer) * s
    colors: Array = blend * rng.normal(1.0, jitter, (count, 1, 1))
    return colors


def _circle(rng: np.random.Generator, count: int, wobble: float = 0.25) -> Array:
    spacing = 2 * np.pi / count
    angles: Array = spacing * (np.arange(count) + rng.uniform(-wobble, wobble, count)) + rng.uniform(0, 2 * np.pi)
    return angles


def _pick(rng: np.random.Generator, palette: tuple[tuple[Color, Color], ...]) -> tuple[Color, Color]:
    return palette[int(rng.integers(len(palette)))]


def _disc(
    rng: np.random.Generator,
    canvas: Canvas,
    pose: Pose,
    size: float,
    dome: float,
    count: int,
    inner: Color,
    outer: Color,
) -> None:
    """Draw florets on a dome of radius `size` and height `dome`, in the golden spiral of a real flower."""
    index = np.arange(count)
    r, angle = np.sqrt((index + 0.5) / count), index * GOLDEN_ANGLE
    points = np.stack([size * r * np.cos(angle), size * r * np.sin(angle), dome * (1 - r**2)], axis=-1)
    turned = pose.turn(points)
    flat = pose.place(turned)
    edge = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    rim = np.stack([size * np.cos(edge), size * np.sin(edge), 0 * edge], axis=-1) * 1.06
    canvas.polygon(pose.place(pose.turn(rim)), np.multiply(outer, 0.6))
    normal = points / size + (0, 0, 0.8)
    glow = 0.55 + 0.5 * np.clip(pose.turn(normal) @ canvas.light / np.linalg.norm(normal, axis=-1), 0, 1)
    colors = np.asarray(inner) + (np.asarray(outer) - np.asarray(inner)) * r[:, None] ** 2
    colors = colors * (glow * rng.normal(1.0, 0.1, count))[:, None]
    grain = 1.1 * size * pose.radius / np.sqrt(count)
    for i in np.argsort(turned[:, 2]):
        canvas.dot(flat[i], grain, colors[i])


def daisy(rng: np.random.Generator, canvas: Canvas, pose: Pose) -> None:
    """Draw white, sometimes pinkish straps around a yellow dome."""
    inner, outer = _pick(rng, ((WHITE, WHITE), (WHITE, WHITE), (CREAM, WHITE), (WHITE, PINK), (PINK, (226, 110, 160))))
    count, open_ = int(rng.integers(18, 36)), rng.uniform(-0.25, 0.5)
    for layer in range(2):
        angles = _circle(rng, count // 2 + 1)
        points = petals(
            angles, start=0.2, length=rng.normal(0.8, 0.05, angles.size), width=rng.uniform(1.3, 1.9) / count,
            lift=open_ + 0.12 * layer + rng.normal(0, 0.08, angles.size), curl=rng.uniform(-0.5, 0.2), cup=0.5,
            shape=(1.2, 0.45), grid=(4, 3),
        )  # fmt: skip
        canvas.surface(pose, points, tint(rng, points, inner, outer))
    _disc(rng, canvas, pose, rng.uniform(0.2, 0.29), 0.14, 70, (236, 176, 20), (250, 206, 40))


def dandelion(rng: np.random.Generator, canvas: Canvas, pose: Pose) -> None:
    """Draw a dense yellow bloom or a white globe of seeds."""
    if rng.random() < 0.35:
        _seed_head(rng, canvas, pose)
        return
    rings, open_ = 6, rng.uniform(0.0, 0.5)
    for ring in range(rings):
        inward = ring / (rings - 1)
        angles = _circle(rng, 30 - 3 * ring, wobble=0.45)
        points = petals(
            angles, length=(1.0 - 0.55 * inward) * rng.normal(1, 0.07, angles.size), width=0.075,
            lift=open_ + 1.2 * inward + rng.normal(0, 0.1, angles.size), curl=-0.3, base=0.06 * ring, start=0.02,
            shape=(1.6, 0.3), grid=(2, 2),
        )  # fmt: skip
        canvas.surface(pose, points, tint(rng, points, GOLD, YELLOW, jitter=0.1))


def _seed_head(rng: np.random.Generator, canvas: Canvas, pose: Pose) -> None:
    count = int(rng.integers(70, 130))
    z = 1 - 2 * (np.arange(count) + 0.5) / count
    angle = np.arange(count) * GOLDEN_ANGLE + rng.normal(0, 0.1, count)
    ring = np.sqrt(1 - z**2)
    seeds = np.stack([ring * np.cos(angle), ring * np.sin(angle), z], axis=-1) * rng.uniform(0.75, 0.85, (count, 1))
    turned = pose.turn(seeds)
    flat = pose.place(turned)
    center = np.array([pose.x, pose.y])
    canvas.dot(center, 0.95 * pose.radius, (225, 228, 228), opacity=0.3)
    for i in np.argsort(turned[:, 2]):
        bright = 205 + 45 * turned[i, 2]
        canvas.line(np.stack([center, flat[i]]), (bright, bright, bright - 12), 0.012 * pose.radius, opacity=0.35)
        spokes = np.linspace(0, 2 * np.pi, 7, endpoint=False) + rng.uniform(0, 1)
        rays = flat[i] + 0.2 * pose.radius * np.stack([np.cos(spokes), np.sin(spokes)], axis=-1)
        star = np.stack([np.broadcast_to(flat[i], rays.shape), rays], axis=1).reshape(-1, 2)
        canvas.line(star, (bright, bright, bright), 0.012 * pose.radius, opacity=0.5)
    canvas.dot(center, 0.16 * pose.radius, (150, 132, 96))


def rose(rng: np.random.Generator, canvas: Canvas, pose: Pose) -> None:
    """Draw broad petals in a spiral: the heart upright and closed, the outside open and curled back."""
    palette: tuple[tuple[Color, Color], ...] = (
        ((110, 4, 20), CRIMSON), ((150, 10, 30), (214, 30, 50)), ((206, 90, 130), PINK), (PINK, (248, 200, 210)),
        (CREAM, WHITE), ((226, 178, 60), (250, 226, 120)), ((220, 100, 60), (246, 160, 110)),
    )  # fmt: skip
    inner, outer = _pick(rng, palette)
    count, open_ = int(rng.integers(16, 28)), rng.uniform(0.5, 1.1)
    out = np.linspace(1.0, 0.0, count)
    points = petals(
        np.arange(count) * GOLDEN_ANGLE + rng.normal(0, 0.15, count), start=0.04 + 0.1 * out,
        length=0.5 + 0.4 * out, width=0.2 + 0.42 * out, lift=1.45 - open_ * out,
        curl=0.25 - 0.9 * open_ * out, cup=0.75 - 0.5 * out, base=-0.3 * out, shape=(1.5, 0.45), grid=(6, 5),
    )  # fmt: skip
    points += rng.normal(0, 0.015, points.shape)
    canvas.surface(pose, points, tint(rng, points, inner, outer))


def sunflower(rng: np.random.Generator, canvas: Canvas, pose: Pose) -> None:
    """Draw pointed yellow rays around a big disc, mostly brown."""
    inner, outer = _pick(rng, ((GOLD, YELLOW), (GOLD, (252, 224, 70)), (ORANGE, GOLD), ((160, 60, 20), GOLD)))
    disc, open_ = rng.uniform(0.38, 0.54), rng.uniform(-0.15, 0.4)
    for layer in range(2):
        angles = _circle(rng, int(rng.integers(17, 26)))
        points = petals(
            angles, start=0.9 * disc, length=(1.05 - disc) * rng.normal(1, 0.08, angles.size), width=0.12,
            lift=open_ + 0.2 * layer + rng.normal(0, 0.15, angles.size), curl=rng.uniform(-0.6, 0.3), cup=0.5,
            shape=(0.85, 0.9), grid=(4, 3),
        )  # fmt: skip
        canvas.surface(pose, points, tint(rng, points, inner, outer, jitter=0.08))
    browns = ((BROWN, (104, 62, 24)), ((44, 28, 18), BROWN), ((30, 20, 14), BROWN), ((112, 112, 40), (120, 72, 24)))
    heart, rim = _pick(rng, browns)
    _disc(rng, canvas, pose, disc, 0.12, 190, heart, rim)


def tulip(rng: np.random.Generator, canvas: Canvas, pose: Pose) -> None:
    """Draw three petals within three, from a closed bud to an open bowl."""
    palette: tuple[tuple[Color, Color], ...] = (
        (CRIMSON, (214, 30, 44)), (YELLOW, (206, 30, 30)), (GOLD, YELLOW), (PURPLE, (150, 80, 165)),
        (WHITE, PINK), ((206, 70, 120), (240, 150, 180)), (CREAM, WHITE), (GOLD, ORANGE),
    )  # fmt: skip
    inner, outer = _pick(rng, palette)
    open_, width = rng.uniform(-0.15, 0.6), rng.uniform(0.5, 0.65)
    turn = rng.uniform(0, 2 * np.pi)
    angles = np.arange(6) * np.pi / 3 + turn + rng.normal(0, 0.08, 6)
    outside = np.arange(6.0) % 2
    points = petals(
        angles, length=1.45 + 0.05 * outside, width=width, lift=0.55 - 0.4 * open_,
        curl=1.25 - 0.6 * open_ + rng.normal(0, 0.07, 6), cup=0.7, base=-0.65, shape=(0.95, 0.6), grid=(10, 9),
    )  # fmt: skip
    canvas.surface(pose, points, tint(rng, points, inner, outer, jitter=0.04))


DrawFn = Callable[[np.random.Generator, Canvas, Pose], None]
"""Draws one flower head at a pose."""
