"""A moving average of the weights that learn: steadier than the weights of any one step."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
from jax.sharding import Mesh

from flaxtl.data.augment.config import AugmentConfig, example_keys
from flaxtl.data.augment.mixup import mix
from flaxtl.data.augment.tta import ViewFn
from flaxtl.data.loaders import Batch
from flaxtl.models.classifier import Classifier, FlatParams, flatten_params, forward, forward_logits, unflatten_params
from flaxtl.parallel import devices
from flaxtl.train.eval_loop import EvalStep
from flaxtl.train.metrics import MetricSums, batch_metrics, cross_entropy
from flaxtl.train.param_groups import layers_in_train_mode


class Ema(NamedTuple):
    """The average that Keras' optimizers keep with `use_ema` (keras/src/optimizers/base_optimizer.py, Keras 3).

    After the phase's first step, global step `first_step`, it is what learns; after every later one it is `decay`
    (from 0 to below 1) of what it was and 1 - `decay` of what learns. It looks back over about 1 / (1 - decay) steps.
    Nothing corrects for its beginning: after n steps decay**(n - 1) of it still are the weights after the first one.
    """

    decay: float
    first_step: int

    def update(self, step: jax.Array, average: FlatParams, learning: FlatParams) -> FlatParams:
        """The average after global step `step`, which has made `learning` of what learns."""
        kept = jnp.where(step == self.first_step, 0.0, self.decay)
        return {path: kept * average[path] + (1 - kept) * value for path, value in learning.items()}


DROPOUT_STREAM = 1
"""Number folded into the seed for dropout, so that it is independent of augmentation."""


NO_STEP = -1
"""State.failed while all is well."""


class TrainState(NamedTuple):
    """What a phase changes.

    The global step (int32), the learning parameters, the statistics of their batch norms, the optimizer's state and
    the totals since the epoch began.
    `scale` (float32 []) is what the schedule's rates are multiplied by: 1 until a plateau lowers them. `average` is
    that of the learning parameters, empty in a phase that keeps none.
    `failed` (int32) is the step whose loss or gradient was not finite, or NONE_FAILED: from that step on nothing
    changes any more, so that a state which failed still is the last good one.
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
        learning: FlatParams,
        statistics: FlatParams,
        optimizer: optax.OptState,
        classes: int,
        averages: bool = False,
    ) -> "TrainState":
        """The state before global step `step`."""
        average = learning if averages else {}
        totals, failed = MetricSums.zero(classes), jnp.int32(NO_STEP)
        return cls(jnp.int32(step), learning, statistics, optimizer, totals, failed, jnp.ones(()), average)

    @property
    def updated_params(self) -> FlatParams:
        """All parameters that the phase changes."""
        return self.params | self.batch_stats

    @property
    def eval_params(self) -> FlatParams:
        """Those as validation measures them and the phase hands them on: averaged, if it averages what learns."""
        return self.updated_params | self.ema_params


class Target(NamedTuple):
    """What a step's images shall be taken for: class indices [batch], each with its share of the loss."""

    labels: jax.Array
    lam: jax.Array | float


TrainStep = Callable[[TrainState, FlatParams, Batch], TrainState]
ScannedSteps = Callable[[TrainState, FlatParams, Batch, np.int32, np.int32], TrainState]
TtaStep = Callable[[np.int32, FlatParams, Batch, npt.NDArray[np.bool_]], tuple[jax.Array, MetricSums]]


class StepGrads(NamedTuple):
    """What the examples of one pass contribute: mean loss, its gradients, moved statistics and totals."""

    loss: jax.Array
    gradients: FlatParams
    batch_stats: FlatParams
    metrics: MetricSums


