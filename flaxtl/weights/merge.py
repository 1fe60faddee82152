"""Fit what a file holds to what the network expects: all of it, or one error that tells everything."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from flaxtl.errors import UserError
from flaxtl.weights.lookalike import outdated, seems_to_be
from flaxtl.weights.tree import Expected, Found, Stored, Tree


class Row(NamedTuple):
    """What became of one array of the file."""

    layer: str
    leaf: str
    shape: tuple[int, ...]
    dtype: str  # in the file
    stored_as: str  # the array's name in the file
    fate: Literal["loaded", "skipped"]


@dataclass(frozen=True)
class Merged:
    """`tree`: exactly the expected leaves, float32, C-contiguous; `rows`: one an array of the file, in its order."""

    tree: Tree
    rows: list[Row]


def merge(
    expected: Expected, found: Found, *, optional: Collection[str] = frozenset(), source: str = "the weights"
) -> Merged:
    """Take the expected leaves from `found`.

    Layers named in `optional` may be there without being expected (the network's own top, when only its base is
    wanted): they are skipped, and their rows say so. `source` is the name that an error tells.
    Raises one UserError that lists everything missing (-), extra (+) and of another shape or kind (!), or that says
    that the file is the old ResNet50's.
    """
    if fault := outdated(found.keys()):
        raise UserError(f"{source} {fault}")
    problems = [
        *_missing(expected, found),
        *_extra(expected, found, optional),
        *_misshaped(expected, found),
        *_not_real(expected, found),
    ]
    if problems:
        hint = seems_to_be(found.keys(), expected.keys()) or "lines with - are missing, + extra, ! of another shape"
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
    return Merged(tree, rows)


def _missing(expected: Expected, found: Found) -> Iterator[str]:
    for layer, leaves in expected.items():
        for leaf, shape in leaves.items():
            if leaf not in found.get(layer, {}):
                yield f"- {layer}/{leaf} {shape}"


def _extra(expected: Expected, found: Found, optional: Collection[str]) -> Iterator[str]:
    for layer, leaves in found.items():
        if layer not in expected and layer in optional:
            continue
        for leaf, stored in leaves.items():
            if leaf not in expected.get(layer, {}):
                yield f"+ {layer}/{leaf} {stored.values.shape}, in the file {stored.name}"


def _misshaped(expected: Expected, found: Found) -> Iterator[str]:
    for layer, leaves in expected.items():
        for leaf, shape in leaves.items():
            stored = found.get(layer, {}).get(leaf)
            if stored is not None and stored.values.shape != tuple(shape):
                remark = _channels_first(stored, shape)
                yield f"! {layer}/{leaf} is {stored.values.shape}, expected {tuple(shape)}{remark}"


def _not_real(expected: Expected, found: Found) -> Iterator[str]:
    for layer, leaves in expected.items():
        for leaf in leaves:
            stored = found.get(layer, {}).get(leaf)
            if stored is not None and stored.values.dtype.kind in "iub":
                yield f"! {layer}/{leaf} holds whole numbers ({stored.dtype}), in the file {stored.name}"
            elif stored is not None and not np.isfinite(np.asarray(stored.values, np.float32)).all():
                yield f"! {layer}/{leaf} holds values that are infinite or no numbers, in the file {stored.name}"


def _channels_first(stored: Stored, shape: tuple[int, ...]) -> str:
    height_width_in_out = (2, 3, 1, 0)
    kernel = stored.values.shape
    if len(kernel) == 4 and tuple(kernel[axis] for axis in height_width_in_out) == tuple(shape):
        return " (channels first: a Theano or PyTorch kernel)"
    return ""


def _row(layer: str, leaf: str, stored: Stored, fate: Literal["loaded", "skipped"]) -> Row:
    return Row(layer, leaf, stored.values.shape, stored.dtype, stored.name, fate)
