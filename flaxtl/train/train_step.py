"""The compiled training steps.

A training step is a pure function (state, frozen params, batch) -> state. It draws its randomness from the seed, the
step number and the position of the example, so that resuming, splitting a batch, and making many steps in one call give
the same numbers. Nothing in it waits for the host.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from flaxtl.data.augment.config import AugmentConfig, example_keys
from flaxtl.data.augment.mixup import mix
from flaxtl.data.loaders import Batch, shard_batch
from flaxtl.models.classifier import Classifier, FlatParams, flatten_params, forward, unflatten_params
from flaxtl.models.inference import infer
from flaxtl.parallel import devices
from flaxtl.train.metrics import MetricSums, batch_metrics, cross_entropy
from flaxtl.train.param_groups import layers_in_train_mode

DROPOUT_STREAM = 1
"""Number folded into the seed for dropout, so that it is independent of augmentation."""

NO_STEP = -1
"""`TrainState.nonfinite_step` while all losses and gradients are finite."""


class TrainState(NamedTuple):
    """Everything that a phase changes; all leaves are on the device.

    Attributes:
      step: global step, int32 [].
      params: the trainable parameters, float32.
      batch_stats: running statistics of the batch norms in trained groups.
      opt_state: the optimizer's state, for `params` only.
      metrics: sums since the epoch began.
      nonfinite_step: the first step with a loss or gradient that is not finite, int32 [], or NO_STEP. From that step on
        the state no longer changes, so it is still the last good one.
      lr_scale: factor on the scheduled learning rates, float32 []: 1 until a plateau reduces it.
      ema_params: moving average of `params`; empty in a phase without EMA.
    """

    step: jax.Array
    params: FlatParams
    batch_stats: FlatParams
    opt_state: optax.OptState
    metrics: MetricSums
    nonfinite_step: jax.Array
    lr_scale: jax.Array
    ema_params: FlatParams

    @classmethod
    def create(
        cls,
        step: int,
        params: FlatParams,
        batch_stats: FlatParams,
        opt_state: optax.OptState,
        num_classes: int,
        use_ema: bool = False,
    ) -> "TrainState":
        """Return the state before global step `step`."""
        return cls(
            step=jnp.int32(step),
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            metrics=MetricSums.zero(num_classes),
            nonfinite_step=jnp.int32(NO_STEP),
            lr_scale=jnp.ones(()),
            ema_params=params if use_ema else {},
        )

    @property
    def updated_params(self) -> FlatParams:
        """All parameters that the phase changes: `params` and `batch_stats`."""
        return self.params | self.batch_stats

    @property
    def eval_params(self) -> FlatParams:
        """The parameters that are validated and saved: averaged if the phase uses EMA."""
        return self.updated_params | self.ema_params


class Ema(NamedTuple):
    """Moving average of the weights, as Keras' optimizers with `use_ema` (keras/src/optimizers/base_optimizer.py).

    After the phase's first step, global step `first_step`, the average is a copy of the weights. Every later step sets
    it to `decay` * average + (1 - decay) * weights, with 0 <= decay < 1. There is no bias correction.
    """

    decay: float
    first_step: int

    def update(self, step: jax.Array, average: FlatParams, params: FlatParams) -> FlatParams:
        """Return the average after global step `step`, which resulted in `params`."""
        decay = jnp.where(step == self.first_step, 0.0, self.decay)
        return {path: decay * average[path] + (1 - decay) * value for path, value in params.items()}


class StepConfig(NamedTuple):
    """What is constant in the training steps of a phase.

    Attributes:
      model: the classifier.
      optimizer: for the trainable parameters.
      mesh: devices to split a batch over.
      seed: of augmentation and dropout.
      start_layer: layer that the batches are outputs of; None if they are images.
      augmentation: applied inside the step, of which features take mixup and CutMix only; None for none.
      class_weights: weight of each class in the loss.
      label_smoothing: fraction of a label that is spread evenly over all classes (Szegedy et al. 2016).
      accum_steps: number of equal microbatches that a batch is processed in, one after the other, to save memory. The
        result is that of the whole batch, except that trained batch norms see one microbatch at a time.
      ema: moving average of the trainable parameters, if any. Batch statistics are never averaged.
      cut_layer: the last frozen layer below everything that trains. None without one.

    Metrics ignore `class_weights` and `label_smoothing`, so that they can be compared with those of validation.
    """

    model: Classifier
    optimizer: optax.GradientTransformation
    mesh: Mesh
    seed: int
    start_layer: str | None = None
    augmentation: AugmentConfig | None = None
    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0
    accum_steps: int = 1
    ema: Ema | None = None
    cut_layer: str | None = None


TrainStep = Callable[[TrainState, FlatParams, Batch], TrainState]
MultiStep = Callable[[TrainState, FlatParams, Batch, np.int32, np.int32], TrainState]


def make_train_step(cfg: StepConfig, sharding: Batch) -> TrainStep:
    """Return the jitted (state, frozen params, batch) -> state. The given state is donated.

    Args:
      cfg: the phase's constants.
      sharding: shardings of a batch, from its loader.
    """
    replicated = devices.replicated_sharding(cfg.mesh)
    shardings = (replicated, replicated, sharding)
    return jax.jit(partial(train_step, cfg), donate_argnums=0, in_shardings=shardings, out_shardings=replicated)


def make_multi_step(cfg: StepConfig, sharding: Batch) -> MultiStep:
    """Return the jitted (state, frozen params, batches, first, last) -> state after steps first..last-1 of an epoch.

    One program serves any number of steps, without the host in between; the result does not depend on how the steps
    are divided into calls. The given state is donated.

    Args:
      cfg: the phase's constants.
      sharding: shardings of the batches, arrays [steps, batch, ...].
    """

    def run(state: TrainState, frozen: FlatParams, batches: Batch, first: jax.Array, last: jax.Array) -> TrainState:
        def step(index: jax.Array, state: TrainState) -> TrainState:
            return train_step(cfg, state, frozen, batches.with_arrays(tuple(array[index] for array in batches.arrays)))

        result: TrainState = jax.lax.fori_loop(first, last, step, state)
        return result

    replicated = devices.replicated_sharding(cfg.mesh)
    shardings = (replicated, replicated, sharding, replicated, replicated)
    return jax.jit(run, donate_argnums=0, in_shardings=shardings, out_shardings=replicated)


def train_step(cfg: StepConfig, state: TrainState, frozen: FlatParams, batch: Batch) -> TrainState:
    """Run one training step: gradients, optimizer, EMA, metrics."""
    examples = _make_examples(cfg, shard_batch(batch, cfg.mesh), state.step)
    if cfg.accum_steps == 1:
        grads = compute_grads(cfg, state, frozen, examples)
    else:
        grads = _accumulate_grads(cfg, state, frozen, examples)
    updates, opt_state = cfg.optimizer.update(grads.grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, jax.tree.map(lambda update: state.lr_scale * update, updates))
    new_state = state._replace(
        step=state.step + 1,
        params=params,
        batch_stats=grads.batch_stats,
        opt_state=opt_state,
        metrics=state.metrics + grads.metrics,
        ema_params=cfg.ema.update(state.step, state.ema_params, params) if cfg.ema else state.ema_params,
    )
    ok = all_finite((grads.loss, grads.grads), cfg.mesh) & (state.nonfinite_step == NO_STEP)
    return _skip_unless(ok, state, new_state)


class StepGrads(NamedTuple):
    """What a (micro)batch contributes to a step: mean loss, its gradients, new batch statistics and metric sums."""

    loss: jax.Array
    grads: FlatParams
    batch_stats: FlatParams
    metrics: MetricSums


class Target(NamedTuple):
    """Class indices [batch], and the weight of this label in each example's loss, float32 [batch]."""

    labels: jax.Array
    weight: jax.Array


