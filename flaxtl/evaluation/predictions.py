"""predictions.csv: what the network said about every image, as a file that a spreadsheet opens too."""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
import numpy.typing as npt
from rich.table import Table

from flaxtl import fileio
from flaxtl.console import make_table, printable, truncate_rows
from flaxtl.errors import UserError
from flaxtl.evaluation import calibration
from flaxtl.fileio import atomic_write

FIXED_COLUMNS = ("path", "split", "label", "prediction", "confidence")


@dataclass(frozen=True, eq=False)
class Predictions:
    """What the network said about n images.

    Attributes:
        paths: n file names, as the manifest writes them.
        splits: n names out of train, validation, test.
        labels: int [n], the true classes as indices into `classes`.
        probabilities: float32 [n, classes] in [0, 1].
        classes: the class names, in the order of the network's outputs.
    """

    paths: tuple[str, ...]
    splits: tuple[str, ...]
    labels: npt.NDArray[np.integer]
    probabilities: npt.NDArray[np.float32]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse fields that do not go together."""
        n = len(self.paths)
        if len(self.splits) != n or self.labels.shape != (n,) or self.probabilities.shape != (n, len(self.classes)):
            raise ValueError(
                f"{n} paths do not go with {len(self.splits)} splits, labels {self.labels.shape}, "
                f"probabilities {self.probabilities.shape} and {len(self.classes)} classes"
            )

    @property
    def predicted(self) -> npt.NDArray[np.intp]:
        """The most probable class of every image, int [n]; the first one of equals."""
        return np.asarray(self.probabilities.argmax(axis=1), np.intp)

    @property
    def confidence(self) -> npt.NDArray[np.float32]:
        """The probability of the predicted class, float32 [n]."""
        return np.asarray(self.probabilities.max(axis=1), np.float32)

    def of_split(self, split: str) -> "Predictions":
        """The rows of one split, in their order; possibly none."""
        rows = [row for row, name in enumerate(self.splits) if name == split]
        return Predictions(
            paths=tuple(self.paths[row] for row in rows),
            splits=(split,) * len(rows),
            labels=self.labels[rows],
            probabilities=self.probabilities[rows],
            classes=self.classes,
        )


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write predictions.csv; whoever reads `path` meanwhile sees the old file or the whole new one."""
    # surrogateescape: a Linux file name need not be valid UTF-8, and must come back as the same bytes
    with atomic_write(path, errors="surrogateescape", newline="") as file:
        fileio.write_csv(file, [(*FIXED_COLUMNS, *predictions.classes)])
        fileio.write_csv(file, _rows(predictions))


def read_predictions(path: Path) -> Predictions:
    """Read predictions.csv.

    Raises:
        UserError: the file is missing, or is not one that `write` made.
    """
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            return _parse(file, path)
    except FileNotFoundError:
        raise UserError(f"no predictions at {path}; start the same flaxtl train again to finish the run") from None
    except (OSError, csv.Error) as error:
        raise _foreign(path, str(error)) from None


def _rows(predictions: Predictions) -> Iterator[list[str]]:
    classes = predictions.classes
    columns = zip(
        predictions.paths,
        predictions.splits,
        predictions.labels,
        predictions.predicted,
        predictions.confidence,
        predictions.probabilities,
        strict=True,
    )
    for path, split, label, predicted, confidence, probabilities in columns:
        # str of a float32 is the shortest text that reads back to the same float32
        yield [path, split, classes[label], classes[predicted], str(confidence), *map(str, probabilities)]


def _parse(file: TextIO, path: Path) -> Predictions:
    rows = csv.reader(file)
    header = next(rows, [])
    fixed = len(FIXED_COLUMNS)
    classes = tuple(header[fixed:])
    if tuple(header[:fixed]) != FIXED_COLUMNS or not classes:
        raise _foreign(path, f"its first line must begin with {','.join(FIXED_COLUMNS)} and name the classes")
    index = {name: position for position, name in enumerate(classes)}
    paths, splits, labels, probabilities = [], [], [], []
    for row in rows:
        if len(row) != len(header):
            raise _foreign(path, f"line {rows.line_num} has {len(row)} columns, the header {len(header)}")
        if row[2] not in index:
            raise _foreign(path, f"line {rows.line_num} is labelled {row[2]!r}, which is no class of the header")
        try:
            probabilities.append(np.array(row[fixed:], np.float32))
        except ValueError:
            raise _foreign(path, f"line {rows.line_num} has a probability that is not a number") from None
        paths.append(row[0])
        splits.append(row[1])
        labels.append(index[row[2]])
    return Predictions(
        paths=tuple(paths),
        splits=tuple(splits),
        labels=np.array(labels, np.int64),
        probabilities=np.array(probabilities, np.float32).reshape(len(paths), len(classes)),
        classes=classes,
    )


