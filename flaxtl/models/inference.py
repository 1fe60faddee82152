"""Inference on a CPU, where large layers run for a few images at a time.

Their outputs for a whole batch are tens of megabytes, which go to memory and back; those of a chunk stay in the cache.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar, cast

import jax
from jax import lax

from flaxtl.models.classifier import Classifier, ModelOutput, Params, forward, list_layers, to_variables
from flaxtl.models.tracer import cut_points

Outputs = TypeVar("Outputs")

CHUNK_PIXELS = 160_000
"""Maximum number of pixels of the images in a chunk: four images of 200x200."""

LARGE_STRIDE = 16
"""Maximum stride of a large layer: rows of the image for a row of its output. The weights of later layers outweigh
their outputs, so that they are faster for a whole batch."""


def infer(
    model: Classifier,
    params: Params,
    x: jax.Array,
    *,
    in_chunks: bool,
    start: str | None = None,
    stop: str | None = None,
    taps: tuple[str, ...] = (),
) -> ModelOutput:
    """Run the model, or a part of it, in inference mode; see `Classifier.__call__`.

    Args:
      model: the classifier.
      params: its parameters.
      x: images, or the output of layer `start`.
      in_chunks: whether large layers run for a few images at a time; for a single CPU device.
      start: backbone layer that `x` is the output of.
      stop: last layer to run.
      taps: names of layers to return the outputs of.

    Raises:
      UserError: a layer does not exist, or is not part of what runs.
    """
    large = _large_layers(model, *x.shape[1:3]) if in_chunks and start is None else []
    if not large or _chunk_size(x) == len(x):
        return forward(model, params, x, start=start, stop=stop, taps=taps)
    cut = stop if stop in large else large[-1]
    large_taps = tuple(name for name in taps if name in large)
    other_taps = tuple(name for name in taps if name not in large)
    run = partial(model.apply, to_variables(params), stop=cut, taps=large_taps)
    result = map_chunks(lambda chunk, num_chunks: cast(ModelOutput, run(chunk, num_chunks=num_chunks)), x)
    if cut == stop and not other_taps:
        return result
    rest = forward(model, params, result.output, start=cut, stop=stop, taps=other_taps)
    return rest._replace(taps=result.taps | rest.taps)


def _large_layers(model: Classifier, height: int, width: int) -> list[str]:
    """Return the large layers of `model` for images of that size, up to the last one that all paths pass through."""
    layers = list_layers(model, height, width)
    cuts = set(cut_points(layers))
    ends = [
        index
        for index, (_, name, _, shape, _) in enumerate(layers)
        if name in cuts and len(shape) == 3 and shape[0] >= height // LARGE_STRIDE
    ]
    return [layer.name for layer in layers[: ends[-1] + 1]] if ends else []


def map_chunks(function: Callable[[jax.Array, int], Outputs], images: jax.Array) -> Outputs:
    """Return `function(images, 1)`, computed chunk by chunk.

    Args:
      function: of images [n, height, width, 3] and the number of chunks; returns arrays [n, ...].
      images: [batch, height, width, 3].
    """
    chunks = images.reshape(-1, _chunk_size(images), *images.shape[1:])
    outputs = lax.map(lambda chunk: function(chunk, len(chunks)), chunks)
    merged: Outputs = jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), outputs)
    return merged


def _chunk_size(images: jax.Array) -> int:
    """Return the size of all chunks: the largest divisor of the batch within CHUNK_PIXELS.

    If that is less than half of the maximum, the batch stays whole.
    """
    batch, height, width, _ = images.shape
    most = max(1, CHUNK_PIXELS // (height * width))
    size = max(n for n in range(1, min(most, batch) + 1) if batch % n == 0)
    return size if 2 * size >= most else batch
