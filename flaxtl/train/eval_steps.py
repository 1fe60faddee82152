"""The compiled evaluation steps: one batch, many batches in one call, and one view of test-time augmentation."""

from collections.abc import Callable
from functools import cache

import jax
import numpy as np
from jax.sharding import Mesh

from flaxtl.data.augment.tta import ViewFn
from flaxtl.data.loaders import Batch, Mask, shard_batch
from flaxtl.models.classifier import Classifier, FlatParams, forward_logits, unflatten_params
from flaxtl.models.inference import infer
from flaxtl.parallel import devices
from flaxtl.train.metrics import ClassProbabilities, MetricSums, batch_metrics

EvalStep = Callable[[FlatParams, Batch, Mask], tuple[ClassProbabilities, MetricSums]]
"""(params, batch, mask) -> class probabilities of the batch and the sums over the examples of `mask`."""

MultiEvalStep = Callable[[FlatParams, Batch, Mask, np.int32, np.int32, MetricSums], MetricSums]
"""(params, batches, masks, first, last, sums) -> `sums` and those of batches first..last-1 together."""

TtaStep = Callable[[np.int32, FlatParams, Batch, Mask], tuple[ClassProbabilities, MetricSums]]
"""(view number, params, batch, mask) -> the same as `EvalStep`, for one view of each image."""


@cache
def make_eval_step(model: Classifier, mesh: Mesh, start_layer: str | None, sharding: Batch) -> EvalStep:
    """Return the jitted (params, batch, mask) -> (class probabilities, metric sums).

    Args:
      model: the classifier.
      mesh: devices to split a batch over.
      start_layer: layer that the batches are outputs of; None if they are images.
      sharding: shardings of a batch, from its loader.
    """

    def step(params: FlatParams, batch: Batch, mask: jax.Array) -> tuple[ClassProbabilities, MetricSums]:
        batch = shard_batch(batch, mesh)
        return _predict(model, mesh, params, batch.inputs(0, None), batch.labels, mask, start_layer)

    replicated = devices.replicated_sharding(mesh)
    return jax.jit(step, in_shardings=(replicated, sharding, replicated), out_shardings=replicated)


@cache
def make_multi_eval_step(model: Classifier, mesh: Mesh, start_layer: str | None, sharding: Batch) -> MultiEvalStep:
    """Return the jitted (params, batches, masks, first, last, sums) -> sums after batches first..last-1.

    One program serves any number of batches. They are added one after the other, as `make_eval_step` would, so the
    result does not depend on how the batches are divided into calls, and only one is in memory at a time.

    Args:
      model: the classifier.
      mesh: devices to split a batch over.
      start_layer: layer that the batches are outputs of; None if they are images.
      sharding: shardings of the batches, arrays [batches, batch, ...].
    """

    def run(
        params: FlatParams, batches: Batch, masks: jax.Array, first: jax.Array, last: jax.Array, sums: MetricSums
    ) -> MetricSums:
        def add(index: jax.Array, sums: MetricSums) -> MetricSums:
            batch = shard_batch(batches.with_arrays(tuple(array[index] for array in batches.arrays)), mesh)
            logits = forward_logits(model, unflatten_params(params), batch.inputs(0, None), start=start_layer)
            return sums + batch_metrics(logits, batch.labels, masks[index])

        result: MetricSums = jax.lax.fori_loop(first, last, add, sums)
        return result

    replicated = devices.replicated_sharding(mesh)
    shardings = (replicated, sharding, *[replicated] * 4)
    return jax.jit(run, in_shardings=shardings, out_shardings=replicated)


def make_tta_step(model: Classifier, mesh: Mesh, view_fn: ViewFn, sharding: Batch) -> TtaStep:
    """Return the jitted (view number, params, batch, mask) -> outputs as `make_eval_step`, for one view per image."""

    def step(
        view: jax.Array, params: FlatParams, batch: Batch, mask: jax.Array
    ) -> tuple[ClassProbabilities, MetricSums]:
        batch = shard_batch(batch, mesh)
        images = view_fn(batch.inputs(0, None), batch.indices, view)
        return _predict(model, mesh, params, images, batch.labels, mask)

    replicated = devices.replicated_sharding(mesh)
    return jax.jit(step, in_shardings=(replicated, replicated, sharding, replicated), out_shardings=replicated)


def _predict(
    model: Classifier,
    mesh: Mesh,
    params: FlatParams,
    inputs: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    start_layer: str | None = None,
) -> tuple[ClassProbabilities, MetricSums]:
    in_chunks = devices.is_one_cpu(mesh)
    logits = infer(model, unflatten_params(params), inputs, in_chunks=in_chunks, start=start_layer).logits
    assert logits is not None, "without `stop` the softmax is reached"
    return ClassProbabilities.from_logits(logits), batch_metrics(logits, labels, mask)
