"""Export formats that jax writes: StableHLO programs and safetensors weights."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import numpy.typing as npt
from jax import export

from flaxtl.data.decode import Resize
from flaxtl.errors import UserError
from flaxtl.evaluation.predictor import Predictor
from flaxtl.export.metadata import METADATA_FILE, read_metadata
from flaxtl.fileio import atomic_write
from flaxtl.models import classifier, registry
from flaxtl.models.classifier import Classifier, Params, forward
from flaxtl.models.head import Head
from flaxtl.pretrained import loader, safetensors_io
from flaxtl.train.setup import ARITHMETIC, DTYPES

WriteModel = Callable[[Path, Predictor, str], None]
"""Writes the model and its parameters to a file, with the text of model.json if the format can store it."""

PLATFORMS = ("cpu", "cuda", "tpu")
BATCH_DIM = "batch"
WEIGHTS_FILE = "model.safetensors"


def probabilities(model: Classifier, params: Params, images: jax.Array) -> jax.Array:
    """uint8 RGB [batch, height, width, 3] -> float32 probabilities [batch, classes]; preprocessing is included."""
    return forward(model, params, images).output


def image_spec(resize: Resize) -> jax.ShapeDtypeStruct:
    """Return the shape and dtype of a batch of resized images, with a symbolic batch size."""
    (batch,) = export.symbolic_shape(BATCH_DIM)
    return jax.ShapeDtypeStruct((batch, resize.height, resize.width, 3), jnp.uint8)


def write_stablehlo(file: Path, predictor: Predictor, metadata: str) -> None:
    """Write a program with its weights for `jax.export.deserialize`; the format cannot store metadata.

    The deserialized object also gives the StableHLO module (`mlir_module()`).
    """
    params = jax.tree.map(np.asarray, predictor.params)  # arrays on a mesh would fix the number of devices
    program = jax.jit(lambda images: probabilities(predictor.model, params, images))
    exported = export.export(program, platforms=PLATFORMS)(image_spec(predictor.resize))
    with atomic_write(file, "wb") as stream:
        stream.write(exported.serialize())


def write_safetensors_export(file: Path, predictor: Predictor, metadata: str) -> None:
    """Write all float32 parameters as '<layer>/<name>', and model.json as the metadata entry 'flaxtl'."""
    layers = {name: leaves for section in predictor.params.values() for name, leaves in section.items()}
    safetensors_io.write_safetensors(file, jax.tree.map(np.asarray, layers), {"flaxtl": metadata})


def read_safetensors_export(folder: Path) -> tuple[Classifier, Params]:
    """Return the model of an exported folder and its parameters.

    Raises UserError if model.json is invalid, or if the weights do not match it.
    """
    metadata = read_metadata(folder)
    for key, known in ARITHMETIC.items():
        if (value := getattr(metadata, key)) not in known:
            raise UserError(f"Unknown {key} {value!r} in {folder / METADATA_FILE}. Export the run again.")
    head = metadata.head
    model = Classifier(
        registry.get_spec(metadata.architecture),
        Head(**msgspec.structs.asdict(head) | {"units": tuple(head.units)}),
        metadata.output_layer,
        DTYPES[metadata.dtype],
        metadata.precision,
    )
    shapes = classifier.param_shapes(model, metadata.resize.height, metadata.resize.width)
    expected = {name: leaves for section in shapes.values() for name, leaves in section.items()}
    weights = loader.load_weights(folder / WEIGHTS_FILE, expected).params
    return model, {
        section: {name: jax.tree.map(jnp.asarray, weights[name]) for name in layers}
        for section, layers in shapes.items()
    }


def load_exported_model(folder: Path) -> Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]:
    """Return the model of a safetensors export as a function from images to probabilities; used by its predict.py."""
    model, params = read_safetensors_export(folder)
    run_model = jax.jit(probabilities, static_argnums=0)
    return lambda images: np.asarray(run_model(model, params, images))
