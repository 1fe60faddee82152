"""How far the host may run ahead of the device."""

from collections import deque

import jax

AHEAD = 2
"""Results that may be on the way: enough that the device is never idle, few enough that it is done soon if asked to."""


class Pace:
    """Waits for old results while new ones are handed to the device."""

    def __init__(self) -> None:
        """Nothing is on the way."""
        self._on_the_way: deque[jax.Array] = deque()

    def wait(self, newest: jax.Array) -> None:
        """Note a result, which nobody may overwrite, and wait for the one AHEAD before it."""
        self._on_the_way.append(newest)
        if len(self._on_the_way) > AHEAD:
            self._on_the_way.popleft().block_until_ready()