class StepConfig(NamedTuple):
    """What the training steps of a phase have in common: everything but their state and their examples.

    With `start` the examples are outputs of that layer. `class_weights` weigh the loss that is minimised, and
    `smoothing` is the share of a label that it spreads evenly over all classes (Szegedy et al. 2016); the totals know
    neither, so that they can be compared with those of other runs and of validation.
    A batch is passed through in `accumulate` equal parts, one after the other, to need less memory. The step is that
    of the whole batch, but for batch norms that learn, which see one part at a time.
    `average` is how what learns is averaged over steps, if it is; the statistics of batch norms never are.
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


def make_train_step(task: StepConfig, sharding: Batch) -> TrainStep:
    """(state, frozen parameters, examples) -> state; the old state is donated. `sharding` is the feed's.

    Only the learning parameters are differentiated.
    """
    whole = devices.replicated_sharding(task.mesh)
    step = partial(_step, task)
    return jax.jit(step, donate_argnums=0, in_shardings=(whole, whole, sharding), out_shardings=whole)


def make_scanned_steps(task: StepConfig, sharding: Batch) -> ScannedSteps:
    """(state, frozen parameters, epoch, first, last) -> state after the steps of the rows from `first` to below `last`.

    `epoch` are examples with rows [steps, batch, ...]. One program makes any number of steps, the same ones however
    they are dealt out to calls, and the host is not heard of between them.
    """

    def steps(state: TrainState, frozen: FlatParams, epoch: Batch, first: jax.Array, last: jax.Array) -> TrainState:
        def step(row: jax.Array, state: TrainState) -> TrainState:
            return _step(task, state, frozen, epoch.with_arrays(tuple(rows[row] for rows in epoch.arrays)))

        done: TrainState = jax.lax.fori_loop(first, last, step, state)
        return done

    whole = devices.replicated_sharding(task.mesh)
    return jax.jit(steps, donate_argnums=0, in_shardings=(whole, whole, sharding, whole, whole), out_shardings=whole)


def _step(task: StepConfig, state: TrainState, frozen: FlatParams, examples: Batch) -> TrainState:
    examples = _split(examples, task.mesh)
    keys = _dropout_keys(task.seed, state.step, examples.arrays[0].shape[0])
    if task.accum_steps == 1:
        found = compute_grads(task, state, frozen, examples, keys)
    else:
        dealt = jax.tree.map(lambda rows: _microbatches(rows, task.accum_steps, task.mesh), (examples.arrays, keys))
        found = _accumulate_grads(
            lambda state, row: compute_grads(task, state, frozen, examples.with_arrays(row[0]), row[1]),
            state,
            dealt,
        )
    updates, optimizer_state = task.optimizer.update(found.gradients, state.opt_state, state.params)
    learning = optax.apply_updates(state.params, jax.tree.map(lambda update: state.lr_scale * update, updates))
    moved = state._replace(
        step=state.step + 1,
        params=learning,
        batch_stats=found.batch_stats,
        opt_state=optimizer_state,
        metrics=state.metrics + found.metrics,
    )
    if task.ema:
        moved = moved._replace(ema_params=task.ema.update(state.step, state.ema_params, learning))
    return _skip_if_nonfinite(state, moved, found)


def compute_grads(
    task: StepConfig, state: TrainState, frozen: FlatParams, examples: Batch, dropout: jax.Array
) -> StepGrads:
    """A pass of examples, each with its own key for dropout."""
    inputs, goals = _targets(examples, task.seed, task.augmentation)
    layers = layers_in_train_mode(state.updated_params, frozen)

    def loss(learning: FlatParams) -> tuple[jax.Array, tuple[jax.Array, FlatParams]]:
        parameters = unflatten_params(frozen | state.batch_stats | learning)
        result = forward(
            task.model, parameters, inputs, start=task.start_layer, train_layers=layers, dropout_keys=dropout
        )
        assert result.logits is not None, "a pass without `stop` reaches the softmax"
        return _losses(result.logits, goals, task.class_weights, task.label_smoothing).mean(), (
            result.logits,
            flatten_params(result.batch_stats),
        )

    (value, (logits, moved)), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
    statistics = {path: moved[path] for path in state.batch_stats}
    labels = examples.labels
    counted = batch_metrics(logits, labels, jnp.ones(labels.shape, bool), _losses(logits, goals))
    return StepGrads(value, gradients, statistics, counted)


def _split(examples: Batch, mesh: Mesh) -> Batch:
    """Each device has its share of them, however they came."""
    return examples.with_arrays(jax.lax.with_sharding_constraint(examples.arrays, devices.batch_sharding(mesh)))


def _dropout_keys(seed: int, step: jax.Array, batch: int) -> jax.Array:
    """A random key for each example [batch]: its own, so that it does not matter which others pass with it."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), DROPOUT_STREAM), step)
    keys: jax.Array = jax.vmap(lambda place: jax.random.fold_in(key, place))(jnp.arange(batch))
    return keys


def _microbatches(rows: jax.Array, parts: int, mesh: Mesh) -> jax.Array:
    """[batch, ...] -> [parts, batch / parts, ...]; dealt out in turn, so that every device has its share of a part."""
    dealt = rows.reshape(-1, parts, *rows.shape[1:]).swapaxes(0, 1)
    placed: jax.Array = jax.lax.with_sharding_constraint(dealt, devices.batch_sharding(mesh, axis=1))
    return placed


