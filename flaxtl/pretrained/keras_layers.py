"""Layers in Keras files that need care: those with automatic names, ConvNeXt's last norm, and Normalization.

A layer that was built without a name is named after its class and numbered within the session: `conv2d`, `conv2d_1`,
... The numbers in a file depend on what else was built before, so only their order counts.
"""

import re
from collections.abc import Collection, Container, Iterable
from pathlib import Path

import numpy as np

from flaxtl.errors import UserError
from flaxtl.pretrained.merge import StoredLayers, StoredTensor

_CLASSES = {
    "conv2d": "conv2d",
    "convolution2d": "conv2d",  # Keras 1
    "batch_normalization": "batch_normalization",
    "batchnormalization": "batch_normalization",  # Keras 1
    "batch_normalization_v1": "batch_normalization",  # TensorFlow 1.13 to 1.15
    "batch_normalization_v2": "batch_normalization",
    "layer_normalization": "layer_normalization",
    "depthwise_conv2d": "depthwise_conv2d",
    "separable_conv2d": "separable_conv2d",
    "separableconvolution2d": "separable_conv2d",  # Keras 1
    "dense": "dense",
}
"""Name of a layer class in files of any version -> its name in Keras 3."""

_AUTOMATIC_NAME = re.compile(rf"(?P<kind>{'|'.join(_CLASSES)})(_(?P<number>\d+))?")


def is_automatic_name(layer: str) -> bool:
    """Return whether Keras may have generated the name."""
    return _AUTOMATIC_NAME.fullmatch(layer) is not None


def rename_automatic_layers(layers: StoredLayers, orders: Iterable[Collection[str]], source: Path) -> StoredLayers:
    """Give layers with automatic names the names that they have in a fresh Keras session.

    A layer is identified by its rank among the numbers of its class, which is the order of construction, and by its
    position in the file, which is the order of the graph. Neither alone is proof where many layers have the same shape.
    If no order has as many layers of a class as the file, their names are kept: the file cannot fit, and
    `merge_params` reports it.

    Args:
      layers: the content of the file, in its order.
      orders: layers that the file may hold, in Keras' order: those of the whole model, and those of a part of it.
      source: the file's name for error messages.

    Raises:
      UserError: rank and position disagree.
    """
    orders = list(orders)
    new_names: dict[str, str] = {}
    for kind in sorted(set(_CLASSES.values())):
        stored = _layers_of_class(kind, layers)
        candidates = [_layers_of_class(kind, order) for order in orders]
        expected = next((names for names in candidates if len(names) == len(stored)), None)
        if expected is not None:
            new_names |= _match_layers(stored, expected, source)
    return {new_names.get(layer, layer): tensors for layer, tensors in layers.items()}


def _match_layers(stored: list[str], expected: list[str], source: Path) -> dict[str, str]:
    by_position = dict(zip(stored, expected, strict=True))
    by_rank = dict(zip(sorted(stored, key=_number), sorted(expected, key=_number), strict=True))
    for layer in stored:
        if by_position[layer] != by_rank[layer]:
            # A partly frozen nested model does this: legacy files list trainable weights first.
            raise UserError(
                f"{source} is ambiguous: layer {layer!r} is {by_rank[layer]!r} by its number, but "
                f"{by_position[layer]!r} by its position. Load the file with Keras, set model.trainable = True and "
                "save it again."
            )
    return by_position


def _layers_of_class(kind: str, layers: Iterable[str]) -> list[str]:
    return [
        layer for layer in layers if (match := _AUTOMATIC_NAME.fullmatch(layer)) and _CLASSES[match["kind"]] == kind
    ]


def _number(layer: str) -> int:
    match = _AUTOMATIC_NAME.fullmatch(layer)
    return int(match["number"] or 0) if match else 0


def rename_final_norm(layers: StoredLayers, expected: Container[str]) -> StoredLayers:
    """Let the base of a ConvNeXt read its last layer norm from a file with the top.

    The authors' networks have one: after the pool, where Keras calls it NAME_head_layernorm. Keras' network without the
    top has it before any pool, as its only layer without a name.
    """
    if "layer_normalization" not in expected or "layer_normalization" in layers:
        return layers
    return {
        "layer_normalization" if layer.endswith("_head_layernorm") else layer: tensors
        for layer, tensors in layers.items()
    }


PUBLISHED_NORMALIZATION = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and "variance" of the Normalization layer in every published file: ImageNet's, for colors in 0..1.

The second is really the standard deviation. Keras' model divides by its root twice, which compensates
(tensorflow/tensorflow#49930).
"""

_RELATIVE_TOLERANCE = 2**-8  # of bfloat16, the coarsest dtype that a file may have

_NORMALIZATION_NAME = re.compile(r"(.+/)?normalization(_\d+)?")
"""A name that Keras generated, or the path of such a layer's group where a file has no names (see `keras_v3`)."""


def drop_normalization(layers: StoredLayers, source: Path) -> StoredLayers:
    """Remove Normalization layers: here, preprocessing belongs to the model and not to its weights.

    Raises:
      UserError: such a layer does not hold the values of the published files. `source` names the file.
    """
    for layer in filter(_NORMALIZATION_NAME.fullmatch, layers):
        if not _is_published_normalization(layers[layer]):
            mean, variance = map(list, PUBLISHED_NORMALIZATION)
            raise UserError(
                f"{source} was trained with another preprocessing: its layer {layer!r} does not hold {mean} and "
                f"{variance}. Use weights that were trained from Keras' published file."
            )
    return {layer: tensors for layer, tensors in layers.items() if not _NORMALIZATION_NAME.fullmatch(layer)}


def _is_published_normalization(tensors: list[StoredTensor]) -> bool:
    return len(tensors) == 3 and all(map(_is_close, tensors, PUBLISHED_NORMALIZATION))  # mean, variance, count


def _is_close(tensor: StoredTensor, expected: tuple[float, ...]) -> bool:
    values = tensor.values
    return values.shape == (len(expected),) and np.allclose(
        values.astype(np.float64), expected, rtol=_RELATIVE_TOLERANCE, atol=0
    )
