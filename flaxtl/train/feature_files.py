"""Outputs of frozen layers in .npy files.

Such a file may take an hour to compute, so it is written row by row beside a note of how far it is: whoever begins the
same file again goes on there. It takes its name when it is complete.
"""

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from flaxtl import files
from flaxtl.data.order import Indices
from flaxtl.errors import UserError

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


class Draft:
    """A feature file that is being written, by this process alone: another that wants the same file waits.

    Nothing is written where the file is complete, as it is when another run was faster. Left by an error or a signal,
    it can be gone on with.
    """

    def __init__(self, file: FeatureFile) -> None:
        """Its folder is made when the draft is entered."""
        self.file = file
        self._rows = 0
        self._kept = time.monotonic()

    def __enter__(self) -> "Draft":
        """Wait for the file, and find out how far it is."""
        with _telling(self.file.path.parent):
            self.file.path.parent.mkdir(parents=True, exist_ok=True)
            opened = files.claimed(self.file.scratch, wait=True)
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
            files.write_text(self.file.note, json.dumps({"rows": self._rows}))
        self._kept = time.monotonic()

    def _finish(self) -> None:
        if self._complete:
            self.file.scratch.unlink()
        else:
            self._open.flush()
            os.fsync(self._open.fileno())
            self.file.scratch.replace(self.file.path)
        self.file.note.unlink(missing_ok=True)


def find_room(folder: Path, needed: int) -> None:
    """Raise UserError unless `needed` bytes are free in `folder`."""
    cure = "make room, or choose another features.directory or fewer features.views"
    with _telling(folder):
        files.require_room(folder, needed, "the features still need", cure)


@contextmanager
def _telling(folder: Path) -> Iterator[None]:
    """Turn what the system says of a file into one sentence."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write features to {folder} ({error.strerror}); make room, or choose another features.directory"
        ) from error
