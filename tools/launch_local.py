"""Train one run in several processes on this machine: `python tools/launch_local.py --processes=2 -- train ...`.

Output of process 0 is shown unchanged; lines of the others start with their number. SIGTERM, SIGHUP (the terminal was
closed) and Ctrl-C are forwarded to all processes. If one fails, the others have some time to notice before they are
killed. The exit code is that of the process that failed, not of those that lost the connection to it.
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
"""Exit code of a process after another has died (flaxtl.parallel.processes)."""

KILL_SECONDS = 60
"""Time for the others to end after one has failed: three times as long as flaxtl waits for a silent process."""

POLL_SECONDS = 0.1


def main() -> None:
    """Start all processes and wait for them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--processes", type=int, required=True, metavar="N")
    parser.add_argument("--devices-per-process", type=int, metavar="N", help="simulated CPU devices in each process")
    parser.add_argument("command", nargs="+", help="arguments of flaxtl, after --")
    options = parser.parse_args()
    if options.processes < 1:
        parser.error("--processes must be 1 or more")
    received: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # from now on: while processes start, too
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores it
            signal.signal(number, lambda number, _: received.append(number))
    codes = wait(start(options.processes, options.devices_per_process, options.command), received)
    sys.exit(next((code for code in codes if code not in (0, LOST)), max(codes)))


def start(processes: int, devices: int | None, command: Sequence[str]) -> list[subprocess.Popen[str]]:
    """Start the processes, each in its own session, so that a signal reaches it once."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"  # a free port
    environment = dict(os.environ)
    if devices is not None:
        flags = f"{environment.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip()}
    started = []
    for number in range(processes):
        place = (f"--coordinator={address}", f"--processes={processes}", f"--process={number}")
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} if number else {}
        arguments = [sys.executable, "-m", "flaxtl", *command, *place]
        process = subprocess.Popen(arguments, env=environment, text=True, start_new_session=True, **output)
        if process.stdout is not None:
            threading.Thread(target=relay, args=(number, process.stdout)).start()
        started.append(process)
    return started


def relay(number: int, lines: Iterable[str]) -> None:
    """Print the lines of a process with its number in front."""
    for line in lines:
        sys.stderr.write(f"[{number}] {line}")


def wait(started: Sequence[subprocess.Popen[str]], received: list[int]) -> list[int]:
    """Return the exit codes, as a shell gives them; after one process has failed, kill the rest in time.

    Signals are taken from `received` and forwarded.
    """
    failed = None
    while any(process.poll() is None for process in started):
        while received:
            send(started, received.pop(0))
        if failed is None and any(process.returncode for process in started):
            failed = time.monotonic()
        if failed is not None and time.monotonic() - failed > KILL_SECONDS:
            send(started, signal.SIGKILL)
        time.sleep(POLL_SECONDS)
    codes = [process.returncode for process in started]
    return [code if code >= 0 else 128 - code for code in codes]


def send(started: Sequence[subprocess.Popen[str]], number: int) -> None:
    """Send a signal to all running processes."""
    for process in started:
        process.send_signal(number)  # no effect on a process that has ended


if __name__ == "__main__":
    main()
