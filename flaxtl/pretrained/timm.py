"""Read PyTorch weights in safetensors, with the layer names of timm or torchvision.

Supported are the models that are the same here, layer by layer: VGG16 and VGG19, DenseNet, timm's tf_efficientnet_b0
to b7, and its ViT with AugReg weights (see `augreg`). PyTorch's ResNet is not: it has the stride of a stage on the 3x3
convolution (v1.5), Keras' on the first 1x1.
"""

import math
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path

from flaxtl.errors import UserError
from flaxtl.pretrained import augreg, safetensors_io
from flaxtl.pretrained.convert import channels_last_kernel
from flaxtl.pretrained.merge import ExpectedShapes, LoadedLayers, StoredTensor

ModuleNames = Iterator[tuple[str, str]]
"""(PyTorch's module name, our layer name)."""

_NORM_LEAVES = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
_OTHER_LEAVES = {"weight": "kernel", "bias": "bias"}


def read_timm(path: Path, model_name: str, known: Collection[str], expected: ExpectedShapes) -> LoadedLayers:
    """Read all arrays by layer and leaf, in Flax's layout. Modules without a counterpart keep PyTorch's name.

    Args:
      path: the safetensors file.
      model_name: the model's name in the registry.
      known: all layers of the model that have parameters.
      expected: shapes of the parameters that the caller needs.

    Raises:
      UserError: PyTorch's libraries do not have the same model, or the file is damaged.
    """
    if is_vit(model_name):
        return augreg.from_timm(safetensors_io.read_tensors(path)[0], expected)
    layer_names = dict(module_names(model_name, known))
    tensors, _ = safetensors_io.read_tensors(path)
    layers: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in tensors.items():
        module, _, suffix = name.rpartition(".")
        if suffix == "num_batches_tracked":
            continue
        layer = layer_names.get(module, module)
        leaf_names = _NORM_LEAVES if f"{module}.running_mean" in tensors else _OTHER_LEAVES
        leaf = leaf_names.get(suffix, suffix)
        layers.setdefault(layer, {})[leaf] = _to_flax(tensor, layer, expected.get(layer, {}).get(leaf, ()))
    return layers


def is_vit(model_name: str) -> bool:
    """Return whether the model is a ViT."""
    return model_name.startswith("vit_")


def pytorch_preprocessing(model_name: str) -> str:
    """Return the preprocessing that PyTorch's weights were trained with: AugReg's [-1, 1], or torchvision's."""
    return "tf" if is_vit(model_name) else "torch"


def _to_flax(tensor: StoredTensor, layer: str, shape: tuple[int, ...]) -> StoredTensor:
    """Convert to channels last. timm's fc1 of VGG, a convolution over the whole map, becomes a dense kernel."""
    values = channels_last_kernel(layer, tensor.values)
    if values.ndim == 4 and len(shape) == 2:
        values = values.reshape(math.prod(values.shape[:3]), values.shape[-1])
    return replace(tensor, values=values)


def module_names(model_name: str, known: Collection[str]) -> ModuleNames:
    """Yield PyTorch's module name(s) of every layer in `known`.

    Raises:
      UserError: PyTorch's libraries do not have the same model.
    """
    for prefix, names in _FAMILIES.items():
        if model_name.startswith(prefix):
            return names(known)
    raise UserError(
        f"--layout=timm does not support {model_name}: PyTorch's libraries have no model of that name, or a different "
        "one. Supported: vgg16, vgg19, densenet121 to densenet201, efficientnet_b0 to efficientnet_b7, vit_*."
    )


def _vgg_names(known: Collection[str]) -> ModuleNames:
    """Modules are numbered: every convolution is followed by a relu, every block by a pool."""
    convolutions = sorted(layer for layer in known if layer.startswith("block"))
    for number, layer in enumerate(convolutions):
        num_pools = int(layer[len("block")]) - 1
        yield f"features.{2 * number + num_pools}", layer
    for layer, timm, torchvision in (("fc1", "pre_logits.fc1", 0), ("fc2", "pre_logits.fc2", 3)):
        yield timm, layer
        yield f"classifier.{torchvision}", layer
    yield "head.fc", "predictions"
    yield "classifier.6", "predictions"


def _densenet_names(known: Collection[str]) -> ModuleNames:
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
_MBCONV_STAGE_1 = {**_MBCONV, "bn": "bn1", "project_conv": "conv_pw", "project_bn": "bn2"}  # without expansion


def _efficientnet_names(known: Collection[str]) -> ModuleNames:
    yield from (("conv_stem", "stem_conv"), ("bn1", "stem_bn"), ("conv_head", "top_conv"), ("bn2", "top_bn"))
    yield "classifier", "predictions"
    for layer in known:
        if match := re.fullmatch(r"block(\d)([a-z])_(.+)", layer):
            stage, letter, part = match.groups()
            parts = _MBCONV_STAGE_1 if stage == "1" else _MBCONV
            yield f"blocks.{int(stage) - 1}.{ord(letter) - ord('a')}.{parts[part]}", layer


_FAMILIES: dict[str, Callable[[Collection[str]], ModuleNames]] = {
    "vgg": _vgg_names,
    "densenet": _densenet_names,
    "efficientnet_b": _efficientnet_names,
}
