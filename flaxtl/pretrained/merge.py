"""The words of this room: what a reader returns, and what a caller asks for and receives."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flaxtl.errors import UserError

# {layer name: {leaf name: array}} with Flax' leaf names; kernels are HWIO or (in, out), as in Keras.
ParamTree = dict[str, dict[str, NDArray[np.float32]]]

# {layer name: {leaf name: shape}}: what the network needs. The order of the layers is the order of the network.
ExpectedShapes = Mapping[str, Mapping[str, tuple[int, ...]]]


@dataclass(frozen=True)
class StoredTensor:
    """One array as a file holds it: its name there, the dtype it is kept in, and its values."""

    name: str
    dtype: str
    values: NDArray[Any]


# {layer name: its arrays in the order of the file}: what the Keras readers return.
StoredLayers = dict[str, list[StoredTensor]]

# {layer name: {leaf name: array}}: what merge takes.
LoadedLayers = Mapping[str, Mapping[str, StoredTensor]]


# (telltale layer, network), the more telling first: VGG19 holds every layer of VGG16, ResNetV2 most names of ResNet.
# Layer names as in keras/src/applications.
_TELLTALES = (
    ("block3_conv4", "VGG19"),
    ("block5_conv3", "VGG16"),
    ("conv2_block1_preact_bn", "a ResNetV2"),
    ("conv2_block1_1_conv", "a ResNet or DenseNet"),
    ("block2_sepconv1", "Xception"),
    ("conv_dw_1", "MobileNet"),
    ("block_1_expand", "MobileNetV2"),
    ("block1a_dwconv", "an EfficientNet"),
    ("conv_7b", "InceptionResNetV2"),
    ("inception_3a_1x1", "GoogLeNet"),
    ("fc6", "AlexNet"),
)

_OLD_RESNET50 = "res2a_branch2a"


def outdated_file(layers: Collection[str]) -> str | None:
    """What is wrong with a file of the ResNet50 that Keras had first (keras_applications/resnet50.py); else None.

    Its file has the name of today's and arrays of the same shapes, but its batch norms another epsilon: put in today's
    network, it would give numbers that look right.
    """
    if _OLD_RESNET50 not in layers:
        return None
    return (
        f"holds Keras' old ResNet50 (layer {_OLD_RESNET50}, batch norms with epsilon 0.001), which is another network "
        "than today's of the same file name; take today's file, as weights.path=imagenet does"
    )


def identify_model(layers: Collection[str], expected: Collection[str]) -> str | None:
    """'this looks like VGG19: it holds block3_conv4', or that only the last layers, the top, are missing; else None."""
    for layer, network in _TELLTALES:
        if layer in layers and layer not in expected:
            return f"this looks like {network}: it holds {layer}"
        if layer in layers:
            break
    first, rest = list(expected)[: len(layers)], list(expected)[len(layers) :]
    if rest and layers and set(first) == set(layers):
        return f"nothing from layer {rest[0]} on is in it: this looks like the file without the top"
    return None


class WeightRow(NamedTuple):
    """What became of one array of the file."""

    layer: str
    leaf: str
    shape: tuple[int, ...]
    dtype: str  # in the file
    stored_as: str  # the array's name in the file
    fate: Literal["loaded", "skipped"]


@dataclass(frozen=True)
class MergedParams:
    """`tree`: exactly the expected leaves, float32, C-contiguous; `rows`: one an array of the file, in its order."""

    tree: ParamTree
    rows: list[WeightRow]


def merge_params(
    expected: ExpectedShapes,
    found: LoadedLayers,
    *,
    optional: Collection[str] = frozenset(),
    source: str = "the weights",
) -> MergedParams:
    """Take the expected leaves from `found`.

    Layers named in `optional` may be there without being expected (the network's own top, when only its base is
    wanted): they are skipped, and their rows say so. `source` is the name that an error tells.
    Raises one UserError that lists everything missing (-), extra (+) and of another shape or kind (!), or that says
    that the file is the old ResNet50's.
    """
    if fault := outdated_file(found.keys()):
        raise UserError(f"{source} {fault}")
    problems = [
        *_missing(expected, found),
        *_extra(expected, found, optional),
        *_misshaped(expected, found),
        *_not_real(expected, found),
    ]
    if problems:
        hint = identify_model(found.keys(), expected.keys()) or "lines with - are missing, + extra, ! of another shape"
        listing = "".join(f"\n  {problem}" for problem in problems)
        raise UserError(
            f"{source} does not fit the network ({hint}); choose the model that the file was made for, "
            f"or the file made for this model:{listing}"
        )
    tree = {
        layer: {leaf: np.ascontiguousarray(found[layer][leaf].values, dtype=np.float32) for leaf in leaves}
        for layer, leaves in expected.items()
    }
    rows = [
        _row(layer, leaf, stored, "loaded" if layer in expected else "skipped")
        for layer, leaves in found.items()
        for leaf, stored in leaves.items()
    ]
    return MergedParams(tree, rows)


def _missing(expected: ExpectedShapes, found: LoadedLayers) -> Iterator[str]:
    for layer, leaves in expected.items():
        for leaf, shape in leaves.items():
            if leaf not in found.get(layer, {}):
                yield f"- {layer}/{leaf} {shape}"


def _extra(expected: ExpectedShapes, found: LoadedLayers, optional: Collection[str]) -> Iterator[str]:
    for layer, leaves in found.items():
        if layer not in expected and layer in optional:
            continue
        for leaf, stored in leaves.items():
            if leaf not in expected.get(layer, {}):
                yield f"+ {layer}/{leaf} {stored.values.shape}, in the file {stored.name}"


def _misshaped(expected: ExpectedShapes, found: LoadedLayers) -> Iterator[str]:
    for layer, leaves in expected.items():
        for leaf, shape in leaves.items():
            stored = found.get(layer, {}).get(leaf)
            if stored is not None and stored.values.shape != tuple(shape):
                remark = _channels_first(stored, shape)
                yield f"! {layer}/{leaf} is {stored.values.shape}, expected {tuple(shape)}{remark}"


def _not_real(expected: ExpectedShapes, found: LoadedLayers) -> Iterator[str]:
    for layer, leaves in expected.items():
        for leaf in leaves:
            stored = found.get(layer, {}).get(leaf)
            if stored is not None and stored.values.dtype.kind in "iub":
                yield f"! {layer}/{leaf} holds whole numbers ({stored.dtype}), in the file {stored.name}"
            elif stored is not None and not np.isfinite(np.asarray(stored.values, np.float32)).all():
                yield f"! {layer}/{leaf} holds values that are infinite or no numbers, in the file {stored.name}"


def _channels_first(stored: StoredTensor, shape: tuple[int, ...]) -> str:
    height_width_in_out = (2, 3, 1, 0)
    kernel = stored.values.shape
    if len(kernel) == 4 and tuple(kernel[axis] for axis in height_width_in_out) == tuple(shape):
        return " (channels first: a Theano or PyTorch kernel)"
    return ""


def _row(layer: str, leaf: str, stored: StoredTensor, fate: Literal["loaded", "skipped"]) -> WeightRow:
    return WeightRow(layer, leaf, stored.values.shape, stored.dtype, stored.name, fate)
