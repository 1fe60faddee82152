"""Distributed runs: several processes that execute the same program with the same config and hold the same arrays.

Process 0 alone writes files and prints. In a run of one process all functions return at once.

When another process is gone, jax ends this one from C++ (SIGABRT). Its handler of SIGTERM is the one by which all
processes agree on a step to stop at. So the command line first calls `fork_supervisor`: the child is the process of the
run, and its parent, the supervisor, passes signals on to it and turns SIGABRT into a message and an exit code.
"""

import hashlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

import jax
import numpy as np
import numpy.typing as npt
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from flaxtl.errors import UserError, first_line

EXIT_PEER_LOST = 69
"""Exit code if another process of the run is gone: EX_UNAVAILABLE of sysexits.h."""

INIT_TIMEOUT = 300
"""Seconds to wait for all processes to start: the nodes of a cluster do not start at once."""

HEARTBEAT_TIMEOUT = 20
"""Seconds without a heartbeat after which a process is considered dead; jax's default, 100, idles the others."""

SHUTDOWN_TIMEOUT = 60
"""Seconds that a process waits for the others at the end."""

FAILURE_SECONDS = 5
"""Seconds that process 0 stays after a failure: the others exit with it, and may be about to print the same error."""

FORWARDED_SIGTERM = signal.SIGUSR1
"""What the supervisor sends for SIGTERM, which is jax's in the process of the run."""

CONNECTION_ERRORS = ("Gloo", "NCCL", "coordination service", "distributed service", "heartbeat")
"""Each error that jax raises for a lost connection contains one of these; its types are as general as ValueError."""


def initialize(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    *,
    detect_cluster: bool,
    init_timeout: int = INIT_TIMEOUT,
    heartbeat_timeout: int = HEARTBEAT_TIMEOUT,
) -> None:
    """Connect to the other processes of the run; does nothing if no argument is given. Call it before using jax.

    Args:
      coordinator: HOST:PORT at which process 0 listens.
      num_processes: number of processes.
      process_id: number of this one.
      detect_cluster: take all three from the environment: Slurm, Open MPI, TPU pod (Cloud or GKE), or Kubernetes with
        jax[k8s] installed.
      init_timeout: seconds to wait for the others.
      heartbeat_timeout: seconds without a heartbeat after which a process is considered dead.
    """
    _check_flags(coordinator, num_processes, process_id, detect_cluster)
    if coordinator is None and not detect_cluster:
        return
    if coordinator is not None:
        _check_address(coordinator, listens=process_id == 0, timeout=init_timeout)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            cluster_detection_method=None if detect_cluster else "deactivate",
            initialization_timeout=init_timeout,
            heartbeat_timeout_seconds=heartbeat_timeout,
            shutdown_timeout_seconds=SHUTDOWN_TIMEOUT,
        )
    except Exception as error:  # each cluster's detection raises its own type
        raise UserError(
            f"No cluster found in the environment ({first_line(error)}). Start with srun, mpirun, on a TPU pod or in "
            "a Kubernetes job, or give --coordinator, --processes and --process."
        ) from error


def fork_supervisor(process_id: int | None, num_processes: int | None) -> None:
    """Continue in a child process; the parent waits for it and exits with its code.

    Call it before `initialize`, in a process that has not used jax yet: its threads do not survive a fork.

    Args:
      process_id: number of this process, for the message; None if it is not known yet.
      num_processes: number of processes, likewise.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    alive_read, alive_write = os.pipe()
    child = os.fork()
    if child:
        os.close(alive_read)  # the other end is closed when this process ends, however it ends
        _supervise(child, process_id, num_processes)
    os.close(alive_write)
    os.setpgid(0, 0)  # Ctrl-C goes to the supervisor alone, which passes it on
    threading.Thread(target=_exit_with_supervisor, args=(alive_read,), daemon=True).start()


def shutdown() -> None:
    """Disconnect; every process calls it after the last operation they have in common."""
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()


def process_count() -> int:
    """Return the number of processes."""
    count: int = jax.process_count()
    return count


def is_main_process() -> bool:
    """Return whether this is process 0, which writes files and prints."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait for all processes; they give the same name."""
    if process_count() > 1:
        multihost_utils.sync_global_devices(name)


def assert_equal(name: str, value: str) -> None:
    """Raise UserError, in every process, unless all of them have the same value of what is named."""
    if process_count() == 1:
        return
    digest = np.frombuffer(hashlib.sha256(value.encode()).digest(), np.uint8)
    digests = multihost_utils.process_allgather(digest).reshape(-1, digest.size)
    different = np.flatnonzero((digests != digests[0]).any(axis=1))
    if different.size:
        numbers = ", ".join(map(str, different))
        raise UserError(f"{name} of process {numbers} differs from that of process 0. Give all processes the same.")


def any_process(flag: bool) -> bool:
    """Return whether `flag` is true in any process."""
    return flag if process_count() == 1 else bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def put_global(array: Any, sharding: Sharding) -> jax.Array:
    """Return an array on the devices of all processes; each process gives the whole of it.

    The result of a jax.Array is a copy, which may be donated. A numpy array must not be changed afterwards: on CPU its
    memory may be shared, whatever `may_alias` is.

    With several processes jax.device_put would first compare the array over all of them, which takes milliseconds
    where this takes microseconds.
    """
    if process_count() == 1:
        if isinstance(array, jax.Array):  # first: to several devices, device_put shares it in spite of may_alias=False
            array = jax.device_put(array, array.sharding, may_alias=False)
        on_devices: jax.Array = jax.device_put(array, sharding)
        return on_devices
    host: npt.NDArray[Any] = np.asarray(array)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: np.array(host[index]))


