"""The worker process of tools/fuzz.py: write valid files, damage one, read it, and report the outcome."""

import faulthandler
import os
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from pkgutil import resolve_name
from random import Random
from types import TracebackType
from typing import Any, NamedTuple

KINDS = {
    "h5": "fuzzing.weight_files:keras_legacy",
    "keras3": "fuzzing.weight_files:keras_v3",
    "safetensors": "fuzzing.weight_files:safetensors",
    "onnx": "fuzzing.weight_files:onnx",
    "checkpoint": "fuzzing.run_files:checkpoint",
    "config": "fuzzing.run_files:config",
    "manifest": "fuzzing.run_files:manifest",
    "images": "fuzzing.run_files:images",
}
"""Kind -> function that writes its valid files into a folder and returns them as samples."""

ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}


class Sample(NamedTuple):
    """A folder of valid files, the names of those that may be damaged, and their reader.

    `read` gets a copy of the folder and the name of the damaged file. Files of `text` are damaged as text too.
    """

    folder: Path
    files: tuple[str, ...]
    read: Callable[[Path, str], None]
    text: bool = False


class Result(NamedTuple):
    """Outcome of one file: its name, one of fuzz.OUTCOMES, and the error message."""

    file: str
    outcome: str
    message: str


def serve(connection: Connection, scratch: Path, kinds: Mapping[str, str]) -> None:
    """Answer requests (kind, seed and number) with a Result; with None for the latter, write the valid files."""
    stderr = os.open(scratch / "stderr", os.O_WRONLY | os.O_CREAT)
    os.dup2(stderr, 1)  # libraries may print
    os.dup2(stderr, 2)
    os.environ |= dict.fromkeys(("TMPDIR", "MPLCONFIGDIR", "FLAXTL_CACHE"), str(scratch / "tmp"))
    warnings.simplefilter("ignore")
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    audit = Audit(scratch)
    samples: dict[str, list[Sample]] = {}
    while True:
        try:
            kind, number = connection.recv()
        except EOFError:
            return
        if number is None:
            samples[kind] = write_samples(kinds[kind], scratch / "valid" / kind, scratch / "case")
            connection.send(Result("", "accepted", ""))
        else:
            connection.send(read_damaged(samples[kind], scratch / "case", Random(f"{kind} {number}"), audit))


def write_samples(function: str, folder: Path, case: Path) -> list[Sample]:
    """Write the valid files of a kind and read each of them undamaged, which must succeed."""
    folder.mkdir(parents=True)
    samples: list[Sample] = resolve_name(function)(folder)
    for sample in samples:
        shutil.rmtree(case, ignore_errors=True)
        shutil.copytree(sample.folder, case)
        sample.read(case, sample.files[0])
    return samples


def read_damaged(samples: list[Sample], case: Path, random: Random, audit: "Audit") -> Result:
    """Damage one file of one sample and read it."""
    from fuzzing.mutate import mutate

    sample = random.choice(samples)
    file = random.choice(sample.files)
    shutil.rmtree(case, ignore_errors=True)
    shutil.copytree(sample.folder, case)
    (case / file).write_bytes(mutate((case / file).read_bytes(), random, text=sample.text))
    with audit as violations:
        outcome, message = _read(sample, case, file)
    return Result(file, "forbidden", "\n".join(violations)) if violations else Result(file, outcome, message)


def _read(sample: Sample, case: Path, file: str) -> tuple[str, str]:
    from flaxtl.errors import UserError

    try:
        sample.read(case, file)
    except UserError as error:
        return "refused", str(error)
    except BaseException:
        return "fault", traceback.format_exc(limit=-12)
    return "accepted", ""


class Audit:
    """A context manager that returns the list of forbidden actions, from Python's audit events.

    Forbidden are writes outside `scratch`, pickles, connections, and programs other than this Python. The audit hook
    stays for the life of the process.
    """

    _CHANGES = frozenset(
        f"os.{name}" for name in ("rename", "remove", "mkdir", "rmdir", "link", "symlink", "truncate", "chmod")
    )
    _FORBIDDEN = frozenset(("pickle.find_class", "socket.connect", "os.system", "os.exec", "os.posix_spawn"))
    _WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def __init__(self, scratch: Path) -> None:
        self._allowed = (str(scratch.resolve()) + os.sep, os.devnull)
        self._violations: list[str] = []
        self._active = False
        sys.addaudithook(self._on_event)

    def __enter__(self) -> list[str]:
        """Start a new list."""
        self._violations, self._active = [], True
        return self._violations

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Stop recording."""
        self._active = False

    def _on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._active:
            return
        if event in self._CHANGES or (event == "open" and arguments[2] & self._WRITE_FLAGS):
            self._check_path(event, arguments[0])
        elif event in self._FORBIDDEN:
            self._violations.append(f"{event} {arguments}")
        elif event == "subprocess.Popen" and os.fsdecode(arguments[0]) != sys.executable:
            self._violations.append(f"{event} {arguments[1]}")

    def _check_path(self, event: str, path: Any) -> None:
        if isinstance(path, int):  # an open file
            return
        full = os.path.realpath(os.fsdecode(path))
        if not full.startswith(self._allowed) and not full.endswith(".pyc"):
            self._violations.append(f"{event} {full}")
