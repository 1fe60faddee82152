"""Fuzz flaxtl's file readers: `python tools/fuzz.py KIND... --files=2000 --seed=0`.

Each file is a valid one with some bits, byte ranges, numbers or words changed. It must be accepted or refused with a
UserError. Anything else is a failure:

    fault      another exception
    hang       more than 60 seconds
    memory     more than 4 GiB
    crash      the process ended
    forbidden  a write outside the file's folder, a pickle, a network connection, another program

Files that fail are saved in --keep=DIR as KIND-SEED-NUMBER-NAME, with the error in a .txt file; exit code 1 if any did.
The files of a seed are always the same, except those of a run, which contain times.
"""

import argparse
import faulthandler
import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from pkgutil import resolve_name
from random import Random
from subprocess import Popen
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from fresh_process import peak_mebibytes, start
from fuzz_mutations import mutate

KINDS = {
    "h5": "fuzz_weight_files:keras_legacy",
    "keras3": "fuzz_weight_files:keras_v3",
    "safetensors": "fuzz_weight_files:safetensors",
    "onnx": "fuzz_weight_files:onnx",
    "checkpoint": "fuzz_run_files:checkpoint",
    "run": "fuzz_run_files:run",
    "lists": "fuzz_run_files:lists",
    "images": "fuzz_run_files:images",
}
"""Kind -> function that writes its valid files into a folder and returns them as samples."""

READING, PASSED = "reading", ("accepted", "refused")
OUTCOMES = (*PASSED, "fault", "hang", "crash", "memory", "forbidden")
MAX_SECONDS, MAX_MEBIBYTES = 60.0, 4096.0


class Sample(NamedTuple):
    """A folder of valid files, the names of those that may be damaged, and their reader.

    `read` gets a copy of the folder and the name of the damaged file. Files of `text` are damaged as text too.
    """

    folder: Path
    files: tuple[str, ...]
    read: Callable[[Path, str], None]
    text: bool = False


class Result(NamedTuple):
    """Number and name of a damaged file, READING or one of OUTCOMES, and the error message."""

    number: int
    file: str
    outcome: str
    message: str = ""


