"""One step of training and one of evaluation: pure functions, compiled once a phase."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
from jax.sharding import Mesh

from flaxtl.data.augment import Augmentation, keys
from flaxtl.data.mix import mix
from flaxtl.models.classifier import Classifier, forward, logits_of
from flaxtl.train import mesh as meshes
from flaxtl.train.feeds import Examples
from flaxtl.train.groups import Flat, flatten, in_training, nest
from flaxtl.train.metrics import Totals, cross_entropy, total

DROPOUT_STREAM = 1
"""Number folded into the seed for dropout, so that it is independent of augmentation."""


class State(NamedTuple):
    """What a phase changes.

    The global step (int32), the learning parameters, the statistics of their batch norms, the optimizer's state and
    the totals since the epoch began.
    """

    step: jax.Array
    learning: Flat
    statistics: Flat
    optimizer: optax.OptState
    totals: Totals

    @property
    def moved(self) -> Flat:
        """All parameters that the phase changes."""
        return self.learning | self.statistics


class Goal(NamedTuple):
    """What a step's pictures shall be taken for: class indices [batch], each with its share of the loss."""

    labels: jax.Array
    shares: jax.Array | float


TrainStep = Callable[[State, Flat, Examples], State]
EvalStep = Callable[[Flat, Examples, npt.NDArray[np.bool_]], tuple[jax.Array, Totals]]


def train_step(
    model: Classifier,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    seed: int,
    sharding: Examples,
    *,
    start: str | None = None,
    augmentation: Augmentation | None = None,
    class_weights: tuple[float, ...] | None = None,
) -> TrainStep:
    """(state, frozen parameters, examples) -> state; the old state is donated.

    `sharding` is the feed's. Only the learning parameters are differentiated. With `start` the examples are outputs of
    that layer.
    `class_weights` weigh the loss that is minimised; the totals count every example alike, so that they can be
    compared with those of other runs and of validation.
    """

    def step(state: State, frozen: Flat, examples: Examples) -> State:
        inputs, goals = _task(examples, seed, augmentation)
        dropout = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), DROPOUT_STREAM), state.step)

        layers = in_training(state.moved, frozen)

        def loss(learning: Flat) -> tuple[jax.Array, tuple[jax.Array, Flat]]:
            parameters = nest(frozen | state.statistics | learning)
            result = forward(model, parameters, inputs, start=start, learning=layers, dropout=dropout)
            assert result.logits is not None, "a pass without `stop` reaches the softmax"
            return _losses(result.logits, goals, class_weights).mean(), (result.logits, flatten(result.statistics))

        gradients, (logits, moved) = jax.grad(loss, has_aux=True)(state.learning)
        statistics = {path: moved[path] for path in state.statistics}
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.learning)
        learning = optax.apply_updates(state.learning, updates)
        labels = examples.answers()
        counted = total(logits, labels, jnp.ones(labels.shape, bool), _losses(logits, goals, None))
        return State(state.step + 1, learning, statistics, optimizer_state, state.totals + counted)

    whole = meshes.replicated(mesh)
    return jax.jit(step, donate_argnums=0, in_shardings=(whole, whole, sharding), out_shardings=whole)


def _task(examples: Examples, seed: int, augmentation: Augmentation | None) -> tuple[jax.Array, tuple[Goal, ...]]:
    """A step's inputs and what they shall be taken for."""
    inputs, labels = examples.inputs(seed, augmentation), examples.answers()
    if augmentation is None or not augmentation.mixes:
        return inputs, (Goal(labels, 1.0),)
    mixed = mix(keys(seed, examples.passes, examples.indices), inputs, labels, augmentation)
    return mixed.pictures, (Goal(mixed.labels, mixed.shares), Goal(mixed.partners, 1 - mixed.shares))


def _losses(logits: jax.Array, goals: tuple[Goal, ...], class_weights: tuple[float, ...] | None) -> jax.Array:
    """float32 [batch]: the cross-entropy with every goal by its share and, if given, the weight of its class."""
    losses = jnp.zeros(())
    for labels, shares in goals:
        weights = 1.0 if class_weights is None else jnp.asarray(class_weights)[labels]
        losses += shares * weights * cross_entropy(logits, labels)
    return losses


@cache
def eval_step(model: Classifier, mesh: Mesh, start: str | None, sharding: Examples) -> EvalStep:
    """(parameters, examples, real [batch]) -> (float32 probabilities [batch, classes], totals).

    `sharding` is the feed's.
    """

    def step(parameters: Flat, examples: Examples, real: jax.Array) -> tuple[jax.Array, Totals]:
        logits = logits_of(model, nest(parameters), examples.inputs(0, None), start=start)
        return jax.nn.softmax(logits), total(logits, examples.answers(), real)

    whole = meshes.replicated(mesh)
    return jax.jit(step, in_shardings=(whole, sharding, meshes.batched(mesh)), out_shardings=whole)
