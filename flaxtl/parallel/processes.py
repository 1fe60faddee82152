"""A run of several processes: how they find one another, agree, and end when one of them is gone.

All of them run the same program on the same config and hold the same arrays; process 0 alone writes files and speaks.
Of a single process everything here is true at once, and nothing waits.
"""

import ctypes
import hashlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import jax
import numpy as np
import numpy.typing as npt
from jax._src import distributed
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from flaxtl.errors import UserError

EXIT_PEER_LOST = 69
"""Exit code when another process is gone: EX_UNAVAILABLE of sysexits.h."""

JOIN_SECONDS = 300
"""How long the first process waits for the last: the nodes of a cluster do not start at once."""

HEARTBEAT_SECONDS = 20
"""A process that was silent for as long is gone. jax' own 100 s would leave the others idle for longer than needed."""

LEAVE_SECONDS = 60
"""How long a process that is done waits for the others, and no longer."""

END_SECONDS = 5
"""How long a process that failed waits for those that fail alike, so that each can tell its own reason."""

CONNECTION_WORDS = ("Gloo", "NCCL", "coordination service", "distributed service", "heartbeat")
"""One of them is in every error that jax raises for a lost connection; their types are as general as ValueError."""

_exiting = threading.Lock()
"""Held by the thread that ends the process, so that only one reason is told."""

_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int)
"""A handler of a signal in C."""

_notice: Callable[[int], None] | None = None
"""jax' own handler of SIGTERM, once it was taken over: calling it starts the agreement on a step to stop at."""

_on_sigabrt: "ctypes._CFunctionType | None" = None
"""Our handler of SIGABRT: C holds its address, so it must not be collected."""


def initialize(
    coordinator: str | None,
    processes: int | None,
    process: int | None,
    *,
    from_cluster: bool,
    seconds: int = JOIN_SECONDS,
    heartbeat: int = HEARTBEAT_SECONDS,
) -> None:
    """Meet the other processes of the run; before anything else of jax is used. Without flags there are none.

    `coordinator` is HOST:PORT, where process 0 listens; `from_cluster` finds all three in the environment: of Slurm,
    Open MPI, a TPU pod (Cloud or GKE), or Kubernetes with jax[k8s] installed.
    """
    _check_flags(coordinator, processes, process, from_cluster)
    if coordinator is None and not from_cluster:
        return
    if coordinator is not None:
        _check_address(coordinator, listens=process == 0, seconds=seconds)
    _on_abort(f"not all processes of this run met within {seconds} s; start every one with the same flags")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            cluster_detection_method=None if from_cluster else "deactivate",
            initialization_timeout=seconds,
            heartbeat_timeout_seconds=heartbeat,
            shutdown_timeout_seconds=LEAVE_SECONDS,
        )
    except Exception as error:  # of the environment's detection: each cluster raises its own
        raise UserError(
            f"found no cluster in the environment ({_first_line(error)}); start by srun, mpirun, on a TPU pod or in a "
            "Kubernetes job, or give --coordinator, --processes and --process"
        ) from error
    _on_abort(_gone())
    _take_over_sigterm()


def shutdown() -> None:
    """Part in order: every process calls it after the last thing they do together."""
    global _notice
    if jax.distributed.is_initialized():
        _notice = None
        jax.distributed.shutdown()


def process_count() -> int:
    """How many processes there are."""
    processes: int = jax.process_count()
    return processes


