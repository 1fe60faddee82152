"""A network's parameters as safetensors, and the network that they are put back into."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from flaxtl.data.decode import Resize
from flaxtl.errors import UserError
from flaxtl.models import catalog, classifier
from flaxtl.models.classifier import Classifier, Parameters
from flaxtl.models.head import Head
from flaxtl.results.export_program import probabilities_of
from flaxtl.results.shape import Record, fault, is_count, is_text
from flaxtl.train.setup import DTYPES
from flaxtl.weights import load, safetensors_file

FILE = "model.safetensors"

_NETWORK = Record(
    {
        "architecture": is_text,
        "dtype": is_text,
        "head": Record({"classes": is_count, "pooling": is_text, "units": [is_count]}),
        "resize": Record({"height": is_count, "width": is_count}),
    }
)
"""Of model.json what the network is built from; stop, which may be null, beside it."""


def write(file: Path, model: Classifier, parameters: Parameters, resize: Resize, card: str) -> None:
    """Write every parameter in float32 under '<layer>/<leaf>', with `card` as the metadata 'flaxtl'."""
    layers = {name: leaves for section in parameters.values() for name, leaves in section.items()}
    safetensors_file.write(file, jax.tree.map(np.asarray, layers), {"flaxtl": card})


def read(folder: Path) -> tuple[Classifier, Parameters]:
    """The network of an exported folder, and its parameters.

    Raises UserError where model.json is not one that an export wrote, or the weights do not fit the network it tells.
    """
    card = _card(folder / "model.json")
    head = card["head"]
    if card["dtype"] not in DTYPES:
        raise UserError(f"{folder / 'model.json'} tells of a dtype {card['dtype']!r}; export the run again")
    model = Classifier(
        catalog.find(card["architecture"]),
        Head(head["classes"], head["pooling"], tuple(head["units"])),
        card.get("stop"),
        DTYPES[card["dtype"]],
    )
    shapes = classifier.shapes(model, card["resize"]["height"], card["resize"]["width"])
    expected = {name: leaves for section in shapes.values() for name, leaves in section.items()}
    tree = load.load(folder / FILE, expected).tree
    return model, {
        section: {name: jax.tree.map(jnp.asarray, tree[name]) for name in layers} for section, layers in shapes.items()
    }


def network(folder: Path) -> Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]:
    """The network of an exported folder, as its predict.py runs it."""
    model, parameters = read(folder)
    compiled = jax.jit(lambda parameters, pictures: probabilities_of(model, parameters, pictures))
    return lambda pictures: np.asarray(compiled(parameters, pictures))


def _card(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({error}); export the run again") from None
    if wrong := fault(found, _NETWORK):
        raise UserError(f"{file} is not what an export wrote: {wrong}; export the run again")
    return found
