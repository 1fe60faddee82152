"""An HDF5 file from a stranger, opened so that it can only hand over arrays of numbers that it really stores.

HDF5 lets a file point at other files (external links, external storage, virtual datasets), at itself (soft links) and
declare sizes that it does not hold. A weight file needs none of these, so each is refused.
"""

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import process_time
from typing import Any, BinaryIO

import h5py
import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from flaxtl.errors import UserError
from flaxtl.pretrained.merge import StoredTensor

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

    def array(self, parent: h5py.Group, name: str) -> StoredTensor:
        """The numeric dataset `name` ('a/b' descends) below `parent`, read into memory."""
        dataset = self.member(parent, name)
        if not isinstance(dataset, h5py.Dataset):
            raise self.damaged(f"{name!r} is not an array")
        self._check_storage(dataset)
        values = np.asarray(dataset[()])
        if values.dtype.kind == "V":
            values = values.view(ml_dtypes.bfloat16)
        return StoredTensor(name=dataset.name.lstrip("/"), dtype=values.dtype.name, values=values)

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
def open_h5(source: Path | BinaryIO, path: Path) -> Iterator[SafeFile]:
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


_REFUSED = 3  # exit code: the reason is on standard output
_BROKEN = 1  # exit code of Python where something is wrong with the program and not with the file
_CODE = "import sys; sys.path[:] = sys.argv[2:]; from flaxtl.pretrained import hdf5, loader; hdf5.main(loader.read_h5)"

_MEMORY = 2 * 2**30  # bytes of address space: what h5_safety.MAX_BYTES comes to in an archive, and the libraries' own
_SECONDS = 2  # of the processor for reading a small file, which takes a hundredth of one
_BYTES_PER_SECOND = 20 * 10**6  # what the slowest disk reads and the slowest processor unpacks
_PATIENCE = 30  # times as long on the clock: on a busy machine a process waits much longer than it works


def trial_read(path: Path) -> None:
    """Let another process read the file at `path`, which takes about 0.2 s and the time of reading it.

    Raises UserError if the file is refused there, or if it makes the process die, hang or ask for too much memory.
    """
    command = [sys.executable, "-I", "-S", "-c", _CODE, os.fspath(path), *_search_path()]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # each thread of it would claim address space
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE * _seconds(path),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _damaged(path) from None
    if done.returncode == _REFUSED:
        raise UserError(os.fsdecode(done.stdout))
    if done.returncode == _BROKEN:
        raise RuntimeError(os.fsdecode(done.stderr))
    if done.returncode:
        raise _damaged(path)


def main(read: Callable[..., object]) -> None:
    """What the other process does with the file that its first argument names."""
    path = Path(sys.argv[1])
    _limit(_seconds(path))
    try:
        read(path, known=(), expected={})
    except Exception as error:  # also of memory
        told = error if isinstance(error, UserError) else _damaged(path)
        sys.stdout.buffer.write(os.fsencode(str(told)))
        sys.exit(_REFUSED)


def _search_path() -> Sequence[str]:
    """Where this process finds its modules, this package first: an editable one is on no path."""
    return [str(Path(__file__).parents[2]), *filter(None, sys.path)]


def _seconds(path: Path) -> int:
    return _SECONDS + path.stat().st_size // _BYTES_PER_SECOND


def _limit(seconds: int) -> None:
    """Bound this process' processor time from now on and its memory, and let it leave no core file."""
    with suppress(ImportError, ValueError):  # Windows has no such limits, and macOS not all of them
        import resource

        for kind, most in (
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_CPU, int(process_time()) + seconds),
            (resource.RLIMIT_AS, _MEMORY),
        ):
            resource.setrlimit(kind, (most, resource.getrlimit(kind)[1]))


def _damaged(path: Path) -> UserError:
    return UserError(f"{path} is damaged (the HDF5 library cannot get through it); copy or download it again")
