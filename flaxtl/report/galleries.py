"""Image galleries of the report: errors, correct predictions, label issues and Grad-CAM heat maps.

Images are embedded in the page as JPEG data URIs. A report may outlive its images: those that can no longer be read
are counted or replaced by a short explanation.
"""

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

MAX_SIDE = 240  # pixels of the longer side; shown about 160 wide, sharp on a high-density screen
JPEG_QUALITY = 78  # about 8 kB per image
HEATMAP_OPACITY = 0.6  # of the colors over the image


@dataclass(frozen=True)
class Thumbnail:
    """One image of a gallery.

    Attributes:
        uri: the image as a data URI; "" if it cannot be read.
        problem: why it cannot be read, in a few words; else "".
        name: file name.
        short_path: folder and file name.
        true: name of the true class.
        predicted: name of the predicted (or suggested) class.
        confidence: probability of `predicted`, in [0, 1].
        loss: -log of the probability of the true class.
    """

    uri: str
    problem: str
    name: str
    short_path: str
    true: str
    predicted: str
    confidence: float
    loss: float


@dataclass(frozen=True)
class ConfusedPair:
    """`count` images of class `true` were predicted as `predicted`; thumbnails of the most confident errors."""

    true: str
    predicted: str
    count: int
    thumbnails: tuple[Thumbnail, ...]


@dataclass(frozen=True)
class ClassHeatmap:
    """The heat map of one class over an image.

    Attributes:
        class_name: of the class.
        probability: of the class, in [0, 1].
        uri: the overlay as a data URI.
        location: where the map is largest, such as "the upper left"; "" if it is 0 everywhere.
    """

    class_name: str
    probability: float
    uri: str
    location: str


@dataclass(frozen=True)
class HeatmapExample:
    """An image as the model sees it, with the heat maps of the predicted class and, for an error, the true class.

    Attributes:
        uri: the image as a data URI.
        name: file name.
        short_path: folder and file name.
        true: name of the true class.
        heatmaps: one for each class.
    """

    uri: str
    name: str
    short_path: str
    true: str
    heatmaps: tuple[ClassHeatmap, ...]


@dataclass(frozen=True)
class HeatmapSection:
    """Grad-CAM examples at `layer`, whose maps have `rows` x `columns` values; `num_missing` images are unreadable."""

    layer: str
    rows: int
    columns: int
    errors: Sequence[HeatmapExample]
    correct: Sequence[HeatmapExample]
    num_missing: int
    colorbar: str


def confused_pairs(predictions: Predictions, num_pairs: int, num_images: int, bit_depth: int = 0) -> list[ConfusedPair]:
    """Return the `num_pairs` most confused pairs of classes, each with its `num_images` most confident errors.

    `bit_depth` is that of the run, here and below: the setting `data.bit_depth`.
    """
    labels, predicted, classes = predictions.labels, predictions.predicted, predictions.classes
    matrix = classification.confusion_matrix(labels, predicted, len(classes))
    pairs = []
    for pair in classification.most_confused_pairs(matrix, num_pairs):
        rows = np.flatnonzero((labels == pair.true) & (predicted == pair.predicted))
        most_confident = rows[np.argsort(-predictions.confidence[rows], kind="stable")][:num_images]
        thumbnails = tuple(_thumbnails(predictions, most_confident.tolist(), bit_depth))
        pairs.append(ConfusedPair(classes[pair.true], classes[pair.predicted], pair.count, thumbnails))
    return pairs


def top_losses(predictions: Predictions, limit: int, bit_depth: int = 0) -> list[Thumbnail]:
    """Return the images with the largest loss, largest first, as far as the true class has less than 50 %."""
    rows, loss = classification.top_losses(predictions.log_probabilities, predictions.labels, limit)
    return _thumbnails(predictions, rows[loss > math.log(2)].tolist(), bit_depth)


def correct_predictions(predictions: Predictions, limit: int, bit_depth: int = 0) -> list[Thumbnail]:
    """Return a typical correct prediction of each of the first `limit` classes: the one of median confidence."""
    rows = classification.typical_correct(predictions.probabilities, predictions.labels, limit)
    return _thumbnails(predictions, rows, bit_depth)


def label_issue_thumbnails(
    predictions: Predictions, issues: LabelIssues, limit: int, bit_depth: int = 0
) -> list[Thumbnail]:
    """Return the `limit` most suspicious labels, each with the suggested class in place of the predicted one."""
    return _thumbnails(predictions, issues.rows[:limit].tolist(), bit_depth, issues.suggested[:limit].tolist())


def heatmap_section(run: RunRecord, heatmaps: HeatmapSet | None) -> HeatmapSection | None:
    """Return the stored heat maps over their images of the evaluated split; None if there are none."""
    pairs = {path: pair for path, pair in gradcam.heatmap_targets(run).items() if heatmaps and path in heatmaps.maps}
    predictions = run.calibrated_eval_predictions
    if not heatmaps or not pairs or predictions is None:
        return None
    examples = [
        (
            _heatmap_example(predictions, predictions.paths.index(path), heatmaps, run.config.data.bit_depth),
            predicted == true,
        )
        for path, (predicted, true) in pairs.items()
    ]
    return HeatmapSection(
        layer=heatmaps.layer,
        rows=heatmaps.rows,
        columns=heatmaps.columns,
        errors=[example for example, is_correct in examples if example and not is_correct],
        correct=[example for example, is_correct in examples if example and is_correct],
        num_missing=sum(example is None for example, _ in examples),
        colorbar=_colorbar(),
    )


