"""The entry point of the `flaxtl` command: run one command, report errors, exit with the right code."""

import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from types import TracebackType
from typing import NoReturn

from flaxtl.cli.commands import COMMANDS
from flaxtl.cli.parser import parse_arguments
from flaxtl.console import make_console, message
from flaxtl.errors import UserError, memory_errors
from flaxtl.train.signals import StopRequested, exit_code

CLOSED_LOOP = "Event loop is closed"
"""The error of TensorStore's threads, which is no use to anybody, after a write that has failed."""

RESEND_SECONDS = 0.1
"""Time to a second try of a signal that has arrived where Python raises nothing, such as in a garbage collection."""

RESUMABLE = frozenset({"train", "sweep"})
"""Commands that resume when they are run again."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit.

    Args:
      arguments: of the command; None: those of this process, which then ends without cleaning up if a signal stops it
        (see `flaxtl.parallel.processes.end`).

    Exit codes:
      0: done.
      1: a run of a sweep failed, doctor found an error, or an internal error.
      2: invalid input; the message explains the problem.
      69: another process of a distributed run has died (see `flaxtl.parallel.processes`).
      130, 143: stopped by Ctrl-C; by SIGTERM or a closed terminal (SIGHUP). Progress is saved.
    """
    is_process = arguments is None
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    _silence_libraries()
    _open_closed_streams()
    _escape_unencodable()
    try:
        options = parse_arguments(arguments)
        with _backend_errors(), memory_errors():
            COMMANDS[options.command](options)
    except UserError as error:
        _fail(str(error), 2, arguments)
    except BrokenPipeError:  # the reader of the output, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (KeyboardInterrupt, StopRequested) as stop:
        resume = "; progress saved. Run the same command to resume." if RESUMABLE & set(arguments[:1]) else "."
        _fail(f"Stopped{resume}", exit_code(_signal_number(stop)), arguments, at_once=is_process)
    except OSError as error:
        _fail(f"Cannot read or write {error.filename or 'a file'}: {error.strerror or error}.", 2, arguments)
    except Exception as error:
        _fail(f"Internal error ({type(error).__name__}: {error}). Add --debug for the traceback.", 1, arguments)
    finally:
        if is_process and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # an exit hook that Ctrl-C interrupts prints a traceback


@contextmanager
def _backend_errors() -> Iterator[None]:
    """Raise UserError in place of what jax raises, where it is first used, for a platform that it cannot use."""
    try:
        yield
    except (RuntimeError, AssertionError):
        if "jax" in sys.modules:
            from flaxtl.parallel import devices

            devices.check_backend()
        raise


def _open_closed_streams() -> None:
    """Write to nowhere where the caller has closed a stream (`>&-`), which is None in Python."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115


def _escape_unencodable() -> None:
    """Print characters that the encoding of the output lacks as escapes; a name or a '±' would end the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _silence_libraries() -> None:
    """Hide log lines and warnings of libraries about errors that flaxtl reports itself or that do not stop a run."""
    for library in ("absl", "asyncio", "matplotlib"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="PIL")  # large images, damaged metadata
    sys.excepthook, sys.unraisablehook = _excepthook, _unraisablehook


def _excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback as Python does, except that of TensorStore's threads after a write that has failed."""
    if str(error) != CLOSED_LOOP:
        sys.__excepthook__(kind, error, trace)


def _unraisablehook(unraisable: "sys.UnraisableHookArgs") -> None:
    """Do the same with what those threads cannot raise anywhere; a signal that was lost in this way is sent again."""
    error = unraisable.exc_value
    if isinstance(error, KeyboardInterrupt | StopRequested):
        resend = threading.Timer(RESEND_SECONDS, os.kill, (os.getpid(), _signal_number(error)))
        resend.daemon = True
        resend.start()
    elif str(error) != CLOSED_LOOP:
        sys.__unraisablehook__(unraisable)


def _signal_number(stop: KeyboardInterrupt | StopRequested) -> int:
    return stop.number if isinstance(stop, StopRequested) else signal.SIGINT


def _fail(text: str, code: int, arguments: Sequence[str], *, at_once: bool = False) -> NoReturn:
    """Print the error and exit; in a distributed run, notify the other processes. See `processes.end`."""
    if "--debug" in arguments:
        traceback.print_exc()
    message(make_console(stderr=True), f"flaxtl: {text}", style="red")
    if "jax" in sys.modules:
        from flaxtl.parallel import processes

        processes.end(code, at_once=at_once)
    sys.exit(code)
