"""Read an untrusted weight file in a separate process first.

A damaged or hostile HDF5 or ONNX file can make the C library that parses it crash, loop forever or exhaust the memory.
In a process with limits none of this reaches the user's run.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import process_time

from flaxtl.child_process import python_command
from flaxtl.errors import UserError
from flaxtl.pretrained.merge import damaged_file

_CODE = """
from flaxtl.pretrained import loader, trial
trial.main(loader.read_layers)
"""

_EXIT_REFUSED = 3  # the reason is on standard output
_EXIT_BROKEN = 1  # Python's own: an error in the program, not in the file

_MEMORY_BYTES = 4 * 2**30  # address space: two copies of merge.MAX_BYTES, and the libraries
_CPU_SECONDS = 2  # for reading a small file, which takes about 0.02 s
_BYTES_PER_SECOND = 20 * 10**6  # slowest disk and slowest decompression
_WALL_FACTOR = 30  # wall time per CPU time: on a busy machine a process mostly waits


def trial_read(path: Path) -> None:
    """Read the file at `path` in a child process. Takes about 0.3 s plus the time for reading it.

    Raises:
      UserError: the file is refused there, or it makes the process crash, hang or run out of memory.
    """
    try:
        process = subprocess.run(
            python_command(_CODE, os.fspath(path)),
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # each of its threads would reserve address space
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_WALL_FACTOR * _cpu_seconds(path),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _unreadable(path) from None
    if process.returncode == _EXIT_REFUSED:
        raise UserError(os.fsdecode(process.stdout))
    if process.returncode == _EXIT_BROKEN:
        raise RuntimeError(os.fsdecode(process.stderr))
    if process.returncode:
        raise _unreadable(path)


def main(read: Callable[[Path], object]) -> None:
    """Run in the child process: read the file that the first argument names, within limits."""
    path = Path(sys.argv[1])
    _set_limits(_cpu_seconds(path))
    try:
        read(path)
    except Exception as error:  # MemoryError included
        refusal = error if isinstance(error, UserError) else _unreadable(path)
        sys.stdout.buffer.write(os.fsencode(str(refusal)))
        sys.exit(_EXIT_REFUSED)


def _cpu_seconds(path: Path) -> int:
    return _CPU_SECONDS + path.stat().st_size // _BYTES_PER_SECOND


def _set_limits(cpu_seconds: int) -> None:
    """Limit this process's further CPU time and its memory, and disable core files."""
    with suppress(ImportError, ValueError):  # Windows has no such limits, and macOS not all of them
        import resource

        for kind, soft_limit in (
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_CPU, int(process_time()) + cpu_seconds),
            (resource.RLIMIT_AS, _MEMORY_BYTES),
        ):
            resource.setrlimit(kind, (soft_limit, resource.getrlimit(kind)[1]))


def _unreadable(path: Path) -> UserError:
    return damaged_file(path, "reading it crashes, hangs or needs too much memory")
