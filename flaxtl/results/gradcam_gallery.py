"""Pictures with the heat maps of their classes over them, for the report."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from flaxtl.data.decode import seen_part
from flaxtl.data.unpack import UnreadableError, rgb, unpacked, upright
from flaxtl.results import gallery, gradcam, plots
from flaxtl.results.gradcam_file import Heat, Kept
from flaxtl.results.predictions_file import Predictions
from flaxtl.results.run_files import Run

OPACITY = 0.6  # of the colours over the picture: both can be seen


@dataclass(frozen=True)
class View:
    """The heat map of class `name`, which has `probability`, over a picture.

    Attributes:
        name: the class.
        probability: of the class, in [0, 1].
        uri: a JPEG data URI.
        strongest: where most speaks for the class, such as "the upper left"; "" where nothing does.
    """

    name: str
    probability: float
    uri: str
    strongest: str


@dataclass(frozen=True)
class Look:
    """A picture as the network saw it, a JPEG data URI, and what in it speaks for the answer, and for the label.

    Attributes:
        uri: the picture.
        file: the file's own name.
        place: the name with that of its folder.
        true: name of the true class.
        views: of the class that was answered, and if that is wrong, of the true class.
    """

    uri: str
    file: str
    place: str
    true: str
    views: tuple[View, ...]


@dataclass(frozen=True)
class Looks:
    """All that are shown; `lost` pictures can no longer be read. `scale` shows the colours, from nothing to most."""

    layer: str
    rows: int
    columns: int
    errors: Sequence[Look]
    right_answers: Sequence[Look]
    lost: int
    scale: str


def looks(run: Run, kept: Kept | None) -> Looks | None:
    """The heat maps that are kept, over their pictures of the judged split; None if there are none."""
    wanted = [(path, pair) for path, pair in gradcam.pairs(run).items() if kept and path in kept.maps]
    if not kept or not wanted or not run.predictions:
        return None
    judged = run.predictions.of_split(run.judged)
    found = [(_look(judged, judged.paths.index(path), kept), answer == true) for path, (answer, true) in wanted]
    return Looks(
        layer=kept.layer,
        rows=kept.rows,
        columns=kept.columns,
        errors=[look for look, right in found if look and not right],
        right_answers=[look for look, right in found if look and right],
        lost=sum(look is None for look, _ in found),
        scale=_scale(),
    )


def _look(predictions: Predictions, row: int, kept: Kept) -> Look | None:
    """None if the picture cannot be read: a report outlives its pictures."""
    path = Path(predictions.paths[row])
    try:
        with unpacked(path, gallery.SIDE) as image:
            seen = seen_part(rgb(upright(image)), kept.resize)
            seen.thumbnail((gallery.SIDE, gallery.SIDE), Image.Resampling.LANCZOS)
    except UnreadableError:
        return None
    probabilities, heats = predictions.probabilities[row], kept.maps[predictions.paths[row]]
    indices = dict.fromkeys((int(predictions.predicted[row]), int(predictions.labels[row])))
    views = [
        View(name, float(probabilities[index]), gallery.data_uri(overlay(seen, heats[name])), strongest(heats[name]))
        for index, name in ((index, predictions.classes[index]) for index in indices)
        if name in heats
    ]
    true = predictions.classes[predictions.labels[row]]
    return Look(gallery.data_uri(seen), path.name, "/".join(path.parts[-2:]), true, tuple(views))


def overlay(picture: Image.Image, heat: Heat) -> Image.Image:
    """The picture in grey, so that its own colours are not taken for heat, under the colours of the heat map.

    The map is stretched over the whole picture by bicubic interpolation.
    """
    places = Image.fromarray(heat).resize(picture.size, Image.Resampling.BICUBIC)
    colours = Image.fromarray(plots.heat_colours(np.asarray(places)))
    return Image.blend(picture.convert("L").convert("RGB"), colours, OPACITY)


def strongest(heat: Heat) -> str:
    """Where in the picture the map is largest, by thirds: "the upper left", "the centre"; "" if it is 0 everywhere."""
    if not heat.any():
        return ""
    place = np.unravel_index(heat.argmax(), heat.shape)
    down, across = (int(3 * (at + 0.5) / size) for at, size in zip(place, heat.shape, strict=True))
    words = (("upper left", "top", "upper right"), ("left", "centre", "right"), ("lower left", "bottom", "lower right"))
    return f"the {words[down][across]}"


def _scale() -> str:
    """All colours from left to right, over a grey."""
    ramp = np.linspace(0, 255, gallery.SIDE).round().astype(np.uint8)[None]
    return gallery.data_uri(overlay(Image.new("RGB", (gallery.SIDE, 8), "grey"), ramp))
