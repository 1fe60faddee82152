"""Predictions on images: the type, predictions.csv, and the output files of `flaxtl predict`."""

import csv
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
import numpy.typing as npt
from rich.table import Table

from flaxtl import fileio
from flaxtl.console import make_table, printable, truncate_rows
from flaxtl.errors import UserError, unknown
from flaxtl.evaluation import calibration, classification
from flaxtl.evaluation.classification import SMALLEST, CountArray, FloatArray
from flaxtl.fileio import atomic_write, errors_naming

FIXED_COLUMNS = ("path", "split", "label", "prediction", "confidence")

_PREFIXED = re.compile(rf"(p_)*({'|'.join(FIXED_COLUMNS)})")

UNLABELED = -1
"""Label of an image of unknown class."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """Class probabilities of n images, and what is known about each image.

    Attributes:
      paths: n file names, as in the manifest or as given; 'image 0' for an image in memory, the first of the inputs.
      splits: split of each image: train, validation or test; "" if it has none.
      labels: true classes as indices into `classes`, int [n]; UNLABELED if unknown.
      probabilities: float32 [n, classes] in [0, 1].
      classes: class names in the order of the model's outputs; () if only layer outputs were computed.
      log_softmax: logarithms of the probabilities from the logits, [n, classes]; None if these are not known.
      wordnet_ids: WordNet IDs of `classes` if these are ImageNet's, else ().
      taps: layer name -> its output on the images, float32 [n, ...].
      unreadable: one message for each image file that could not be read.
    """

    paths: tuple[str, ...]
    splits: tuple[str, ...]
    labels: npt.NDArray[np.integer]
    probabilities: npt.NDArray[np.float32]
    classes: tuple[str, ...]
    log_softmax: npt.NDArray[np.floating] | None = None
    wordnet_ids: tuple[str, ...] = ()
    taps: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    unreadable: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that the shapes agree."""
        n = len(self.paths)
        arrays = [array for array in (self.probabilities, self.log_softmax) if array is not None]
        shapes = {array.shape for array in arrays}
        if len(self.splits) != n or self.labels.shape != (n,) or shapes != {(n, len(self.classes))}:
            raise ValueError(
                f"shapes disagree: {n} paths, {len(self.splits)} splits, labels {self.labels.shape}, "
                f"probabilities {shapes}, {len(self.classes)} classes"
            )

    @property
    def log_probabilities(self) -> FloatArray:
        """Logarithms of `probabilities`, float64 [n, classes], for losses and temperatures; see `classification`."""
        return classification.log_probabilities(self.probabilities, self.log_softmax)

    @cached_property
    def predicted(self) -> npt.NDArray[np.intp]:
        """The most probable class of each image, int [n]; the first of ties."""
        return np.asarray(self.probabilities.argmax(axis=1), np.intp)

    @cached_property
    def confidence(self) -> npt.NDArray[np.float32]:
        """The probability of the predicted class, float32 [n]."""
        return np.asarray(self.probabilities.max(axis=1), np.float32)

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """Whether the predicted class is the label, bool [n]. Raises UserError if a label is unknown."""
        return np.asarray(self.predicted == self.known_labels)

    @cached_property
    def losses(self) -> FloatArray:
        """The cross-entropy -log p(label) of each image (nats), float64 [n]. Raises UserError if a label is unknown."""
        own = np.arange(len(self)), self.known_labels
        log_softmax = None if self.log_softmax is None else self.log_softmax[own]
        return -classification.log_probabilities(self.probabilities[own], log_softmax)

    @property
    def error_rows(self) -> npt.NDArray[np.intp]:
        """The rows of the misclassified images, largest loss first. Raises UserError if a label is unknown."""
        wrong = np.flatnonzero(~self.correct)
        return wrong[np.argsort(-self.losses[wrong], kind="stable")]

    @property
    def confusion_matrix(self) -> CountArray:
        """Images by true class (row) and predicted class (column), int64 [classes, classes].

        Raises UserError if a label is unknown.
        """
        return classification.confusion_matrix(self.known_labels, self.predicted, len(self.classes))

    @property
    def known_labels(self) -> npt.NDArray[np.integer]:
        """`labels`. Raises UserError if one is unknown: it would count as an error, and as the last class."""
        unlabeled = np.flatnonzero(self.labels == UNLABELED)
        if len(unlabeled):
            raise UserError(
                f"The true class of {self.paths[unlabeled[0]]} is unknown. Compare `predicted` with labels of your own."
            )
        return self.labels

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    def of_split(self, split: str) -> "Predictions":
        """Return the images of one split, in their order. Raises UserError if there are none."""
        if split not in self.splits:
            raise unknown("split", split, dict.fromkeys(self.splits))
        return self.take([row for row, name in enumerate(self.splits) if name == split])

    def take(self, rows: Sequence[int] | npt.NDArray[np.integer]) -> "Predictions":
        """Return the images of these rows, in this order."""
        index = np.asarray(rows, np.intp)
        return replace(
            self,
            paths=tuple(self.paths[row] for row in index),
            splits=tuple(self.splits[row] for row in index),
            labels=self.labels[index],
            probabilities=self.probabilities[index],
            log_softmax=None if self.log_softmax is None else self.log_softmax[index],
            taps={layer: output[index] for layer, output in self.taps.items()},
        )

    def at_temperature(self, temperature: float) -> "Predictions":
        """Return the same predictions with calibrated probabilities; `taps` stay as they are."""
        scaled = calibration.apply_temperature(self.log_probabilities, temperature)
        return replace(self, probabilities=np.exp(scaled).astype(np.float32), log_softmax=scaled)

    def top(self, row: int, k: int) -> list["ClassScore"]:
        """Return the k most probable classes of an image, most probable first; ties in class order."""
        best = np.argsort(-self.probabilities[row], kind="stable")[:k]
        ids = self.wordnet_ids or ("",) * len(self.classes)
        return [
            ClassScore(self.classes[column], float(self.probabilities[row, column]), ids[column]) for column in best
        ]


