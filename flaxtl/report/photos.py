"""Photos of the report: images of a run as JPEG data URIs, each with everything that is known of it.

A report may outlive its images: a photo that can no longer be read has a short explanation in place of the image.
"""

import base64
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from flaxtl.data.decode import Resize, visible_region
from flaxtl.data.image_file import UnreadableError, apply_exif_orientation, open_image, to_rgb
from flaxtl.evaluation.gradcam import Heatmap, HeatmapSet
from flaxtl.evaluation.predictions import Predictions
from flaxtl.report import plots

MAX_SIDE = 320  # pixels of the longer side; shown about 200 wide, sharp on a high-density screen
JPEG_QUALITY = 78  # about 12 kB per image
HEATMAP_OPACITY = 0.6  # of the colors over the image
MIN_ASPECT, MAX_ASPECT = 0.6, 2.0  # width / height; a photo outside is cropped to it


@dataclass(frozen=True)
class ClassHeatmap:
    """The heat map of one class over a photo.

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
class Photo:
    """One image of the run.

    Attributes:
      uri: the image as a data URI; "" if it cannot be read.
      problem: why it cannot be read, in a few words; else "".
      aspect: width / height as shown, in [MIN_ASPECT, MAX_ASPECT].
      name: file name.
      short_path: folder and file name.
      true: name of the labeled class.
      predicted: name of the predicted class.
      confidence: probability of `predicted`, in [0, 1].
      loss: -log of the probability of the labeled class.
      suggested: the class that the label should probably be; "" if the label does not look wrong.
      heatmaps: where the model looked, for the predicted class and, for an error, the labeled class; or none.
    """

    uri: str
    problem: str
    aspect: float
    name: str
    short_path: str
    true: str
    predicted: str
    confidence: float
    loss: float
    suggested: str
    heatmaps: tuple[ClassHeatmap, ...]


class PhotoAlbum:
    """The photos of a report; each is given out once.

    Args:
      predictions: of all images, as people are shown them.
      bit_depth: the setting `data.bit_depth`.
      suggested: row in the predictions -> the class that its label should probably be; may be set later.
      heatmaps: by path; None if there are none.
    """

    def __init__(
        self, predictions: Predictions, bit_depth: int, suggested: Mapping[int, int], heatmaps: HeatmapSet | None
    ) -> None:
        self.predictions, self.suggested = predictions, suggested
        self._bit_depth, self._heatmaps, self._shown = bit_depth, heatmaps, set[int]()
        self._losses = predictions.losses

    def take(self, rows: Iterable[int], limit: int) -> list[Photo]:
        """Return the photos in the first `limit` of `rows` that have not been taken yet."""
        fresh = [int(row) for row in rows if int(row) not in self._shown][:limit]
        self._shown.update(fresh)
        return [self._photo(row) for row in fresh]

    def _photo(self, row: int) -> Photo:
        predictions, path = self.predictions, Path(self.predictions.paths[row])
        stored = self._heatmaps.maps.get(predictions.paths[row], {}) if self._heatmaps else {}
        resize = self._heatmaps.resize if self._heatmaps and stored else None
        image, problem = _read(path, self._bit_depth, resize)
        classes = predictions.classes
        indices = dict.fromkeys((int(predictions.predicted[row]), int(predictions.labels[row])))
        heatmaps = tuple(
            ClassHeatmap(
                class_name=classes[index],
                probability=float(predictions.probabilities[row, index]),
                uri=jpeg_data_uri(overlay_heatmap(image, stored[classes[index]])),
                location=peak_location(stored[classes[index]]),
            )
            for index in indices
            if image is not None and classes[index] in stored
        )
        suggested = self.suggested.get(row)
        return Photo(
            uri="" if image is None else jpeg_data_uri(image),
            problem=problem,
            aspect=4 / 3 if image is None else min(max(MIN_ASPECT, image.width / image.height), MAX_ASPECT),
            name=path.name,
            short_path="/".join(path.parts[-2:]),
            true=classes[predictions.labels[row]],
            predicted=classes[predictions.predicted[row]],
            confidence=float(predictions.confidence[row]),
            loss=float(self._losses[row]),
            suggested="" if suggested is None else classes[suggested],
            heatmaps=heatmaps,
        )


def _read(path: Path, bit_depth: int, resize: Resize | None) -> tuple[Image.Image | None, str]:
    """Return (image, "") or (None, problem); with `resize`, the part of the image that the model sees."""
    try:
        with open_image(path, MAX_SIDE, bit_depth) as file:
            image = to_rgb(apply_exif_orientation(file), bit_depth)
    except UnreadableError as error:
        is_missing = isinstance(error.__cause__, FileNotFoundError)
        return None, "image not found" if is_missing else "image cannot be read"
    if resize is not None:
        image = visible_region(image, resize)
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return image, ""


def overlay_heatmap(image: Image.Image, heatmap: Heatmap) -> Image.Image:
    """Blend the heat map's colors over the image in grayscale, so that its own colors are not mistaken for heat.

    The map is resized to the image by bicubic interpolation.
    """
    resized = Image.fromarray(heatmap).resize(image.size, Image.Resampling.BICUBIC)
    colors = Image.fromarray(plots.heat_colors(np.asarray(resized)))
    return Image.blend(image.convert("L").convert("RGB"), colors, HEATMAP_OPACITY)


def peak_location(heatmap: Heatmap) -> str:
    """Return where the map is largest, by thirds: "the upper left", "the center"; "" if it is 0 everywhere."""
    if not heatmap.any():
        return ""
    peak = np.unravel_index(heatmap.argmax(), heatmap.shape)
    row, column = (int(3 * (index + 0.5) / size) for index, size in zip(peak, heatmap.shape, strict=True))
    words = (("upper left", "top", "upper right"), ("left", "center", "right"), ("lower left", "bottom", "lower right"))
    return f"the {words[row][column]}"


def colorbar() -> str:
    """Return all heat map colors from left to right, over gray, as a data URI."""
    ramp = np.linspace(0, 255, MAX_SIDE).round().astype(np.uint8)[None]
    return jpeg_data_uri(overlay_heatmap(Image.new("RGB", (MAX_SIDE, 8), "gray"), ramp))


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
