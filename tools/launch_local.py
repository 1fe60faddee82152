"""One run as several processes of this machine: `python tools/launch_local.py --processes=2 -- train --config=...`.

What process 0 says goes through as it is; lines of the others begin with their number. SIGTERM and Ctrl-C are passed on
to all of them. When one fails, the others have a while to notice by themselves before they are killed. The exit code is
that of the process that failed, not of those that only lost the connection to it.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence

LOST = 69
"""Exit code of a process that lost another, as flaxtl.parallel.processes has it."""

PATIENCE_SECONDS = 60
"""For the others after one has failed: three times the silence after which flaxtl takes a process for gone."""

LOOK_SECONDS = 0.1
"""Between two looks at who still runs."""


def main() -> None:
    """Start all processes, see them end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--processes", type=int, required=True, metavar="N")
    parser.add_argument("--devices-per-process", type=int, metavar="N", help="that many simulated CPU devices in each")
    parser.add_argument("command", nargs="+", help="after --: the arguments of flaxtl")
    options = parser.parse_args()
    if options.processes < 1:
        parser.error("--processes must be 1 or more")
    started = start(options.processes, options.devices_per_process, options.command)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda told, _: send(started, told))
    codes = wait(started)
    sys.exit(next((code for code in codes if code not in (0, LOST)), max(codes)))


def start(processes: int, devices: int | None, command: Sequence[str]) -> list[subprocess.Popen[str]]:
    """The processes, in their order; each in a session of its own, so that a signal reaches it once."""
    address = f"--coordinator=127.0.0.1:{free_port()}"
    environment = dict(os.environ)
    if devices is not None:
        environment["JAX_PLATFORMS"] = "cpu"
        flags = environment.get("XLA_FLAGS", "")
        environment["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={devices}".strip()
    started = []
    for number in range(processes):
        member = [address, f"--processes={processes}", f"--process={number}"]
        arguments = [sys.executable, "-m", "flaxtl", *command, *member]
        process = subprocess.Popen(
            arguments,
            env=environment,
            text=True,
            start_new_session=True,
            stdout=subprocess.PIPE if number else None,
            stderr=subprocess.STDOUT if number else None,
        )
        if process.stdout is not None:
            threading.Thread(target=relay, args=(number, process.stdout)).start()
        started.append(process)
    return started


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def relay(number: int, lines: Iterable[str]) -> None:
    """Print a process' lines with its number before them."""
    for line in lines:
        sys.stderr.write(f"[{number}] {line}")


def wait(started: Sequence[subprocess.Popen[str]]) -> list[int]:
    """The exit codes of all, as a shell gives them; some time after one has failed the rest is killed."""
    failed = None
    while any(process.poll() is None for process in started):
        if failed is None and any(process.returncode for process in started):
            failed = time.monotonic()
        if failed is not None and time.monotonic() - failed > PATIENCE_SECONDS:
            send(started, signal.SIGKILL)
        time.sleep(LOOK_SECONDS)
    codes = [process.returncode for process in started]
    return [code if code >= 0 else 128 - code for code in codes]


def send(started: Sequence[subprocess.Popen[str]], number: int) -> None:
    """A signal to all that still run."""
    for process in started:
        process.send_signal(number)  # of one that has ended it does nothing


if __name__ == "__main__":
    main()
