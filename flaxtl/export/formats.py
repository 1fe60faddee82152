"""A network as a program: StableHLO, as jax.export writes it, for any batch on any platform."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import export

from flaxtl.data.decode import Resize
from flaxtl.errors import UserError
from flaxtl.evaluation.run_files import Record, is_count, is_text, shape_fault
from flaxtl.fileio import atomic_write
from flaxtl.models import classifier, registry
from flaxtl.models.classifier import Classifier, Params, forward
from flaxtl.models.head import Head
from flaxtl.pretrained import loader, safetensors_io
from flaxtl.train.setup import DTYPES

Writer = Callable[[Path, Classifier, Params, Resize, str], None]
"""Writes a network with its parameters and the size of its images to a file, with model.json where there is room."""

PLATFORMS = ("cpu", "cuda", "tpu")

BATCH = "batch"
"""Name of the size of the batch, which whoever runs the program chooses."""


def probability_fn(model: Classifier, parameters: Params, images: jax.Array) -> jax.Array:
    """uint8 [batch, height, width, 3], RGB -> float32 probabilities [batch, classes]; preprocessing is inside."""
    return forward(model, parameters, images).output


def image_spec(resize: Resize) -> jax.ShapeDtypeStruct:
    """A batch of any number of the run's images."""
    (batch,) = export.symbolic_shape(BATCH)
    return jax.ShapeDtypeStruct((batch, resize.height, resize.width, 3), jnp.uint8)


def write_stablehlo(file: Path, model: Classifier, parameters: Params, resize: Resize, card: str) -> None:
    """Write the network with its parameters to `file`, for `jax.export.deserialize`.

    `card` has no place in it. What deserialize returns also hands out the StableHLO itself (`mlir_module()`).
    """
    held = jax.tree.map(np.asarray, parameters)  # arrays on a mesh would bind the program to that many devices
    program = jax.jit(lambda images: probability_fn(model, held, images))
    with atomic_write(file, "wb") as stream:
        stream.write(export.export(program, platforms=PLATFORMS)(image_spec(resize)).serialize())


WEIGHTS_NAME = "model.safetensors"

_NETWORK = Record(
    {
        "architecture": is_text,
        "dtype": is_text,
        "head": Record({"num_classes": is_count, "pooling": is_text, "units": [is_count]}),
        "resize": Record({"height": is_count, "width": is_count}),
    }
)
"""Of model.json what the network is built from; stop, which may be null, beside it."""


def write_safetensors_export(file: Path, model: Classifier, parameters: Params, resize: Resize, card: str) -> None:
    """Write every parameter in float32 under '<layer>/<leaf>', with `card` as the metadata 'flaxtl'."""
    layers = {name: leaves for section in parameters.values() for name, leaves in section.items()}
    safetensors_io.write_safetensors(file, jax.tree.map(np.asarray, layers), {"flaxtl": card})


def read_safetensors_export(folder: Path) -> tuple[Classifier, Params]:
    """The network of an exported folder, and its parameters.

    Raises UserError where model.json is not one that an export wrote, or the weights do not fit the network it tells.
    """
    card = _card(folder / "model.json")
    head = card["head"]
    if card["dtype"] not in DTYPES:
        raise UserError(f"{folder / 'model.json'} tells of a dtype {card['dtype']!r}; export the run again")
    model = Classifier(
        registry.get_spec(card["architecture"]),
        Head(head["num_classes"], head["pooling"], tuple(head["units"])),
        card.get("stop"),
        DTYPES[card["dtype"]],
    )
    shapes = classifier.param_shapes(model, card["resize"]["height"], card["resize"]["width"])
    expected = {name: leaves for section in shapes.values() for name, leaves in section.items()}
    tree = loader.load_weights(folder / WEIGHTS_NAME, expected).params
    return model, {
        section: {name: jax.tree.map(jnp.asarray, tree[name]) for name in layers} for section, layers in shapes.items()
    }


def load_exported_model(folder: Path) -> Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]:
    """The network of an exported folder, as its predict.py runs it."""
    model, parameters = read_safetensors_export(folder)
    compiled = jax.jit(lambda parameters, images: probability_fn(model, parameters, images))
    return lambda images: np.asarray(compiled(parameters, images))


def _card(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({error}); export the run again") from None
    if wrong := shape_fault(found, _NETWORK):
        raise UserError(f"{file} is not what an export wrote: {wrong}; export the run again")
    return found
