"""Signals that stop a run: the current step is finished and saved, and the exit code shows which signal it was."""

import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

SIGNALS: dict[int, int] = {
    signal.SIGINT: signal.SIGINT,
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGHUP: signal.SIGTERM,  # the terminal was closed
}
"""Signals that stop a run -> the signals that they stand for; see `processes.stop_signals`."""

GRACE_SECONDS = 25.0
"""Time to stop after a signal: Slurm, Kubernetes and TPU preemption kill a process after 30 seconds."""


def exit_code(number: int) -> int:
    """Return the exit code for a signal, by the convention of shells: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + number


def _discard_output_to_closed_terminal() -> None:
    """Write stdout and stderr to nowhere if their terminal is closed: an error of theirs would end the run unsaved."""
    for stream in (1, 2):
        with suppress(OSError):  # a stream that was never open
            if stat.S_ISCHR(os.fstat(stream).st_mode) and not os.isatty(stream):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream)
                os.close(null)


class StopRequested(BaseException):
    """Raised to end the run after signal `number`."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class StopSignal:
    """Whether a signal has requested the run to stop.

    A signal ends the run at once. Inside `deferred` it is only recorded, so that the training loop can finish its step,
    save, and call `stop`. A second signal ends the run immediately, and GRACE_SECONDS after the first one the process
    exits in any case, even during a compilation; as checkpoints are atomic, only the work since the last one is lost.

    Args:
      on_request: called when a signal is recorded.
      grace_seconds: time until the process exits.
      signals: signals to handle -> the signals that they stand for.
    """

    def __init__(
        self,
        on_request: Callable[[], None] = lambda: None,
        grace_seconds: float = GRACE_SECONDS,
        signals: Mapping[int, int] = SIGNALS,
    ) -> None:
        self._on_request, self._signals, self._grace_seconds = on_request, signals, grace_seconds
        self._number: int | None = None
        self._deferred = False

    @property
    def requested(self) -> bool:
        """Whether the training loop should save and call `stop`."""
        return self._number is not None

    def stop(self) -> NoReturn:
        """End the run, as requested by a signal here or in another process."""
        raise StopRequested(self._number or signal.SIGTERM)

    @contextmanager
    def listening(self) -> Iterator["StopSignal"]:
        """Handle the signals; the previous handlers are restored. Does nothing outside the main thread.

        SIGHUP stays ignored if it is: `nohup` lets a run outlive its terminal.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        done = threading.Event()
        threading.Thread(target=self._exit_after_grace, args=(read_end, done), daemon=True).start()
        previous_fd = signal.set_wakeup_fd(write_end)
        has_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        handled = [number for number in self._signals if number != signal.SIGHUP or not has_nohup]
        previous_handlers = {number: signal.signal(number, self._handle) for number in handled}
        try:
            yield self
        finally:
            for number, handler in previous_handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(previous_fd)
            done.set()
            os.close(write_end)  # ends the thread

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Record signals instead of ending the run; the training loop checks `requested`."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _handle(self, number: int, _: FrameType | None) -> None:
        _discard_output_to_closed_terminal()
        number = self._signals[number]
        if self._number is not None or not self._deferred:
            raise StopRequested(number)
        self._number = number
        self._on_request()

    def _exit_after_grace(self, read_end: int, done: threading.Event) -> None:
        """Exit GRACE_SECONDS after a signal.

        Python's own handlers wait while the main thread runs C code; the wake-up pipe does not.
        """
        with os.fdopen(read_end, "rb", buffering=0) as pipe:
            while received := pipe.read(1):
                if (number := self._signals.get(received[0])) and not done.wait(self._grace_seconds):
                    with suppress(OSError):  # its terminal is closed: it must exit, too
                        os.write(2, b"flaxtl: stopped after the grace period; work since the last checkpoint is lost\n")
                    os._exit(exit_code(number))
