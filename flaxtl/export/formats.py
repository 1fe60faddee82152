"""A network as a program: StableHLO, as jax.export writes it, for any batch on any platform."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import numpy.typing as npt
from jax import export
from msgspec import Struct

from flaxtl.data.decode import Resize
from flaxtl.errors import UserError
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


class ExportedHead(Struct, frozen=True):
    """Settings of the head in model.json."""

    num_classes: int
    pooling: str
    units: tuple[int, ...]


class ExportedResize(Struct, frozen=True):
    """Size of the input images in model.json."""

    height: int
    width: int


class ExportedModel(Struct, frozen=True):
    """What model.json says about the model that the weights belong to."""

    architecture: str
    dtype: str
    head: ExportedHead
    resize: ExportedResize
    stop: str | None = None


def write_safetensors_export(file: Path, model: Classifier, parameters: Params, resize: Resize, card: str) -> None:
    """Write every parameter in float32 under '<layer>/<leaf>', with `card` as the metadata 'flaxtl'."""
    layers = {name: leaves for section in parameters.values() for name, leaves in section.items()}
    safetensors_io.write_safetensors(file, jax.tree.map(np.asarray, layers), {"flaxtl": card})


def read_safetensors_export(folder: Path) -> tuple[Classifier, Params]:
    """The network of an exported folder, and its parameters.

    Raises UserError where model.json is not one that an export wrote, or the weights do not fit the network it tells.
    """
    exported = _read_model_json(folder / "model.json")
    head = exported.head
    if exported.dtype not in DTYPES:
        raise UserError(f"{folder / 'model.json'} has unknown dtype {exported.dtype!r}. Export the run again.")
    model = Classifier(
        registry.get_spec(exported.architecture),
        Head(head.num_classes, head.pooling, head.units),
        exported.stop,
        DTYPES[exported.dtype],
    )
    shapes = classifier.param_shapes(model, exported.resize.height, exported.resize.width)
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


def _read_model_json(file: Path) -> ExportedModel:
    try:
        return msgspec.json.decode(file.read_bytes(), type=ExportedModel)
    except (OSError, ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise UserError(f"{file} is not the model.json of an export: {error}. Export the run again.") from None
