"""From one step to another: batch by batch, or in few calls that make many steps each on the device.

A call of many steps costs the host nothing between them, but it is not heard of until it ends. So the first epoch goes
step by step, and from then on a call is as long as CALL_SECONDS allows.
"""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from typing import NamedTuple

import jax
import numpy as np

from flaxtl.data.order import Order
from flaxtl.train import hosts, steps
from flaxtl.train.feeds import Examples, Feed, ResidentFeed
from flaxtl.train.groups import Flat
from flaxtl.train.phases import Phase
from flaxtl.train.steps import State, Task, TrainStep, TrainSteps

CALL_SECONDS = 0.5
"""How long a call may take: with those on the way before it, a signal is answered and a checkpoint made in 2 s."""

Advance = Callable[[State, int, int], Iterator[tuple[int, State]]]
"""(state, first, last) -> after each call to the device, the global step it came to and the state there."""


class Way(NamedTuple):
    """From which examples a phase learns, and what is not changed by it; `layers` are the backbone's, low to high."""

    task: Task
    data: Feed
    frozen: Flat
    layers: tuple[str, ...]

    def advancing(self, phase: Phase, order: Order, first: int) -> AbstractContextManager[Advance]:
        """Compile the step of `phase`, which will be entered at global step `first`; the examples end with it."""
        sharding = self.data.sharding(self.task.mesh)
        if isinstance(self.data, ResidentFeed) and self._loops():
            compiled = steps.train_steps(self.task, sharding)
            return nullcontext(Calls(compiled, self.frozen, self.data, order, phase.steps_per_epoch))
        examples = self.data.training(order, first, phase.last_step, self.task.augmentation)
        return _one_by_one(steps.train_step(self.task, sharding), self.frozen, examples)

    def _loops(self) -> bool:
        """Whether many steps in a call are an advantage.

        XLA's convolutions on CPU are tens of times slower within a loop, so there only what learns on the outputs of
        the whole backbone loops. Several processes agree after each step on whether to end.
        """
        return hosts.count() == 1 and (jax.default_backend() != "cpu" or self.task.start == self.layers[-1])


class Calls:
    """The `Advance` of many steps a call."""

    def __init__(self, compiled: TrainSteps, frozen: Flat, data: ResidentFeed, order: Order, length: int) -> None:
        """`length` is the steps of an epoch, which no call goes beyond."""
        self._compiled, self._frozen, self._data, self._order = compiled, frozen, data, order
        self._length, self._stride = length, 1

    def __call__(self, state: State, first: int, last: int) -> Iterator[tuple[int, State]]:
        """See Advance."""
        started, steps = time.monotonic(), last - first
        epoch = self._data.epoch(self._order, first, last, self._length)
        for begin in range(0, steps, self._stride):
            end = min(begin + self._stride, steps)
            state = self._compiled(state, self._frozen, epoch, np.int32(begin), np.int32(end))
            yield first + end, state
        state.step.block_until_ready()
        fitting = int(CALL_SECONDS * steps / (time.monotonic() - started))
        self._stride = min(max(fitting, 1), self._length)


@contextmanager
def _one_by_one(compiled: TrainStep, frozen: Flat, examples: Generator[Examples, None, None]) -> Iterator[Advance]:
    def advance(state: State, first: int, last: int) -> Iterator[tuple[int, State]]:
        for step, given in zip(range(first + 1, last + 1), examples, strict=False):
            state = compiled(state, frozen, given)
            yield step, state

    with closing(examples):
        yield advance
