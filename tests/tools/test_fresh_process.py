"""tools/fresh_process.py: functions and commands in processes of their own."""

import os
import sys

import fresh_process
import pytest


def test_call_returns_the_result_of_another_process():
    assert fresh_process.call("os:getpid") != os.getpid()
    assert fresh_process.call("json:dumps", {"a": 1}) == '{"a": 1}'


def test_call_of_failing_function_raises_its_last_line():
    with pytest.raises(fresh_process.ProcessError, match="ValueError: invalid literal"):
        fresh_process.call("builtins:int", "x")


def test_stream_yields_the_results_of_a_generator_until_it_fails(tmp_path, monkeypatch):
    text = "def count(n):\n    print('noise')\n    yield from range(n)\n    raise ValueError('no more')\n"
    (tmp_path / "counting.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    results = fresh_process.stream("counting:count", 3)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(fresh_process.ProcessError, match="ValueError: no more"):
        next(results)


def test_run_command_measures_and_writes_output(tmp_path):
    program = "import sys; print('hello'); x = bytearray(2**26); sys.exit(3)"
    output = tmp_path / "output.txt"
    measured = fresh_process.run_command([sys.executable, "-c", program], output=output, folder=tmp_path)
    assert measured.code == 3
    assert output.read_text() == "hello\n"
    assert 64 < measured.mebibytes < 256
    assert 0 < measured.cpu_seconds < 5


def test_call_beyond_the_time_limit_raises():
    with pytest.raises(fresh_process.ProcessError, match="stopped after 0 s"):
        fresh_process.call("time:sleep", 60, timeout=0.3)


def test_run_command_beyond_the_time_limit_is_terminated():
    assert fresh_process.run_command([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.3).code == -15
