"""Which photos the report shows, and under which heading: every photo once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flaxtl.evaluation import classification, gradcam, label_issues
from flaxtl.evaluation.run_files import RunRecord
from flaxtl.report.photos import Photo, PhotoAlbum, colorbar

MAX_PAIRS, IMAGES_PER_CLASS, IMAGES_PER_PAIR, MAX_ERRORS, MAX_CORRECT, MAX_LABEL_ISSUES = 6, 6, 12, 18, 12, 18
"""Up to 130 photos of 12 kB."""

Rows = npt.NDArray[np.intp]


@dataclass(frozen=True)
class ClassPhotos:
    """A class, how many of its images are recognized, and some of its photos."""

    name: str
    num_correct: int
    num_images: int
    photos: Sequence[Photo]


@dataclass(frozen=True)
class ConfusedPair:
    """`count` images of class `true` were predicted as `predicted`; photos of those that are not shown above."""

    true: str
    predicted: str
    count: int
    photos: Sequence[Photo]


@dataclass(frozen=True)
class Heatmaps:
    """Grad-CAM at `layer`, where a map has `rows` x `columns` values, and a bar of all its colors."""

    layer: str
    rows: int
    columns: int
    colorbar: str


@dataclass(frozen=True)
class Galleries:
    """All photos of the report, of the evaluated split unless another one is named.

    Attributes:
      worst: the class with the lowest recall, with its errors; None if no class is worse than the others.
      best: the class with the highest recall, with typical images.
      pairs: the most confused pairs of classes, with the most confident errors.
      errors: other errors, the largest loss first.
      correct: a typical correct prediction of each class.
      label_issues: labels that look wrong and are not shown above; of any evaluated split.
      heatmaps: the heat maps that photos have; None if none has one.
    """

    worst: ClassPhotos | None
    best: ClassPhotos | None
    pairs: Sequence[ConfusedPair]
    errors: Sequence[Photo]
    correct: Sequence[Photo]
    label_issues: Sequence[Photo]
    heatmaps: Heatmaps | None


def make_galleries(run: RunRecord) -> Galleries | None:
    """Choose and read the photos of a run; None if it has no predictions of the evaluated split."""
    predictions = run.calibrated_predictions
    if predictions is None or run.eval_predictions is None:
        return None
    issues = label_issues.find_label_issues(predictions)
    suggested = dict(zip(issues.rows.tolist(), issues.suggested.tolist(), strict=True))
    heatmaps = gradcam.read_heatmaps(run.workdir)
    marked = suggested if label_issues.are_reliable(predictions) else {}
    album = PhotoAlbum(predictions, run.config.data.bit_depth, marked, heatmaps)
    rows = np.flatnonzero(np.array([split == run.eval_split for split in predictions.splits]))
    wrong = predictions.error_rows
    wrong = wrong[np.isin(wrong, rows)]
    worst, best = _extreme_classes(album, rows, wrong)
    pairs = _confused_pairs(album, rows)
    errors = album.take(wrong, MAX_ERRORS)
    typical = classification.typical_correct(predictions.probabilities[rows], predictions.labels[rows], MAX_CORRECT)
    correct = album.take(rows[typical], MAX_CORRECT)
    album.suggested = suggested  # the section on label issues shows all of them, folded if they are not reliable
    suspicious = album.take(issues.rows.tolist(), MAX_LABEL_ISSUES)
    photos = [*(photo for pair in pairs for photo in pair.photos), *errors, *correct, *suspicious]
    photos += [photo for shown in (worst, best) if shown for photo in shown.photos]
    has_heatmaps = heatmaps is not None and any(photo.heatmaps for photo in photos)
    return Galleries(
        worst=worst,
        best=best,
        pairs=pairs,
        errors=errors,
        correct=correct,
        label_issues=suspicious,
        heatmaps=Heatmaps(heatmaps.layer, heatmaps.rows, heatmaps.columns, colorbar())
        if heatmaps is not None and has_heatmaps
        else None,
    )


def _extreme_classes(album: PhotoAlbum, rows: Rows, wrong: Rows) -> tuple[ClassPhotos | None, ClassPhotos | None]:
    """Return the class with the lowest and with the highest recall; neither if all have the same.

    Args:
      album: the photos.
      rows: of the evaluated images.
      wrong: those of them that are misclassified, largest loss first.
    """
    predictions = album.predictions
    labels, correct = predictions.labels[rows], predictions.correct[rows]
    recalls = {index: correct[labels == index].mean() for index in np.unique(labels).tolist()}
    worst, best = min(recalls, key=recalls.__getitem__), max(recalls, key=recalls.__getitem__)
    if recalls[worst] == recalls[best]:
        return None, None
    errors = wrong[predictions.labels[wrong] == worst]
    recognized = rows[(labels == best) & correct]
    distance = np.abs(predictions.confidence[recognized] - np.median(predictions.confidence[recognized]))
    typical = recognized[np.argsort(distance, kind="stable")]

    def with_photos(index: int, chosen: Rows) -> ClassPhotos:
        of_class = labels == index
        photos = album.take(chosen.tolist(), IMAGES_PER_CLASS)
        return ClassPhotos(predictions.classes[index], int(correct[of_class].sum()), int(of_class.sum()), photos)

    return with_photos(worst, errors), with_photos(best, typical)


def _confused_pairs(album: PhotoAlbum, rows: Rows) -> list[ConfusedPair]:
    """Return the most confused pairs of classes, each with its most confident errors."""
    predictions = album.predictions
    labels, predicted, classes = predictions.labels[rows], predictions.predicted[rows], predictions.classes
    matrix = classification.confusion_matrix(labels, predicted, len(classes))
    pairs = []
    for pair in classification.most_confused_pairs(matrix, MAX_PAIRS):
        errors = rows[(labels == pair.true) & (predicted == pair.predicted)]
        most_confident = errors[np.argsort(-predictions.confidence[errors], kind="stable")]
        photos = album.take(most_confident.tolist(), IMAGES_PER_PAIR)
        pairs.append(ConfusedPair(classes[pair.true], classes[pair.predicted], pair.count, photos))
    return pairs
