"""Data that lie whole in device memory."""

from typing import NamedTuple

import jax


class Resident(NamedTuple):
    """Pictures (uint8 [n, height, width, 3]) or features (float [n, ...]) with their labels (int32 [n])."""

    inputs: jax.Array
    labels: jax.Array

    def __len__(self) -> int:
        """Number of examples."""
        return int(self.labels.shape[0])
