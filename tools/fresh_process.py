"""Run functions and commands in processes of their own, and measure them.

Frameworks that share a process share its threads and its memory, and Keras chooses its backend once per process.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from tempfile import TemporaryFile
from threading import Timer
from typing import IO, Any, NamedTuple

TOOLS = Path(__file__).parent


class ProcessError(Exception):
    """A process failed; the message is the last line that it wrote to standard error."""


class Measured(NamedTuple):
    """Exit code of a command, its wall and processor seconds, and its peak memory in MiB."""

    code: int
    seconds: float
    cpu_seconds: float
    mebibytes: float


def start(
    target: str, *arguments: object, environment: Mapping[str, str] = {}, stderr: int | IO[Any] | None = None
) -> subprocess.Popen[str]:
    """Call the function 'MODULE:NAME' in a new Python process; arguments and results are JSON.

    Each line of its standard output is a result: one, or those of a generator. All else that it prints goes to
    standard error.
    """
    command = [sys.executable, "-m", "fresh_process", target, json.dumps(arguments)]
    path = filter(None, (str(TOOLS), str(TOOLS.parent), os.environ.get("PYTHONPATH")))
    variables = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(path)}
    return subprocess.Popen(command, env=variables, text=True, stdout=subprocess.PIPE, stderr=stderr)


def call(
    target: str,
    *arguments: object,
    environment: Mapping[str, str] = {},
    quiet: bool = True,
    timeout: float | None = None,
) -> Any:
    """Return the result of a function that runs in a process of its own; `quiet`: its messages are not shown.

    Raises:
      ProcessError: it failed, or took longer than `timeout` seconds.
    """
    (result,) = stream(target, *arguments, environment=environment, quiet=quiet, timeout=timeout)
    return result


def stream(
    target: str,
    *arguments: object,
    environment: Mapping[str, str] = {},
    quiet: bool = True,
    timeout: float | None = None,
) -> Iterator[Any]:
    """Yield the results of a generator that runs in a process of its own, each as soon as it is there; see `call`."""
    start_time = time.monotonic()
    with TemporaryFile("w+") as errors:
        process = start(target, *arguments, environment=environment, stderr=errors if quiet else None)
        alarm = Timer(timeout or 0.0, process.kill)
        if timeout is not None:
            alarm.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                yield json.loads(line)
            code = process.wait()
        finally:
            alarm.cancel()
            process.kill()
            process.wait()
        if timeout is not None and code and time.monotonic() - start_time >= timeout:
            raise ProcessError(f"stopped after {timeout:.0f} s")
        if code:
            errors.seek(0)
            raise ProcessError((errors.read() or f"exit code {code}").strip().splitlines()[-1])


def run_command(
    command: Sequence[str],
    *,
    output: Path | None = None,
    environment: Mapping[str, str] = {},
    folder: Path = TOOLS,
    timeout: float | None = None,
) -> Measured:
    """Run a command in a folder, for at most `timeout` seconds. It prints to a file, or to standard error."""
    # Linux counts the memory of the process that starts a command as the command's peak: a small one starts it.
    arguments = (list(command), str(output) if output else None, str(folder), timeout)
    return Measured(*call("fresh_process:_measure", *arguments, environment=environment, quiet=False))


def _measure(command: list[str], output: str | None, folder: str, timeout: float | None) -> Measured:
    start_time = time.perf_counter()
    with Path(output or os.devnull).open("wb") as file:
        stdout = file if output else sys.stderr
        process = subprocess.Popen(command, stdout=stdout, stderr=subprocess.STDOUT, cwd=folder)
        alarm = Timer(timeout or 0.0, process.terminate)
        if timeout is not None:
            alarm.start()
        _, status, usage = os.wait4(process.pid, 0)
        alarm.cancel()
    seconds, cpu_seconds = time.perf_counter() - start_time, usage.ru_utime + usage.ru_stime
    process.returncode = os.waitstatus_to_exitcode(status)
    mebibytes = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return Measured(process.returncode, seconds, cpu_seconds, mebibytes)


def peak_mebibytes(pid: int | str = "self") -> float:
    """Return the peak memory of a process; 0.0 where it is unknown: outside Linux, or after its end."""
    try:
        match = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))
    except OSError:
        return 0.0
    return int(match[1]) / 1024 if match else 0.0


if __name__ == "__main__":
    with os.fdopen(os.dup(1), "w") as results:
        os.dup2(2, 1)  # libraries may print
        sys.stdout.reconfigure(line_buffering=True)  # before the error message, which is the last line
        result = resolve_name(sys.argv[1])(*json.loads(sys.argv[2]))
        for value in result if isinstance(result, Generator) else (result,):
            print(json.dumps(value), file=results, flush=True)
