"""Legacy Keras HDF5 files, Keras 1 to 3: `save_weights('x.h5')` and `save('x.h5')`.

Layout (keras/src/legacy/saving/legacy_h5_format.py): the root, or its group `model_weights` in a whole-model file,
lists its layers in the attribute `layer_names`; each is a group that lists its arrays, in order, in `weight_names`.
"""

import re
from collections.abc import Collection

import h5py

from flaxtl.errors import UserError
from flaxtl.weights.autonames import is_automatic
from flaxtl.weights.h5_safety import SafeFile
from flaxtl.weights.tree import Layers

# Keras 1 wrote `block1_conv1_W_1:0` where Keras 2 writes `block1_conv1/kernel:0`.
_KERAS_1_NAME = re.compile(r"(?P<layer>.+)_[Wb](_\d+)?(:0)?")

# What densenet.py and resnet_common.py of keras-applications called the layers in the files that Keras still downloads,
# and what Keras calls them today.
_RENAMED = {"conv1/conv": "conv1_conv", "conv1/bn": "conv1_bn", "fc1000": "predictions", "probs": "predictions"}
_FORMER = re.compile(rf"(?<![^/])({'|'.join(_RENAMED)})(?![^/])")


def recognises(file: SafeFile) -> bool:
    """Whether the file has the legacy layout."""
    return _lists_layers(file.root) or "model_weights" in file.root


def describe(file: SafeFile) -> str:
    """The layout and who wrote it, for people."""
    attributes = _weights_group(file).attrs
    version = _text(attributes.get("keras_version", "1"))
    return f"legacy Keras HDF5 (Keras {version}, {_text(attributes.get('backend', 'backend not told'))})"


def read(file: SafeFile, known: Collection[str]) -> Layers:
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
    layers: Layers = {}
    for name in names:
        _read_layer(file, file.group(group, name), name, known, layers)
    return layers


def _read_layer(file: SafeFile, group: h5py.Group, name: str, known: Collection[str], layers: Layers) -> None:
    weights = file.strings(group, "weight_names")
    scopes = [_scopes(weight) for weight in weights]
    nested = len({tuple(scope) for scope in scopes}) > 1
    for weight, scope in zip(weights, scopes, strict=True):
        owner = _owner(_today(name), scope, nested, known)
        layers.setdefault(owner, []).append(file.array(group, weight))


def _owner(group: str, scope: list[str], nested: bool, known: Collection[str]) -> str:
    """The layer that an array belongs to: its group, unless the group is a nested model."""
    if group in known or is_automatic(group):
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
