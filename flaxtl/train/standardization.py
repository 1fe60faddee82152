"""The statistics of `head.normalize=standardize`: mean and variance of the features of the training images."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

from flaxtl.data.loaders import Batch, Loader, Mask, shard_batch
from flaxtl.models.classifier import Classifier, FlatParams, unflatten_params
from flaxtl.models.head import FEATURES, NORMALIZE
from flaxtl.models.inference import infer
from flaxtl.parallel import devices
from flaxtl.train.eval_loop import run_batches


class Moments(NamedTuple):
    """Number of examples, and the mean and the sum of squared deviations of each of their features, [features]."""

    n: npt.NDArray[np.float64] | jax.Array
    mean: npt.NDArray[np.float64] | jax.Array
    squares: npt.NDArray[np.float64] | jax.Array

    def merge(self, other: "Moments") -> "Moments":
        """Return the moments of both sets of examples (Chan et al. 1979), which loses no digits in a difference."""
        n, shift = self.n + other.n, other.mean - self.mean
        mean = self.mean + shift * (other.n / n)
        return Moments(n, mean, self.squares + other.squares + shift**2 * (self.n * other.n / n))


def feature_statistics(
    model: Classifier, mesh: Mesh, params: FlatParams, loader: Loader, start_layer: str | None, batch_size: int
) -> FlatParams:
    """Return path -> mean and biased variance, float32 [features], of what the head's normalization reads.

    Args:
      model: a classifier with `head.normalize=standardize`.
      mesh: devices to split a batch over.
      params: all parameters.
      loader: the training images without augmentation, or their outputs of `start_layer`.
      start_layer: backbone layer that the batches are outputs of; None if they are images.
      batch_size: examples per step.
    """

    def step(params: FlatParams, batch: Batch, mask: Mask) -> Moments:
        inputs = shard_batch(batch, mesh).inputs(0, None)
        in_chunks = devices.is_one_cpu(mesh)
        tree = unflatten_params(params)
        output = infer(model, tree, inputs, in_chunks=in_chunks, start=start_layer, stop=FEATURES).output
        features, weights = output.astype(jnp.float32), jnp.asarray(mask, jnp.float32)[:, None]
        count = weights.sum()
        mean = (weights * features).sum(0) / count
        return Moments(count, mean, (weights * jnp.square(features - mean)).sum(0))

    replicated = devices.replicated_sharding(mesh)
    shardings = (replicated, loader.sharding(mesh), replicated)
    compiled = jax.jit(step, in_shardings=shardings, out_shardings=replicated)
    total = Moments(np.zeros(()), np.zeros(()), np.zeros(()))
    for moments, _ in run_batches(compiled, params, loader.eval_batches(batch_size)):
        total = total.merge(Moments(*(np.asarray(array, np.float64) for array in moments)))
    statistics = {"mean": total.mean, "var": total.squares / total.n}
    return {
        f"head/{NORMALIZE}/{leaf}": devices.replicate(jnp.asarray(value, jnp.float32), mesh)
        for leaf, value in statistics.items()
    }