class ClassScore(NamedTuple):
    """A class and its probability; `wordnet_id` is "" for classes other than ImageNet's."""

    label: str
    probability: float
    wordnet_id: str


def class_column(name: str) -> str:
    """Return the title of the probability column of a class: its name, or p_NAME for a name of FIXED_COLUMNS.

    A class that is called p_NAME gets another prefix, so that no two columns of a file have the same title.
    """
    return f"p_{name}" if _PREFIXED.fullmatch(name) else name


def _class_of_column(title: str) -> str:
    """Return the class of a probability column; the inverse of `class_column`."""
    return title.removeprefix("p_") if _PREFIXED.fullmatch(title) else title


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write predictions.csv, atomically; raises UserError if a label is unknown.

    A probability below the smallest normal float32 is written from its logarithm, such as 3.45678912e-187. Other
    programs read it as a tiny number or 0; `read_predictions` reads the logarithm.
    """
    # surrogateescape: a Linux file name need not be valid UTF-8, and must be read back as the same bytes
    with atomic_write(path, errors="surrogateescape", newline="") as file:
        fileio.write_csv(file, [(*FIXED_COLUMNS, *map(class_column, predictions.classes))])
        fileio.write_csv(file, _rows(predictions))


def read_predictions(path: Path) -> Predictions:
    """Read predictions.csv.

    Raises:
      UserError: the file is missing, or `write_predictions` did not write it.
    """
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            return _parse(file, path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist. Run flaxtl train again to finish the run.") from None
    except (OSError, csv.Error) as error:
        raise _not_predictions(path, str(error)) from None


def _rows(predictions: Predictions) -> Iterator[list[str]]:
    classes = predictions.classes
    columns = zip(
        predictions.paths,
        predictions.splits,
        predictions.known_labels,
        predictions.predicted,
        predictions.confidence,
        predictions.probabilities,
        [None] * len(predictions) if predictions.log_softmax is None else predictions.log_softmax,
        strict=True,
    )
    for path, split, label, predicted, confidence, probabilities, log_softmax in columns:
        # str of a float32 is the shortest text that reads back as the same float32
        texts = [str(probability) for probability in probabilities]
        if log_softmax is not None:
            for column in np.flatnonzero(probabilities < SMALLEST):
                texts[column] = _text_of_log(float(log_softmax[column]))
        yield [path, split, classes[label], classes[predicted], str(confidence), *texts]


def _text_of_log(log_probability: float) -> str:
    """Return the text of a probability that underflows float32, and maybe float64, too: such as 3.45678912e-1087."""
    log10 = log_probability / math.log(10)
    exponent = math.floor(log10)
    return f"{10 ** (log10 - exponent):.12g}e{exponent}"


def _log_of_text(text: str) -> float:
    """Return the logarithm of a probability below SMALLEST; 0 counts as SMALLEST."""
    mantissa, _, exponent = text.lower().partition("e")
    if not float(mantissa):
        return math.log(SMALLEST)
    return math.log(float(mantissa)) + int(exponent or 0) * math.log(10)


def _parse(file: TextIO, path: Path) -> Predictions:
    rows = csv.reader(file)
    header = next(rows, [])
    num_fixed = len(FIXED_COLUMNS)
    classes = tuple(map(_class_of_column, header[num_fixed:]))
    if tuple(header[:num_fixed]) != FIXED_COLUMNS or not classes:
        raise _not_predictions(path, f"the first line must be {','.join(FIXED_COLUMNS)} and the class names")
    class_index = {name: index for index, name in enumerate(classes)}
    paths: list[str] = []
    splits, labels, rows_of_probabilities = [], [], []
    logs: dict[tuple[int, int], float] = {}  # of probabilities that underflow float32, by row and column
    for row in rows:
        if len(row) != len(header):
            raise _not_predictions(path, f"line {rows.line_num} has {len(row)} columns, the header has {len(header)}")
        if row[2] not in class_index:
            raise _not_predictions(path, f"line {rows.line_num} has label {row[2]!r}, not a class of the header")
        try:
            texts = row[num_fixed:]
            row_of_probabilities = np.array(texts, np.float32)
            if not ((row_of_probabilities >= 0) & (row_of_probabilities <= 1)).all():
                raise ValueError
            for column in np.flatnonzero(row_of_probabilities < SMALLEST).tolist():
                logs[len(paths), column] = _log_of_text(texts[column])
        except (ValueError, OverflowError):
            raise _not_predictions(path, f"line {rows.line_num} has a probability that is not in 0 to 1") from None
        rows_of_probabilities.append(row_of_probabilities)
        paths.append(row[0])
        splits.append(row[1])
        labels.append(class_index[row[2]])
    probabilities = np.array(rows_of_probabilities, np.float32).reshape(len(paths), len(classes))
    log_softmax = None
    if logs:
        log_softmax = classification.log_probabilities(probabilities)
        for index, log in logs.items():
            log_softmax[index] = log
    return Predictions(tuple(paths), tuple(splits), np.array(labels, np.int64), probabilities, classes, log_softmax)


def _not_predictions(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is not a valid predictions file: {reason}. Delete it and run flaxtl train again.")


def predictions_table(predictions: Predictions, k: int, file: Path | None = None) -> Table:
    """Return a console table of each image's k best classes; without classes, of the tapped layers' shapes.

    `file` has all images, if they are too many for the console.
    """
    if not predictions.classes:
        shapes = [(layer, "x".join(map(str, output.shape))) for layer, output in predictions.taps.items()]
        return make_table("Outputs", ("layer", "shape"), shapes)
    cells = [
        (
            printable(name),
            *(f"{printable(score.label)} {score.probability:.1%}" for score in predictions.top(row, k)),
        )
        for row, name in enumerate(short_names(predictions.paths))
    ]
    columns = ("image", *(f"{rank}." for rank in range(1, min(k, len(predictions.classes)) + 1)))
    where = f", all in {printable(str(file))}" if file else "; use --csv=FILE or --json=FILE for all"
    return make_table("Predictions", columns, truncate_rows(cells, where))


def short_names(paths: Sequence[str]) -> list[str]:
    """Return the file names of `paths`; if two are equal, the paths below the folder that all have in common."""
    names = [Path(path).name for path in paths]
    if len(set(names)) == len(names):
        return names
    absolute = [Path(path).absolute() for path in paths]
    common = os.path.commonpath([path.parent for path in absolute])
    return [str(path.relative_to(common)) for path in absolute]


def write_outputs(
    predictions: Predictions, k: int, csv_file: Path | None, json_file: Path | None, npz_file: Path | None
) -> None:
    """Write the output files of `flaxtl predict` that are not None."""
    try:
        if csv_file:
            write_csv(csv_file, predictions, k)
        if json_file:
            write_json(json_file, predictions, k)
        if npz_file:
            write_npz(npz_file, predictions)
    except OSError as error:
        raise UserError(f"Cannot write {error.filename} ({error.strerror}). Choose another file.") from error


def write_csv(file: Path, predictions: Predictions, k: int) -> None:
    """Write one row per image: path, prediction, confidence, and a probability column per class; see `class_column`.

    ImageNet has too many classes for columns, and two pairs of them share a name. Its rows hold the WordNet ID, then
    prediction_2, confidence_2, wordnet_id_2 and so on up to the k-th best class.
    """
    with errors_naming(file), file.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
        classes = map(class_column, predictions.classes)
        header = _ranked_columns(k) if predictions.wordnet_ids else ["prediction", "confidence", *classes]
        rows = (
            _ranked_cells(predictions, row, k) if predictions.wordnet_ids else _class_cells(predictions, row)
            for row in range(len(predictions.paths))
        )
        fileio.write_csv(stream, [("path", *header)])
        fileio.write_csv(stream, ((path, *cells) for path, cells in zip(predictions.paths, rows, strict=True)))


def _class_cells(predictions: Predictions, row: int) -> list[str]:
    (best,) = predictions.top(row, 1)
    return [best.label, f"{best.probability:.6f}", *(f"{p:.6f}" for p in predictions.probabilities[row])]


def _ranked_columns(k: int) -> list[str]:
    suffixes = ["", *(f"_{rank}" for rank in range(2, k + 1))]
    return [f"{name}{suffix}" for suffix in suffixes for name in ("prediction", "confidence", "wordnet_id")]


def _ranked_cells(predictions: Predictions, row: int, k: int) -> list[str]:
    return [cell for label, p, wordnet_id in predictions.top(row, k) for cell in (label, f"{p:.6f}", wordnet_id)]


def write_json(file: Path, predictions: Predictions, k: int) -> None:
    """Write a list of {path, top: [{label, probability}]} with the k best classes; ImageNet's have a wordnet_id."""
    rows = [
        {"path": path, "top": [_score_to_json(score) for score in predictions.top(row, k)]}
        for row, path in enumerate(predictions.paths)
    ]
    with errors_naming(file):
        file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _score_to_json(score: ClassScore) -> dict[str, str | float]:
    return {name: value for name, value in score._asdict().items() if value != ""}


def write_npz(file: Path, predictions: Predictions) -> None:
    """Write 'path' and one array named after each tapped layer."""
    arrays: dict[str, npt.NDArray[np.generic]] = {"path": np.array(predictions.paths), **predictions.taps}
    with errors_naming(file), file.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)
