"""An HDF5 file from a stranger, opened so that it can only hand over arrays of numbers that it really stores.

HDF5 lets a file point at other files (external links, external storage, virtual datasets), at itself (soft links) and
declare sizes that it does not hold. A weight file needs none of these, so each is refused.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from flaxtl.errors import UserError
from flaxtl.weights.tree import Stored

MAX_BYTES = 768 * 2**20
"""Of all arrays of a weight file together, of any kind: they are held up to twice at a time, which stays below 2 GiB.

The largest published file of the catalog, VGG19 with its top, has 575 MB.
"""

MAX_EXPANSION = 1000  # declared bytes per stored byte; deflate reaches 1032 on constant data, trained weights 1.1

_FAULTS = (OSError, RuntimeError, KeyError, ValueError, TypeError)  # what h5py raises on damaged files


class SafeFile:
    """An open HDF5 file whose links and arrays are checked at every step."""

    def __init__(self, root: h5py.File, path: Path) -> None:
        """Wrap the open file `root`; `path` is the name that errors tell."""
        self.root = root
        self.path = path
        self._bytes_read = 0

    def member(self, parent: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
        """The group or dataset `name` ('a/b' descends) below `parent`, reached over hard links only."""
        node = parent
        for step in name.strip("/").split("/"):
            if not isinstance(node, h5py.Group):
                raise self.damaged(f"{node.name!r} is not a group")
            link = node.get(step, getlink=True)
            if link is None:
                raise self.damaged(f"{name!r} is announced but absent from {parent.name!r}")
            if not isinstance(link, h5py.HardLink):
                raise self.refused(f"{step!r} in {node.name!r} is a soft or external link")
            node = node[step]
        return node

    def group(self, parent: h5py.Group, name: str) -> h5py.Group:
        """The group `name` ('a/b' descends) below `parent`."""
        found = self.member(parent, name)
        if not isinstance(found, h5py.Group):
            raise self.damaged(f"{name!r} is not a group")
        return found

    def array(self, parent: h5py.Group, name: str) -> Stored:
        """The numeric dataset `name` ('a/b' descends) below `parent`, read into memory."""
        dataset = self.member(parent, name)
        if not isinstance(dataset, h5py.Dataset):
            raise self.damaged(f"{name!r} is not an array")
        self._check_storage(dataset)
        values = np.asarray(dataset[()])
        if values.dtype.kind == "V":
            values = values.view(ml_dtypes.bfloat16)
        return Stored(name=dataset.name.lstrip("/"), dtype=values.dtype.name, values=values)

    def strings(self, group: h5py.Group, key: str) -> list[str]:
        """The list of names in attribute `key`, also where it is split over `key0`, `key1`, ..."""
        if key in group.attrs:
            return _decode(group.attrs[key])
        names: list[str] = []
        part = 0
        while f"{key}{part}" in group.attrs:
            names += _decode(group.attrs[f"{key}{part}"])
            part += 1
        if part == 0:
            raise self.damaged(f"the group {group.name!r} has no attribute {key!r}")
        return names

    def damaged(self, what: str) -> UserError:
        """The error for a file whose content is not what its format promises."""
        return UserError(f"{self.path} is cut short or damaged ({what}); copy or download it again")

    def refused(self, what: str) -> UserError:
        """The error for content that no weight file needs."""
        return UserError(f"{self.path} is refused: {what}; take the file from its original source")

    def _check_storage(self, dataset: h5py.Dataset) -> None:
        if dataset.is_virtual or dataset.external:
            raise self.refused(f"{dataset.name!r} takes its values from another file or dataset")
        dtype = dataset.dtype
        is_bfloat16 = dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None  # h5py stores it as opaque
        if dataset.shape is None or not (dtype.kind in "fiu" or is_bfloat16):
            raise self.refused(f"{dataset.name!r} is not an array of numbers")
        declared = math.prod(dataset.shape) * dtype.itemsize
        self._bytes_read += declared
        if self._bytes_read > MAX_BYTES or declared > MAX_EXPANSION * dataset.id.get_storage_size():
            raise self.refused(f"{dataset.name!r} declares {declared:,} bytes, far more than it can hold")


@contextmanager
def opened(source: Path | BinaryIO, path: Path) -> Iterator[SafeFile]:
    """Open an HDF5 file (or the bytes of one) read-only; `path` is the name that errors tell.

    Raises UserError for whatever the HDF5 library trips over while the file is open.
    """
    try:
        with h5py.File(source, "r") as root:
            yield SafeFile(root, path)
    except _FAULTS as error:
        raise UserError(f"{path} is cut short or damaged ({error}); copy or download it again") from error


def _decode(value: NDArray[Any] | h5py.Empty) -> list[str]:
    """Names as str; Keras writes bytes or str, and an empty list as an empty array of floats."""
    if isinstance(value, h5py.Empty):
        return []
    return [name.decode() if isinstance(name, bytes) else str(name) for name in np.ravel(value)]
