"""`flaxtl predict`: classes, and the outputs of layers, for picture files that carry no label."""

import csv
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path

import jax
import numpy as np
import numpy.typing as npt
from rich.table import Table

from flaxtl.data.decode import EXTENSIONS, Resize, decode
from flaxtl.errors import UserError
from flaxtl.models.classifier import forward
from flaxtl.results.trained import Trained
from flaxtl.terminal import table
from flaxtl.train.groups import nest

BATCH = 32
"""Pictures in memory at a time."""


@dataclass(frozen=True)
class Answers:
    """Of n pictures: paths, float32 probabilities [n, classes], tapped outputs [n, ...] by layer, unreadable files."""

    paths: tuple[str, ...]
    probabilities: npt.NDArray[np.float32]
    taps: dict[str, npt.NDArray[np.float32]]
    classes: tuple[str, ...]
    unreadable: tuple[str, ...]

    def top(self, row: int, k: int) -> list[tuple[str, float]]:
        """The k most probable classes of a picture, best first."""
        best = np.argsort(-self.probabilities[row], kind="stable")[:k]
        return [(self.classes[column], float(self.probabilities[row, column])) for column in best]


def find_pictures(inputs: Sequence[str]) -> list[Path]:
    """Files as given, all pictures below folders, and what globs match; sorted within each, without doubles."""
    found: dict[Path, None] = {}
    for text in inputs:
        path = Path(text).expanduser()
        if path.is_dir():
            matches = sorted(file for file in path.rglob("*") if _is_picture(file.relative_to(path), file))
        elif has_magic(text) and not path.exists():
            matches = [Path(match) for match in sorted(glob(str(path), recursive=True)) if Path(match).is_file()]  # noqa: PTH207
        else:
            matches = [path] if path.is_file() else []
        if not matches:
            raise UserError(f"no pictures at {text!r}; give picture files, folders or globs to --input")
        found.update(dict.fromkeys(matches))
    return list(found)


def _is_picture(inner: Path, file: Path) -> bool:
    hidden = any(part.startswith(".") for part in inner.parts)
    return file.suffix.lower() in EXTENSIONS and not hidden and file.is_file()


def predict(run: Trained, paths: Sequence[Path], taps: Sequence[str]) -> Answers:
    """Run the network on every readable picture; `taps` names layers whose outputs are wanted too."""
    model, wanted = run.setup.network.model, (*taps, "predictions")

    @jax.jit
    def outputs(parameters: dict[str, jax.Array], pictures: jax.Array) -> dict[str, jax.Array]:
        return forward(model, nest(parameters), pictures, taps=wanted).taps

    unreadable: list[str] = []
    kept: list[str] = []
    parts: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in wanted}
    for names, pictures in _batches(paths, run.setup.resize, unreadable):
        for name, value in outputs(run.parameters, pictures).items():
            parts[name].append(np.asarray(value, np.float32)[: len(names)])
        kept += names
    if not kept:
        raise UserError("none of the pictures can be read: " + "; ".join(unreadable[:10]))
    arrays = {name: np.concatenate(values) for name, values in parts.items()}
    classes = run.setup.manifest.classes
    return Answers(tuple(kept), arrays["predictions"], {t: arrays[t] for t in taps}, classes, tuple(unreadable))


def _batches(
    paths: Sequence[Path], resize: Resize, unreadable: list[str]
) -> Iterator[tuple[list[str], npt.NDArray[np.uint8]]]:
    """(paths, uint8 [size, height, width, 3]) of one size, so that the step is compiled once."""
    size = min(BATCH, len(paths))

    def read(path: Path) -> npt.NDArray[np.uint8] | str:
        try:
            return decode(path, resize)
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor() as pool:
        for first in range(0, len(paths), size):
            names: list[str] = []
            pictures = np.zeros((size, resize.height, resize.width, 3), np.uint8)
            some = paths[first : first + size]
            for path, found in zip(some, pool.map(read, some), strict=True):
                if isinstance(found, str):
                    unreadable.append(found)
                else:
                    pictures[len(names)] = found
                    names.append(str(path))
            if names:
                yield names, pictures


def write_csv(file: Path, answers: Answers) -> None:
    """path, prediction, confidence, and one probability column a class."""
    with file.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("path", "prediction", "confidence", *answers.classes))
        for row, path in enumerate(answers.paths):
            (label, confidence), *_ = answers.top(row, 1)
            writer.writerow((path, label, f"{confidence:.6f}", *(f"{p:.6f}" for p in answers.probabilities[row])))


def write_json(file: Path, answers: Answers, k: int) -> None:
    """A list of {path, top: [{label, probability}]}, the k best classes each."""
    rows = [
        {"path": path, "top": [{"label": label, "probability": p} for label, p in answers.top(row, k)]}
        for row, path in enumerate(answers.paths)
    ]
    file.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_npz(file: Path, answers: Answers) -> None:
    """'path' and one array named after each tapped layer."""
    arrays: dict[str, npt.NDArray[np.generic]] = {"path": np.array(answers.paths), **answers.taps}
    with file.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)


def write(answers: Answers, k: int, csv_file: Path | None, json_file: Path | None, npz_file: Path | None) -> None:
    """Write the files that are asked for."""
    try:
        if csv_file:
            write_csv(csv_file, answers)
        if json_file:
            write_json(json_file, answers, k)
        if npz_file:
            write_npz(npz_file, answers)
    except OSError as error:
        raise UserError(f"cannot write {error.filename} ({error.strerror}); choose another file") from error


def answer_table(answers: Answers, k: int) -> Table:
    """A row a picture: its file and the k best classes."""
    cells = [
        (Path(path).name, *(f"{label} {p:.1%}" for label, p in answers.top(row, k)))
        for row, path in enumerate(answers.paths)
    ]
    places = min(k, len(answers.classes))
    return table("Predictions", ("picture", *(f"{place}." for place in range(1, places + 1))), cells)