def is_main_process() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait for all processes; they give the same name."""
    if process_count() > 1:
        multihost_utils.sync_global_devices(name)


def assert_equal(what: str, digest: str) -> None:
    """Raise, in every process, unless all of them hold the same `digest` of what is named."""
    if process_count() == 1:
        return
    own = np.frombuffer(hashlib.sha256(digest.encode()).digest(), np.uint8)
    held = multihost_utils.process_allgather(own).reshape(-1, own.size)
    others = np.flatnonzero((held != held[0]).any(axis=1))
    if others.size:
        numbers = ", ".join(map(str, others))
        raise UserError(f"{what} of process {numbers} differs from that of process 0; give all of them the same")


def any_process(flag: bool) -> bool:
    """Whether `flag` is true in any process."""
    return flag if process_count() == 1 else bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def put_global(array: Any, sharding: Sharding) -> jax.Array:
    """An array on all devices of all processes; each process gives the whole of it and sends what its own hold.

    Of a jax array it is a copy, which may be given away. A numpy array may not be written to any more: on a CPU its
    memory is shared where it lies as XLA wants it, whatever `may_alias` says.

    With several processes jax.device_put would first compare the array over all of them: milliseconds, where this
    takes microseconds.
    """
    if process_count() == 1:
        placed: jax.Array = jax.device_put(array, sharding, may_alias=False)
        return placed
    host: npt.NDArray[Any] = np.asarray(array)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: np.array(host[index]))


def put_process_local(array: npt.NDArray[Any], sharding: Sharding) -> jax.Array:
    """As `spread`, of what is split over the first axis; each process gives its own share of it only."""
    placed: jax.Array = jax.make_array_from_process_local_data(sharding, array)
    return placed


def request_stop() -> None:
    """Tell all processes that this one was asked to end: a while later they all agree to; see `agreed_to_stop`."""
    if _notice is not None:
        _notice(signal.SIGTERM)


def should_stop(step: int) -> bool:
    """Whether all processes have agreed to end before global step `step`, after one of them called `tell_all`.

    Every process asks before every step, in rising order: the step agreed on is the first that none of them has begun.
    It takes some microseconds and waits for nobody. Always False of a single process.
    """
    return jax.distributed.is_initialized() and multihost_utils.reached_preemption_sync_point(step)


def end(code: int) -> NoReturn:
    """End this process as sys.exit does, but without the wait for other processes that go on: they shall notice."""
    if not jax.distributed.is_initialized():
        sys.exit(code)
    _on_abort("", code)  # process 0 may be gone first, and the coordination service with it
    with suppress(Exception):
        sys.stdout.flush()
    with suppress(Exception):
        _client().wait_at_barrier("flaxtl: end", END_SECONDS * 1000)
    os._exit(code)


@contextmanager
def exit_on_peer_loss() -> Iterator[None]:
    """On an error that comes from a lost connection to another process, exit with a message and EXIT_PEER_LOST."""
    try:
        yield
    except Exception as error:
        if not is_connection_error(error):
            raise
        with suppress(Exception):
            sys.stdout.flush()
        _say_and_exit(_gone(), EXIT_PEER_LOST)


def is_connection_error(error: BaseException | None) -> bool:
    """Whether the error, or one that it came of, is a lost connection to another process."""
    while jax.distributed.is_initialized() and error is not None:
        if any(word in str(error) for word in CONNECTION_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def _check_flags(coordinator: str | None, processes: int | None, process: int | None, from_cluster: bool) -> None:
    flags = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    given = [name for name, value in flags.items() if value is not None]
    missing = [name for name in flags if name not in given]
    if from_cluster and given:
        raise UserError(f"--distributed finds the cluster by itself; leave out {' and '.join(given)}, or --distributed")
    if given and missing:
        raise UserError(f"{' and '.join(given)} alone do not make a run of several processes; add {', '.join(missing)}")
    if processes is not None and processes < 1:
        raise UserError(f"--processes={processes} is no number of processes; give 1 or more")
    if process is not None and processes is not None and not 0 <= process < processes:
        raise UserError(f"--process={process} is out of range; {processes} processes are numbered 0 to {processes - 1}")


def _check_address(coordinator: str, *, listens: bool, seconds: int) -> None:
    """Try it before jax does, which ends the whole process over an address that does not work."""
    host, colon, port = coordinator.rpartition(":")
    if not (host and colon and port.isdigit() and 0 < int(port) < 2**16):
        raise UserError(f"--coordinator={coordinator} is no address; give HOST:PORT of process 0")
    if listens:
        try:
            socket.create_server(("", int(port))).close()
        except OSError as error:
            raise UserError(f"process 0 cannot listen on port {port} ({error.strerror}); choose another") from error
        return
    until = time.monotonic() + seconds
    while True:
        try:
            return socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError as error:
            if time.monotonic() > until:
                raise UserError(
                    f"process 0 does not answer at {coordinator} after {seconds} s ({error.strerror or error}); "
                    "start it too, and look whether the address is right and no firewall between"
                ) from error
            time.sleep(0.2)


def _client() -> Any:
    """The connection to the coordination service; public nowhere, and found like this by orbax too."""
    return distributed.global_state.client


def _gone() -> str:
    state = distributed.global_state
    return (
        f"process {state.process_id} of {state.num_processes} lost the connection to another, which has ended or "
        "cannot be reached; start the same command again in all of them: it goes on from the last checkpoint"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _take_over_sigterm() -> None:
    """Leave SIGTERM to Python: jax' handler would swallow it where nobody asks `agreed_to_stop`."""
    global _notice
    handler = _set_handler(signal.SIGTERM, None)
    _notice = _Handler(handler) if handler else None


def _on_abort(sentence: str, code: int = EXIT_PEER_LOST) -> None:
    """What to say and to return when jax' C++ ends the process, as it does in a thread of its own if a peer is gone.

    A handler of Python's signal module would not run: abort() kills the process as soon as a C handler returns.
    """
    global _on_sigabrt
    handler = _Handler(lambda _: _say_and_exit(sentence, code))
    _set_handler(signal.SIGABRT, handler)
    _on_sigabrt = handler


def _set_handler(number: int, handler: "ctypes._CFunctionType | None") -> int | None:
    """Set a signal's handler in C, None for the system's own; returns the address of the one before."""
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    before: int | None = libc.signal(number, ctypes.cast(handler, ctypes.c_void_p) if handler else None)
    return before


def _say_and_exit(sentence: str, code: int) -> NoReturn:
    _exiting.acquire()  # never given back: whoever waits here goes with the process
    if sentence:
        os.write(2, f"flaxtl: {sentence}\n".encode())
    os._exit(code)
