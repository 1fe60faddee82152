"""Decoded images in one raw file, for data sets that do not fit into memory.

The file is nothing but the pixels, image after image. It is read and written at an offset, never mapped: mapped
pages count as the process's memory, and grow with the data.
"""

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from flaxtl import fileio
from flaxtl.data.sampler import Indices
from flaxtl.errors import UserError

StoredPixels = npt.NDArray[np.uint8]
AnyIndices = Sequence[SupportsIndex] | npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class ArrayStore:
    """Images in a file, or some of them: uint8 [n, height, width, 3]; `create` or `load` makes one.

    The file is opened for every access and closed after it, so threads may read and write at once. A store takes
    images as an array does (`store[index] = image`), so `decode.decode_into` can fill it.
    """

    path: Path
    size: tuple[int, int, int]
    """Height, width and 3."""
    places: range
    """Which of the file's images these are."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """n, height, width and 3."""
        return len(self), *self.size

    def __len__(self) -> int:
        """Number of images."""
        return len(self.places)

    def __setitem__(self, index: int, image: StoredPixels, /) -> None:
        """Write `image`, uint8 [height, width, 3], as number `index`."""
        if image.shape != self.size or image.dtype != np.uint8:
            raise ValueError(f"an image of {image.dtype} {image.shape} does not go into {self.path}")
        try:
            with self.path.open("r+b") as file:
                file.seek(self._offset(index))
                file.write(np.ascontiguousarray(image).data)
        except OSError as error:
            raise _unwritable(self.path.parent, error) from error

    def read(self, indices: AnyIndices) -> StoredPixels:
        """The images at `indices` in their order, uint8 [len(indices), height, width, 3]; any may repeat."""
        images = np.empty((len(indices), *self.size), np.uint8)
        try:
            with self.path.open("rb") as file:
                for image, index in zip(images, indices, strict=True):
                    file.seek(self._offset(index))
                    if file.readinto(image.data) < image.nbytes:
                        raise UserError(f"the decoded images in {self.path} are cut off; delete it and start again")
        except OSError as error:
            raise UserError(f"cannot read decoded images from {self.path} ({error.strerror}); start again") from error
        return images

    def part(self, which: slice) -> "ArrayStore":
        """Some of the images as a store in the same file."""
        return ArrayStore(self.path, self.size, self.places[which])

    def _offset(self, index: SupportsIndex) -> int:
        return self.places[index] * math.prod(self.size)


@contextmanager
def create_store(path: Path, n: int, height: int, width: int) -> Iterator[ArrayStore]:
    """A store of n images of `height` x `width` to be filled; `path` appears when the block ends without an error.

    Its folder is made. The store may be read meanwhile, images not yet written as black; after it use `load`.

    Raises:
      UserError: the disk has too little room, or the file cannot be written.
    """
    n_bytes = n * height * width * 3
    _find_room(path.parent, n_bytes)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        _blank(scratch, n_bytes)
        yield ArrayStore(scratch, (height, width, 3), range(n))
        with scratch.open("rb") as file:
            os.fsync(file.fileno())  # of a file that has its name a resumed run believes every byte
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def open_store(path: Path, n: int, height: int, width: int) -> ArrayStore | None:
    """The store of n images of `height` x `width` in the file `path`; None if there is no such file."""
    if not path.is_file() or path.stat().st_size != n * height * width * 3:
        return None
    return ArrayStore(path, (height, width, 3), range(n))


def _find_room(folder: Path, needed: int) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fileio.check_disk_space(folder, needed, "the decoded images need", "make room, or choose smaller images")
    except OSError as error:
        raise _unwritable(folder, error) from error


def _blank(path: Path, n_bytes: int) -> None:
    try:
        with path.open("wb") as file:
            file.truncate(n_bytes)
    except OSError as error:
        raise _unwritable(path.parent, error) from error


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(f"cannot write decoded images to {folder} ({error.strerror}); make room, or another folder")


KEEP_SECONDS = 30.0
"""At most so much work is lost when power is; waiting for the disk more often would cost more than it saves."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class FeatureFile:
    """An array [rows, ...] in a .npy file, which may be there, or not yet, or in part."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        """Of one row."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Of the whole array."""
        return self.shape[0] * self.row_bytes

    @property
    def scratch(self) -> Path:
        """Where the array is written before it is complete."""
        return self.path.with_name(f".{self.path.name}.part")

    @property
    def note(self) -> Path:
        """Says how many rows of `scratch` are on the disk for certain."""
        return self.path.with_name(f".{self.path.name}.json")

    def mapped(self) -> Array | None:
        """The array, its bytes read from the file when they are used; None if the file is absent or damaged."""
        try:
            found = np.load(self.path, mmap_mode="r")
        except (OSError, EOFError, ValueError):
            return None
        if found.shape != self.shape or found.dtype.itemsize != self.dtype.itemsize:
            return None
        mapped: Array = found.view(self.dtype)  # of bfloat16 .npy keeps the bytes
        return mapped

    def read(self, rows: Indices | slice) -> Array:
        """A copy of some rows; the file is mapped only meanwhile, for what is mapped counts as the process's memory."""
        mapped = self.mapped()
        if mapped is None:
            raise UserError(f"the features in {self.path} are gone or damaged; start the same command again")
        return np.array(mapped[rows])

    def rows_done(self) -> int:
        """How many rows need not be computed any more."""
        if self.mapped() is not None:
            return self.shape[0]
        try:
            rows = int(json.loads(self.note.read_text(encoding="utf-8"))["rows"])
            written = (self.scratch.stat().st_size - len(self.header())) // self.row_bytes
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        return rows if 0 <= rows <= min(written, self.shape[0]) else 0

    def header(self) -> bytes:
        """What comes before the first row."""
        header = BytesIO()
        facts = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(header, facts)
        return header.getvalue()


