"""A moving average of the weights that learn: steadier than the weights of any one step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxtl.train.groups import Flat


class Average(NamedTuple):
    """The average that Keras' optimizers keep with `use_ema` (keras/src/optimizers/base_optimizer.py, Keras 3).

    After the phase's first step, global step `first_step`, it is what learns; after every later one it is `decay`
    (from 0 to below 1) of what it was and 1 - `decay` of what learns. It looks back over about 1 / (1 - decay) steps.
    Nothing corrects for its beginning: after n steps decay**(n - 1) of it still are the weights after the first one.
    """

    decay: float
    first_step: int

    def after(self, step: jax.Array, average: Flat, learning: Flat) -> Flat:
        """The average after global step `step`, which has made `learning` of what learns."""
        kept = jnp.where(step == self.first_step, 0.0, self.decay)
        return {path: kept * average[path] + (1 - kept) * value for path, value in learning.items()}
