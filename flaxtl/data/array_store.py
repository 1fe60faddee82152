"""Arrays on disk, for decoded images and cached features that do not fit into memory.

A store is a .npy file that is read and written at an offset, never mapped: mapped pages count as the process's memory,
and grow with the data.
"""

import json
import math
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from flaxtl import fileio
from flaxtl.errors import UserError

SYNC_SECONDS = 30.0
"""Maximum time between two progress records: a power loss costs at most this much work."""

XLA_CPU_ALIGNMENT = 64
"""Bytes: `jax.device_put` shares a NumPy array at such an address with CPU devices, and copies any other."""

Array = npt.NDArray[Any]
Rows = Sequence[SupportsIndex] | npt.NDArray[np.integer[Any]] | slice


def aligned_empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """Return an uninitialized array that CPU devices will share; a copy would double the memory of a large one."""
    num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(num_bytes + XLA_CPU_ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % XLA_CPU_ALIGNMENT
    return memory[first : first + num_bytes].view(dtype).reshape(shape)


DIGEST_LENGTH = 20
"""Hexadecimal digits of the digest in the name of a store that flaxtl may delete."""

_STORE_NAME = re.compile(rf"\.*([\w.-]+-)?[0-9a-f]{{{DIGEST_LENGTH}}}\.npy(\.part|\.json(\.[0-9a-f]+)?)?")
"""Names of such a store and of the files beside it while it is written."""


@dataclass(frozen=True)
class ArrayStore:
    """An array [n, ...] in a .npy file, or a range of its rows.

    The file may be missing or incomplete: `ArrayStoreWriter` writes it. It is opened for each access, so threads may
    read at once.

    Attributes:
      path: the file.
      shape: shape of the array; the first axis is the rows.
      dtype: its dtype; bfloat16 is stored as raw bytes.
      first_row: row of the file at which this array starts, for `part`.
      file_rows: rows of the file; 0: as many as the array.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    first_row: int = 0
    file_rows: int = 0

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def row_bytes(self) -> int:
        """Size of one row."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Size of the array."""
        return len(self) * self.row_bytes

    @cached_property
    def header(self) -> bytes:
        """The bytes of the file before its first row."""
        stream, rows = BytesIO(), self.file_rows or len(self)
        fields = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (rows, *self.shape[1:]),
        }
        np.lib.format.write_array_header_1_0(stream, fields)
        return stream.getvalue()

    @property
    def file_bytes(self) -> int:
        """Size of the complete file."""
        return len(self.header) + (self.file_rows or len(self)) * self.row_bytes

    @property
    def partial_path(self) -> Path:
        """The file while it is being written."""
        return self.path.with_name(f".{self.path.name}.part")

    @property
    def progress_path(self) -> Path:
        """The file that records how many rows of the partial file are safely on disk."""
        return self.path.with_name(f".{self.path.name}.json")

    def exists(self) -> bool:
        """Return whether the complete file exists."""
        try:
            with self.path.open("rb") as file:
                return file.read(len(self.header)) == self.header and self.path.stat().st_size == self.file_bytes
        except OSError:
            return False

    def rows_done(self) -> int:
        """Return the number of rows that are already written."""
        if self.exists():
            return len(self)
        try:
            rows = int(json.loads(self.progress_path.read_text(encoding="utf-8"))["rows"])
            complete_size = self.partial_path.stat().st_size == self.file_bytes
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        return rows if complete_size and 0 <= rows <= len(self) else 0

    def read(self, rows: Rows = slice(None)) -> Array:
        """Return rows in the given order, [len(rows), ...]; any may repeat."""
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            assert step == 1, "slices of rows are contiguous"
            array = aligned_empty((max(stop - start, 0), *self.shape[1:]), self.dtype)
            pieces: list[tuple[int, Array]] = [(start, array)] if array.size else []
        else:
            array = np.empty((len(rows), *self.shape[1:]), self.dtype)
            pieces = [(range(len(self))[row], piece) for row, piece in zip(rows, array, strict=True)]
        try:
            with self.path.open("rb") as file:
                for row, piece in pieces:
                    file.seek(self._offset(row))
                    if file.readinto(_as_bytes(piece)) < piece.nbytes:
                        raise UserError(f"{self.path} is truncated. Delete it and run the same command again.")
        except OSError as error:
            raise UserError(f"Cannot read {self.path} ({error.strerror}). Run the same command again.") from error
        return array

    def part(self, first: int, last: int) -> "ArrayStore":
        """Return rows `first` to `last` (exclusive) as a store in the same file."""
        shape = (last - first, *self.shape[1:])
        return replace(self, shape=shape, first_row=self.first_row + first, file_rows=self.file_rows or len(self))

    def _offset(self, row: int) -> int:
        return len(self.header) + (self.first_row + row) * self.row_bytes


