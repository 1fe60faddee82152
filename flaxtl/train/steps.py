"""One step of training and one of evaluation: pure functions, compiled once a phase."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
from jax.sharding import Mesh

from flaxtl.data.augment import Augmentation, keys
from flaxtl.data.mix import mix
from flaxtl.data.tta import Look
from flaxtl.models.classifier import Classifier, forward, logits_of
from flaxtl.train import mesh as meshes
from flaxtl.train.average import Average
from flaxtl.train.feeds import Examples
from flaxtl.train.groups import Flat, flatten, in_training, nest
from flaxtl.train.metrics import Totals, cross_entropy, total

DROPOUT_STREAM = 1
"""Number folded into the seed for dropout, so that it is independent of augmentation."""


NONE_FAILED = -1
"""State.failed while all is well."""


class State(NamedTuple):
    """What a phase changes.

    The global step (int32), the learning parameters, the statistics of their batch norms, the optimizer's state and
    the totals since the epoch began.
    `scale` (float32 []) is what the schedule's rates are multiplied by: 1 until a plateau lowers them. `average` is
    that of the learning parameters, empty in a phase that keeps none.
    `failed` (int32) is the step whose loss or gradient was not finite, or NONE_FAILED: from that step on nothing
    changes any more, so that a state which failed still is the last good one.
    """

    step: jax.Array
    learning: Flat
    statistics: Flat
    optimizer: optax.OptState
    totals: Totals
    failed: jax.Array
    scale: jax.Array
    average: Flat

    @classmethod
    def first(
        cls,
        step: int,
        learning: Flat,
        statistics: Flat,
        optimizer: optax.OptState,
        classes: int,
        averages: bool = False,
    ) -> "State":
        """The state before global step `step`."""
        average = learning if averages else {}
        totals, failed = Totals.zero(classes), jnp.int32(NONE_FAILED)
        return cls(jnp.int32(step), learning, statistics, optimizer, totals, failed, jnp.ones(()), average)

    @property
    def moved(self) -> Flat:
        """All parameters that the phase changes."""
        return self.learning | self.statistics

    @property
    def kept(self) -> Flat:
        """Those as validation measures them and the phase hands them on: averaged, if it averages what learns."""
        return self.moved | self.average


class Goal(NamedTuple):
    """What a step's pictures shall be taken for: class indices [batch], each with its share of the loss."""

    labels: jax.Array
    shares: jax.Array | float


TrainStep = Callable[[State, Flat, Examples], State]
TrainSteps = Callable[[State, Flat, Examples, np.int32, np.int32], State]
EvalStep = Callable[[Flat, Examples, npt.NDArray[np.bool_]], tuple[jax.Array, Totals]]
ViewStep = Callable[[np.int32, Flat, Examples, npt.NDArray[np.bool_]], tuple[jax.Array, Totals]]


class Part(NamedTuple):
    """What the examples of one pass contribute: mean loss, its gradients, moved statistics and totals."""

    loss: jax.Array
    gradients: Flat
    statistics: Flat
    totals: Totals


class Task(NamedTuple):
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
    start: str | None = None
    augmentation: Augmentation | None = None
    class_weights: tuple[float, ...] | None = None
    smoothing: float = 0.0
    accumulate: int = 1
    average: Average | None = None


def train_step(task: Task, sharding: Examples) -> TrainStep:
    """(state, frozen parameters, examples) -> state; the old state is donated. `sharding` is the feed's.

    Only the learning parameters are differentiated.
    """
    whole = meshes.replicated(task.mesh)
    step = partial(_step, task)
    return jax.jit(step, donate_argnums=0, in_shardings=(whole, whole, sharding), out_shardings=whole)


def train_steps(task: Task, sharding: Examples) -> TrainSteps:
    """(state, frozen parameters, epoch, first, last) -> state after the steps of the rows from `first` to below `last`.

    `epoch` are examples with rows [steps, batch, ...]. One program makes any number of steps, the same ones however
    they are dealt out to calls, and the host is not heard of between them.
    """

    def steps(state: State, frozen: Flat, epoch: Examples, first: jax.Array, last: jax.Array) -> State:
        def step(row: jax.Array, state: State) -> State:
            return _step(task, state, frozen, epoch.of(tuple(rows[row] for rows in epoch.rows)))

        done: State = jax.lax.fori_loop(first, last, step, state)
        return done

    whole = meshes.replicated(task.mesh)
    return jax.jit(steps, donate_argnums=0, in_shardings=(whole, whole, sharding, whole, whole), out_shardings=whole)


def _step(task: Task, state: State, frozen: Flat, examples: Examples) -> State:
    examples = _split(examples, task.mesh)
    keys = _dropout_keys(task.seed, state.step, examples.rows[0].shape[0])
    if task.accumulate == 1:
        found = _part(task, state, frozen, examples, keys)
    else:
        dealt = jax.tree.map(lambda rows: _deal(rows, task.accumulate, task.mesh), (examples.rows, keys))
        found = _accumulated(lambda state, row: _part(task, state, frozen, examples.of(row[0]), row[1]), state, dealt)
    updates, optimizer_state = task.optimizer.update(found.gradients, state.optimizer, state.learning)
    learning = optax.apply_updates(state.learning, jax.tree.map(lambda update: state.scale * update, updates))
    moved = state._replace(
        step=state.step + 1,
        learning=learning,
        statistics=found.statistics,
        optimizer=optimizer_state,
        totals=state.totals + found.totals,
    )
    if task.average:
        moved = moved._replace(average=task.average.after(state.step, state.average, learning))
    return _unless_failed(state, moved, found)


