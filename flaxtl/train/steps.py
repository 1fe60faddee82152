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

from flaxtl.data.augment import Augmentation, augment, keys
from flaxtl.data.resident import Indices, Resident
from flaxtl.models.classifier import Classifier, logits_of
from flaxtl.train import mesh as meshes
from flaxtl.train.groups import Flat, nest
from flaxtl.train.metrics import Totals, cross_entropy, total

DROPOUT_STREAM = 1
"""Number folded into the seed for dropout, so that it is independent of augmentation."""


class State(NamedTuple):
    """What a phase changes: global step (int32), learning parameters, optimizer state, totals since the epoch began."""

    step: jax.Array
    learning: Flat
    optimizer: optax.OptState
    totals: Totals


TrainStep = Callable[[State, Flat, Resident, Indices, Indices], State]
EvalStep = Callable[[Flat, Resident, Indices, npt.NDArray[np.bool_]], tuple[jax.Array, Totals]]


def train_step(
    model: Classifier,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    seed: int,
    start: str | None,
    augmentation: Augmentation | None,
) -> TrainStep:
    """(state, frozen parameters, data, indices [batch], passes [batch]) -> state; the old state is donated.

    Only the learning parameters are differentiated. With `start` the data are the outputs of that layer.
    """

    def step(state: State, frozen: Flat, data: Resident, indices: jax.Array, passes: jax.Array) -> State:
        inputs, labels = data.inputs[indices], data.labels[indices]
        if augmentation is not None:
            inputs = augment(keys(seed, passes, indices), inputs, augmentation)
        dropout = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), DROPOUT_STREAM), state.step)

        def loss(learning: Flat) -> tuple[jax.Array, jax.Array]:
            logits = logits_of(model, nest(frozen | learning), inputs, start=start, dropout=dropout)
            return cross_entropy(logits, labels).mean(), logits

        gradients, logits = jax.grad(loss, has_aux=True)(state.learning)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.learning)
        learning = optax.apply_updates(state.learning, updates)
        totals = state.totals + total(logits, labels, jnp.ones(labels.shape, bool))
        return State(state.step + 1, learning, optimizer_state, totals)

    whole, split = meshes.replicated(mesh), meshes.batched(mesh)
    return jax.jit(step, donate_argnums=0, in_shardings=(whole, whole, whole, split, split), out_shardings=whole)


@cache
def eval_step(model: Classifier, mesh: Mesh, start: str | None) -> EvalStep:
    """(parameters, data, indices [batch], real [batch]) -> (float32 probabilities [batch, classes], totals)."""

    def step(parameters: Flat, data: Resident, indices: jax.Array, real: jax.Array) -> tuple[jax.Array, Totals]:
        logits = logits_of(model, nest(parameters), data.inputs[indices], start=start)
        return jax.nn.softmax(logits), total(logits, data.labels[indices], real)

    whole, split = meshes.replicated(mesh), meshes.batched(mesh)
    return jax.jit(step, in_shardings=(whole, whole, split, split), out_shardings=whole)
