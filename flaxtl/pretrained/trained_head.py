"""The trained head in a weight file, such as the export of a run: it is loaded or an error, but never dropped."""

import re
from collections.abc import Mapping

from flaxtl.errors import UserError
from flaxtl.pretrained.merge import ExpectedShapes, LoadedLayers, ParamTree, merge_params


def merge_with_head(
    layers: LoadedLayers,
    backbone: ExpectedShapes,
    head: ExpectedShapes,
    *,
    published: ExpectedShapes,
    source: str,
) -> ParamTree:
    """Take the backbone from the layers of a weight file, and the head if the file holds one of the same shapes.

    Args:
      layers: the content of the file.
      backbone: the parameters of the model's backbone.
      head: those of its head; empty if none is to be loaded.
      published: those of the whole published network. The file may hold its top, which is left out.
      source: the file's name for error messages.

    Returns:
      The parameters of `backbone`, and of `head` if the file holds it: float32, C-contiguous.

    Raises:
      UserError: the file does not fit the backbone, or holds another head than the model.
    """
    shapes = {
        layer: {leaf: tensor.values.shape for leaf, tensor in leaves.items()}
        for layer, leaves in layers.items()
        if layer not in backbone
    }
    if head and shapes == head:
        return merge_params({**backbone, **head}, layers, source=source)[0]
    trained = {layer: leaves for layer, leaves in shapes.items() if leaves != published.get(layer)}
    if not trained or not all(len(shape) <= 2 for leaves in trained.values() for shape in leaves.values()):
        return merge_params(backbone, layers, optional=published.keys() - trained.keys(), source=source)[0]
    others = {layer: leaves for layer, leaves in layers.items() if layer not in trained}
    merge_params(backbone, others, optional=published, source=source)  # a file of another model is an error of its own
    raise _another_head(source, trained, head)


def _another_head(source: str, trained: ExpectedShapes, head: ExpectedShapes) -> UserError:
    """Return the error for a file with a head that is not the model's."""
    kernel = trained.get("predictions", {}).get("kernel", ())
    classes = f" with {kernel[-1]:,} classes" if kernel else ""
    pattern = "|".join(map(re.escape, trained))
    advice = "Only a head that ends in flaxtl's layer 'predictions' is loaded:"
    if kernel:
        advice = "Give the num_classes, units, normalize and pooling of that head to load it, or"
    return UserError(
        f"{source} holds a trained head{classes} ({_list_kernels(trained)}), but the model has "
        f"{f'another ({_list_kernels(head)})' if head else 'none'}. {advice} leave it out with skip_layers={pattern!r}."
    )


def _list_kernels(layers: Mapping[str, Mapping[str, tuple[int, ...]]]) -> str:
    """Return the layers with the shape of their first parameter: `dense_1 (512, 8), predictions (8, 5)`."""
    return ", ".join(f"{layer} {next(iter(leaves.values()))}" for layer, leaves in layers.items())
