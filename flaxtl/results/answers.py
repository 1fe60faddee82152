"""What a network said about picture files, as a table and as files."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from rich.table import Table

from flaxtl import csv_rows
from flaxtl.errors import UserError
from flaxtl.results import calibration
from flaxtl.terminal import printable, screenful, table


class Guess(NamedTuple):
    """One class that a picture may be of; the WordNet id is '' where classes have none."""

    label: str
    probability: float
    wordnet_id: str


@dataclass(frozen=True)
class Answers:
    """Of n pictures: paths, float32 probabilities [n, classes], tapped outputs [n, ...] by layer, unreadable files.

    `wordnet_ids` go with `classes` where these are ImageNet's, else there are none. Without classes, layers alone were
    asked for.
    """

    paths: tuple[str, ...]
    probabilities: npt.NDArray[np.float32]
    taps: dict[str, npt.NDArray[np.float32]]
    classes: tuple[str, ...]
    wordnet_ids: tuple[str, ...]
    unreadable: tuple[str, ...]

    def at_temperature(self, temperature: float) -> "Answers":
        """The same answers, with the probabilities that they have at a temperature; tapped outputs stay as they are."""
        tempered = calibration.at_temperature(self.probabilities, temperature)
        return replace(self, probabilities=tempered.astype(np.float32))

    def top(self, row: int, k: int) -> list[Guess]:
        """The k most probable classes of a picture, best first; of equals the first."""
        best = np.argsort(-self.probabilities[row], kind="stable")[:k]
        ids = self.wordnet_ids or ("",) * len(self.classes)
        return [Guess(self.classes[column], float(self.probabilities[row, column]), ids[column]) for column in best]


def answer_table(answers: Answers, k: int) -> Table:
    """A row a picture: its file and the k best classes; or, without classes, a row a layer."""
    if not answers.classes:
        shapes = [(name, "x".join(map(str, array.shape))) for name, array in answers.taps.items()]
        return table("Outputs", ("layer", "shape"), shapes)
    cells = [
        (
            printable(Path(path).name),
            *(f"{printable(guess.label)} {guess.probability:.1%}" for guess in answers.top(row, k)),
        )
        for row, path in enumerate(answers.paths)
    ]
    places = min(k, len(answers.classes))
    columns = ("picture", *(f"{place}." for place in range(1, places + 1)))
    return table("Predictions", columns, screenful(cells, ", all in --csv=FILE or --json=FILE"))


def write(answers: Answers, k: int, csv_file: Path | None, json_file: Path | None, npz_file: Path | None) -> None:
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


def write_csv(file: Path, answers: Answers, k: int) -> None:
    """A row a picture: path, prediction, confidence, and one probability column a class.

    ImageNet's classes are too many for columns, and two pairs of them share a name: in place of the columns stands the
    WordNet id, then prediction_2, confidence_2, wordnet_id_2 and so on to the k-th best class.
    """
    with file.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
        header = _ranked_columns(k) if answers.wordnet_ids else _class_columns(answers.classes)
        rows = (
            _ranked(answers, row, k) if answers.wordnet_ids else _by_class(answers, row)
            for row in range(len(answers.paths))
        )
        csv_rows.write(stream, [("path", *header)])
        csv_rows.write(stream, ((path, *cells) for path, cells in zip(answers.paths, rows, strict=True)))


def _class_columns(classes: Sequence[str]) -> list[str]:
    return ["prediction", "confidence", *classes]


def _by_class(answers: Answers, row: int) -> list[str]:
    (best,) = answers.top(row, 1)
    return [best.label, f"{best.probability:.6f}", *(f"{p:.6f}" for p in answers.probabilities[row])]


def _ranked_columns(k: int) -> list[str]:
    places = ["", *(f"_{place}" for place in range(2, k + 1))]
    return [f"{word}{place}" for place in places for word in ("prediction", "confidence", "wordnet_id")]


def _ranked(answers: Answers, row: int, k: int) -> list[str]:
    return [cell for label, p, wordnet_id in answers.top(row, k) for cell in (label, f"{p:.6f}", wordnet_id)]


def write_json(file: Path, answers: Answers, k: int) -> None:
    """A list of {path, top: [{label, probability}]}, the k best classes each; ImageNet's with their wordnet_id."""
    rows = [
        {"path": path, "top": [_named(guess) for guess in answers.top(row, k)]}
        for row, path in enumerate(answers.paths)
    ]
    file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _named(guess: Guess) -> dict[str, str | float]:
    return {name: value for name, value in guess._asdict().items() if value != ""}


def write_npz(file: Path, answers: Answers) -> None:
    """'path' and one array named after each tapped layer."""
    arrays: dict[str, npt.NDArray[np.generic]] = {"path": np.array(answers.paths), **answers.taps}
    with file.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)
