"""Data that lie whole in device memory."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt


class Resident(NamedTuple):
    """Pictures (uint8 [n, height, width, 3]) or features (float or `bits`, [n, ...]) with their labels (int32 [n])."""

    inputs: jax.Array
    labels: jax.Array

    def __len__(self) -> int:
        """Number of examples."""
        return int(self.labels.shape[0])

    def picked(self, rows: jax.Array) -> jax.Array:
        """The inputs of some rows, [len(rows), ...]; what lies here as bits is bfloat16 again."""
        found = self.inputs[rows]
        return jax.lax.bitcast_convert_type(found, jnp.bfloat16) if found.dtype == np.uint16 else found


def bits(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """bfloat16 as the uint16 of the same bits, everything else as it is.

    XLA on a CPU has no bfloat16: in a loop of steps it makes float32 of the whole array again and again, a second for
    a gigabyte, and only then takes a few rows of it.
    """
    return array.view(np.uint16) if array.dtype == jnp.bfloat16 else array
