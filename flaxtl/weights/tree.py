"""The words of this room: what a reader returns, and what a caller asks for and receives."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# {layer name: {leaf name: array}} with Flax' leaf names; kernels are HWIO or (in, out), as in Keras.
Tree = dict[str, dict[str, NDArray[np.float32]]]

# {layer name: {leaf name: shape}}: what the network needs. The order of the layers is the order of the network.
Expected = Mapping[str, Mapping[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Stored:
    """One array as a file holds it: its name there, the dtype it is kept in, and its values."""

    name: str
    dtype: str
    values: NDArray[Any]


# {layer name: its arrays in the order of the file}: what the Keras readers return.
Layers = dict[str, list[Stored]]

# {layer name: {leaf name: array}}: what merge takes.
Found = Mapping[str, Mapping[str, Stored]]
