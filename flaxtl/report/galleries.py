"""Small images that a page carries inside itself, as JPEG data URIs."""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from flaxtl.data.decode import visible_region
from flaxtl.data.image_file import UnreadableError, apply_exif_orientation, open_image, to_rgb
from flaxtl.evaluation import classification, gradcam
from flaxtl.evaluation.gradcam import Heatmap, HeatmapSet
from flaxtl.evaluation.label_issues import LabelIssues
from flaxtl.evaluation.predictions import Predictions
from flaxtl.evaluation.run_files import RunRecord
from flaxtl.report import plots


def thumbnail_uri(path: Path, side: int, quality: int) -> str:
    """An image file as a run sees it, upright and over white, at most `side` pixels long; raises UnreadableError."""
    with open_image(path, side) as image:
        return jpeg_data_uri(to_rgb(apply_exif_orientation(image)), side, quality)


def jpeg_data_uri(image: Image.Image, side: int, quality: int) -> str:
    """An RGB image, which is shrunk in place to at most `side` pixels; `quality` is the JPEG's, up to 95."""
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


SIDE = 240  # pixels of the longer side: shown about 160 wide, sharp on a dense screen
QUALITY = 78  # of the JPEG: about 8 kB an image


@dataclass(frozen=True)
class Thumbnail:
    """One image of a gallery.

    Attributes:
        uri: the thumbnail as a data URI; "" where there is none.
        trouble: why there is no thumbnail, in a few words; "" where there is one.
        name: the file's own name.
        place: the name with that of its folder.
        true: name of the true class.
        predicted: name of the predicted class, or of the one that is suggested.
        confidence: its probability, in [0, 1].
        loss: -log of the probability of the true class.
    """

    uri: str
    trouble: str
    name: str
    place: str
    true: str
    predicted: str
    confidence: float
    loss: float


@dataclass(frozen=True)
class ConfusedPair:
    """The images of class `true` that were taken for class `predicted`: how many, and the most confident of them."""

    true: str
    predicted: str
    count: int
    tiles: tuple[Thumbnail, ...]


def data_uri(image: Image.Image) -> str:
    """An RGB image at most SIDE pixels long, as a JPEG data URI."""
    return jpeg_data_uri(image, SIDE, QUALITY)


def confused_pairs(predictions: Predictions, pairs: int, each: int) -> list[ConfusedPair]:
    """The `pairs` most confused pairs of classes, each with its `each` most confident errors."""
    labels, predicted, classes = predictions.labels, predictions.predicted, predictions.classes
    matrix = classification.confusion_matrix(labels, predicted, len(classes))
    galleries = []
    for pair in classification.most_confused_pairs(matrix, pairs):
        rows = np.flatnonzero((labels == pair.true) & (predicted == pair.predicted))
        surest = rows[np.argsort(-predictions.confidence[rows], kind="stable")][:each]
        tiles = tuple(_tiles(predictions, surest.tolist()))
        galleries.append(ConfusedPair(classes[pair.true], classes[pair.predicted], pair.count, tiles))
    return galleries


def top_losses(predictions: Predictions, limit: int) -> list[Thumbnail]:
    """The images with the largest loss, largest first; of those that gave their true class less than a half."""
    worst, loss = classification.top_losses(predictions.probabilities, predictions.labels, limit)
    return _tiles(predictions, worst[loss > math.log(2)].tolist())


def correct_predictions(predictions: Predictions, limit: int) -> list[Thumbnail]:
    """One right answer of each of the first `limit` classes that have one: the image of median confidence."""
    return _tiles(predictions, classification.typical_correct(predictions.probabilities, predictions.labels, limit))


def label_issue_tiles(predictions: Predictions, issues: LabelIssues, limit: int) -> list[Thumbnail]:
    """The `limit` most suspicious labels, each beside the class that is suggested in its place."""
    return _tiles(predictions, issues.rows[:limit].tolist(), issues.suggested[:limit].tolist())


def _tiles(predictions: Predictions, rows: Sequence[int], answers: Sequence[int] | None = None) -> list[Thumbnail]:
    """The images in `rows`, each with its predicted class, or with that in `answers`."""
    loss = classification.cross_entropy(predictions.probabilities, predictions.labels)
    classes = predictions.classes
    tiles = []
    for row, answer in zip(rows, predictions.predicted[rows] if answers is None else answers, strict=True):
        path = Path(predictions.paths[row])
        uri, trouble = _thumbnail(path)
        tiles.append(
            Thumbnail(
                uri=uri,
                trouble=trouble,
                name=path.name,
                place="/".join(path.parts[-2:]),
                true=classes[predictions.labels[row]],
                predicted=classes[answer],
                confidence=float(predictions.probabilities[row, answer]),
                loss=float(loss[row]),
            )
        )
    return tiles


