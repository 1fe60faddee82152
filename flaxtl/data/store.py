"""Decoded pictures in one raw file, for data sets that do not fit into memory.

The file is nothing but the pixels, picture after picture. It is read and written at an offset, never mapped: mapped
pages count as the process's memory, and grow with the data.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from flaxtl import files
from flaxtl.errors import UserError

Pixels = npt.NDArray[np.uint8]
Indices = Sequence[SupportsIndex] | npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Store:
    """Pictures in a file, or some of them: uint8 [n, height, width, 3]; `create` or `load` makes one.

    The file is opened for every access and closed after it, so threads may read and write at once. A store takes
    pictures as an array does (`store[index] = picture`), so `decode.decode_into` can fill it.
    """

    path: Path
    size: tuple[int, int, int]
    """Height, width and 3."""
    places: range
    """Which of the file's pictures these are."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """n, height, width and 3."""
        return len(self), *self.size

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.places)

    def __setitem__(self, index: int, picture: Pixels, /) -> None:
        """Write `picture`, uint8 [height, width, 3], as number `index`."""
        if picture.shape != self.size or picture.dtype != np.uint8:
            raise ValueError(f"a picture of {picture.dtype} {picture.shape} does not go into {self.path}")
        try:
            with self.path.open("r+b") as file:
                file.seek(self._offset(index))
                file.write(np.ascontiguousarray(picture).data)
        except OSError as error:
            raise _unwritable(self.path.parent, error) from error

    def read(self, indices: Indices) -> Pixels:
        """The pictures at `indices` in their order, uint8 [len(indices), height, width, 3]; any may repeat."""
        pictures = np.empty((len(indices), *self.size), np.uint8)
        try:
            with self.path.open("rb") as file:
                for picture, index in zip(pictures, indices, strict=True):
                    file.seek(self._offset(index))
                    if file.readinto(picture.data) < picture.nbytes:
                        raise UserError(f"the decoded pictures in {self.path} are cut off; delete it and start again")
        except OSError as error:
            raise UserError(f"cannot read decoded pictures from {self.path} ({error.strerror}); start again") from error
        return pictures

    def part(self, which: slice) -> "Store":
        """Some of the pictures as a store in the same file."""
        return Store(self.path, self.size, self.places[which])

    def _offset(self, index: SupportsIndex) -> int:
        return self.places[index] * math.prod(self.size)


@contextmanager
def create(path: Path, n: int, height: int, width: int) -> Iterator[Store]:
    """A store of n pictures of `height` x `width` to be filled; `path` appears when the block ends without an error.

    Its folder is made. The store may be read meanwhile, pictures not yet written as black; after it use `load`.

    Raises:
      UserError: the disk has too little room, or the file cannot be written.
    """
    n_bytes = n * height * width * 3
    _find_room(path.parent, n_bytes)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        _blank(scratch, n_bytes)
        yield Store(scratch, (height, width, 3), range(n))
        with scratch.open("rb") as file:
            os.fsync(file.fileno())  # of a file that has its name a resumed run believes every byte
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def load(path: Path, n: int, height: int, width: int) -> Store | None:
    """The store of n pictures of `height` x `width` in the file `path`; None if there is no such file."""
    if not path.is_file() or path.stat().st_size != n * height * width * 3:
        return None
    return Store(path, (height, width, 3), range(n))


def _find_room(folder: Path, needed: int) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.require_room(folder, needed, "the decoded pictures need", "make room, or choose smaller pictures")
    except OSError as error:
        raise _unwritable(folder, error) from error


def _blank(path: Path, n_bytes: int) -> None:
    try:
        with path.open("wb") as file:
            file.truncate(n_bytes)
    except OSError as error:
        raise _unwritable(path.parent, error) from error


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(f"cannot write decoded pictures to {folder} ({error.strerror}); make room, or another folder")
