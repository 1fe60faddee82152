"""Weights that were made for pictures preprocessed in one way, for pictures preprocessed in another."""

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from flaxtl.models.preprocess import PREPROCESSING
from flaxtl.weights.tree import Tree

Colours = NDArray[np.float64]


def recoloured(tree: Tree, made_for: str, used_with: str) -> Tree:
    """`tree` with its first layer, a convolution with a bias, changed so that it sees the colours it was `made_for`.

    Both names are of preprocessings that map every pixel's colour linearly. The change is exact up to rounding, but
    for the first layer's border: its padding, zero after either preprocessing, is two slightly different greys.
    """
    if made_for == used_with:
        return tree
    wanted, black = _linear(made_for)
    given, given_black = _linear(used_with)
    turn = np.linalg.solve(given, wanted)
    shift = black - given_black @ turn  # colour made_for = colour used_with @ turn + shift
    first, leaves = next(iter(tree.items()))
    kernel = leaves["kernel"].astype(np.float64)
    bias = leaves["bias"] + np.einsum("i,hwio->o", shift, kernel)
    kernel = np.einsum("ci,hwio->hwco", turn, kernel)
    return {**tree, first: {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}}


def _linear(preprocessing: str) -> tuple[Colours, Colours]:
    """(matrix [3, 3], black [3]): a pixel's colour RGB becomes colour @ matrix + black."""
    colours = np.concatenate([np.zeros((1, 3)), 255 * np.eye(3)]).reshape(4, 1, 1, 3)
    black, *full = np.asarray(PREPROCESSING[preprocessing](jnp.asarray(colours)), np.float64).reshape(4, 3)
    return (np.stack(full) - black) / 255, black