def _part(task: Task, state: State, frozen: Flat, examples: Examples, dropout: jax.Array) -> Part:
    """A pass of examples, each with its own key for dropout."""
    inputs, goals = _goals(examples, task.seed, task.augmentation)
    layers = in_training(state.moved, frozen)

    def loss(learning: Flat) -> tuple[jax.Array, tuple[jax.Array, Flat]]:
        parameters = nest(frozen | state.statistics | learning)
        result = forward(task.model, parameters, inputs, start=task.start, learning=layers, dropout=dropout)
        assert result.logits is not None, "a pass without `stop` reaches the softmax"
        return _losses(result.logits, goals, task.class_weights, task.smoothing).mean(), (
            result.logits,
            flatten(result.statistics),
        )

    (value, (logits, moved)), gradients = jax.value_and_grad(loss, has_aux=True)(state.learning)
    statistics = {path: moved[path] for path in state.statistics}
    labels = examples.answers()
    counted = total(logits, labels, jnp.ones(labels.shape, bool), _losses(logits, goals))
    return Part(value, gradients, statistics, counted)


def _split(examples: Examples, mesh: Mesh) -> Examples:
    """Each device has its share of them, however they came."""
    return examples.of(jax.lax.with_sharding_constraint(examples.rows, meshes.batched(mesh)))


def _dropout_keys(seed: int, step: jax.Array, batch: int) -> jax.Array:
    """A random key for each example [batch]: its own, so that it does not matter which others pass with it."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), DROPOUT_STREAM), step)
    keys: jax.Array = jax.vmap(lambda place: jax.random.fold_in(key, place))(jnp.arange(batch))
    return keys


def _deal(rows: jax.Array, parts: int, mesh: Mesh) -> jax.Array:
    """[batch, ...] -> [parts, batch / parts, ...]; dealt out in turn, so that every device has its share of a part."""
    dealt = rows.reshape(-1, parts, *rows.shape[1:]).swapaxes(0, 1)
    placed: jax.Array = jax.lax.with_sharding_constraint(dealt, meshes.batched(mesh, axis=1))
    return placed


def _accumulated(part: Callable[[State, Any], Part], state: State, rows: Any) -> Part:
    """The parts of a batch one after the other: means of losses and gradients, sums of totals, the last statistics."""
    shapes = jax.eval_shape(part, state, jax.tree.map(lambda row: row[0], rows))
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)._replace(statistics=state.statistics)

    def add(before: Part, row: Any) -> tuple[Part, None]:
        found = part(state._replace(statistics=before.statistics), row)
        loss, gradients = jax.tree.map(jnp.add, before[:2], found[:2])
        return Part(loss, gradients, found.statistics, before.totals + found.totals), None

    n = len(jax.tree.leaves(rows)[0])
    # XLA's convolutions on CPU are tens of times slower within a loop; there the parts are written out.
    unroll = n if jax.default_backend() == "cpu" else 1
    (loss, gradients, statistics, totals), _ = jax.lax.scan(add, nothing, rows, unroll=unroll)
    return Part(loss / n, {path: gradient / n for path, gradient in gradients.items()}, statistics, totals)


def _unless_failed(state: State, moved: State, found: Part) -> State:
    """`moved`, or where loss or gradients are not finite, or were not before, the state as it was."""
    finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((found.loss, found.gradients))]
    well = jnp.stack(finite).all() & (state.failed == NONE_FAILED)
    kept: State = jax.tree.map(partial(jnp.where, well), moved, state)
    failed = jnp.where(well | (state.failed != NONE_FAILED), state.failed, state.step)
    return kept._replace(failed=failed)


def _goals(examples: Examples, seed: int, augmentation: Augmentation | None) -> tuple[jax.Array, tuple[Goal, ...]]:
    """A step's inputs and what they shall be taken for."""
    inputs, labels = examples.inputs(seed, augmentation), examples.answers()
    if augmentation is None or not augmentation.mixes:
        return inputs, (Goal(labels, 1.0),)
    mixed = mix(keys(seed, examples.passes, examples.indices), inputs, labels, augmentation)
    return mixed.pictures, (Goal(mixed.labels, mixed.shares), Goal(mixed.partners, 1 - mixed.shares))


def _losses(
    logits: jax.Array,
    goals: tuple[Goal, ...],
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
def eval_step(model: Classifier, mesh: Mesh, start: str | None, sharding: Examples) -> EvalStep:
    """(parameters, examples, real [batch]) -> (float32 probabilities [batch, classes], totals).

    `sharding` is the feed's.
    """

    def step(parameters: Flat, examples: Examples, real: jax.Array) -> tuple[jax.Array, Totals]:
        examples = _split(examples, mesh)
        return _answers(model, parameters, examples.inputs(0, None), examples, real, start)

    whole = meshes.replicated(mesh)
    return jax.jit(step, in_shardings=(whole, sharding, whole), out_shardings=whole)


def view_step(model: Classifier, mesh: Mesh, look: Look, sharding: Examples) -> ViewStep:
    """(number of a view, and what `eval_step` takes) -> as `eval_step`, of pictures that `look` has looked at."""

    def step(view: jax.Array, parameters: Flat, examples: Examples, real: jax.Array) -> tuple[jax.Array, Totals]:
        examples = _split(examples, mesh)
        seen = look(examples.inputs(0, None), examples.indices, view)
        return _answers(model, parameters, seen, examples, real)

    whole = meshes.replicated(mesh)
    return jax.jit(step, in_shardings=(whole, whole, sharding, whole), out_shardings=whole)


def _answers(
    model: Classifier,
    parameters: Flat,
    inputs: jax.Array,
    examples: Examples,
    real: jax.Array,
    start: str | None = None,
) -> tuple[jax.Array, Totals]:
    logits = logits_of(model, nest(parameters), inputs, start=start)
    return jax.nn.softmax(logits), total(logits, examples.answers(), real)
