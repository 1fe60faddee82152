"""One command of a sweep at a time, as a process of its own: what befalls it ends no other.

A run that fails, even where the system kills it for its memory, is one failed run; and each begins with the whole of
the accelerator's memory.
"""

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from flaxtl.train.interruption import GRACE_SECONDS, SIGNALS, Interruption, Stopped, exit_code

PROGRAM = (sys.executable, "-m", "flaxtl")

PATIENCE_SECONDS = GRACE_SECONDS + 5
"""For a process that was told to end: it has its own grace, which begins a moment later."""


class Processes:
    """Starts commands, and passes on to the one at work that it shall end."""

    def __init__(self) -> None:
        """Nothing is at work yet. `interruption` is to be listened to around all commands."""
        self.interruption = Interruption(self._tell, PATIENCE_SECONDS)
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, arguments: Sequence[str], log: Path) -> str | None:
        """Run `flaxtl ARGUMENTS`, adding what it says to the file `log`; returns why it failed, or None.

        Raises Stopped where a signal ended it, which was sent to this process or to that one.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as said:
            start = said.tell()
            code = self._code([*PROGRAM, *arguments], said.fileno())
        if code:
            _stop_if_told(code)
        return _reason(code, log, start) if code else None

    def _code(self, command: Sequence[str], output: int) -> int:
        """In a session of its own, so that Ctrl-C reaches it once, through this process."""
        with self.interruption.patient():
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                if self.interruption.asked:  # before there was a process to tell
                    self._tell()
                code = self._process.wait()
            except Stopped:  # asked a second time: it shall not finish its step either
                self._tell()
                self._process.wait()
                raise
            finally:
                self._process = None
        if self.interruption.asked:
            self.interruption.stop()
        return code

    def _tell(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)


def _stop_if_told(code: int) -> None:
    """Somebody told the process itself to end, as a cluster does that signals all of a job's processes."""
    for number in SIGNALS:
        if code in (exit_code(number), -number):
            raise Stopped(number)


def _reason(code: int, log: Path, start: int) -> str:
    """The sentence that the process ended with, without 'flaxtl: ', or its exit code."""
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").splitlines()
    sentences = [line.removeprefix("flaxtl: ") for line in lines if line.startswith("flaxtl: ")]
    if sentences:
        return sentences[-1]
    ended = f"it was killed by {signal.Signals(-code).name}" if code < 0 else f"it ended with exit code {code}"
    return f"{ended}; {log} holds what it said"
