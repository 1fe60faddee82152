"""A ViT in NumPy with float64, from the arrays of an .npz file of google-research/vision_transformer."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
from scipy import ndimage

from flaxtl.models import registry

CHANNELS, HEADS, DEPTH = 12, 3, 2

SPEC = replace(
    registry.get_spec("vit_tiny_patch16_224"),
    name="vit_short",
    build=partial(
        registry.get_spec("vit_tiny_patch16_224").build.func, patch=16, channels=CHANNELS, depth=2, heads=HEADS
    ),
    groups=(("head", "head/.*"), ("last", "backbone/(?:encoderblock_1_.*|encoder_norm)/.*"), ("base", "backbone/.*")),
)
"""Two blocks of 12 channels."""


def random_arrays(channels=CHANNELS, heads=HEADS, depth=DEPTH, classes=1000, patch=16, side=14, seed=0):
    """Return the arrays of a file by their keys: kernels that keep the scale of activations, scales around 1."""
    random = np.random.default_rng(seed)
    size = channels // heads
    shapes = {
        "cls": (1, 1, channels),
        "embedding/kernel": (patch, patch, 3, channels),
        "embedding/bias": (channels,),
        "Transformer/posembed_input/pos_embedding": (1, 1 + side**2, channels),
        "Transformer/encoder_norm/scale": (channels,),
        "Transformer/encoder_norm/bias": (channels,),
        "head/kernel": (channels, classes),
        "head/bias": (classes,),
    }
    for block in range(depth):
        name = f"Transformer/encoderblock_{block}"
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            shapes |= {f"{name}/{norm}/scale": (channels,), f"{name}/{norm}/bias": (channels,)}
        attention = f"{name}/MultiHeadDotProductAttention_1"
        for part in ("query", "key", "value"):
            shapes |= {f"{attention}/{part}/kernel": (channels, heads, size), f"{attention}/{part}/bias": (heads, size)}
        shapes |= {f"{attention}/out/kernel": (heads, size, channels), f"{attention}/out/bias": (channels,)}
        for layer, (inputs, outputs) in enumerate([(channels, 4 * channels), (4 * channels, channels)]):
            dense = f"{name}/MlpBlock_3/Dense_{layer}"
            shapes |= {f"{dense}/kernel": (inputs, outputs), f"{dense}/bias": (outputs,)}

    def draw(key, shape):
        values = random.standard_normal(shape)
        if key.endswith("scale"):
            return 1 + values / 10
        if key.endswith("kernel"):
            fan_in = math.prod(shape[:-1]) if len(shape) == 4 or "/out/" in key else shape[0]
            return values * np.sqrt(2 / fan_in)
        return values / 10

    return {key: draw(key, shape).astype(np.float32) for key, shape in shapes.items()}


def logits(arrays, images):
    """Images uint8 [n, height, width, 3] -> float64 [n, classes]."""
    arrays = {key: values.astype(np.float64) for key, values in arrays.items()}
    kernel = arrays["embedding/kernel"]
    patch, channels = kernel.shape[0], kernel.shape[-1]
    rows, columns = images.shape[1] // patch, images.shape[2] // patch
    pixels = images[:, : rows * patch, : columns * patch] / 127.5 - 1
    pixels = pixels.reshape(-1, rows, patch, columns, patch, 3)
    x = np.einsum("nrhcwi,hwio->nrco", pixels, kernel).reshape(len(images), -1, channels) + arrays["embedding/bias"]
    x = np.concatenate([np.repeat(arrays["cls"], len(images), 0), x], axis=1)
    x = x + _positions(arrays["Transformer/posembed_input/pos_embedding"], rows, columns)
    for block in range(sum(key.endswith("LayerNorm_0/bias") for key in arrays)):
        name = f"Transformer/encoderblock_{block}"
        x = x + _attend(_norm(x, arrays, f"{name}/LayerNorm_0"), arrays, f"{name}/MultiHeadDotProductAttention_1")
        hidden = _dense(_norm(x, arrays, f"{name}/LayerNorm_2"), arrays, f"{name}/MlpBlock_3/Dense_0")
        hidden = hidden / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
        x = x + _dense(hidden, arrays, f"{name}/MlpBlock_3/Dense_1")
    return _dense(_norm(x, arrays, "Transformer/encoder_norm")[:, 0], arrays, "head")


def _positions(embedding, rows, columns):
    side = math.isqrt(embedding.shape[1] - 1)
    grid = embedding[0, 1:].reshape(side, side, -1)
    grid = ndimage.zoom(grid, (rows / side, columns / side, 1), order=1)  # as in vit_jax/checkpoint.py
    return np.concatenate([embedding[:, :1], grid.reshape(1, rows * columns, -1)], axis=1)


def _norm(x, arrays, name):
    centered = x - x.mean(-1, keepdims=True)
    normal = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6)
    return normal * arrays[f"{name}/scale"] + arrays[f"{name}/bias"]


def _dense(x, arrays, name):
    return x @ arrays[f"{name}/kernel"] + arrays[f"{name}/bias"]


def _attend(x, arrays, name):
    query, key, value = (
        np.einsum("ntc,chs->nhts", x, arrays[f"{name}/{part}/kernel"]) + arrays[f"{name}/{part}/bias"][:, None]
        for part in ("query", "key", "value")
    )
    weights = np.exp(query @ key.swapaxes(2, 3) / np.sqrt(query.shape[-1]))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("nhts,hsc->ntc", weights @ value, arrays[f"{name}/out/kernel"]) + arrays[f"{name}/out/bias"]
