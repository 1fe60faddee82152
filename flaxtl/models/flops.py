"""Floating-point operations of a model, counted from the shapes of its layers."""

import math
from collections.abc import Mapping, Sequence

from flaxtl.models.tracer import Layer


def forward_flops(layers: Sequence[Layer], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Return the floating-point operations of each layer in the forward pass of one image, two per multiply-add.

    Convolutions and dense layers are counted, which is nearly all: VGG16 has 30.9e9 at 224x224, ResNet50 7.7e9, twice
    the multiply-adds that its paper states (arXiv:1512.03385, table 1, 3.8e9). The products of queries, keys and values
    of attention are left out, 4 % of ViT-B/16 at 224x224.

    Args:
      layers: as `classifier.list_layers` returns them.
      shapes: path -> shape of every parameter; kernels have the axes of Keras, the last one for output channels.
    """
    kernel_sizes: dict[str, int] = {}
    for path, shape in shapes.items():
        layer, _, name = path.rpartition("/")
        if name.endswith("kernel"):
            kernel_sizes[layer] = kernel_sizes.get(layer, 0) + math.prod(shape)
    return {
        layer.name: 2 * math.prod(layer.shape[:-1]) * kernel_sizes.get(f"{layer.section}/{layer.name}", 0)
        for layer in layers
    }


def train_step_flops(flops: Mapping[str, int], start_layer: str | None, cut_layer: str | None) -> int:
    """Return the operations of one image in a training step; the backward pass of a layer costs two forward passes.

    Args:
      flops: layer -> operations of its forward pass, in order.
      start_layer: the layer at which the image enters, as cached features; None: at the first layer.
      cut_layer: the last frozen layer below everything that trains; None: no layer is frozen.
    """
    return _above(flops, start_layer) + 2 * _above(flops, cut_layer)


def eval_step_flops(flops: Mapping[str, int], start_layer: str | None) -> int:
    """Return the operations of one image in an evaluation step that begins above `start_layer`."""
    return _above(flops, start_layer)


def _above(flops: Mapping[str, int], layer: str | None) -> int:
    names = list(flops)
    first = 0 if layer is None else names.index(layer) + 1
    return sum(flops[name] for name in names[first:])
