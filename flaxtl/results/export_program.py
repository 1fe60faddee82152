"""A network as a program: StableHLO, as jax.export writes it, for any batch on any platform."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from flaxtl.data.decode import Resize
from flaxtl.files import whole
from flaxtl.models.classifier import Classifier, Parameters, forward

Writer = Callable[[Path, Classifier, Parameters, Resize, str], None]
"""Writes a network with its parameters and the size of its pictures to a file, with model.json where there is room."""

PLATFORMS = ("cpu", "cuda", "tpu")

BATCH = "batch"
"""Name of the size of the batch, which whoever runs the program chooses."""


def probabilities_of(model: Classifier, parameters: Parameters, pictures: jax.Array) -> jax.Array:
    """uint8 [batch, height, width, 3], RGB -> float32 probabilities [batch, classes]; preprocessing is inside."""
    return forward(model, parameters, pictures).output


def pictures_of(resize: Resize) -> jax.ShapeDtypeStruct:
    """A batch of any number of the run's pictures."""
    (batch,) = export.symbolic_shape(BATCH)
    return jax.ShapeDtypeStruct((batch, resize.height, resize.width, 3), jnp.uint8)


def write(file: Path, model: Classifier, parameters: Parameters, resize: Resize, card: str) -> None:
    """Write the network with its parameters to `file`, for `jax.export.deserialize`.

    `card` has no place in it. What deserialize returns also hands out the StableHLO itself (`mlir_module()`).
    """
    held = jax.tree.map(np.asarray, parameters)  # arrays on a mesh would bind the program to that many devices
    program = jax.jit(lambda pictures: probabilities_of(model, held, pictures))
    with whole(file, "wb") as stream:
        stream.write(export.export(program, platforms=PLATFORMS)(pictures_of(resize)).serialize())
