"""Several processes on this machine: they meet, agree, and end in bounded time when one of them is gone.

What the processes run are the few lines of `PROGRAM` and a test's own; they talk over CPU collectives.
"""

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

from flaxtl.errors import UserError
from flaxtl.parallel import devices
from flaxtl.parallel import processes as hosts

ROOT = Path(__file__).parents[2]
LAUNCHER = ROOT / "tools" / "launch_local.py"

HEARTBEAT = 8
"""Seconds: shorter than a user's, and long enough for two cores that do other things besides."""

PROGRAM = f"""
import os, signal, sys, time
import jax, numpy as np
from flaxtl.errors import UserError
from flaxtl.train import hosts, mesh as meshes

number, processes, port = map(int, sys.argv[1:4])

def meet(**changes):
    flags = dict(coordinator=f"127.0.0.1:{{port}}", processes=processes, process=number, from_cluster=False)
    hosts.join(**flags | changes, seconds=30, heartbeat={HEARTBEAT})

def mean_over_all(steps, before=lambda step: None):
    "A collective a step, as training has it; before(step) comes before each."
    mesh = meshes.make(8)
    mean = jax.jit(lambda x: x.mean(), in_shardings=meshes.batched(mesh), out_shardings=meshes.replicated(mesh))
    batch = hosts.spread(np.arange(8, dtype=np.float32), meshes.batched(mesh))
    for step in range(steps):
        before(step)
        if hosts.agreed_to_stop(step):
            return step
        found = mean(batch)
        assert float(found) == 3.5
        time.sleep(0.05)

def kill(victim, at):
    return lambda step: os.kill(os.getpid(), signal.SIGKILL) if (number, step) == (victim, at) else None
"""


def lost(number, processes):
    """What such a process says at its end: which of how many it is."""
    return rf"flaxtl: .*\bprocess {number}\b.*\b{processes}\b"


class Ended(NamedTuple):
    code: int
    seconds: float
    output: str


