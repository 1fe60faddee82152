"""Signals that ask a run to end: the step at hand is finished and kept, and the exit code says why it ended."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)

GRACE_SECONDS = 25.0
"""Of a run that was told to end: Slurm, Kubernetes and TPU preemption kill what is still there after 30."""


def exit_code(number: int) -> int:
    """What a process ends with that a signal ended, as shells have it: 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + number


class StopRequested(BaseException):
    """The run was told to end. `number` is the signal's."""

    def __init__(self, number: int) -> None:
        """Raised by a signal's handler, or between two steps after it."""
        super().__init__(number)
        self.number = number


class StopSignal:
    """Whether somebody asked the run to end.

    Where nothing would be lost a signal ends the run at once; within `deferred` it is only noted, for the loop to
    finish its step, save and `stop`. A second signal does not wait, and GRACE_SECONDS after the first the process ends
    in any case, even from within a compilation: every checkpoint is whole, so a run then loses no more than what came
    after the last one.
    """

    def __init__(self, tell: Callable[[], None] = lambda: None, grace: float = GRACE_SECONDS) -> None:
        """Nobody has asked yet; signals are heard within `listening`. `tell` is called when one is noted."""
        self._tell, self._grace = tell, grace
        self._number: int | None = None
        self._deferred = False

    @property
    def requested(self) -> bool:
        """Whether the loop should save and `stop`."""
        return self._number is not None

    def stop(self) -> NoReturn:
        """End the run, as it was asked to, here or in another process."""
        raise StopRequested(self._number or signal.SIGTERM)

    @contextmanager
    def listening(self) -> Iterator["StopSignal"]:
        """Hear SIGTERM and Ctrl-C; the handlers that were there come back. In a thread nothing can be heard."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        heard, told = os.pipe()
        os.set_blocking(told, False)
        ended = threading.Event()
        threading.Thread(target=self._watch, args=(heard, ended), daemon=True).start()
        pipe = signal.set_wakeup_fd(told)
        handlers = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield self
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(pipe)
            ended.set()
            os.close(told)  # both end the thread

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Where a signal is noted and the loop ends itself."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._number is not None or not self._deferred:
            raise StopRequested(number)
        self._number = number
        self._tell()

    def _watch(self, heard: int, ended: threading.Event) -> None:
        """The clock of the grace. Python's own handlers wait while XLA compiles; the bytes of the pipe do not."""
        with os.fdopen(heard, "rb", buffering=0) as pipe:
            while told := pipe.read(1):
                if (number := told[0]) in SIGNALS and not ended.wait(self._grace):
                    os.write(2, b"flaxtl: what was being computed took too long to be finished and kept\n")
                    os._exit(exit_code(number))
