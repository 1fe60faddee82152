"""Layers that Keras named itself: which is which when a file counts them from elsewhere.

A layer that its network gave no name is called after its class and numbered within the session: `conv2d`, `conv2d_1`,
... The numbers in a file depend on what else was built before, so only their order counts.
"""

import re
from collections.abc import Collection, Iterable
from pathlib import Path

import h5py
import numpy as np

from flaxtl.errors import UserError
from flaxtl.pretrained.hdf5 import SafeFile
from flaxtl.pretrained.merge import StoredLayers, StoredTensor

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

_AUTOMATIC_NAME = re.compile(rf"(?P<kind>{'|'.join(_CLASSES)})(_(?P<number>\d+))?")


def is_automatic_name(layer: str) -> bool:
    """Whether Keras may have made up the name."""
    return _AUTOMATIC_NAME.fullmatch(layer) is not None


def rename_automatic_layers(layers: StoredLayers, orders: Iterable[Collection[str]], source: Path) -> StoredLayers:
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
            names |= _match_automatic(stored, fitting[0], source)
    return {names.get(layer, layer): arrays for layer, arrays in layers.items()}


def _match_automatic(stored: list[str], wanted: list[str], source: Path) -> dict[str, str]:
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
    return [
        layer for layer in layers if (match := _AUTOMATIC_NAME.fullmatch(layer)) and _CLASSES[match["kind"]] == kind
    ]


def _number(layer: str) -> int:
    match = _AUTOMATIC_NAME.fullmatch(layer)
    return int(match["number"] or 0) if match else 0


KNOWN_NORMALIZATIONS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Its mean and its "variance" in every published file: ImageNet's, 0..1, the second in truth the standard deviation.

Keras' model divides by the root of it twice, which mends that (tensorflow/tensorflow#49930).
"""

_ROUNDING = 2**-8  # of bfloat16, the coarsest type that a file may hold

_NORMALIZATION_NAME = re.compile(r"normalization(_\d+)?")  # Keras made the name up, and numbers it within the session


def without_normalization(layers: StoredLayers, source: Path) -> StoredLayers:
    """`layers` but for Normalization, whose arrays are the mean, the variance and a count of examples.

    Raises UserError, which names the file `source`, if they are not those of the published files.
    """
    for layer in filter(_NORMALIZATION_NAME.fullmatch, layers):
        if len(layers[layer]) != 3 or not all(map(_holds, layers[layer], KNOWN_NORMALIZATIONS)):
            mean, variance = map(list, KNOWN_NORMALIZATIONS)
            raise UserError(
                f"{source} was trained on images normalised in another way: its layer {layer!r} does not hold "
                f"{mean} and {variance}; take weights that were trained from Keras' published file"
            )
    return {layer: arrays for layer, arrays in layers.items() if not _NORMALIZATION_NAME.fullmatch(layer)}


def _holds(stored: StoredTensor, known: tuple[float, ...]) -> bool:
    values = stored.values
    return values.shape == (len(known),) and np.allclose(values.astype(np.float64), known, rtol=_ROUNDING, atol=0)


# Keras 1 wrote `block1_conv1_W_1:0` where Keras 2 writes `block1_conv1/kernel:0`.
_KERAS_1_NAME = re.compile(r"(?P<layer>.+)_[Wb](_\d+)?(:0)?")

# What densenet.py and resnet_common.py of keras-applications called the layers in the files that Keras still downloads,
# and what Keras calls them today.
_RENAMED = {"conv1/conv": "conv1_conv", "conv1/bn": "conv1_bn", "fc1000": "predictions", "probs": "predictions"}
_FORMER = re.compile(rf"(?<![^/])({'|'.join(_RENAMED)})(?![^/])")


def is_legacy_h5(file: SafeFile) -> bool:
    """Whether the file has the legacy layout."""
    return _lists_layers(file.root) or "model_weights" in file.root


def describe_h5(file: SafeFile) -> str:
    """The layout and who wrote it, for people."""
    attributes = _weights_group(file).attrs
    version = _text(attributes.get("keras_version", "1"))
    return f"legacy Keras HDF5 (Keras {version}, {_text(attributes.get('backend', 'backend not told'))})"


def read_legacy_h5(file: SafeFile, known: Collection[str]) -> StoredLayers:
    """Every array of the file, by layer, in the order of the file; `known` are the layer names to look for.

    Arrays of a nested model lie flat in one group, in an order that depends on which layers were frozen: each is given
    to the layer that its own name tells.
    Raises UserError for a file written with the Theano backend, whose convolution kernels are stored flipped.
    """
    group = _weights_group(file)
    if _text(group.attrs.get("backend", "")) == "theano":
        raise UserError(
            f"{file.path} was written with Keras' Theano backend, which stores kernels flipped; "
            "take the file named 'tf_dim_ordering_tf_kernels' instead"
        )
    names = file.strings(group, "layer_names")
    if "top_level_model_weights" in group:
        names.append("top_level_model_weights")
    layers: StoredLayers = {}
    for name in names:
        _read_layer(file, file.group(group, name), name, known, layers)
    return layers


def _read_layer(file: SafeFile, group: h5py.Group, name: str, known: Collection[str], layers: StoredLayers) -> None:
    weights = file.strings(group, "weight_names")
    scopes = [_scopes(weight) for weight in weights]
    nested = len({tuple(scope) for scope in scopes}) > 1
    for weight, scope in zip(weights, scopes, strict=True):
        owner = _owner(_today(name), scope, nested, known)
        layers.setdefault(owner, []).append(file.array(group, weight))


def _owner(group: str, scope: list[str], nested: bool, known: Collection[str]) -> str:
    """The layer that an array belongs to: its group, unless the group is a nested model."""
    if group in known or is_automatic_name(group):
        return group
    if (flat := _flat(group)) in known:
        return flat
    inner = next((part for part in reversed(scope) if part in known), None)
    return inner or (scope[-1] if nested and scope else group)


def _scopes(weight: str) -> list[str]:
    """The names above an array's own: ['vgg16', 'block1_conv1'] for 'vgg16/block1_conv1/kernel:0'."""
    *scopes, last = _today(weight).split("/")
    keras_1 = _KERAS_1_NAME.fullmatch(last)
    return [keras_1["layer"]] if keras_1 and not scopes else scopes


def _today(path: str) -> str:
    """`path` with today's names of layers that were renamed."""
    return _FORMER.sub(lambda former: _RENAMED[former[0]], path)


def _flat(name: str) -> str:
    """MobileNetV3: expanded_conv_depthwise_bn is what Keras 2 called expanded_conv/depthwise/BatchNorm."""
    return name.lower().replace("/batchnorm", "_bn").replace("/", "_")


def _weights_group(file: SafeFile) -> h5py.Group:
    return file.root if _lists_layers(file.root) else file.group(file.root, "model_weights")


def _lists_layers(group: h5py.Group) -> bool:
    return "layer_names" in group.attrs or "layer_names0" in group.attrs


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
