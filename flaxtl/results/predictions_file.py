"""predictions.csv: what the network said about every picture, as a file that a spreadsheet opens too."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import numpy.typing as npt

from flaxtl import csv_rows
from flaxtl.errors import UserError
from flaxtl.files import whole

FIXED_COLUMNS = ("path", "split", "label", "prediction", "confidence")


@dataclass(frozen=True, eq=False)
class Predictions:
    """What the network said about n pictures.

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
        """The most probable class of every picture, int [n]; the first one of equals."""
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


def write(path: Path, predictions: Predictions) -> None:
    """Write predictions.csv; whoever reads `path` meanwhile sees the old file or the whole new one."""
    # surrogateescape: a Linux file name need not be valid UTF-8, and must come back as the same bytes
    with whole(path, errors="surrogateescape", newline="") as file:
        csv_rows.write(file, [(*FIXED_COLUMNS, *predictions.classes)])
        csv_rows.write(file, _rows(predictions))


def read(path: Path) -> Predictions:
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
