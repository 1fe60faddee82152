"""`flaxtl predict`: classes, and the outputs of layers, for picture files that carry no label."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from glob import glob, has_magic
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import numpy.typing as npt

from flaxtl.data.decode import EXTENSIONS, Resize, decode
from flaxtl.errors import UserError
from flaxtl.models.classifier import Classifier, Parameters, forward
from flaxtl.results.answers import Answers
from flaxtl.results.trained import Trained
from flaxtl.train.groups import nest

PIXELS = 32 * 224 * 224
"""Of all pictures that pass the network together, at most: many small ones or few large ones."""


class Predictor(NamedTuple):
    """A network ready for pictures of any size.

    `classes` are what its layer 'predictions' tells, with their WordNet ids where they are ImageNet's; without classes
    it runs no further than layer `stop`.
    """

    model: Classifier
    parameters: Parameters
    resize: Resize
    classes: tuple[str, ...]
    wordnet_ids: tuple[str, ...] = ()
    stop: str | None = None


def of_run(run: Trained) -> Predictor:
    """A trained run's network."""
    setup = run.setup
    return Predictor(setup.network.model, nest(run.parameters), setup.resize, setup.manifest.classes)


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


def predict(predictor: Predictor, paths: Sequence[Path], taps: Sequence[str]) -> Answers:
    """Run the network on every readable picture; `taps` names layers whose outputs are wanted too."""
    wanted = tuple(dict.fromkeys((*taps, *(["predictions"] if predictor.classes else []))))

    @jax.jit
    def outputs(parameters: Parameters, pictures: jax.Array) -> dict[str, jax.Array]:
        return forward(predictor.model, parameters, pictures, taps=wanted, stop=predictor.stop).taps

    unreadable: list[str] = []
    kept: list[str] = []
    parts: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in wanted}
    for names, pictures in _batches(paths, predictor.resize, unreadable):
        for name, value in outputs(predictor.parameters, pictures).items():
            parts[name].append(np.asarray(value, np.float32)[: len(names)])
        kept += names
    if not kept:
        raise UserError("none of the pictures can be read: " + "; ".join(unreadable[:10]))
    arrays = {name: np.concatenate(values) for name, values in parts.items()}
    probabilities = arrays["predictions"] if predictor.classes else np.zeros((len(kept), 0), np.float32)
    return Answers(
        paths=tuple(kept),
        probabilities=probabilities,
        taps={name: arrays[name] for name in taps},
        classes=predictor.classes,
        wordnet_ids=predictor.wordnet_ids,
        unreadable=tuple(unreadable),
    )


def _batches(
    paths: Sequence[Path], resize: Resize, unreadable: list[str]
) -> Iterator[tuple[list[str], npt.NDArray[np.uint8]]]:
    """(paths, uint8 [size, height, width, 3]) of one size, so that the step is compiled once."""
    size = min(max(1, PIXELS // (resize.height * resize.width)), len(paths))

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
