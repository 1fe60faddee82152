"""Open an untrusted HDF5 file so that it can only return numeric arrays that it really stores.

HDF5 files can refer to other files (external links, external storage, virtual datasets) and to themselves (soft links),
and declare sizes that they do not store. A weight file needs none of this, so all of it is refused.
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
from flaxtl.pretrained.merge import MAX_BYTES, StoredTensor, damaged_file

MAX_EXPANSION = 1000  # declared bytes per stored byte: deflate reaches 1032 on constant data, trained weights 1.1

_H5PY_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError)  # raised by h5py for damaged files


@contextmanager
def open_h5(source: Path | BinaryIO, path: Path) -> Iterator["SafeFile"]:
    """Open an HDF5 file read-only.

    Args:
      source: the file, or its bytes.
      path: the name for error messages.

    Raises:
      UserError: the HDF5 library fails while the file is open.
    """
    try:
        with h5py.File(source, "r") as root:
            yield SafeFile(root, path)
    except _H5PY_ERRORS as error:
        raise damaged_file(path, error) from error


class SafeFile:
    """An open HDF5 file in which every link and array is checked before it is used."""

    def __init__(self, root: h5py.File, path: Path) -> None:
        """Wrap the open file `root`; `path` is its name in error messages."""
        self.root = root
        self.path = path
        self._bytes_read = 0

    def member(self, parent: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
        """Return the group or dataset `name` ('a/b' descends) below `parent`, following hard links only."""
        node = parent
        for step in name.strip("/").split("/"):
            if not isinstance(node, h5py.Group):
                raise damaged_file(self.path, f"{node.name!r} is not a group")
            link = node.get(step, getlink=True)
            if link is None:
                raise damaged_file(self.path, f"{name!r} is listed, but missing in {parent.name!r}")
            if not isinstance(link, h5py.HardLink):
                raise self.refused(f"{step!r} in {node.name!r} is a soft or external link")
            node = node[step]
        return node

    def group(self, parent: h5py.Group, name: str) -> h5py.Group:
        """Return the group `name` ('a/b' descends) below `parent`."""
        group = self.member(parent, name)
        if not isinstance(group, h5py.Group):
            raise damaged_file(self.path, f"{name!r} is not a group")
        return group

    def array(self, parent: h5py.Group, name: str) -> StoredTensor:
        """Read the numeric dataset `name` ('a/b' descends) below `parent` into memory."""
        dataset = self.member(parent, name)
        if not isinstance(dataset, h5py.Dataset):
            raise damaged_file(self.path, f"{name!r} is not an array")
        self._check_storage(dataset)
        values = np.asarray(dataset[()])
        if values.dtype.kind == "V":
            values = values.view(ml_dtypes.bfloat16)
        return StoredTensor(name=dataset.name.lstrip("/"), dtype=values.dtype.name, values=values)

    def strings(self, group: h5py.Group, key: str) -> list[str]:
        """Return the list of names in the attribute `key`, which may be split over `key0`, `key1`, ..."""
        if key in group.attrs:
            return _decode(group.attrs[key])
        names: list[str] = []
        part = 0
        while f"{key}{part}" in group.attrs:
            names += _decode(group.attrs[f"{key}{part}"])
            part += 1
        if part == 0:
            raise damaged_file(self.path, f"the group {group.name!r} has no attribute {key!r}")
        return names

    def refused(self, reason: str) -> UserError:
        """Return the error for content that no weight file needs."""
        return UserError(f"Refused to read {self.path}: {reason}. Get the file from its original source.")

    def _check_storage(self, dataset: h5py.Dataset) -> None:
        if dataset.is_virtual or dataset.external:
            raise self.refused(f"{dataset.name!r} takes its values from another file or dataset")
        dtype = dataset.dtype
        is_bfloat16 = dtype.kind == "V" and dtype.itemsize == 2 and dtype.names is None  # h5py stores it as opaque
        if dataset.shape is None or not (dtype.kind in "fiu" or is_bfloat16):
            raise self.refused(f"{dataset.name!r} is not a numeric array")
        declared = math.prod(dataset.shape) * dtype.itemsize
        self._bytes_read += declared
        if self._bytes_read > MAX_BYTES or declared > MAX_EXPANSION * dataset.id.get_storage_size():
            raise self.refused(f"{dataset.name!r} declares {declared:,} bytes, far more than it stores")


def _decode(value: NDArray[Any] | h5py.Empty) -> list[str]:
    """Return names as str. Keras writes bytes or str, and an empty list as an empty float array."""
    if isinstance(value, h5py.Empty):
        return []
    return [name.decode() if isinstance(name, bytes) else str(name) for name in np.ravel(value)]
