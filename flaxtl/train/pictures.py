"""The decoded pictures of one split: in memory, or in a file."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

from flaxtl.data.order import Indices
from flaxtl.data.resident import Resident
from flaxtl.data.store import Store
from flaxtl.train import mesh as meshes
from flaxtl.train.feeds import Feed, ResidentFeed, StreamFeed

Pixels = npt.NDArray[np.uint8]


class Pictures(Protocol):
    """n pictures of one size."""

    @property
    def labels(self) -> npt.NDArray[np.int32]:
        """Class indices, int32 [n]."""

    def __len__(self) -> int:
        """Number of pictures."""

    def read(self, indices: Indices) -> Pixels:
        """uint8 [len(indices), height, width, 3]."""

    @property
    def digest(self) -> str:
        """Tells these pictures, in this order and size, from all others."""

    def feed(self, mesh: Mesh) -> Feed:
        """The pictures as the steps are given them."""


class Held:
    """Pictures in memory, uint8 [n, height, width, 3], with class indices int32 [n]."""

    def __init__(self, pixels: Pixels, labels: npt.NDArray[np.int32]) -> None:
        """The arrays are not copied."""
        self.pixels, self.labels = pixels, labels
        self._on_device: ResidentFeed | None = None

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.labels)

    def read(self, indices: Indices) -> Pixels:
        """See Pictures."""
        return self.pixels[indices]

    @cached_property
    def digest(self) -> str:
        """See Pictures."""
        return f"{self.pixels.shape} {hashlib.sha256(np.ascontiguousarray(self.pixels).data).hexdigest()}"

    def feed(self, mesh: Mesh) -> Feed:
        """On the device, where they stay."""
        if self._on_device is None:
            self._on_device = ResidentFeed(meshes.place(Resident(self.pixels, self.labels), mesh))  # type: ignore[arg-type]
        return self._on_device


@dataclass(frozen=True)
class Stored:
    """Pictures in a file, too many to be held; `digest` is that of the files they were decoded from."""

    store: Store
    labels: npt.NDArray[np.int32]
    digest: str

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.labels)

    def read(self, indices: Indices) -> Pixels:
        """See Pictures."""
        return self.store.read(indices)

    def feed(self, mesh: Mesh) -> Feed:
        """A stream."""
        return StreamFeed(self.store, self.labels, mesh)