def _thumbnail(path: Path) -> tuple[str, str]:
    """The data URI of an image file and "", or "" and the trouble: a report outlives its images."""
    try:
        return thumbnail_uri(path, SIDE, QUALITY), ""
    except UnreadableError as error:
        gone = isinstance(error.__cause__, FileNotFoundError)
        return "", "image no longer there" if gone else "image cannot be read"


OPACITY = 0.6  # of the colours over the image: both can be seen


@dataclass(frozen=True)
class ClassHeatmap:
    """The heat map of class `name`, which has `probability`, over an image.

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
class HeatmapExample:
    """An image as the network saw it, a JPEG data URI, and what in it speaks for the answer, and for the label.

    Attributes:
        uri: the image.
        file: the file's own name.
        place: the name with that of its folder.
        true: name of the true class.
        views: of the class that was answered, and if that is wrong, of the true class.
    """

    uri: str
    file: str
    place: str
    true: str
    views: tuple[ClassHeatmap, ...]


@dataclass(frozen=True)
class HeatmapSection:
    """All that are shown; `lost` images can no longer be read. `scale` shows the colours, from nothing to most."""

    layer: str
    rows: int
    columns: int
    errors: Sequence[HeatmapExample]
    right_answers: Sequence[HeatmapExample]
    lost: int
    scale: str


def heatmap_section(run: RunRecord, kept: HeatmapSet | None) -> HeatmapSection | None:
    """The heat maps that are kept, over their images of the judged split; None if there are none."""
    wanted = [(path, pair) for path, pair in gradcam.heatmap_targets(run).items() if kept and path in kept.maps]
    if not kept or not wanted or not run.predictions:
        return None
    judged = run.predictions.of_split(run.eval_split)
    found = [
        (_heatmap_example(judged, judged.paths.index(path), kept), answer == true) for path, (answer, true) in wanted
    ]
    return HeatmapSection(
        layer=kept.layer,
        rows=kept.rows,
        columns=kept.columns,
        errors=[look for look, right in found if look and not right],
        right_answers=[look for look, right in found if look and right],
        lost=sum(look is None for look, _ in found),
        scale=_scale(),
    )


def _heatmap_example(predictions: Predictions, row: int, kept: HeatmapSet) -> HeatmapExample | None:
    """None if the image cannot be read: a report outlives its images."""
    path = Path(predictions.paths[row])
    try:
        with open_image(path, SIDE) as image:
            seen = visible_region(to_rgb(apply_exif_orientation(image)), kept.resize)
            seen.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    except UnreadableError:
        return None
    probabilities, heats = predictions.probabilities[row], kept.maps[predictions.paths[row]]
    indices = dict.fromkeys((int(predictions.predicted[row]), int(predictions.labels[row])))
    views = [
        ClassHeatmap(name, float(probabilities[index]), data_uri(overlay(seen, heats[name])), strongest(heats[name]))
        for index, name in ((index, predictions.classes[index]) for index in indices)
        if name in heats
    ]
    true = predictions.classes[predictions.labels[row]]
    return HeatmapExample(data_uri(seen), path.name, "/".join(path.parts[-2:]), true, tuple(views))


def overlay(image: Image.Image, heat: Heatmap) -> Image.Image:
    """The image in grey, so that its own colours are not taken for heat, under the colours of the heat map.

    The map is stretched over the whole image by bicubic interpolation.
    """
    places = Image.fromarray(heat).resize(image.size, Image.Resampling.BICUBIC)
    colours = Image.fromarray(plots.heat_colors(np.asarray(places)))
    return Image.blend(image.convert("L").convert("RGB"), colours, OPACITY)


def strongest(heat: Heatmap) -> str:
    """Where in the image the map is largest, by thirds: "the upper left", "the centre"; "" if it is 0 everywhere."""
    if not heat.any():
        return ""
    place = np.unravel_index(heat.argmax(), heat.shape)
    down, across = (int(3 * (at + 0.5) / size) for at, size in zip(place, heat.shape, strict=True))
    words = (("upper left", "top", "upper right"), ("left", "centre", "right"), ("lower left", "bottom", "lower right"))
    return f"the {words[down][across]}"


def _scale() -> str:
    """All colours from left to right, over a grey."""
    ramp = np.linspace(0, 255, SIDE).round().astype(np.uint8)[None]
    return data_uri(overlay(Image.new("RGB", (SIDE, 8), "grey"), ramp))