def _accumulate_grads(part: Callable[[TrainState, Any], StepGrads], state: TrainState, rows: Any) -> StepGrads:
    """The parts of a batch one after the other: means of losses and gradients, sums of totals, the last statistics."""
    shapes = jax.eval_shape(part, state, jax.tree.map(lambda row: row[0], rows))
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)._replace(
        batch_stats=state.batch_stats
    )

    def add(before: StepGrads, row: Any) -> tuple[StepGrads, None]:
        found = part(state._replace(batch_stats=before.batch_stats), row)
        loss, gradients = jax.tree.map(jnp.add, before[:2], found[:2])
        return StepGrads(loss, gradients, found.batch_stats, before.metrics + found.metrics), None

    n = len(jax.tree.leaves(rows)[0])
    # XLA's convolutions on CPU are tens of times slower within a loop; there the parts are written out.
    unroll = n if jax.default_backend() == "cpu" else 1
    (loss, gradients, statistics, totals), _ = jax.lax.scan(add, nothing, rows, unroll=unroll)
    return StepGrads(loss / n, {path: gradient / n for path, gradient in gradients.items()}, statistics, totals)


def _skip_if_nonfinite(state: TrainState, moved: TrainState, found: StepGrads) -> TrainState:
    """`moved`, or where loss or gradients are not finite, or were not before, the state as it was."""
    finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((found.loss, found.gradients))]
    well = jnp.stack(finite).all() & (state.nonfinite_step == NO_STEP)
    kept: TrainState = jax.tree.map(partial(jnp.where, well), moved, state)
    failed = jnp.where(well | (state.nonfinite_step != NO_STEP), state.nonfinite_step, state.step)
    return kept._replace(nonfinite_step=failed)


def _targets(examples: Batch, seed: int, augmentation: AugmentConfig | None) -> tuple[jax.Array, tuple[Target, ...]]:
    """A step's inputs and what they shall be taken for."""
    inputs, labels = examples.inputs(seed, augmentation), examples.labels
    if augmentation is None or not augmentation.uses_mixing:
        return inputs, (Target(labels, 1.0),)
    mixed = mix(example_keys(seed, examples.epochs, examples.indices), inputs, labels, augmentation)
    return mixed.images, (Target(mixed.labels, mixed.lam), Target(mixed.labels_b, 1 - mixed.lam))


def _losses(
    logits: jax.Array,
    goals: tuple[Target, ...],
    class_weights: tuple[float, ...] | None = None,
    smoothing: float = 0.0,
) -> jax.Array:
    """float32 [batch]: the cross-entropy with every goal by its share and, if given, the weight of its class."""
    losses = jnp.zeros(())
    for labels, shares in goals:
        weights = 1.0 if class_weights is None else jnp.asarray(class_weights)[labels]
        losses += shares * weights * cross_entropy(logits, labels, smoothing)
    return losses


@cache
def make_eval_step(model: Classifier, mesh: Mesh, start: str | None, sharding: Batch) -> EvalStep:
    """(parameters, examples, real [batch]) -> (float32 probabilities [batch, classes], totals).

    `sharding` is the feed's.
    """

    def step(parameters: FlatParams, examples: Batch, real: jax.Array) -> tuple[jax.Array, MetricSums]:
        examples = _split(examples, mesh)
        return _predict(model, parameters, examples.inputs(0, None), examples, real, start)

    whole = devices.replicated_sharding(mesh)
    return jax.jit(step, in_shardings=(whole, sharding, whole), out_shardings=whole)


def make_tta_step(model: Classifier, mesh: Mesh, look: ViewFn, sharding: Batch) -> TtaStep:
    """(number of a view, and what `eval_step` takes) -> as `eval_step`, of images that `look` has looked at."""

    def step(view: jax.Array, parameters: FlatParams, examples: Batch, real: jax.Array) -> tuple[jax.Array, MetricSums]:
        examples = _split(examples, mesh)
        seen = look(examples.inputs(0, None), examples.indices, view)
        return _predict(model, parameters, seen, examples, real)

    whole = devices.replicated_sharding(mesh)
    return jax.jit(step, in_shardings=(whole, whole, sharding, whole), out_shardings=whole)


def _predict(
    model: Classifier,
    parameters: FlatParams,
    inputs: jax.Array,
    examples: Batch,
    real: jax.Array,
    start: str | None = None,
) -> tuple[jax.Array, MetricSums]:
    logits = forward_logits(model, unflatten_params(parameters), inputs, start=start)
    return jax.nn.softmax(logits), batch_metrics(logits, examples.labels, real)