def put_process_local(array: npt.NDArray[Any], sharding: Sharding) -> jax.Array:
    """Return an array that is split along its first axis; each process gives its own part of it."""
    on_devices: jax.Array = jax.make_array_from_process_local_data(sharding, array)
    return on_devices


def stop_signals() -> dict[int, int]:
    """Return the signals that request a stop of the run, with the one that each stands for."""
    terminate = FORWARDED_SIGTERM if jax.distributed.is_initialized() else signal.SIGTERM
    return {signal.SIGINT: signal.SIGINT, terminate: signal.SIGTERM, signal.SIGHUP: signal.SIGTERM}


def request_stop() -> None:
    """Request all processes to stop; about a second later they agree on a step, see `should_stop`."""
    if jax.distributed.is_initialized():
        os.kill(os.getpid(), signal.SIGTERM)  # to jax's handler


def should_stop(step: int) -> bool:
    """Return whether all processes have agreed to stop before a global step.

    Every process asks before every step, in rising order; the step that they agree on is the first that none of them
    has begun. It takes microseconds and waits for nobody. In a run of one process it is always False.
    """
    return jax.distributed.is_initialized() and multihost_utils.reached_preemption_sync_point(step)


def end(code: int, *, at_once: bool = False) -> NoReturn:
    """Exit like sys.exit, without waiting for processes that continue: they notice.

    Args:
      code: the exit code.
      at_once: without tearing down the interpreter. A signal may stop a run while jax waits for a compilation, which
        goes on in a thread of XLA; that crashes if the interpreter is torn down around it.
    """
    is_distributed = jax.distributed.is_initialized()
    if not is_distributed and not at_once:
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    if is_distributed and is_main_process():
        time.sleep(FAILURE_SECONDS)
    os._exit(code)


@contextmanager
def exit_on_peer_loss() -> Iterator[None]:
    """Turn an error that comes from a lost connection to another process into a message and EXIT_PEER_LOST."""
    try:
        yield
    except Exception as error:
        if not is_connection_error(error):
            raise
        with suppress(Exception):
            sys.stdout.flush()
        os._exit(EXIT_PEER_LOST)  # the supervisor prints the message


def is_connection_error(error: BaseException | None) -> bool:
    """Return whether the error, or one that caused it, is a lost connection to another process."""
    while jax.distributed.is_initialized() and error is not None:
        if any(text in str(error) for text in CONNECTION_ERRORS):
            return True
        error = error.__cause__ or error.__context__
    return False


def _supervise(child: int, process_id: int | None, num_processes: int | None) -> NoReturn:
    def forward(number: int, _: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            os.kill(child, number if number == signal.SIGINT else FORWARDED_SIGTERM)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores it
            signal.signal(number, forward)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code in (-signal.SIGABRT, EXIT_PEER_LOST):
        name = "A process" if process_id is None else f"Process {process_id} of {num_processes}"
        os.write(
            2,
            f"flaxtl: {name} lost the connection to another process, which has ended, did not start or cannot be "
            "reached. Run the same command again in all processes; it continues from the last checkpoint.\n".encode(),
        )
        os._exit(EXIT_PEER_LOST)
    if code < 0:  # another signal: end the same way
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def _exit_with_supervisor(alive: int) -> None:
    os.read(alive, 1)
    os._exit(EXIT_PEER_LOST)


def _check_flags(
    coordinator: str | None, num_processes: int | None, process_id: int | None, detect_cluster: bool
) -> None:
    flags = {"--coordinator": coordinator, "--processes": num_processes, "--process": process_id}
    given = [name for name, value in flags.items() if value is not None]
    missing = [name for name in flags if name not in given]
    if detect_cluster and given:
        raise UserError(f"--distributed detects the cluster. Remove {' and '.join(given)}, or --distributed.")
    if given and missing:
        raise UserError(f"A distributed run needs {', '.join(missing)} as well as {' and '.join(given)}.")
    if num_processes is not None and num_processes < 1:
        raise UserError(f"--processes={num_processes} is invalid; it must be at least 1.")
    if process_id is not None and num_processes is not None and not 0 <= process_id < num_processes:
        raise UserError(f"--process={process_id} is out of range: processes are numbered 0 to {num_processes - 1}.")


def _check_address(coordinator: str, *, listens: bool, timeout: int) -> None:
    """Try the address before jax does, which ends the whole process if it does not work."""
    host, colon, port = coordinator.rpartition(":")
    if not (host and colon and port.isdigit() and 0 < int(port) < 2**16):
        raise UserError(f"--coordinator={coordinator} is not an address. Give HOST:PORT of process 0.")
    if listens:
        try:
            socket.create_server(("", int(port))).close()
        except OSError as error:
            raise UserError(f"Process 0 cannot listen on port {port} ({error.strerror}). Use another port.") from error
        return
    deadline = time.monotonic() + timeout
    while True:
        try:
            return socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"Process 0 does not answer at {coordinator} after {timeout} s ({error.strerror or error}). "
                    "Start it, and check the address and the firewall."
                ) from error
            time.sleep(0.2)
