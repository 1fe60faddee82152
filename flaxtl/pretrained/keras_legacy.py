"""Read Keras' legacy HDF5 layout, which `save_weights('x.h5')` and `save('x.h5')` write.

Layout: the attribute `layer_names` lists one group per layer, whose attribute `weight_names` lists its arrays. A file
of a whole model holds this in the group `model_weights`.
"""

import re
from collections.abc import Collection

import h5py

from flaxtl.errors import UserError
from flaxtl.pretrained.hdf5 import SafeFile
from flaxtl.pretrained.keras_layers import is_automatic_name
from flaxtl.pretrained.merge import StoredLayers

_KERAS_1_NAME = re.compile(r"(?P<layer>.+)_[Wb](_\d+)?(:0)?")
"""Keras 1 wrote `block1_conv1_W_1:0` where Keras 2 writes `block1_conv1/kernel:0`."""

_RENAMED = {"conv1/conv": "conv1_conv", "conv1/bn": "conv1_bn", "fc1000": "predictions", "probs": "predictions"}
"""Layer names in files that Keras still downloads (keras-applications' densenet.py and resnet_common.py) -> today's."""

_RENAMED_PATTERN = re.compile(rf"(?<![^/])({'|'.join(_RENAMED)})(?![^/])")


def is_legacy_h5(file: SafeFile) -> bool:
    """Return whether the file has the legacy layout."""
    return _lists_layers(file.root) or "model_weights" in file.root


def describe_h5(file: SafeFile) -> str:
    """Return the layout and the Keras version that wrote the file."""
    attributes = _weights_group(file).attrs
    version = _to_text(attributes.get("keras_version", "1"))
    return f"legacy Keras HDF5 (Keras {version}, {_to_text(attributes.get('backend', 'unknown backend'))})"


def read_legacy_h5(file: SafeFile, known: Collection[str]) -> StoredLayers:
    """Read every array of the file, by layer, in the order of the file.

    The arrays of a nested model lie in one group, in an order that depends on which layers were frozen. Each of them is
    assigned to the layer that its own name mentions.

    Args:
      file: the open file.
      known: the layer names to look for.

    Raises:
      UserError: the file was written with the Theano backend, which stores convolution kernels flipped.
    """
    group = _weights_group(file)
    if _to_text(group.attrs.get("backend", "")) == "theano":
        raise UserError(
            f"{file.path} was written with Keras' Theano backend, which stores kernels flipped. "
            "Use the file with 'tf_dim_ordering_tf_kernels' in its name."
        )
    names = file.strings(group, "layer_names")
    if "top_level_model_weights" in group:
        names.append("top_level_model_weights")
    layers: StoredLayers = {}
    for name in names:
        _read_layer(file, file.group(group, name), name, known, layers)
    return layers


def _read_layer(file: SafeFile, group: h5py.Group, name: str, known: Collection[str], layers: StoredLayers) -> None:
    weight_names = file.strings(group, "weight_names")
    scopes = [_scopes(weight_name) for weight_name in weight_names]
    is_nested = len({tuple(scope) for scope in scopes}) > 1
    for weight_name, scope in zip(weight_names, scopes, strict=True):
        layer = _layer_of(_current_name(name), scope, is_nested, known)
        layers.setdefault(layer, []).append(file.array(group, weight_name))


def _layer_of(group: str, scope: list[str], is_nested: bool, known: Collection[str]) -> str:
    """Return the layer that an array belongs to: its group, unless the group is a nested model."""
    if group in known or is_automatic_name(group):
        return group
    if (flat := _flatten_name(group)) in known:
        return flat
    inner = next((part for part in reversed(scope) if part in known), None)
    return inner or (scope[-1] if is_nested and scope else group)


def _scopes(weight_name: str) -> list[str]:
    """Return the names above an array's own: ['vgg16', 'block1_conv1'] for 'vgg16/block1_conv1/kernel:0'."""
    *scopes, last = _current_name(weight_name).split("/")
    keras_1 = _KERAS_1_NAME.fullmatch(last)
    return [keras_1["layer"]] if keras_1 and not scopes else scopes


def _current_name(path: str) -> str:
    """Replace the former names of renamed layers in `path`."""
    return _RENAMED_PATTERN.sub(lambda match: _RENAMED[match[0]], path)


def _flatten_name(name: str) -> str:
    """Convert a MobileNetV3 name of Keras 2: expanded_conv/depthwise/BatchNorm -> expanded_conv_depthwise_bn."""
    return name.lower().replace("/batchnorm", "_bn").replace("/", "_")


def _weights_group(file: SafeFile) -> h5py.Group:
    return file.root if _lists_layers(file.root) else file.group(file.root, "model_weights")


def _lists_layers(group: h5py.Group) -> bool:
    return "layer_names" in group.attrs or "layer_names0" in group.attrs


def _to_text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
