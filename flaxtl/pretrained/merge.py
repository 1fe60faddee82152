"""Fit the arrays of a weight file to the parameters of a model: strictly, and with one complete error.

The types and limits that all readers of weight files share are defined here, too.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flaxtl.errors import UserError

MAX_BYTES = 1536 * 2**20
"""Upper limit for all arrays of a weight file together, in any format.

They are held in memory up to twice at a time, which stays below 4 GiB. The largest published file, ConvNeXt-XLarge with
its top, is 1,401 MB.
"""

ParamTree = dict[str, dict[str, NDArray[np.float32]]]
"""layer -> leaf -> array, with Flax's leaf names. Kernels are HWIO or (in, out), as in Keras."""

ExpectedShapes = Mapping[str, Mapping[str, tuple[int, ...]]]
"""layer -> leaf -> shape of the parameters of a model, in the order of its layers."""


@dataclass(frozen=True)
class StoredTensor:
    """One array of a weight file: its name and dtype in the file, and its values."""

    name: str
    dtype: str
    values: NDArray[Any]


StoredLayers = dict[str, list[StoredTensor]]
"""layer -> its arrays in the order of the file: what the Keras readers return."""

LoadedLayers = Mapping[str, Mapping[str, StoredTensor]]
"""layer -> leaf -> array: the content of a weight file under Flax's leaf names."""


def damaged_file(path: Path, reason: object) -> UserError:
    """Return the error for a file that does not hold what its format promises."""
    return UserError(f"{path} is truncated or damaged ({reason}). Copy or download it again.")


def check_size(path: Path, num_bytes: int) -> None:
    """Raise UserError if a weight file, or its arrays, would take more memory than MAX_BYTES."""
    if num_bytes > MAX_BYTES:
        raise UserError(
            f"{path} takes {num_bytes:,} bytes of memory, more than any supported model needs. "
            "Give a file that holds only the weights."
        )


class WeightRow(NamedTuple):
    """What happened to one array of a weight file."""

    layer: str
    leaf: str
    shape: tuple[int, ...]
    dtype: str  # in the file
    stored_as: str  # name in the file
    status: Literal["loaded", "skipped"]


def merge_params(
    expected: ExpectedShapes,
    layers: LoadedLayers,
    *,
    optional: Collection[str] = frozenset(),
    source: str = "the weights",
) -> tuple[ParamTree, list[WeightRow]]:
    """Take the expected parameters from the layers of a weight file.

    Args:
      expected: the parameters that the model needs.
      layers: the content of the file.
      optional: layers that the file may contain although they are not expected, such as the ImageNet top when only the
        base is wanted. They are skipped.
      source: the file's name for error messages.

    Returns:
      The parameters (exactly the expected leaves, float32, C-contiguous), and one row per array of the file.

    Raises:
      UserError: lists everything that is missing (-), extra (+), or of the wrong shape or type (!).
    """
    if _OLD_RESNET50_LAYER in layers:
        raise UserError(
            f"{source} holds Keras' old ResNet50 (layer {_OLD_RESNET50_LAYER}, batch norms with epsilon 0.001), which "
            "is not the model that has this file name today. Use the current file: weights.path=imagenet downloads it."
        )
    problems = [
        *_missing(expected, layers),
        *_extra(expected, layers, optional),
        *_wrong_shapes(expected, layers),
        *_wrong_values(expected, layers),
    ]
    if problems:
        model = identify_model(layers, expected)
        hint = model or "-: missing, +: not in the model, !: wrong shape or type"
        advice = "Choose the model that the file was made for, or a file made for this model."
        if model is None and (head := _another_head(expected, layers, optional, len(problems))):
            pattern = "|".join(map(re.escape, head))
            advice = (
                f"If the other layers are another head, leave them out with skip_layers='{pattern}' "
                "(--config.weights.skip_layers of flaxtl train, --skip-layers of predict and convert)."
            )
        listing = "".join(f"\n  {problem}" for problem in problems)
        raise UserError(f"{source} does not fit the model ({hint}). {advice}{listing}")
    params = {
        layer: {leaf: np.ascontiguousarray(layers[layer][leaf].values, dtype=np.float32) for leaf in leaves}
        for layer, leaves in expected.items()
    }
    rows = [
        WeightRow(
            layer, leaf, tensor.values.shape, tensor.dtype, tensor.name, "loaded" if layer in expected else "skipped"
        )
        for layer, leaves in layers.items()
        for leaf, tensor in leaves.items()
    ]
    return params, rows


