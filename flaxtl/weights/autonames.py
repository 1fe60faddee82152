"""Layers that Keras named itself: which is which when a file counts them from elsewhere.

A layer that its network gave no name is called after its class and numbered within the session: `conv2d`, `conv2d_1`,
... The numbers in a file depend on what else was built before, so only their order counts.
"""

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from flaxtl.errors import UserError
from flaxtl.weights.tree import Layers

_CLASSES = {
    "conv2d": "conv2d",
    "convolution2d": "conv2d",  # Keras 1
    "batch_normalization": "batch_normalization",
    "batchnormalization": "batch_normalization",  # Keras 1
    "batch_normalization_v1": "batch_normalization",  # TensorFlow 1.13 to 1.15
    "batch_normalization_v2": "batch_normalization",
    "depthwise_conv2d": "depthwise_conv2d",
    "separable_conv2d": "separable_conv2d",
    "separableconvolution2d": "separable_conv2d",  # Keras 1
    "dense": "dense",
}
"""What a class is called in files of every vintage -> what it is called today."""

_NAME = re.compile(rf"(?P<kind>{'|'.join(_CLASSES)})(_(?P<number>\d+))?")


def is_automatic(layer: str) -> bool:
    """Whether Keras may have made up the name."""
    return _NAME.fullmatch(layer) is not None


def rename(layers: Layers, orders: Iterable[Collection[str]], source: Path) -> Layers:
    """`layers`, in the order of their file, under the names that they have in a fresh session.

    `orders` tells which layers the file may hold, in Keras' order: those of the whole network, those of a part of it.
    A layer of a class is the one of the same rank by number, which is the order in which layers were made, and the one
    in the same place, which is the order of the graph. Neither alone is proof where many layers have the same shape.
    A class of which the file holds any other number of layers keeps its names: it cannot fit, and merge says so.
    Raises UserError, which names the file `source`, where rank and place do not agree.
    """
    orders = list(orders)
    names: dict[str, str] = {}
    for kind in sorted(set(_CLASSES.values())):
        stored = _of(kind, layers)
        fitting = [wanted for wanted in (_of(kind, order) for order in orders) if len(wanted) == len(stored)]
        if fitting:
            names |= _match(stored, fitting[0], source)
    return {names.get(layer, layer): arrays for layer, arrays in layers.items()}


def _match(stored: list[str], wanted: list[str], source: Path) -> dict[str, str]:
    place = dict(zip(stored, wanted, strict=True))
    rank = dict(zip(sorted(stored, key=_number), sorted(wanted, key=_number), strict=True))
    for layer in stored:
        if place[layer] != rank[layer]:
            # A nested model, partly frozen, does this: legacy files list what learns before what does not.
            raise UserError(
                f"{source} does not tell which of its layers is which: {layer!r} is {rank[layer]!r} by its number and "
                f"{place[layer]!r} by its place; load the file with Keras, set model.trainable = True and save it again"
            )
    return place


def _of(kind: str, layers: Iterable[str]) -> list[str]:
    """The layers of that class whose names Keras may have made up."""
    return [layer for layer in layers if (match := _NAME.fullmatch(layer)) and _CLASSES[match["kind"]] == kind]


def _number(layer: str) -> int:
    match = _NAME.fullmatch(layer)
    return int(match["number"] or 0) if match else 0