class Examples(NamedTuple):
    """The inputs of the model [batch, ...], their labels (two each if images are mixed) and keys of their dropout."""

    inputs: jax.Array
    targets: tuple[Target, ...]
    dropout_keys: jax.Array


def compute_grads(cfg: StepConfig, state: TrainState, frozen: FlatParams, examples: Examples) -> StepGrads:
    """Run the forward and backward pass over one (micro)batch.

    Only `state.params` is differentiated; `frozen` is constant, so XLA drops its backward pass.
    """
    _, targets, dropout_keys = examples
    start_layer, inputs = _run_frozen_layers(cfg, frozen, examples.inputs)
    train_layers = layers_in_train_mode(state.updated_params, frozen)

    def loss_fn(params: FlatParams) -> tuple[jax.Array, tuple[jax.Array, FlatParams]]:
        all_params = unflatten_params(frozen | state.batch_stats | params)
        output = forward(
            cfg.model, all_params, inputs, start=start_layer, train_layers=train_layers, dropout_keys=dropout_keys
        )
        assert output.logits is not None, "the forward pass is not stopped before the logits"
        losses = _weighted_losses(output.logits, targets, cfg.class_weights, cfg.label_smoothing)
        return losses.mean(), (output.logits, flatten_params(output.batch_stats))

    (loss, (logits, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    labels, losses = _main_labels(targets), _weighted_losses(logits, targets)
    metrics = batch_metrics(logits, labels, jnp.ones(len(logits), bool), losses)
    return StepGrads(loss, grads, {path: batch_stats[path] for path in state.batch_stats}, metrics)


def _run_frozen_layers(cfg: StepConfig, frozen: FlatParams, inputs: jax.Array) -> tuple[str | None, jax.Array]:
    """Return the layer above which the step differentiates, and its outputs.

    On a CPU it is `cfg.cut_layer`, because inference runs in chunks; elsewhere XLA does the same with the whole model.
    """
    if cfg.start_layer is not None or cfg.cut_layer is None or not devices.is_one_cpu(cfg.mesh):
        return cfg.start_layer, inputs
    params = unflatten_params(frozen)
    return cfg.cut_layer, infer(cfg.model, params, inputs, in_chunks=True, stop=cfg.cut_layer).output


def _accumulate_grads(cfg: StepConfig, state: TrainState, frozen: FlatParams, examples: Examples) -> StepGrads:
    """Run the microbatches of a batch in turn: mean loss and gradients, summed metrics, the last statistics."""
    microbatches = jax.tree.map(lambda array: _microbatches(array, cfg.accum_steps, cfg.mesh), examples)

    def microbatch_grads(batch_stats: FlatParams, microbatch: Examples) -> StepGrads:
        return compute_grads(cfg, state._replace(batch_stats=batch_stats), frozen, microbatch)

    def add(total: StepGrads, microbatch: Examples) -> tuple[StepGrads, None]:
        grads = microbatch_grads(total.batch_stats, microbatch)
        loss, summed = jax.tree.map(jnp.add, (total.loss, total.grads), (grads.loss, grads.grads))
        return StepGrads(loss, summed, grads.batch_stats, total.metrics + grads.metrics), None

    first = jax.tree.map(lambda array: array[0], microbatches)
    shapes = jax.eval_shape(microbatch_grads, state.batch_stats, first)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    # XLA's convolutions on CPU are tens of times slower inside a loop; there it is unrolled.
    unroll = cfg.accum_steps if devices.platform_of(cfg.mesh) == "cpu" else 1
    total, _ = jax.lax.scan(add, zeros._replace(batch_stats=state.batch_stats), microbatches, unroll=unroll)
    loss, grads = jax.tree.map(lambda value: value / cfg.accum_steps, (total.loss, total.grads))
    return StepGrads(loss, grads, total.batch_stats, total.metrics)


def _microbatches(array: jax.Array, num_parts: int, mesh: Mesh) -> jax.Array:
    """Reshape [batch, ...] to [parts, batch / parts, ...], interleaved so that each device keeps its examples."""
    parts = array.reshape(-1, num_parts, *array.shape[1:]).swapaxes(0, 1)
    sharded: jax.Array = jax.lax.with_sharding_constraint(parts, devices.batch_sharding(mesh, axis=1))
    return sharded


def all_finite(tree: Any, mesh: Mesh) -> jax.Array:
    """Return whether all elements of a tree of float arrays are finite, bool [].

    On GPUs all arrays are one reduction, into which XLA fuses their concatenation: one kernel instead of one per array.
    On CPU and TPU it would copy them first, so each array is reduced by itself.
    """
    arrays = [leaf.ravel() for leaf in jax.tree.leaves(tree)]
    if devices.platform_of(mesh) == "gpu":
        return jnp.isfinite(jnp.concatenate(arrays)).all()
    return jnp.stack([jnp.isfinite(array).all() for array in arrays]).all()


def _skip_unless(ok: jax.Array, state: TrainState, new_state: TrainState) -> TrainState:
    """Return `new_state` if the step is `ok`; otherwise `state`, with the first step that was not."""
    selected: TrainState = jax.tree.map(partial(jnp.where, ok), new_state, state)
    nonfinite_step = jnp.where(ok | (state.nonfinite_step != NO_STEP), state.nonfinite_step, state.step)
    return selected._replace(nonfinite_step=nonfinite_step)


def _dropout_keys(seed: int, step: jax.Array, batch_size: int) -> jax.Array:
    """Return a random key for each example [batch], which does not depend on how the batch is split."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), DROPOUT_STREAM), step)
    keys: jax.Array = jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.arange(batch_size))
    return keys


def _make_examples(cfg: StepConfig, batch: Batch, step: jax.Array) -> Examples:
    """Augment and mix a whole batch: the partners in mixing do not depend on how the batch is divided afterwards."""
    inputs, labels = batch.inputs(cfg.seed, cfg.augmentation), batch.labels
    dropout_keys = _dropout_keys(cfg.seed, step, len(labels))
    if cfg.augmentation is None or not cfg.augmentation.uses_mixing:
        return Examples(inputs, (Target(labels, jnp.ones(len(labels))),), dropout_keys)
    mixed = mix(example_keys(cfg.seed, batch.epochs, batch.indices), inputs, labels, cfg.augmentation)
    targets = Target(mixed.labels, mixed.lam), Target(mixed.labels_b, 1 - mixed.lam)
    return Examples(mixed.images, targets, dropout_keys)


def _main_labels(targets: tuple[Target, ...]) -> jax.Array:
    """Return each example's label of the largest weight, int32 [batch]; Keras counts accuracy against it, too."""
    main, *others = targets
    labels, weight = main
    for other in others:
        labels = jnp.where(other.weight > weight, other.labels, labels)
        weight = jnp.maximum(other.weight, weight)
    return labels


def _weighted_losses(
    logits: jax.Array,
    targets: tuple[Target, ...],
    class_weights: tuple[float, ...] | None = None,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """Return the cross-entropy summed over the targets, times the weight of each target's class; float32 [batch]."""
    losses = jnp.zeros(())
    for labels, weight in targets:
        class_weight = 1.0 if class_weights is None else jnp.asarray(class_weights)[labels]
        losses += weight * class_weight * cross_entropy(logits, labels, label_smoothing)
    return losses