def _foreign(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is not a predictions file: {reason}; delete it and start the same flaxtl train again")


class ClassScore(NamedTuple):
    """One class that an image may be of; the WordNet id is '' where classes have none."""

    label: str
    probability: float
    wordnet_id: str


@dataclass(frozen=True)
class ImagePredictions:
    """Of n images: paths, float32 probabilities [n, classes], tapped outputs [n, ...] by layer, unreadable files.

    `wordnet_ids` go with `classes` where these are ImageNet's, else there are none. Without classes, layers alone were
    asked for.
    """

    paths: tuple[str, ...]
    probabilities: npt.NDArray[np.float32]
    taps: dict[str, npt.NDArray[np.float32]]
    classes: tuple[str, ...]
    wordnet_ids: tuple[str, ...]
    unreadable: tuple[str, ...]

    def at_temperature(self, temperature: float) -> "ImagePredictions":
        """The same answers, with the probabilities that they have at a temperature; tapped outputs stay as they are."""
        tempered = calibration.apply_temperature(self.probabilities, temperature)
        return replace(self, probabilities=tempered.astype(np.float32))

    def top(self, row: int, k: int) -> list[ClassScore]:
        """The k most probable classes of an image, best first; of equals the first."""
        best = np.argsort(-self.probabilities[row], kind="stable")[:k]
        ids = self.wordnet_ids or ("",) * len(self.classes)
        return [
            ClassScore(self.classes[column], float(self.probabilities[row, column]), ids[column]) for column in best
        ]


def predictions_table(answers: ImagePredictions, k: int) -> Table:
    """A row an image: its file and the k best classes; or, without classes, a row a layer."""
    if not answers.classes:
        shapes = [(name, "x".join(map(str, array.shape))) for name, array in answers.taps.items()]
        return make_table("Outputs", ("layer", "shape"), shapes)
    cells = [
        (
            printable(Path(path).name),
            *(f"{printable(guess.label)} {guess.probability:.1%}" for guess in answers.top(row, k)),
        )
        for row, path in enumerate(answers.paths)
    ]
    places = min(k, len(answers.classes))
    columns = ("image", *(f"{place}." for place in range(1, places + 1)))
    return make_table("Predictions", columns, truncate_rows(cells, ", all in --csv=FILE or --json=FILE"))


def write_outputs(
    answers: ImagePredictions, k: int, csv_file: Path | None, json_file: Path | None, npz_file: Path | None
) -> None:
    """Write the files that are asked for."""
    try:
        if csv_file:
            write_csv(csv_file, answers, k)
        if json_file:
            write_json(json_file, answers, k)
        if npz_file:
            write_npz(npz_file, answers)
    except OSError as error:
        raise UserError(f"cannot write {error.filename} ({error.strerror}); choose another file") from error


def write_csv(file: Path, answers: ImagePredictions, k: int) -> None:
    """A row an image: path, prediction, confidence, and one probability column a class.

    ImageNet's classes are too many for columns, and two pairs of them share a name: in place of the columns stands the
    WordNet id, then prediction_2, confidence_2, wordnet_id_2 and so on to the k-th best class.
    """
    with file.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
        header = _ranked_columns(k) if answers.wordnet_ids else _class_columns(answers.classes)
        rows = (
            _ranked(answers, row, k) if answers.wordnet_ids else _by_class(answers, row)
            for row in range(len(answers.paths))
        )
        fileio.write_csv(stream, [("path", *header)])
        fileio.write_csv(stream, ((path, *cells) for path, cells in zip(answers.paths, rows, strict=True)))


def _class_columns(classes: Sequence[str]) -> list[str]:
    return ["prediction", "confidence", *classes]


def _by_class(answers: ImagePredictions, row: int) -> list[str]:
    (best,) = answers.top(row, 1)
    return [best.label, f"{best.probability:.6f}", *(f"{p:.6f}" for p in answers.probabilities[row])]


def _ranked_columns(k: int) -> list[str]:
    places = ["", *(f"_{place}" for place in range(2, k + 1))]
    return [f"{word}{place}" for place in places for word in ("prediction", "confidence", "wordnet_id")]


def _ranked(answers: ImagePredictions, row: int, k: int) -> list[str]:
    return [cell for label, p, wordnet_id in answers.top(row, k) for cell in (label, f"{p:.6f}", wordnet_id)]


def write_json(file: Path, answers: ImagePredictions, k: int) -> None:
    """A list of {path, top: [{label, probability}]}, the k best classes each; ImageNet's with their wordnet_id."""
    rows = [
        {"path": path, "top": [_named(guess) for guess in answers.top(row, k)]}
        for row, path in enumerate(answers.paths)
    ]
    file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _named(guess: ClassScore) -> dict[str, str | float]:
    return {name: value for name, value in guess._asdict().items() if value != ""}


def write_npz(file: Path, answers: ImagePredictions) -> None:
    """'path' and one array named after each tapped layer."""
    arrays: dict[str, npt.NDArray[np.generic]] = {"path": np.array(answers.paths), **answers.taps}
    with file.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)
