import os
import re
import signal
import subprocess
import sys
import time

import pytest

from flaxtl.train.signals import StopRequested
from flaxtl.tuning import sweep
from flaxtl.tuning.sweep import SweepProcesses


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a function that runs Python code in place of flaxtl and gives why it failed."""

    def start(code):
        monkeypatch.setattr(sweep, "FLAXTL", (sys.executable, "-c", code))
        return SweepProcesses().run(["train"], tmp_path / "logs" / "a.log")

    return start


def test_run_returns_the_last_message_of_this_attempt(run, tmp_path):
    assert run("print('flaxtl: not an error, exit code 0')") is None
    assert run("import sys; print('flaxtl: first'); print('flaxtl: second\\nmore'); sys.exit(2)") == "second"
    log = tmp_path / "logs" / "a.log"
    failure = run("import sys; sys.exit(1)")
    assert str(log) in failure
    assert re.findall(r"\d+", failure.replace(str(log), "")) == ["1"]
    code = "import os; os.kill(os.getpid(), 9)"
    assert re.search(rf"(?=.*\bSIGKILL\b)(?=.*{re.escape(str(log))})", run(code))
    assert log.read_text().splitlines()[:2] == ["flaxtl: not an error, exit code 0", "flaxtl: first"]


@pytest.mark.parametrize("code", ["sys.exit(143)", "os.kill(os.getpid(), 15)"])
def test_run_that_was_stopped_stops_the_sweep(run, code):
    with pytest.raises(StopRequested) as stopped:
        run(f"import os, sys; {code}")
    assert stopped.value.number == signal.SIGTERM


SWEEP = """
import sys
from pathlib import Path
from flaxtl.train.signals import StopRequested
from flaxtl.tuning import sweep
sweep.FLAXTL = (sys.executable, "-c", Path(sys.argv[2]).read_text())
processes = sweep.SweepProcesses()
try:
    with processes.stop_signal.listening():
        processes.run(["train"], Path(sys.argv[1]))
except StopRequested as stop:
    print("stopped by", stop.number)
"""

GRACEFUL = """
import signal, sys, time
def note(number, _):
    print("signal", flush=True)
    received.append(number)
received = []
signal.signal(signal.SIGTERM, note)
print("ready", flush=True)
while len(received) < {signals}:
    time.sleep(0.05)
time.sleep(0.2)
print("saved", flush=True)
sys.exit(143)
"""


@pytest.mark.parametrize(
    ("signals", "number"),
    [
        (1, signal.SIGINT),
        pytest.param(1, signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(2, signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_signal_to_the_sweep_is_forwarded_once_to_the_run(tmp_path, signals, number):
    """Ctrl-C on a terminal signals the process group of the sweep, which the run is not in."""
    log, code = tmp_path / "a.log", tmp_path / "graceful.py"
    code.write_text(GRACEFUL.format(signals=signals))
    command = [sys.executable, "-c", SWEEP, str(log), str(code)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    for num_received in range(signals):
        expected = ["ready"] + ["signal"] * num_received
        while not log.exists() or log.read_text().split() != expected:
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, number)
    assert process.communicate(timeout=30)[0] == f"stopped by {number}\n"
    assert log.read_text().split() == ["ready"] + ["signal"] * signals + ["saved"]
