"""Keras' arrays, known by their position in a layer, become Flax leaves, known by name."""

from flaxtl.weights.tree import Found, Layers

# The order in which Keras stores the arrays of a convolution or dense layer. The name in the file is no guide: it is
# `W`, `kernel`, or just a number, by vintage. Kernel layouts, HWIO and (in, out), are Flax' own: nothing is transposed.
LEAVES = ("kernel", "bias")


def to_leaves(layers: Layers) -> Found:
    """Name the arrays of each layer by position; arrays past the last leaf are named by their index."""
    return {
        layer: {LEAVES[i] if i < len(LEAVES) else str(i): array for i, array in enumerate(arrays)}
        for layer, arrays in layers.items()
        if arrays
    }
