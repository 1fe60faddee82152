"""Small pictures for the report, carried inside the page as JPEG data URIs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from flaxtl.data.unpack import UnreadableError
from flaxtl.results import measures, thumbnail
from flaxtl.results.label_issues import LabelIssues
from flaxtl.results.predictions_file import Predictions

SIDE = 240  # pixels of the longer side: shown about 160 wide, sharp on a dense screen
QUALITY = 78  # of the JPEG: about 8 kB a picture


@dataclass(frozen=True)
class Tile:
    """One picture of a gallery.

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
    """The pictures of class `true` that were taken for class `predicted`: how many, and the most confident of them."""

    true: str
    predicted: str
    count: int
    tiles: tuple[Tile, ...]


def data_uri(image: Image.Image) -> str:
    """An RGB picture at most SIDE pixels long, as a JPEG data URI."""
    return thumbnail.data_uri(image, SIDE, QUALITY)


def confused_pairs(predictions: Predictions, pairs: int, each: int) -> list[ConfusedPair]:
    """The `pairs` most confused pairs of classes, each with its `each` most confident errors."""
    labels, predicted, classes = predictions.labels, predictions.predicted, predictions.classes
    matrix = measures.confusion_matrix(labels, predicted, len(classes))
    galleries = []
    for pair in measures.most_confused(matrix, pairs):
        rows = np.flatnonzero((labels == pair.true) & (predicted == pair.predicted))
        surest = rows[np.argsort(-predictions.confidence[rows], kind="stable")][:each]
        tiles = tuple(_tiles(predictions, surest.tolist()))
        galleries.append(ConfusedPair(classes[pair.true], classes[pair.predicted], pair.count, tiles))
    return galleries


def top_losses(predictions: Predictions, limit: int) -> list[Tile]:
    """The pictures with the largest loss, largest first; of those that gave their true class less than a half."""
    worst, loss = measures.top_losses(predictions.probabilities, predictions.labels, limit)
    return _tiles(predictions, worst[loss > math.log(2)].tolist())


def right_answers(predictions: Predictions, limit: int) -> list[Tile]:
    """One right answer of each of the first `limit` classes that have one: the picture of median confidence."""
    return _tiles(predictions, right_rows(predictions, limit))


def right_rows(predictions: Predictions, limit: int) -> list[int]:
    """The rows of `right_answers`."""
    right = predictions.predicted == predictions.labels
    rows = []
    for index in range(len(predictions.classes)):
        of_class = np.flatnonzero(right & (predictions.labels == index))
        if of_class.size:
            by_confidence = of_class[np.argsort(predictions.confidence[of_class], kind="stable")]
            rows.append(int(by_confidence[by_confidence.size // 2]))
    return rows[:limit]


def error_rows(predictions: Predictions, limit: int) -> list[int]:
    """The rows of the wrong answers with the largest loss, largest first."""
    loss = measures.losses(predictions.probabilities, predictions.labels)
    wrong = np.flatnonzero(predictions.predicted != predictions.labels)
    worst: list[int] = wrong[np.argsort(-loss[wrong], kind="stable")][:limit].tolist()
    return worst


def label_issues(predictions: Predictions, issues: LabelIssues, limit: int) -> list[Tile]:
    """The `limit` most suspicious labels, each beside the class that is suggested in its place."""
    return _tiles(predictions, issues.rows[:limit].tolist(), issues.suggested[:limit].tolist())


def _tiles(predictions: Predictions, rows: Sequence[int], answers: Sequence[int] | None = None) -> list[Tile]:
    """The pictures in `rows`, each with its predicted class, or with that in `answers`."""
    loss = measures.losses(predictions.probabilities, predictions.labels)
    classes = predictions.classes
    tiles = []
    for row, answer in zip(rows, predictions.predicted[rows] if answers is None else answers, strict=True):
        path = Path(predictions.paths[row])
        uri, trouble = _thumbnail(path)
        tiles.append(
            Tile(
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
    """The data URI of a picture file and "", or "" and the trouble: a report outlives its pictures."""
    try:
        return thumbnail.of_file(path, SIDE, QUALITY), ""
    except UnreadableError as error:
        gone = isinstance(error.__cause__, FileNotFoundError)
        return "", "picture no longer there" if gone else "picture cannot be read"
