"""How a command ends that a signal stops."""

import io
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from flaxtl.cli import commands, main
from flaxtl.console import make_console, message

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("command", "resumable"),
    [(["train", "--config=x", "--workdir=y"], True), (["models"], False)],
)
def test_ctrl_c_exits_with_code_130(capsys, monkeypatch, command, resumable):
    def interrupt(options):
        raise KeyboardInterrupt

    monkeypatch.setitem(commands.COMMANDS, command[0], interrupt)
    with pytest.raises(SystemExit) as stopped:
        main.main(command)
    assert stopped.value.code == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("flaxtl: ")
    assert ("Run the same command to resume" in line) == resumable


def test_output_of_another_encoding_gets_escapes(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setitem(commands.COMMANDS, "models", lambda options: message(make_console(), "81 % ± 5"))
    main.main(["models"])
    assert stream.buffer.getvalue() == b"81 % \\xb1 5\n"


def test_output_to_a_closed_stream_goes_nowhere(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    terminal = []
    monkeypatch.setitem(commands.COMMANDS, "models", lambda options: terminal.append(sys.stdout.isatty()))
    main.main(["models"])
    sys.stdout.close()
    assert terminal == [False]


def test_unraisable_errors_of_a_closed_loop_are_hidden(monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "__unraisablehook__", lambda unraisable: shown.append(str(unraisable.exc_value)))
    for text in (main.CLOSED_LOOP, "another"):
        main._unraisablehook(SimpleNamespace(exc_value=RuntimeError(text)))
    assert shown == ["another"]


COMPILING = """
import os, signal, sys, threading
import jax
from flaxtl.cli import main
from flaxtl.cli.commands import COMMANDS

def compile_program(options):
    def program(x):
        for step in range(100):
            x = jax.numpy.sort(jax.numpy.sin(x) + step)[::-1].cumsum(0)
        return x

    lowered = jax.jit(program).lower(jax.ShapeDtypeStruct((64, 64), "float32"))
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    lowered.compile()
    print("compiled in less than 0.2 s")

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a shell ignores it
COMMANDS["models"] = compile_program
sys.argv = ["flaxtl", "models"]
main.main()
"""


def test_ctrl_c_while_xla_compiles_exits_with_code_130():
    done = subprocess.run([sys.executable, "-c", COMPILING], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "flaxtl: Stopped.\n")


COLLECTING = """
import gc, os, signal, sys, time
from contextlib import nullcontext
from flaxtl.cli import main
from flaxtl.cli.commands import COMMANDS
from flaxtl.train.signals import StopSignal

def interrupt(*_):
    gc.callbacks.clear()
    os.kill(os.getpid(), NUMBER)

def collect_garbage(options):
    with StopSignal().listening() if NUMBER == signal.SIGTERM else nullcontext():
        gc.callbacks.append(interrupt)
        gc.collect()
        time.sleep(30)

signal.signal(signal.SIGINT, signal.default_int_handler)
COMMANDS["models"] = collect_garbage
sys.argv = ["flaxtl", "models"]
main.main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_during_a_garbage_collection_ends_the_command(number, code):
    """Python drops what a handler raises in a callback of the collection, and jax has such a callback."""
    program = COLLECTING.replace("NUMBER", f"signal.{number.name}")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "flaxtl: Stopped.\n")


FINISHED = """
import atexit, os, signal, sys, time
from flaxtl.cli import commands, main

def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(30)

signal.signal(signal.SIGINT, signal.default_int_handler)
atexit.register(interrupt)
sys.argv = ["flaxtl", "models"]
commands.COMMANDS["models"] = lambda options: None
main.main()
"""


def test_ctrl_c_in_an_exit_hook_prints_no_traceback():
    done = subprocess.run([sys.executable, "-c", FINISHED], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