def remove_stores(folder: Path) -> None:
    """Delete the stores in a folder that have a digest in their names, complete or not, and the folder if it is empty.

    All other files are kept: the folder may be the user's own.
    """
    for file in folder.glob("*") if folder.is_dir() else ():
        if _STORE_NAME.fullmatch(file.name) and file.is_file():
            file.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


class ArrayStoreWriter:
    """Context manager that writes an `ArrayStore`; another process that wants the same file waits.

    The file gets its final name when the block ends without an error. There are two ways to write:

    - `write` appends rows in order. After an error or a kill the next writer continues at `rows_done`. If the file is
      complete already, because another run was faster, nothing is written.
    - `writer[index] = row` writes rows in any order and from many threads; after an error it starts over.

    Raises:
      UserError: the file cannot be written.
    """

    def __init__(self, store: ArrayStore) -> None:
        self.store = store
        self.rows_done = 0
        self._discarded = False
        self._synced_at = time.monotonic()

    def __enter__(self) -> "ArrayStoreWriter":
        store = self.store
        with _write_errors(store.path.parent):
            store.path.parent.mkdir(parents=True, exist_ok=True)
            file = fileio.file_lock(store.partial_path, wait=True)
            assert file is not None, "the lock was waited for"
            self._file = file
            self._complete = store.exists()
            self.rows_done = store.rows_done()
            if self.rows_done == 0:
                self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        store = self.store
        if error is None and not self._discarded:
            with _write_errors(store.path.parent), self._file:
                if not self._complete:
                    os.fsync(self._file.fileno())
                    store.partial_path.replace(store.path)
                else:
                    store.partial_path.unlink()
                store.progress_path.unlink(missing_ok=True)
            return
        with suppress(OSError, UserError):
            if self.rows_done and not self._complete:
                self._sync()
            else:
                store.partial_path.unlink()
        with suppress(OSError):
            self._file.close()

    def discard(self) -> None:
        """Remove the file when the block ends, instead of giving it its final name."""
        self._discarded = True

    def write(self, first: int, rows: Array) -> None:
        """Write rows `first`, `first + 1`, ...; `first` is at most `rows_done`."""
        if self._complete:
            return
        with _write_errors(self.store.path.parent):
            self._write_at(first, rows)
            self.rows_done = max(self.rows_done, first + len(rows))
            if time.monotonic() - self._synced_at > SYNC_SECONDS:
                self._sync()

    def __setitem__(self, index: int, row: Array, /) -> None:
        """Write row `index`."""
        store = self.store
        if row.shape != store.shape[1:] or row.dtype != store.dtype:
            raise ValueError(f"{row.dtype} {row.shape} does not fit into {store.path}")
        with _write_errors(store.path.parent):
            self._write_at(range(len(store))[index], row)

    def read(self, rows: Rows) -> Array:
        """Return rows of the partial file; those not yet written are 0."""
        return replace(self.store, path=self.store.partial_path).read(rows)

    def _start(self) -> None:
        store = self.store
        store.progress_path.unlink(missing_ok=True)
        self._file.truncate(0)
        os.pwrite(self._file.fileno(), store.header, 0)
        self._file.truncate(store.file_bytes)

    def _write_at(self, row: int, rows: Array) -> None:
        data, offset = _as_bytes(np.ascontiguousarray(rows)), self.store._offset(row)
        while data:
            written = os.pwrite(self._file.fileno(), data, offset)
            data, offset = data[written:], offset + written

    def _sync(self) -> None:
        """Record the progress, after the rows that it counts are on disk."""
        os.fsync(self._file.fileno())
        fileio.atomic_write_text(self.store.progress_path, json.dumps({"rows": self.rows_done}))
        self._synced_at = time.monotonic()


def check_space(stores: Iterable[ArrayStore], purpose: str, advice: str) -> None:
    """Raise UserError unless the disk has space for the missing rows of all stores, which share a folder.

    Args:
      stores: the stores that will be written.
      purpose: begins the message, such as "Features need".
      advice: ends the message.
    """
    stores = list(stores)
    folder = stores[0].path.parent
    missing = sum((len(store) - store.rows_done()) * store.row_bytes for store in stores)
    with _write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        fileio.check_disk_space(folder, missing, purpose, advice)


def _as_bytes(array: Array) -> memoryview:
    """Return the memory of a contiguous array; numpy has no buffer of bfloat16 itself."""
    return array.reshape(-1).view(np.uint8).data


@contextmanager
def _write_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"Cannot write to {folder} ({error.strerror}). Free some space or use another folder."
        ) from error