@contextmanager
def started(program, processes, environment=lambda number: {}):
    """The processes while they run; none is left behind."""
    command = [sys.executable, "-c", PROGRAM + program]
    running = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    try:
        for number in range(processes):
            running.append(
                subprocess.Popen(
                    [*command, str(number), str(processes), str(port)],
                    cwd=ROOT,
                    env={**os.environ, "JAX_PLATFORMS": "cpu", **environment(number)},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        yield running
    finally:
        for process in running:
            process.kill()
            process.wait()


def run(program, processes=2, environment=lambda number: {}):
    """How each process ended."""
    began = time.monotonic()
    with started(program, processes, environment) as running:
        outputs = [process.communicate(timeout=120)[0] for process in running]
        return [
            Ended(process.returncode, time.monotonic() - began, output)
            for process, output in zip(running, outputs, strict=True)
        ]


@pytest.mark.parametrize(
    ("flags", "from_cluster", "facts"),
    [
        (("host:1", 2, None), False, r"(?=.*--coordinator\b)(?=.*--processes\b)(?=.*--process\b)"),
        ((None, None, 1), False, r"(?=.*--coordinator\b)(?=.*--processes\b)(?=.*--process\b)"),
        (("host:1", 2, 2), False, r"--process=2\b.*\b0\b.*\b1\b"),
        (("host:1", 2, -1), False, r"--process=-1\b.*\b0\b.*\b1\b"),
        (("host:1", 0, 0), False, r"--processes=0\b"),
        (("host", 2, 1), False, r"--coordinator=host\b.*HOST:PORT"),
        (("host:99999", 2, 1), False, r"--coordinator=host:99999\b.*HOST:PORT"),
        ((None, 2, None), True, r"(?=.*--distributed\b)(?=.*--processes\b)"),
        ((None, None, None), True, r"(?i)(?=.*\bcluster\b)(?=.*\bsrun\b)"),
    ],
)
def test_flags_that_make_no_run_are_told(flags, from_cluster, facts):
    with pytest.raises(UserError, match=facts):
        hosts.initialize(*flags, from_cluster=from_cluster)


def test_a_port_that_is_taken_and_a_coordinator_that_is_absent_are_told():
    """jax would end the whole process over either."""
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UserError, match=rf"(?=.*\b{port}\b)(?=.*{os.strerror(errno.EADDRINUSE)})"):
            hosts.initialize(f"127.0.0.1:{port}", 2, 0, from_cluster=False)
    with pytest.raises(UserError, match=rf"(?=.*\b127\.0\.0\.1:{port}\b)(?=.*\b0 s)"):
        hosts.initialize(f"127.0.0.1:{port}", 2, 1, from_cluster=False, seconds=0)


def test_a_single_process_needs_nobody():
    hosts.initialize(None, None, None, from_cluster=False)
    assert not jax.distributed.is_initialized()
    assert (hosts.process_count(), hosts.is_main_process(), hosts.any_process(True), hosts.any_process(False)) == (
        1,
        True,
        True,
        False,
    )
    hosts.barrier("alone")
    hosts.assert_equal("the config", "abc")
    hosts.request_stop()
    assert not hosts.should_stop(1)
    hosts.shutdown()
    with pytest.raises(SystemExit, match="2"):
        hosts.end(2)
    with pytest.raises(ValueError, match="Gloo"), hosts.exit_on_peer_loss():
        raise ValueError("Gloo failed")


def test_spread_copies_what_a_step_may_be_given():
    whole = jax.numpy.arange(6.0)
    placed = hosts.put_global(whole, devices.replicated_sharding(devices.make_mesh(6)))
    jax.jit(lambda x: x * 0, donate_argnums=0)(placed)
    assert placed.is_deleted()
    np.testing.assert_array_equal(whole, np.arange(6.0))


TOGETHER = """
meet(coordinator=None, processes=None, process=None, from_cluster=True)
assert hosts.count() == 2 and hosts.writes() == (number == 0)
assert hosts.any_of(number == 1) and not hosts.any_of(False)
hosts.barrier("here")
hosts.same("the config", "one")
try:
    hosts.same("the manifest", str(number))
except UserError as error:
    print(error)
whole = hosts.spread(np.arange(4), meshes.replicated(meshes.make(2)))
np.testing.assert_array_equal(whole, np.arange(4))
signal.signal(signal.SIGTERM, lambda *_: (print("SIGTERM"), hosts.tell_all()))
told = lambda step: os.kill(os.getpid(), signal.SIGTERM) if (number, step) == (1, 5) else None
print("stopped before step", mean_over_all(400, told))
hosts.leave()
assert not jax.distributed.is_initialized()
"""


def test_two_processes_of_slurm_agree():
    """The step to stop at too, when one of them hears SIGTERM."""

    def slurm(number):
        names = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
        return {**names, "SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)}

    first, second = run(TOGETHER, environment=slurm)
    assert (first.code, second.code) == (0, 0), first.output + second.output
    steps = []
    for ended in (first, second):
        (differing,) = (line for line in ended.output.splitlines() if "the manifest" in line)
        assert set(re.findall(r"\d+", differing)) == {"0", "1"}
        steps.append(int(ended.output.split("stopped before step ")[1]))
    assert steps[0] == steps[1]
    assert 5 < steps[0] < 100  # jax looks once a second whether there was a signal: 20 steps or so
    assert "SIGTERM\n" not in first.output
    assert "SIGTERM\n" in second.output


@pytest.mark.parametrize(
    ("processes", "victim"),
    [(2, 1), pytest.param(2, 0, marks=pytest.mark.slow), pytest.param(4, 2, marks=pytest.mark.slow)],
)
def test_a_killed_process_ends_the_others(processes, victim):
    """Within a collective; process 0 has the coordination service besides."""
    program = f"meet()\nwith hosts.exit_on_peer_loss():\n    mean_over_all(1000, kill({victim}, 5))"
    ended = run(program, processes)
    assert ended[victim].code == -signal.SIGKILL
    for number, other in enumerate(ended):
        if number != victim:
            assert other.code == hosts.EXIT_PEER_LOST, other.output
            assert re.match(lost(number, processes), other.output.splitlines()[-1])
            assert other.output.count("flaxtl: ") == 1
            assert other.seconds < 40


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_silent_process_is_noticed_outside_a_collective(number):
    """By its heartbeats; the survivor does nothing but sleep, or wait for a process that is there and hangs."""
    program = f"""
meet()
mean_over_all(2)
if number == 1:
    os.kill(os.getpid(), {int(number)})
began = time.monotonic()
print("gone", flush=True)
time.sleep(60)
"""
    with started(program, 2) as (first, second):
        assert "gone" in next(line for line in first.stdout if "gone" in line)
        began = time.monotonic()
        rest = first.communicate(timeout=60)[0]
        assert time.monotonic() - began < 3 * HEARTBEAT
        assert first.returncode == hosts.EXIT_PEER_LOST
        assert re.search(lost(0, 2), rest.splitlines()[-1])
        second.kill()


@pytest.mark.slow
def test_an_error_of_one_process_is_told_by_it_and_ends_the_others():
    program = """
def fail(step):
    if (number, step) == (1, 5):
        raise UserError("mine")
meet()
try:
    with hosts.exit_on_peer_loss():
        mean_over_all(1000, fail)
except UserError as error:
    print(error)
    hosts.end(2)
"""
    first, second = run(program)
    assert (first.code, second.code) == (hosts.EXIT_PEER_LOST, 2)
    assert re.search(lost(0, 2), first.output)
    assert second.output.endswith("mine\n")


@pytest.mark.slow
def test_an_error_of_all_processes_is_told_by_each():
    """Also by those that end after process 0, and with it the coordination service."""
    first, second = run("meet()\nmean_over_all(2)\nprint('ours')\nhosts.end(2)")
    assert (first.code, second.code) == (2, 2)
    assert first.output.endswith("ours\n")
    assert second.output.endswith("ours\n")
    assert max(first.seconds, second.seconds) < 30


@pytest.mark.slow
def test_processes_that_do_not_come_are_not_waited_for():
    (ended,) = run("hosts.join(f'127.0.0.1:{port}', 2, 0, from_cluster=False, seconds=3)", processes=1)
    assert ended.code == hosts.EXIT_PEER_LOST
    assert re.match(r"flaxtl: .*\b3 s", ended.output.splitlines()[-1])


def launch(folder, stand_in, *arguments, **options):
    """The launcher with a program that stands in for flaxtl, found before it."""
    (folder / "flaxtl").mkdir()
    (folder / "flaxtl" / "__init__.py").touch()
    (folder / "flaxtl" / "__main__.py").write_text("import os, signal, sys, time\n" + stand_in)
    command = [sys.executable, str(LAUNCHER), *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_the_launcher_gives_flags_and_relays(tmp_path):
    stand_in = "print(*sys.argv[1:], os.environ['XLA_FLAGS'])"
    process = launch(tmp_path, stand_in, "--processes=2", "--devices-per-process=3", "--", "train", "--workdir=w")
    said, prefixed = process.communicate(timeout=30)
    words = said.split()
    assert process.returncode == 0
    assert words[:2] == ["train", "--workdir=w"]
    assert words[2].startswith("--coordinator=127.0.0.1:")
    assert words[3:5] == ["--processes=2", "--process=0"]
    assert words[-1] == "--xla_force_host_platform_device_count=3"
    assert prefixed == "[1] " + said.replace("--process=0", "--process=1")


def test_the_launcher_ends_with_the_code_of_the_cause(tmp_path):
    stand_in = f"time.sleep(0.2)\nsys.exit({hosts.EXIT_PEER_LOST} if sys.argv[-1] == '--process=0' else 3)"
    process = launch(tmp_path, stand_in, "--processes=3", "--", "train")
    process.communicate(timeout=30)
    assert process.returncode == 3


def test_the_launcher_passes_sigterm_on(tmp_path):
    stand_in = """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
print("ready", file=sys.stderr, flush=True)
time.sleep(30)
"""
    process = launch(tmp_path, stand_in, "--processes=2", "--", "train")
    for _ in range(2):
        assert process.stderr.readline() in ("ready\n", "[1] ready\n")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == 143
