import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from flaxtl.train.signals import StopRequested, StopSignal, exit_code


def send(number):
    os.kill(os.getpid(), number)


def test_exit_code_follows_shell_convention():
    assert (exit_code(signal.SIGINT), exit_code(signal.SIGTERM)) == (130, 143)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_outside_deferred_stops_at_once(number):
    with StopSignal().listening() as interruption, pytest.raises(StopRequested) as stopped:
        send(number)
    assert stopped.value.number == number
    assert not interruption.requested


@pytest.fixture
def handle_sighup():
    """Return a function that sets the handler of SIGHUP until the test ends; under nohup it is ignored before."""
    before = signal.getsignal(signal.SIGHUP)
    yield lambda handler: signal.signal(signal.SIGHUP, handler)
    signal.signal(signal.SIGHUP, before)


def test_signal_of_a_closed_terminal_stands_for_sigterm(handle_sighup):
    handle_sighup(signal.SIG_DFL)
    with StopSignal().listening(), pytest.raises(StopRequested) as stopped:
        send(signal.SIGHUP)
    assert stopped.value.number == signal.SIGTERM


def test_signal_of_a_closed_terminal_stays_ignored_under_nohup(handle_sighup):
    handle_sighup(signal.SIG_IGN)
    with StopSignal().listening() as interruption, interruption.deferred():
        send(signal.SIGHUP)
        assert not interruption.requested
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_signal_inside_deferred_is_recorded_second_stops_at_once():
    requests = []
    with StopSignal(lambda: requests.append(True)).listening() as interruption, interruption.deferred():
        send(signal.SIGTERM)
        assert interruption.requested
        assert requests == [True]
        with pytest.raises(StopRequested) as stopped:
            interruption.stop()
        assert stopped.value.number == signal.SIGTERM
        with pytest.raises(StopRequested) as stopped:
            send(signal.SIGINT)
        assert stopped.value.number == signal.SIGINT


def test_listening_restores_previous_handlers():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopSignal().listening():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_listening_end_cancels_grace_period(monkeypatch):
    exits = []
    monkeypatch.setattr(os, "_exit", exits.append)
    before = threading.enumerate()
    with StopSignal(grace_seconds=3600).listening() as interruption, interruption.deferred():
        (timer,) = set(threading.enumerate()) - set(before)
        send(signal.SIGTERM)
    timer.join(60)
    assert not timer.is_alive()
    assert exits == []


def test_listening_in_thread_does_nothing():
    heard = []

    def run():
        with StopSignal().listening() as interruption:
            heard.append(interruption.requested)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert heard == [False]


CLOSED = """
import os, pty, signal, sys, time
from flaxtl.train.signals import StopRequested, StopSignal
signal.signal(signal.SIGHUP, signal.SIG_DFL)
process, terminal = pty.fork()
if process:
    output = b""
    while b"ready" not in output:
        output += os.read(terminal, 100)
    os.close(terminal)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
signal.alarm(30)  # ends the process if nothing else does
try:
    with StopSignal().listening() as interruption, interruption.deferred():
        print("ready", flush=True)
        while not interruption.requested:
            time.sleep(0.01)
        print("saved", flush=True)
        interruption.stop()
except StopRequested as stop:
    os._exit(128 + stop.number)
"""


def test_output_after_the_terminal_was_closed_is_discarded():
    assert subprocess.run([sys.executable, "-c", CLOSED], check=False).returncode == 143


NO_OUTPUT = """
import os, signal
from flaxtl.train.signals import StopRequested, StopSignal
with StopSignal().listening():
    os.close(1)
    os.close(2)
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except StopRequested as stop:
        os._exit(128 + stop.number)
"""


def test_signal_without_open_output_stops_the_run():
    assert subprocess.run([sys.executable, "-c", NO_OUTPUT], check=False).returncode == 143


STUCK = """
import ctypes, sys
from flaxtl.train.signals import StopSignal
with StopSignal(grace_seconds=0.5).listening() as interruption, interruption.deferred():
    print("ready", flush=True)
    ctypes.CDLL(None).pause()  # in C, where handlers of Python do not run: as a compilation
    while True:
        ctypes.CDLL(None).sleep(60)
"""


def test_process_exits_after_grace_period():
    process = subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 143
    assert re.fullmatch(r"flaxtl: .+\n", err)
    assert 0.4 < time.monotonic() - started < 10  # lower bound: the grace period; upper: a slow machine


def test_process_without_a_reader_of_stderr_exits_after_grace_period():
    process = subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.stderr.close()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