class ArrayStoreWriter:
    """A feature file that is being written, by this process alone: another that wants the same file waits.

    Nothing is written where the file is complete, as it is when another run was faster. Left by an error or a signal,
    it can be gone on with.
    """

    def __init__(self, file: FeatureFile) -> None:
        """Its folder is made when the draft is entered."""
        self.file = file
        self._rows = 0
        self._kept = time.monotonic()

    def __enter__(self) -> "ArrayStoreWriter":
        """Wait for the file, and find out how far it is."""
        with _telling(self.file.path.parent):
            self.file.path.parent.mkdir(parents=True, exist_ok=True)
            opened = fileio.file_lock(self.file.scratch, wait=True)
            assert opened is not None, "it waited"
            self._open = opened
            self._complete = self.file.mapped() is not None
            self._rows = self.file.rows_done()
            if self._rows == 0:
                self._begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Give the file its name, or after an error keep what there is."""
        if error is None:
            with _telling(self.file.path.parent), self._open:
                self._finish()
            return
        with suppress(OSError, UserError):
            self._keep()
        with suppress(OSError):
            self._open.close()

    def put(self, first: int, rows: Array) -> None:
        """Write rows from number `first` on, where the rows written before end or below."""
        if self._complete:
            return
        with _telling(self.file.path.parent):
            self._open.seek(len(self.file.header()) + first * self.file.row_bytes)
            self._open.write(rows.tobytes())
            self._rows = first + len(rows)
            if time.monotonic() - self._kept > KEEP_SECONDS:
                self._keep()

    def _begin(self) -> None:
        self.file.note.unlink(missing_ok=True)
        self._open.truncate(0)
        self._open.write(self.file.header())

    def _keep(self) -> None:
        """The note comes after what it speaks of."""
        if not self._complete:
            self._open.flush()
            os.fsync(self._open.fileno())
            fileio.atomic_write_text(self.file.note, json.dumps({"rows": self._rows}))
        self._kept = time.monotonic()

    def _finish(self) -> None:
        if self._complete:
            self.file.scratch.unlink()
        else:
            self._open.flush()
            os.fsync(self._open.fileno())
            self.file.scratch.replace(self.file.path)
        self.file.note.unlink(missing_ok=True)


def check_feature_space(folder: Path, needed: int) -> None:
    """Raise UserError unless `needed` bytes are free in `folder`."""
    cure = "make room, or choose another feature_cache.dir or fewer feature_cache.views"
    with _telling(folder):
        fileio.check_disk_space(folder, needed, "the features still need", cure)


@contextmanager
def _telling(folder: Path) -> Iterator[None]:
    """Turn what the system says of a file into one sentence."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write features to {folder} ({error.strerror}); make room, or choose another feature_cache.dir"
        ) from error
