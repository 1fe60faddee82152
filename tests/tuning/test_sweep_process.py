"""One command at a time: why it failed, and that a signal reaches it once."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from flaxtl.train.signals import StopRequested
from flaxtl.tuning import sweep as sweep_process
from flaxtl.tuning.sweep import SweepProcesses


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs Python code in place of flaxtl; gives why it failed."""

    def start(code):
        monkeypatch.setattr(sweep_process, "PROGRAM", (sys.executable, "-c", code))
        return SweepProcesses().run(["train"], tmp_path / "logs" / "a.log")

    return start


def test_the_last_sentence_of_this_attempt_is_the_reason(run, tmp_path):
    assert run("print('flaxtl: not a reason, for all went well')") is None
    assert run("import sys; print('flaxtl: first'); print('flaxtl: second\\nmore'); sys.exit(2)") == "second"
    log = tmp_path / "logs" / "a.log"
    reason = run("import sys; sys.exit(1)")
    assert str(log) in reason
    assert re.findall(r"\d+", reason.replace(str(log), "")) == ["1"]
    code = "import os; os.kill(os.getpid(), 9)"
    assert re.search(rf"(?=.*\bSIGKILL\b)(?=.*{re.escape(str(log))})", run(code))
    assert log.read_text().splitlines()[:2] == ["flaxtl: not a reason, for all went well", "flaxtl: first"]


@pytest.mark.parametrize("code", ["sys.exit(143)", "os.kill(os.getpid(), 15)"])
def test_one_that_was_told_to_end_ends_the_sweep(run, code):
    with pytest.raises(StopRequested) as stopped:
        run(f"import os, sys; {code}")
    assert stopped.value.number == signal.SIGTERM


SWEEP = """
import sys
from pathlib import Path
from flaxtl.results import sweep_process
from flaxtl.train.interruption import Stopped
sweep_process.PROGRAM = (sys.executable, "-c", Path(sys.argv[2]).read_text())
processes = sweep_process.Processes()
try:
    with processes.interruption.listening():
        processes.run(["train"], Path(sys.argv[1]))
except Stopped as stopped:
    print("stopped by", stopped.number)
"""

CAREFUL = """
import signal, sys, time
def note(number, _):
    print("told", flush=True)
    told.append(number)
told = []
signal.signal(signal.SIGTERM, note)
print("ready", flush=True)
while len(told) < {signals}:
    time.sleep(0.05)
time.sleep(0.2)
print("saved", flush=True)
sys.exit(143)
"""


@pytest.mark.parametrize(("signals", "number"), [(1, signal.SIGINT), (1, signal.SIGTERM), (2, signal.SIGTERM)])
def test_a_signal_to_the_sweep_reaches_the_run_as_often_as_it_came(tmp_path, signals, number):
    """As Ctrl-C on a terminal: the whole group of processes is told, in which the run is not."""
    log, code = tmp_path / "a.log", tmp_path / "careful.py"
    code.write_text(CAREFUL.format(signals=signals))
    command = [sys.executable, "-c", SWEEP, str(log), str(code)]
    sweep = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    for already in range(signals):
        expected = ["ready"] + ["told"] * already
        while not log.exists() or log.read_text().split() != expected:
            assert sweep.poll() is None
            time.sleep(0.05)
        os.killpg(sweep.pid, number)
    assert sweep.communicate(timeout=30)[0] == f"stopped by {number}\n"
    assert log.read_text().split() == ["ready"] + ["told"] * signals + ["saved"]
