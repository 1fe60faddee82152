"""Keeps a worker process alive: watches its time and memory, and begins another where a file was the end of it."""

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

GOOD = ("accepted", "refused")
SECONDS = 20
BYTES = 2 * 2**30
START_SECONDS = 120  # for imports, and for making the valid files of a kind


class Answer(NamedTuple):
    """What became of one file."""

    file: str = ""
    outcome: str = ""
    told: str = ""


class Nursery:
    """A context manager around the worker and its scratch folder."""

    def __init__(self, keep: Path | None, module: str = "fuzzing.worker") -> None:
        """Offending files go to the folder `keep`, if there is one; `module` is what the worker runs."""
        self._keep, self._module = keep, module
        self._home = tempfile.TemporaryDirectory(prefix="flaxtl-fuzz-")
        self._worker: subprocess.Popen[bytes] | None = None
        self._known: set[str] = set()  # kinds of which the worker has made valid files
        self._usual = 0  # bytes that it held before it read any

    def __enter__(self) -> "Nursery":
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """End the worker and remove its folder."""
        self._end()
        self._home.cleanup()

    def ask(self, kind: str, seed: int, number: int) -> Answer:
        """Let the worker damage and read one file; one that hangs is asked about again, as the machine may be busy."""
        answer = self._ask(kind, seed, number)
        return self._ask(kind, seed, number) if answer.outcome == "hang" else answer

    def _ask(self, kind: str, seed: int, number: int) -> Answer:
        if self._worker is None:
            self._begin()
        if kind not in self._known:
            self._prepare(kind)
        answer = self._answer(f"{kind} {seed} {number}\n", SECONDS)
        if answer.outcome not in GOOD:
            self._put_aside(f"{kind}-{seed}-{number}", answer)
        if answer.outcome in ("hang", "crash", "memory"):
            self._end()
        return answer

    def _begin(self) -> None:
        scratch = Path(self._home.name)
        shutil.rmtree(scratch, ignore_errors=True)
        (scratch / "tmp").mkdir(parents=True)
        own = {
            "TMPDIR": str(scratch / "tmp"),
            "MPLCONFIGDIR": str(scratch / "tmp"),
            "FLAXTL_CACHE": str(scratch / "tmp"),
        }
        paths = os.pathsep.join(map(str, (Path(__file__).parents[1], Path(__file__).parents[2])))
        self._worker = subprocess.Popen(
            [sys.executable, "-m", self._module, str(scratch)],
            env={**os.environ, **own, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(scratch / "errors").open("wb"),
        )
        self._known = set()
        self._usual = 0

    def _prepare(self, kind: str) -> None:
        """Let the worker make valid files; without them nothing can be shown."""
        ready = self._answer(f"{kind}\n", START_SECONDS)
        if ready.outcome:
            raise RuntimeError(f"no valid files of the kind {kind}: {ready.outcome} {ready.told}")
        assert self._worker is not None
        self._known.add(kind)
        self._usual = _peak(self._worker.pid)

    def _end(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker.communicate()
            self._worker = None

    def _answer(self, request: str, seconds: float) -> Answer:
        worker = self._worker
        assert worker is not None
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write(request.encode())
        worker.stdin.flush()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if select.select([worker.stdout], [], [], 0.05)[0]:
                line = worker.stdout.readline()
                if not line:
                    return self._cut_short("crash", f"it ended with code {worker.wait()}: {self._errors()}")
                answer = Answer(**json.loads(line))
                return answer._replace(outcome="memory") if self._memory() > BYTES else answer
            if self._memory() > BYTES:
                return self._cut_short("memory", f"{self._memory():,} bytes")
        worker.send_signal(signal.SIGUSR1)  # it writes where it is
        time.sleep(0.5)
        return self._cut_short("hang", f"no answer for {seconds} s: {self._errors()}")

    def _memory(self) -> int:
        """Bytes by which the worker has grown since it made the valid files."""
        assert self._worker is not None
        return _peak(self._worker.pid) - self._usual if self._usual else 0

    def _errors(self) -> str:
        return (Path(self._home.name) / "errors").read_text(errors="replace")[-3000:]

    def _cut_short(self, outcome: str, told: str) -> Answer:
        files = sorted((Path(self._home.name) / "case").rglob("*"), key=lambda file: file.lstat().st_mtime_ns)
        return Answer(files[-1].name if files else "?", outcome, told)

    def _put_aside(self, name: str, answer: Answer) -> None:
        case = Path(self._home.name) / "case"
        damaged = next(iter(sorted(case.rglob(Path(answer.file).name))), None)
        if self._keep is not None and damaged is not None:
            self._keep.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(damaged, self._keep / f"{name}-{damaged.name}")
            (self._keep / f"{name}.txt").write_text(f"{answer.outcome}\n{answer.told}\n", errors="replace")


def _peak(process: int) -> int:
    """The most memory that a process has held, in bytes; 0 where the system does not tell."""
    try:
        told = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{process}/status").read_text())
    except OSError:
        return 0
    return 1024 * int(told[1]) if told else 0
