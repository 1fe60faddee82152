"""Several processes on this machine connect, agree, and exit in bounded time if one of them is gone.

They run the lines of `PROGRAM` and a test's own, with CPU collectives.
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
from flaxtl.parallel import devices, processes

pytestmark = pytest.mark.multiprocess

ROOT = Path(__file__).parents[2]
LAUNCHER = ROOT / "tools" / "launch_local.py"

HEARTBEAT = 8
"""Heartbeat timeout in seconds: shorter than the default, and long enough for a busy machine with two cores."""

PROGRAM = f"""
import os, signal, sys, time
import jax, numpy as np
from flaxtl.data import loaders
from flaxtl.errors import UserError
from flaxtl.parallel import devices, processes

number, count, port = map(int, sys.argv[1:4])

def meet(**changes):
    flags = dict(coordinator=f"127.0.0.1:{{port}}", num_processes=count, process_id=number, detect_cluster=False)
    processes.fork_supervisor(number, count)
    processes.initialize(**flags | changes, init_timeout=30, heartbeat_timeout={HEARTBEAT})

def mean_over_all(steps, before=lambda step: None):
    "Run one collective per step, as training does, and call before(step) before each."
    mesh = devices.make_mesh(8)
    split, whole = devices.batch_sharding(mesh), devices.replicated_sharding(mesh)
    mean = jax.jit(lambda x: x.mean(), in_shardings=split, out_shardings=whole)
    batch = processes.put_global(np.arange(8, dtype=np.float32), split)
    for step in range(steps):
        before(step)
        if processes.should_stop(step):
            return step
        assert float(mean(batch)) == 3.5
        time.sleep(0.05)

def kill(victim, at):
    return lambda step: os.kill(os.getpid(), signal.SIGKILL) if (number, step) == (victim, at) else None
"""


def lost(number, num_processes):
    """Return a pattern for the last message of a process that lost another one."""
    return rf"(?i)flaxtl: .*\bprocess {number}\b.*\b{num_processes}\b"


class Ended(NamedTuple):
    """How a process ended: exit code, seconds from the start, output."""

    code: int
    seconds: float
    output: str


@contextmanager
def started(program, num_processes, environment=lambda number: {}):
    """Start processes, and kill those that are left at the end."""
    command = [sys.executable, "-c", PROGRAM + program]
    running = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    try:
        for number in range(num_processes):
            running.append(
                subprocess.Popen(
                    [*command, str(number), str(num_processes), str(port)],
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


def run(program, num_processes=2, environment=lambda number: {}):
    """Run processes to their end."""
    began = time.monotonic()
    with started(program, num_processes, environment) as running:
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
def test_initialize_with_invalid_flags_names_them(flags, from_cluster, facts):
    with pytest.raises(UserError, match=facts):
        processes.initialize(*flags, detect_cluster=from_cluster)


def test_initialize_with_bad_coordinator_names_address():
    """In both cases jax would end the whole process."""
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UserError, match=rf"(?=.*\b{port}\b)(?=.*{os.strerror(errno.EADDRINUSE)})"):
            processes.initialize(f"127.0.0.1:{port}", 2, 0, detect_cluster=False)
    with pytest.raises(UserError, match=rf"(?=.*\b127\.0\.0\.1:{port}\b)(?=.*\b0 s)"):
        processes.initialize(f"127.0.0.1:{port}", 2, 1, detect_cluster=False, init_timeout=0)


def test_single_process_needs_no_others():
    processes.initialize(None, None, None, detect_cluster=False)
    assert not jax.distributed.is_initialized()
    assert (processes.process_count(), processes.is_main_process()) == (1, True)
    assert processes.any_process(True)
    assert not processes.any_process(False)
    processes.barrier("alone")
    processes.assert_equal("the config", "abc")
    processes.request_stop()
    assert not processes.should_stop(1)
    processes.shutdown()
    with pytest.raises(SystemExit, match="2"):
        processes.end(2)
    with pytest.raises(ValueError, match="Gloo"), processes.exit_on_peer_loss():
        raise ValueError("Gloo failed")


def test_put_global_returns_a_copy():
    whole = jax.numpy.arange(6.0)
    placed = processes.put_global(whole, devices.replicated_sharding(devices.make_mesh(6)))
    jax.jit(lambda x: x * 0, donate_argnums=0)(placed)
    assert placed.is_deleted()
    np.testing.assert_array_equal(whole, np.arange(6.0))


TOGETHER = """
meet(coordinator=None, num_processes=None, process_id=None, detect_cluster=True)
assert processes.process_count() == 2 and processes.is_main_process() == (number == 0)
assert processes.any_process(number == 1) and not processes.any_process(False)
assert loaders.choose_pipeline(6 * 10**9, (8 if number == 1 else 64) * 10**9, "memory")[0] == "stream"
processes.barrier("here")
processes.assert_equal("the config", "one")
try:
    processes.assert_equal("the manifest", str(number))
except UserError as error:
    print(error)
