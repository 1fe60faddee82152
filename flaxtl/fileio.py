"""Files that appear whole or not at all, belong to one process at a time, and find room."""

import csv
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BufferedRandom
from pathlib import Path
from typing import IO, Any

from flaxtl.errors import UserError


@contextmanager
def atomic_write(path: Path, mode: str = "w", **options: Any) -> Iterator[IO[Any]]:
    """`path` opened for writing (`mode` 'w' or 'wb'); it takes its name only when the block ends without an error.

    Whoever reads `path` meanwhile sees the old file, and two processes may write it at once. Its bytes are on the disk
    before it takes its name, so that a loss of power leaves the old file or the new one. `options` are those of open();
    text is UTF-8 unless they say otherwise.
    """
    if "b" not in mode:
        options = {"encoding": "utf-8", **options}
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with scratch.open(mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def atomic_write_text(path: Path, text: str) -> None:
    """Write a text file as `whole` does."""
    with atomic_write(path) as file:
        file.write(text)


def file_lock(path: Path, *, wait: bool) -> BufferedRandom | None:
    """`path`, made if it is absent, opened for reading and writing and locked by this process.

    The system lets go of the lock however the process ends. Where another holds it, wait, or return None.
    """
    while True:
        opened = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        try:
            fcntl.flock(opened.fileno(), fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            opened.close()
            return None
        except OSError:
            pass  # a file system without locks, as some network file systems are
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(opened.fileno()), path.stat()):
                return opened
        opened.close()  # who held it renamed or removed it meanwhile


def check_disk_space(folder: Path, needed: int, what: str, cure: str) -> None:
    """Raise UserError unless `needed` bytes are free in `folder`: '`what` 3.0 GB in ..., where ...; `cure`'."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(f"{what} {format_bytes(needed)} in {folder}, where {format_bytes(free)} are free; {cure}")


def format_bytes(n: int) -> str:
    """Of bytes, as a person reads it: '4.9 MB', '25.3 GB'."""
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB"


def write_csv(stream: IO[Any], rows: Iterable[Sequence[object]]) -> None:
    """Write `rows` to `stream`, which was opened with newline=''.

    Rows with a carriage return are quoted throughout: before Python 3.13 the csv module leaves one bare that ends no
    line of its own, and its reader then takes it for the end of the row.
    """
    plain = csv.writer(stream, lineterminator="\n")
    quoted = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:
        (quoted if any(isinstance(cell, str) and "\r" in cell for cell in row) else plain).writerow(row)


def cache_dir(name: str) -> Path:
    """The cache folder called `name`: in $FLAXTL_CACHE, or where this system keeps programs' caches."""
    root = os.environ.get("FLAXTL_CACHE")
    if root:
        return Path(root).expanduser() / name
    import pooch  # here, because it loads an HTTP client that most runs never need

    return Path(pooch.os_cache("flaxtl")) / name
