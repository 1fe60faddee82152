"""The heat maps of a report: Grad-CAM of a run's worst errors and of a few right answers, made once and kept."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
import numpy.typing as npt

from flaxtl.data.decode import decode
from flaxtl.errors import UserError
from flaxtl.models.classifier import Parameters
from flaxtl.models.gradcam import checked, default_layer, heat_maps
from flaxtl.models.trace import Layer
from flaxtl.results import gallery, gradcam_file, run_files
from flaxtl.results.gradcam_file import Heat, Kept
from flaxtl.results.run_files import Run
from flaxtl.results.trained import Trained
from flaxtl.train.groups import nest

ERRORS, RIGHT_ANSWERS = 12, 6
"""Pictures that are shown with heat maps, at most."""

PIXELS = 8 * 224 * 224
"""Of the pictures that pass the network together, at most: fewer than in training, which needs more memory too."""

Pair = tuple[str, str]
"""The class that was answered, and that of the label; the same where the answer is right."""


def ensure(workdir: Path, opened: Callable[[], Trained], say: Callable[[str], None], layer: str | None = None) -> None:
    """Have the heat maps of the run in `workdir` kept there: at `layer`, or unless told at any.

    Where they are, and before there are predictions, nothing is done; else the network that is `opened` makes them.
    Where that cannot be, because checkpoints or pictures are gone, a sentence is said, for a report does without;
    if `layer` is given, it is a UserError, and so is a layer that the network does not have.
    """
    wanted, kept = pairs(run_files.read(workdir)), gradcam_file.read(workdir)
    if (
        kept
        and layer in (None, kept.layer)
        and all(set(pair) <= kept.maps.get(path, {}).keys() for path, pair in wanted.items())
    ):
        return
    try:
        if wanted:
            gradcam_file.write(workdir, compute(opened(), wanted, layer or (kept.layer if kept else None)))
        elif layer:
            raise UserError(f"the run in {workdir} has no predictions to explain yet; leave --gradcam out until it has")
    except UserError as error:
        if layer:
            raise
        say(f"the report has no heat maps: {error}")


def pairs(run: Run) -> dict[str, Pair]:
    """The pictures that are shown with heat maps, errors first, and the classes that are asked about; by path."""
    if not run.predictions or run.judged not in run.predictions.splits:
        return {}
    judged = run.predictions.of_split(run.judged)
    rows = [*gallery.error_rows(judged, ERRORS), *gallery.right_rows(judged, RIGHT_ANSWERS)]
    return {
        judged.paths[row]: (judged.classes[judged.predicted[row]], judged.classes[judged.labels[row]]) for row in rows
    }


def compute(run: Trained, wanted: Mapping[str, Pair], layer: str | None) -> Kept:
    """The heat maps of the classes in `wanted` over its pictures, those that cannot be read left out.

    `layer` is the name of any layer that has places; None takes the network's default (models/gradcam.py). Raises
    UserError for another name, and where no picture can be read.
    """
    setup = run.setup
    layers = setup.network.layers
    at = checked(layers, layer or default_layer(layers))
    pictures = _readable(run, list(wanted))
    if not pictures:
        raise UserError(
            f"none of its {len(wanted)} pictures can be read; bring them back to where manifest.csv has them"
        )
    paths = list(pictures)
    indices = {name: index for index, name in enumerate(setup.manifest.classes)}
    classes = np.array([[indices[name] for name in wanted[path]] for path in paths], np.int32)
    found = _in_batches(run, np.stack(list(pictures.values())), classes, at)
    maps = {path: dict(zip(wanted[path], heats, strict=True)) for path, heats in zip(paths, found, strict=True)}
    rows, columns, _ = at.shape
    return Kept(at.name, rows, columns, setup.resize, maps)


def _readable(run: Trained, paths: Sequence[str]) -> dict[str, npt.NDArray[np.uint8]]:
    """Path -> uint8 [height, width, 3] as the network saw it, of the pictures that can be read."""
    found = {}
    for path in paths:
        try:
            found[path] = decode(Path(path), run.setup.resize)
        except UserError:
            continue
    return found


def _in_batches(run: Trained, pictures: npt.NDArray[np.uint8], classes: npt.NDArray[np.int32], at: Layer) -> Heat:
    """uint8 [n, 2, rows, columns]; batches are of one size, the last one filled up, so that one program serves all."""
    n, height, width, _ = pictures.shape
    batches = math.ceil(n / max(1, PIXELS // (height * width)))
    size = math.ceil(n / batches)
    filled = [np.resize(array, (batches * size, *array.shape[1:])) for array in (pictures, classes)]
    # Of a run of many processes only this one is left: parameters go to its own device.
    parameters = jax.device_put(jax.device_get(nest(run.parameters)))

    @jax.jit
    def maps(parameters: Parameters, pictures: jax.Array, classes: jax.Array) -> jax.Array:
        return heat_maps(run.setup.network.model, parameters, pictures, classes, at)

    parts = [
        np.asarray(maps(parameters, *(array[first : first + size] for array in filled)))
        for first in range(0, batches * size, size)
    ]
    return (255 * np.concatenate(parts)[:n]).round().astype(np.uint8)