def overlay_heatmap(image: Image.Image, heatmap: Heatmap) -> Image.Image:
    """Blend the heat map's colors over the image in grayscale, so that its own colors are not mistaken for heat.

    The map is resized to the image by bicubic interpolation.
    """
    resized = Image.fromarray(heatmap).resize(image.size, Image.Resampling.BICUBIC)
    colors = Image.fromarray(plots.heat_colors(np.asarray(resized)))
    return Image.blend(image.convert("L").convert("RGB"), colors, HEATMAP_OPACITY)


def thumbnail_uri(path: Path, max_side: int, quality: int, bit_depth: int = 0) -> str:
    """Return an image file, upright and on white, as a JPEG data URI of at most `max_side` pixels a side.

    Raises UnreadableError.
    """
    with open_image(path, max_side, bit_depth) as image:
        return jpeg_data_uri(to_rgb(apply_exif_orientation(image), bit_depth), max_side, quality)


def jpeg_data_uri(image: Image.Image, max_side: int = MAX_SIDE, quality: int = JPEG_QUALITY) -> str:
    """Return an RGB image as a JPEG data URI; the image itself is shrunk to at most `max_side` pixels a side."""
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _thumbnails(
    predictions: Predictions, rows: Sequence[int], bit_depth: int, predicted: Sequence[int] | None = None
) -> list[Thumbnail]:
    """Return the images in `rows`, each with its predicted class or with that in `predicted`."""
    loss = classification.cross_entropy(predictions.log_probabilities, predictions.labels)
    classes = predictions.classes
    thumbnails = []
    for row, index in zip(rows, predictions.predicted[rows] if predicted is None else predicted, strict=True):
        path = Path(predictions.paths[row])
        uri, problem = _read_thumbnail(path, bit_depth)
        thumbnails.append(
            Thumbnail(
                uri=uri,
                problem=problem,
                name=path.name,
                short_path=_short_path(path),
                true=classes[predictions.labels[row]],
                predicted=classes[index],
                confidence=float(predictions.probabilities[row, index]),
                loss=float(loss[row]),
            )
        )
    return thumbnails


def _read_thumbnail(path: Path, bit_depth: int) -> tuple[str, str]:
    """Return (data URI, ""), or ("", problem)."""
    try:
        return thumbnail_uri(path, MAX_SIDE, JPEG_QUALITY, bit_depth), ""
    except UnreadableError as error:
        is_missing = isinstance(error.__cause__, FileNotFoundError)
        return "", "image not found" if is_missing else "image cannot be read"


def _heatmap_example(predictions: Predictions, row: int, heatmaps: HeatmapSet, bit_depth: int) -> HeatmapExample | None:
    """Return the image in `row` with its heat maps; None if it cannot be read."""
    path = Path(predictions.paths[row])
    try:
        with open_image(path, MAX_SIDE, bit_depth) as file:
            image = visible_region(to_rgb(apply_exif_orientation(file), bit_depth), heatmaps.resize)
            image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    except UnreadableError:
        return None
    probabilities, maps = predictions.probabilities[row], heatmaps.maps[predictions.paths[row]]
    indices = dict.fromkeys((int(predictions.predicted[row]), int(predictions.labels[row])))
    class_heatmaps = [
        ClassHeatmap(
            class_name=name,
            probability=float(probabilities[index]),
            uri=jpeg_data_uri(overlay_heatmap(image, maps[name])),
            location=peak_location(maps[name]),
        )
        for index, name in ((index, predictions.classes[index]) for index in indices)
        if name in maps
    ]
    true = predictions.classes[predictions.labels[row]]
    return HeatmapExample(jpeg_data_uri(image), path.name, _short_path(path), true, tuple(class_heatmaps))


def peak_location(heatmap: Heatmap) -> str:
    """Return where the map is largest, by thirds: "the upper left", "the center"; "" if it is 0 everywhere."""
    if not heatmap.any():
        return ""
    peak = np.unravel_index(heatmap.argmax(), heatmap.shape)
    row, column = (int(3 * (index + 0.5) / size) for index, size in zip(peak, heatmap.shape, strict=True))
    words = (("upper left", "top", "upper right"), ("left", "center", "right"), ("lower left", "bottom", "lower right"))
    return f"the {words[row][column]}"


def _colorbar() -> str:
    """Return all heat map colors from left to right, over gray, as a data URI."""
    ramp = np.linspace(0, 255, MAX_SIDE).round().astype(np.uint8)[None]
    return jpeg_data_uri(overlay_heatmap(Image.new("RGB", (MAX_SIDE, 8), "gray"), ramp))


def _short_path(path: Path) -> str:
    return "/".join(path.parts[-2:])