whole = processes.put_global(np.arange(4), devices.replicated_sharding(devices.make_mesh(2)))
np.testing.assert_array_equal(whole, np.arange(4))
requested = [wanted for wanted, meant in processes.stop_signals().items() if meant == signal.SIGTERM]
signal.signal(requested[0], lambda *_: (print("SIGTERM"), processes.request_stop()))
terminate = lambda step: os.kill(os.getppid(), signal.SIGTERM) if (number, step) == (1, 5) else None
print("stopped before step", mean_over_all(400, terminate))
processes.shutdown()
assert not jax.distributed.is_initialized()
"""


@pytest.mark.slow
def test_two_slurm_processes_agree_on_values_and_stop_step():
    """They also agree on the step to stop at, if one of them gets SIGTERM."""

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
    ("num_processes", "victim"),
    [(2, 1), pytest.param(2, 0, marks=pytest.mark.slow), pytest.param(4, 2, marks=pytest.mark.exhaustive("processes"))],
)
def test_killed_process_ends_the_others(num_processes, victim):
    """The others wait in a collective. Process 0 also runs the coordination service."""
    program = f"meet()\nwith processes.exit_on_peer_loss():\n    mean_over_all(1000, kill({victim}, 5))"
    ended = run(program, num_processes)
    assert ended[victim].code == -signal.SIGKILL
    for number, other in enumerate(ended):
        if number != victim:
            assert other.code == processes.EXIT_PEER_LOST, other.output
            assert re.match(lost(number, num_processes), other.output.splitlines()[-1])
            assert other.output.count("flaxtl: ") == 1
            assert other.seconds < 40


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_silent_process_is_noticed_by_its_heartbeats(number):
    """Process 0 sleeps, so only the missing heartbeats show that process 1 was killed or hangs."""
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
        assert first.returncode == processes.EXIT_PEER_LOST
        assert re.search(lost(0, 2), rest.splitlines()[-1])
        second.kill()


@pytest.mark.slow
def test_error_of_one_process_ends_the_others():
    program = """
def fail(step):
    if (number, step) == (1, 5):
        raise UserError("mine")
meet()
try:
    with processes.exit_on_peer_loss():
        mean_over_all(1000, fail)
except UserError as error:
    print(error)
    processes.end(2)
"""
    first, second = run(program)
    assert (first.code, second.code) == (processes.EXIT_PEER_LOST, 2)
    assert re.search(lost(0, 2), first.output)
    assert second.output.endswith("mine\n")


@pytest.mark.slow
def test_error_of_all_processes_keeps_each_exit_code():
    """Also if a process ends after process 0, and thereby after the coordination service."""
    first, second = run("meet()\nmean_over_all(2)\nprint('ours')\nprocesses.end(2)")
    assert (first.code, second.code) == (2, 2)
    assert first.output.endswith("ours\n")
    assert second.output.endswith("ours\n")
    assert max(first.seconds, second.seconds) < 30


@pytest.mark.slow
def test_initialize_without_the_others_times_out():
    (ended,) = run(
        "processes.fork_supervisor(0, 2)\n"
        "processes.initialize(f'127.0.0.1:{port}', 2, 0, detect_cluster=False, init_timeout=3)",
        num_processes=1,
    )
    assert ended.code == processes.EXIT_PEER_LOST
    assert re.match(r"flaxtl: .*\bprocess 0 of 2\b.*\bdid not start\b", ended.output.splitlines()[-1], re.IGNORECASE)


def launch(folder, stand_in, *arguments, **options):
    """Start the launcher with a program that is imported in place of flaxtl."""
    (folder / "flaxtl").mkdir()
    (folder / "flaxtl" / "__init__.py").touch()
    (folder / "flaxtl" / "__main__.py").write_text("import os, signal, sys, time\n" + stand_in)
    command = [sys.executable, str(LAUNCHER), *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_launcher_passes_flags_and_relays_output(tmp_path):
    stand_in = "print(*sys.argv[1:], os.environ['XLA_FLAGS'])"
    process = launch(tmp_path, stand_in, "--processes=2", "--devices-per-process=3", "--", "train", "--workdir=w")
    output, prefixed = process.communicate(timeout=30)
    words = output.split()
    assert process.returncode == 0
    assert words[:2] == ["train", "--workdir=w"]
    assert words[2].startswith("--coordinator=127.0.0.1:")
    assert words[3:5] == ["--processes=2", "--process=0"]
    assert words[-1] == "--xla_force_host_platform_device_count=3"
    assert prefixed == "[1] " + output.replace("--process=0", "--process=1")


def test_launcher_exits_with_the_code_of_the_cause(tmp_path):
    stand_in = f"time.sleep(0.2)\nsys.exit({processes.EXIT_PEER_LOST} if sys.argv[-1] == '--process=0' else 3)"
    process = launch(tmp_path, stand_in, "--processes=3", "--", "train")
    process.communicate(timeout=30)
    assert process.returncode == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_launcher_forwards_signals(tmp_path, number):
    stand_in = f"""
signal.signal({number}, lambda *_: sys.exit(143))
os.write(2, b"ready\\n")  # print writes the end of the line separately, so that two processes may mix
time.sleep(30)
"""
    options = {"preexec_fn": lambda: signal.signal(number, signal.SIG_DFL)}  # also if these tests run under nohup
    process = launch(tmp_path, stand_in, "--processes=2", "--", "train", **options)
    for _ in range(2):
        assert process.stderr.readline() in ("ready\n", "[1] ready\n")
    process.send_signal(number)
    process.communicate(timeout=10)
    assert process.returncode == 143


SIGNAL_WHILE_STARTING = """
import os, signal, launch_local
start = launch_local.start
def interrupted(*arguments):
    started = start(*arguments)
    os.kill(os.getpid(), signal.SIGTERM)
    return started
launch_local.start = interrupted
launch_local.main()
"""


def test_launcher_forwards_sigterm_that_comes_while_processes_start(tmp_path):
    (tmp_path / "flaxtl").mkdir()
    (tmp_path / "flaxtl" / "__main__.py").write_text("import time\ntime.sleep(30)\n")
    command = [sys.executable, "-c", SIGNAL_WHILE_STARTING, "--processes=2", "train"]
    environment = os.environ | {"PYTHONPATH": str(LAUNCHER.parent)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=20, check=False)
    assert done.returncode == 143