def main() -> None:
    """Fuzz the readers and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="+", choices=(*KINDS, "all"), metavar="KIND", help=", ".join((*KINDS, "all")))
    parser.add_argument("--files", type=int, default=2000, help="files of each kind (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="save failing files here")
    options = parser.parse_args()
    print(f"{'kind':12}" + "".join(f"{outcome:>11}" for outcome in OUTCOMES) + f"{'seconds':>11}")
    failures = 0
    with TemporaryDirectory(prefix="flaxtl-fuzz-") as scratch:
        for kind in KINDS if "all" in options.kinds else options.kinds:
            start_time, counts = time.monotonic(), Counter[str]()
            for result in fuzz(KINDS[kind], options.seed, range(options.files), Path(scratch)):
                counts[result.outcome] += 1
                if result.outcome not in PASSED:
                    failures += 1
                    name = f"{kind} {result.number} ({result.file})"
                    print(f"{name}: {result.outcome} {result.message}", file=sys.stderr)
                    save(result, Path(scratch), options.keep, f"{kind}-{options.seed}-{result.number}")
            seconds = time.monotonic() - start_time
            print(f"{kind:12}" + "".join(f"{counts[outcome]:11}" for outcome in OUTCOMES) + f"{seconds:11.1f}")
    sys.exit(bool(failures))


def save(result: Result, scratch: Path, keep: Path | None, name: str) -> None:
    """Save a file that failed, and its error."""
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        damaged = scratch / f"case-{result.number}" / result.file
        shutil.copyfile(damaged, keep / f"{name}-{damaged.name}")
        (keep / f"{name}.txt").write_text(f"{result.outcome}\n{result.message}\n", errors="replace")


def fuzz(
    function: str,
    seed: int,
    numbers: Sequence[int],
    scratch: Path,
    *,
    max_seconds: float = MAX_SECONDS,
    max_mebibytes: float = MAX_MEBIBYTES,
) -> Iterator[Result]:
    """Damage and read files in a process of its own, which is replaced when a file ends it; yield their results."""
    (scratch / "tmp").mkdir(exist_ok=True)
    environment = dict.fromkeys(("TMPDIR", "FLAXTL_CACHE"), str(scratch / "tmp"))
    environment |= {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    while numbers:
        last, errors = None, scratch / "stderr"
        arguments = (function, seed, list(numbers), str(scratch), max_seconds)
        with (
            errors.open("wb") as stderr,
            start("fuzz:read_damaged_files", *arguments, environment=environment, stderr=stderr) as process,
        ):
            threading.Thread(target=_limit_memory, args=(process, max_mebibytes), daemon=True).start()
            for line in process.stdout or ():
                last = Result(*json.loads(line))
                if last.outcome != READING:
                    yield last
        message = errors.read_text(errors="replace")[-3000:]
        if last is None:
            raise RuntimeError(f"The valid files of {function} cannot be read: {message}")
        if last.outcome == READING:
            stopped = "memory" if process.returncode == -signal.SIGKILL else "crash"
            outcome = "hang" if "Timeout (" in message else stopped
            yield last._replace(outcome=outcome, message=f"exit code {process.returncode}: {message}")
        numbers = numbers[numbers.index(last.number) + 1 :]


def _limit_memory(process: Popen[str], max_mebibytes: float) -> None:
    while process.poll() is None:
        if peak_mebibytes(process.pid) > max_mebibytes:
            process.kill()
        time.sleep(0.05)


def read_damaged_files(
    function: str, seed: int, numbers: Sequence[int], folder: str, max_seconds: float
) -> Iterator[Result]:
    """Write valid files, and read each of them undamaged; then damage and read one for each number.

    Each is announced before it is read. What failed stays in FOLDER/case-NUMBER.
    """
    warnings.simplefilter("ignore")
    faulthandler.enable()
    scratch = Path(folder)
    valid = scratch / "valid" / function.partition(":")[2]
    shutil.rmtree(valid, ignore_errors=True)
    valid.mkdir(parents=True)
    samples: list[Sample] = resolve_name(function)(valid)
    for sample in samples:
        sample.read(_copy(sample.folder, scratch / "case-valid"), sample.files[0])
    audit = Audit(scratch)
    for number in numbers:
        random = Random(f"{function} {seed} {number}")
        sample = random.choice(samples)
        file, case = random.choice(sample.files), _copy(sample.folder, scratch / f"case-{number}")
        (case / file).write_bytes(mutate((case / file).read_bytes(), random, text=sample.text))
        yield Result(number, file, READING)
        faulthandler.dump_traceback_later(max_seconds, exit=True)
        audit.violations = []
        outcome, message = _read(sample, case, file)
        violations, audit.violations = audit.violations, None
        faulthandler.cancel_dump_traceback_later()
        if violations:
            outcome, message = "forbidden", "\n".join(violations)
        if outcome in PASSED:
            shutil.rmtree(case)
        yield Result(number, file, outcome, message)


def _copy(folder: Path, case: Path) -> Path:
    shutil.rmtree(case, ignore_errors=True)
    return Path(shutil.copytree(folder, case))


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
    """Collects forbidden actions in `violations`, unless it is None, from Python's audit events.

    Forbidden are writes outside `scratch`, pickles, connections, and programs other than this Python. The audit hook
    stays for the life of the process.
    """

    _CHANGES = frozenset(
        f"os.{name}" for name in ("rename", "remove", "mkdir", "rmdir", "link", "symlink", "truncate", "chmod", "utime")
    )
    _FORBIDDEN = frozenset(("pickle.find_class", "socket.connect", "os.system", "os.exec", "os.posix_spawn"))
    _WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def __init__(self, scratch: Path) -> None:
        self.violations: list[str] | None = None
        self._allowed = (str(scratch.resolve()) + os.sep, os.devnull)
        sys.addaudithook(self._on_event)

    def _on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.violations is None:
            return
        if event in self._CHANGES or (event == "open" and arguments[2] & self._WRITE_FLAGS):
            path = arguments[0]
            full = "" if isinstance(path, int) else os.path.realpath(os.fsdecode(path))  # int: an open file
            if full and not full.startswith(self._allowed) and not full.endswith(".pyc"):
                self.violations.append(f"{event} {full}")
        elif event in self._FORBIDDEN:
            self.violations.append(f"{event} {arguments}")
        elif event == "subprocess.Popen" and os.fsdecode(arguments[0]) != sys.executable:
            self.violations.append(f"{event} {arguments[1]}")


if __name__ == "__main__":
    main()
