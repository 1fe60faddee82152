"""EfficientNet's Normalization layer in Keras' files: seven numbers that are preprocessing here, not parameters."""

import re
from pathlib import Path

import numpy as np

from flaxtl.errors import UserError
from flaxtl.weights.tree import Layers, Stored

KNOWN = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Its mean and its "variance" in every published file: ImageNet's, 0..1, the second in truth the standard deviation.

Keras' model divides by the root of it twice, which mends that (tensorflow/tensorflow#49930).
"""

_ROUNDING = 2**-8  # of bfloat16, the coarsest type that a file may hold

_NAME = re.compile(r"normalization(_\d+)?")  # Keras made the name up, and numbers it within the session


def without(layers: Layers, source: Path) -> Layers:
    """`layers` but for Normalization, whose arrays are the mean, the variance and a count of examples.

    Raises UserError, which names the file `source`, if they are not those of the published files.
    """
    for layer in filter(_NAME.fullmatch, layers):
        if len(layers[layer]) != 3 or not all(map(_holds, layers[layer], KNOWN)):
            mean, variance = map(list, KNOWN)
            raise UserError(
                f"{source} was trained on pictures normalised in another way: its layer {layer!r} does not hold "
                f"{mean} and {variance}; take weights that were trained from Keras' published file"
            )
    return {layer: arrays for layer, arrays in layers.items() if not _NAME.fullmatch(layer)}


def _holds(stored: Stored, known: tuple[float, ...]) -> bool:
    values = stored.values
    return values.shape == (len(known),) and np.allclose(values.astype(np.float64), known, rtol=_ROUNDING, atol=0)