def _missing(expected: ExpectedShapes, layers: LoadedLayers) -> Iterator[str]:
    for layer, leaves in expected.items():
        for leaf, shape in leaves.items():
            if leaf not in layers.get(layer, {}):
                yield f"- {layer}/{leaf} {shape}"


def _extra(expected: ExpectedShapes, layers: LoadedLayers, optional: Collection[str]) -> Iterator[str]:
    for layer, leaves in layers.items():
        if layer not in expected and layer in optional:
            continue
        for leaf, tensor in leaves.items():
            if leaf not in expected.get(layer, {}):
                yield f"+ {layer}/{leaf} {tensor.values.shape}, stored as {tensor.name}"


def _another_head(
    expected: ExpectedShapes, layers: LoadedLayers, optional: Collection[str], num_problems: int
) -> list[str]:
    """Return the layers that may be another head if nothing else is wrong.

    These are extra layers, none of which has a convolution's kernel, and the last layer if only its outputs differ.
    """
    extra = {layer: leaves for layer, leaves in layers.items() if layer not in expected and layer not in optional}
    tensors = [tensor for leaves in extra.values() for tensor in leaves.values()]
    last = list(expected)[-1]
    resized = [
        tensor
        for _, tensor, shape in _common({last: expected[last]}, layers)
        if tensor.values.shape != shape and tensor.values.shape[:-1] == shape[:-1]
    ]
    if len(tensors) + len(resized) < num_problems or any(tensor.values.ndim > 3 for tensor in tensors + resized):
        return []
    return [*extra, *([last] if resized else [])]


def _wrong_shapes(expected: ExpectedShapes, layers: LoadedLayers) -> Iterator[str]:
    for name, tensor, shape in _common(expected, layers):
        if tensor.values.shape != shape:
            yield f"! {name} is {tensor.values.shape}, expected {shape}{_channels_first_remark(tensor, shape)}"


def _wrong_values(expected: ExpectedShapes, layers: LoadedLayers) -> Iterator[str]:
    for name, tensor, _ in _common(expected, layers):
        if tensor.values.dtype.kind in "iub":
            yield f"! {name} holds integers ({tensor.dtype}), stored as {tensor.name}"
        elif not np.isfinite(np.asarray(tensor.values, np.float32)).all():
            yield f"! {name} holds NaN or infinite values, stored as {tensor.name}"


def _common(expected: ExpectedShapes, layers: LoadedLayers) -> Iterator[tuple[str, StoredTensor, tuple[int, ...]]]:
    """Yield ('layer/leaf', stored tensor, expected shape) of every expected parameter that the file holds."""
    for layer, leaves in expected.items():
        for leaf, shape in leaves.items():
            if leaf in layers.get(layer, {}):
                yield f"{layer}/{leaf}", layers[layer][leaf], tuple(shape)


def _channels_first_remark(tensor: StoredTensor, shape: tuple[int, ...]) -> str:
    oihw_to_hwio = (2, 3, 1, 0)
    stored = tensor.values.shape
    if len(stored) == 4 and tuple(stored[axis] for axis in oihw_to_hwio) == shape:
        return " (channels first: a Theano or PyTorch kernel)"
    return ""


_SIGNATURE_LAYERS = (
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
    ("encoderblock_0_LayerNorm_0", "a ViT"),
)
"""(layer, the model that it identifies), in order: VGG19 has every layer of VGG16, ResNetV2 most names of ResNet.

Layer names are those of keras/src/applications.
"""

_OLD_RESNET50_LAYER = "res2a_branch2a"
"""A layer of Keras' first ResNet50 (keras_applications/resnet50.py).

Its file has today's name and arrays of today's shapes, but its batch norms have another epsilon: loaded into today's
model it would give plausible, wrong outputs.
"""


def identify_model(layers: Collection[str], expected: Collection[str]) -> str | None:
    """Guess why the layers of a file do not fit: it belongs to another model, or to the lower part of this one."""
    for layer, model in _SIGNATURE_LAYERS:
        if layer in layers and layer not in expected:
            return f"it looks like {model}: it has a layer {layer}"
        if layer in layers:
            break
    first, rest = list(expected)[: len(layers)], list(expected)[len(layers) :]
    if rest and layers and set(first) == set(layers):
        return f"it has no layer {rest[0]} or later: it looks like a part of the model, such as that without the top"
    return None
