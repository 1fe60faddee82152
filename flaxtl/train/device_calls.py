"""How many steps a call to the device makes, and how far the host runs ahead of the device.

Many steps in one call take no host time between them, but signals and checkpoints wait until the call returns. So calls
make one step at first, and later as many as take about CALL_SECONDS.
"""

import time
from collections import deque
from collections.abc import Iterator

import jax

CALL_SECONDS = 0.5
"""Duration of a call of many steps. With the pending ones, a stop request or a checkpoint waits for at most 2 s."""

MAX_PENDING_RESULTS = 2
"""Results that may be in flight: the device is never idle, and a stop request waits for no more than these."""


class DispatchThrottle:
    """Keeps the host at most MAX_PENDING_RESULTS results ahead of the device."""

    def __init__(self) -> None:
        self._pending: deque[jax.Array] = deque()

    def push(self, result: jax.Array) -> None:
        """Add a dispatched result, which must not be donated; wait for an older one if too many are pending."""
        self._pending.append(result)
        if len(self._pending) > MAX_PENDING_RESULTS:
            self._pending.popleft().block_until_ready()


class CallLength:
    """The number of steps per call: one in the first round of steps, then as many as take about CALL_SECONDS.

    Args:
      most: the largest number, at least 1.
    """

    def __init__(self, most: int) -> None:
        self._most, self._steps = most, 1
        self._start_time, self._num_timed, self._is_compiled = 0.0, 0, False

    def calls(self, num_steps: int) -> Iterator[tuple[int, int]]:
        """Yield the first step and the end (exclusive) of each call that a round of steps is divided into."""
        self._start_time, self._num_timed = time.monotonic(), num_steps
        for first in range(0, num_steps, self._steps):
            end = min(first + self._steps, num_steps)
            yield first, end
            if not self._is_compiled:  # the first call compiled; its time says nothing about those after it
                self._start_time, self._num_timed, self._is_compiled = time.monotonic(), num_steps - end, True

    def measure(self) -> None:
        """Adapt the number to the speed of the round that has just ended; its results must be ready."""
        if not self._num_timed:  # its only call was the one that compiled
            return
        steps_per_second = self._num_timed / (time.monotonic() - self._start_time)
        self._steps = min(max(int(CALL_SECONDS * steps_per_second), 1), self._most)
