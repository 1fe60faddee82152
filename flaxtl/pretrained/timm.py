"""PyTorch's networks in safetensors, under the names of timm and torchvision, where they are ours layer by layer.

These are VGG16 and VGG19, DenseNet, and timm's tf_efficientnet_b0 to b7. PyTorch's ResNet is another network: it has
the stride of a stage on the 3x3 convolution (v1.5), Keras' on the first 1x1.
"""

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path

from flaxtl.errors import UserError
from flaxtl.pretrained import convert, safetensors_io
from flaxtl.pretrained.merge import ExpectedShapes, StoredTensor

Pairs = Iterator[tuple[str, str]]
"""(PyTorch's module, our layer)."""

_NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
_OTHER = {"weight": "kernel", "bias": "bias"}


def read_timm(
    path: Path, network: str, known: Collection[str], expected: ExpectedShapes
) -> dict[str, dict[str, StoredTensor]]:
    """layer -> leaf -> array, as Flax has it; what has no counterpart keeps PyTorch's name.

    `network` is the catalog's name, `known` are all its layers with parameters.
    Raises UserError for a network that PyTorch's libraries have otherwise or not at all, and for a damaged file.
    """
    layers = dict(_family(network)(known))
    tensors, _ = safetensors_io.tensors_of(path)
    found: dict[str, dict[str, StoredTensor]] = {}
    for name, stored in tensors.items():
        module, _, part = name.rpartition(".")
        if part == "num_batches_tracked":
            continue
        layer = layers.get(module, module)
        leaf = (_NORM if f"{module}.running_mean" in tensors else _OTHER).get(part, part)
        found.setdefault(layer, {})[leaf] = _fitted(stored, layer, expected.get(layer, {}).get(leaf, ()))
    return found


def _fitted(stored: StoredTensor, layer: str, shape: tuple[int, ...]) -> StoredTensor:
    """The array with its channels last; a convolution over the whole map, as timm has VGG's fc1, is a dense layer."""
    values = convert.channels_last_kernel(layer, stored.values)
    if values.ndim == 4 and len(shape) == 2:
        values = values.reshape(-1, values.shape[-1])
    return replace(stored, values=values)


def _family(network: str) -> Callable[[Collection[str]], Pairs]:
    for start, family in _FAMILIES.items():
        if re.match(start, network):
            return family
    raise UserError(
        f"--layout=timm does not fit {network}: PyTorch's libraries have another network under that name, or none; "
        "it is for VGG, DenseNet and EfficientNetB0 to B7"
    )


def _vgg(known: Collection[str]) -> Pairs:
    """Modules are numbered: every convolution is followed by a relu, every block by a pool."""
    convolutions = sorted(layer for layer in known if layer.startswith("block"))
    for number, layer in enumerate(convolutions):
        pools = int(layer[len("block")]) - 1
        yield f"features.{2 * number + pools}", layer
    for layer, timm, torchvision in (("fc1", "pre_logits.fc1", 0), ("fc2", "pre_logits.fc2", 3)):
        yield timm, layer
        yield f"classifier.{torchvision}", layer
    yield "head.fc", "predictions"
    yield "classifier.6", "predictions"


def _densenet(known: Collection[str]) -> Pairs:
    yield from (("features.conv0", "conv1_conv"), ("features.norm0", "conv1_bn"), ("features.norm5", "bn"))
    yield "classifier", "predictions"
    for layer in known:
        if match := re.fullmatch(r"conv(\d)_block(\d+)_(\d)_(conv|bn)", layer):
            stage, block, number, kind = match.groups()
            part = f"conv{number}" if kind == "conv" else f"norm{int(number) + 1}"
            yield f"features.denseblock{int(stage) - 1}.denselayer{block}.{part}", layer
        elif match := re.fullmatch(r"pool(\d)_(conv|bn)", layer):
            part = "conv" if match[2] == "conv" else "norm"
            yield f"features.transition{int(match[1]) - 1}.{part}", layer


_MBCONV = {
    "expand_conv": "conv_pw",
    "expand_bn": "bn1",
    "dwconv": "conv_dw",
    "bn": "bn2",
    "se_reduce": "se.conv_reduce",
    "se_expand": "se.conv_expand",
    "project_conv": "conv_pwl",
    "project_bn": "bn3",
}
_FIRST_MBCONV = {**_MBCONV, "bn": "bn1", "project_conv": "conv_pw", "project_bn": "bn2"}  # it does not expand


def _efficientnet(known: Collection[str]) -> Pairs:
    yield from (("conv_stem", "stem_conv"), ("bn1", "stem_bn"), ("conv_head", "top_conv"), ("bn2", "top_bn"))
    yield "classifier", "predictions"
    for layer in known:
        if match := re.fullmatch(r"block(\d)([a-z])_(.+)", layer):
            stage, letter, part = match.groups()
            parts = _FIRST_MBCONV if stage == "1" else _MBCONV
            yield f"blocks.{int(stage) - 1}.{ord(letter) - ord('a')}.{parts[part]}", layer


_FAMILIES = {"vgg": _vgg, "densenet": _densenet, "efficientnetb": _efficientnet}
