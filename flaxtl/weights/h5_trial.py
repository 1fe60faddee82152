"""A stranger's HDF5 file read once in a process of its own, before it is read in this one.

On a few damaged files the HDF5 library goes round in circles, asks for all memory there is, or takes the whole process
down with it; no exception tells of that. So another process reads the file first, by the very same code and within
limits, and this one opens it only if that went well.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import process_time

from flaxtl.errors import UserError
from flaxtl.weights import h5_layers

_REFUSED = 3  # exit code: the reason is on standard output
_BROKEN = 1  # exit code of Python where something is wrong with the program and not with the file
_CODE = "import sys; sys.path[:] = sys.argv[2:]; from flaxtl.weights import h5_trial; h5_trial.main()"

_MEMORY = 2 * 2**30  # bytes of address space: what h5_safety.MAX_BYTES comes to in an archive, and the libraries' own
_SECONDS = 2  # of the processor for reading a small file, which takes a hundredth of one
_BYTES_PER_SECOND = 20 * 10**6  # what the slowest disk reads and the slowest processor unpacks
_PATIENCE = 30  # times as long on the clock: on a busy machine a process waits much longer than it works


def run(path: Path) -> None:
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


def main() -> None:
    """What the other process does with the file that its first argument names."""
    path = Path(sys.argv[1])
    _limit(_seconds(path))
    try:
        h5_layers.read(path, known=(), expected={})
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
