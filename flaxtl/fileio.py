"""File operations: atomic files and folders, locks, CSV, disk space and the cache folder."""

import csv
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from io import BufferedRandom
from pathlib import Path
from secrets import token_hex
from typing import IO, Any

from flaxtl.errors import UserError

_MAX_PREFIX = 240
"""Bytes of the name of a file that are kept in those of its temporary files; file systems allow 255 in all."""


def user_path(text: str | Path) -> Path:
    """Return a path that a user has given, with a leading `~` replaced by the home folder.

    Shells do not replace it in `--workdir=~/runs`. Raises UserError if there is no such user, if the path is empty, if
    the path or a name in it is too long, or for another type.
    """
    if not isinstance(text, str | Path):
        raise UserError(f"Give the path of a file or folder, as a str or a Path, not {text!r}.")
    if text == "":  # not the working directory, as for Path: most often a variable of a script that is not set
        raise UserError("A path is empty. Give the path of a file or folder; . is the working directory.")
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        name = Path(text).parts[0]
        raise UserError(f"Cannot use {str(text)!r}: the home folder of {name} is unknown. Write ./{name}.") from error
    if _is_too_long(path):
        raise UserError(f"Cannot use {str(text)!r}: the path, or a name in it, is too long. Give a shorter one.")
    return path


def output_path(text: str) -> Path:
    """Return the path of a file that a user wants written, as `user_path` does.

    Raises UserError, also if it is a folder, or in one that does not exist: known before the work, not after it.
    """
    path = user_path(text)
    if path.is_dir():
        raise UserError(f"Cannot write {path}: it is a folder. Give the name of a file.")
    if not path.parent.is_dir():
        raise UserError(f"Cannot write {path}: {path.parent} is not a folder. {suggest_path(path.parent)}")
    return path


def _is_too_long(path: Path) -> bool:
    """Return whether the file system refuses a path because of its length; many methods of Path raise OSError then."""
    try:
        path.lstat()
    except OSError as error:
        return error.errno == errno.ENAMETOOLONG
    except ValueError:  # a null character
        pass
    return False


def suggest_path(path: Path) -> str:
    """Return what to do about a path that does not exist: another name in the same folder, or the part that exists."""
    folder = path.parent
    if not folder.is_dir():
        existing = next(parent for parent in path.absolute().parents if parent.is_dir())
        return f"The part that exists is {existing}."
    try:
        names = {entry.name.lower(): entry.name for entry in os.scandir(folder)}
    except OSError:
        return "Check the path."
    similar = get_close_matches(path.name.lower(), names, n=1, cutoff=0.6)
    return f"Did you mean {folder / names[similar[0]]}?" if similar else "Check the path."


@contextmanager
def atomic_write(path: Path, mode: str = "w", **options: Any) -> Iterator[IO[Any]]:
    """Open a file for writing that replaces `path` when the block ends without an error.

    Readers see the old file until then, and two processes may write at once. The content is on disk before it gets its
    name, so a power loss leaves the old file or the new one. A link stays and its target is replaced; what is not a
    regular file, such as /dev/stdout or a named pipe, is written to directly.

    Args:
      path: the file.
      mode: 'w' or 'wb'; text is UTF-8 by default.
      **options: passed to `open`.
    """
    if "b" not in mode:
        options = {"encoding": "utf-8", **options}
    if path.exists() and not path.is_file():
        with errors_naming(path), path.open(mode, **options) as file:
            yield file
        return
    path = path.resolve()
    temporary = path.with_name(f"{temporary_prefix(path)}{token_hex(4)}")  # not the process: two hosts may share its id
    try:
        with errors_naming(path), temporary.open(mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_prefix(path: Path) -> str:
    """Return the beginning of the names of temporary files and folders that become `path`; they are hidden.

    A long name is shortened: with the rest of the temporary name it would exceed the limit of the file system.
    """
    return f".{os.fsencode(path.name)[:_MAX_PREFIX].decode(errors='ignore')}."


@contextmanager
def errors_naming(path: Path) -> Iterator[None]:
    """Let an error of the operating system that names no file, such as that of a full disk, name `path`."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # one of a library is only a text, which a file name would replace
            error.filename = error.filename or str(path)
        raise


def atomic_write_text(path: Path, text: str) -> None:
    """Write a text file with `atomic_write`."""
    with atomic_write(path) as file:
        file.write(text)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; it is renamed to `target` only if the block ends without an error.

    An interrupted process leaves no `target`, so a folder of that name is always complete. If another process was
    faster, its folder is kept and this one is removed.

    Raises:
      UserError: `target` cannot be created, or the block raised an OSError such as a full disk.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=temporary_prefix(target), dir=target.parent) as scratch:
            folder = Path(scratch, target.name)
            folder.mkdir()
            yield folder
            try:
                folder.rename(target)
            except OSError:
                if not target.is_dir():
                    raise
    except OSError as error:
        raise UserError(f"Cannot create the folder {target} ({error}). Check disk space and permissions.") from error


def file_lock(path: Path, *, wait: bool) -> BufferedRandom | None:
    """Open `path` for reading and writing, created if needed, and lock it for this process.

    The lock ends with the file or the process, however that ends. If another process holds it, wait or return None.
    """
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.close()
            return None
        except OSError:
            pass  # a file system without locks, such as some network file systems
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # the previous holder has renamed or removed it


@contextmanager
def exclusive_lock(path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Lock `path`, a file that exists only while it is locked; wait for another process that holds it.

    Args:
      path: the file; its folder exists.
      on_wait: called if another process holds the lock.
    """
    lock = file_lock(path, wait=False)
    if lock is None:
        on_wait()
        lock = file_lock(path, wait=True)
        assert lock is not None, "it waits"
    with lock:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def check_disk_space(folder: Path, num_bytes: int, purpose: str, advice: str) -> None:
    """Raise UserError unless `num_bytes` are free in `folder`.

    Args:
      folder: an existing folder.
      num_bytes: what is needed.
      purpose: begins the message, such as "A checkpoint needs".
      advice: ends the message.
    """
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise UserError(
            f"{purpose} {format_bytes(num_bytes)} in {folder}, which has {format_bytes(free)} free. {advice}"
        )


def format_bytes(num_bytes: int) -> str:
    """Format a size for people: '4.9 MB', '25.3 GB'."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def write_csv(stream: IO[Any], rows: Iterable[Sequence[object]]) -> None:
    """Write rows to a stream that was opened with newline=''.

    Rows with a carriage return are quoted throughout: before Python 3.13 the csv module does not quote a lone one, and
    its reader then takes it for the end of the row.
    """
    plain = csv.writer(stream, lineterminator="\n")
    quoted = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:
        (quoted if any(isinstance(cell, str) and "\r" in cell for cell in row) else plain).writerow(row)


def cache_dir(name: str) -> Path:
    """Return the cache folder `name`: in $FLAXTL_CACHE, or in the system's folder for caches.

    Raises:
      UserError: the system's is in the home folder, and the user has none, as in some containers.
    """
    root = os.environ.get("FLAXTL_CACHE")
    if root:
        return user_path(root) / name
    import pooch  # here, because it loads an HTTP client that most runs do not need

    try:
        return Path(pooch.os_cache("flaxtl")) / name
    except RuntimeError as error:
        raise UserError("The home folder is unknown. Set FLAXTL_CACHE to a folder for caches.") from error
