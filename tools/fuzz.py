"""Fuzz flaxtl's file readers: `python tools/fuzz.py KIND... --files=2000 --seed=0`.

Each file is a valid one with some bits, byte ranges, numbers or words changed. It must be accepted or refused with a
UserError. Anything else is a failure:

    fault      another exception
    hang       more than 20 seconds
    memory     more than 2 GiB
    crash      the process ended
    forbidden  a write outside the file's folder, a pickle, a network connection, another program

File N of a seed is always the same; `--only=N` repeats it. Files that fail are saved in --keep=DIR as KIND-SEED-N-NAME,
with the error in a .txt file. Exit code 1 if any file failed.
"""

import argparse
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from fuzzing.worker import ENVIRONMENT, KINDS, Result, serve

PASSED = ("accepted", "refused")
OUTCOMES = (*PASSED, "fault", "hang", "crash", "memory", "forbidden")
MAX_SECONDS = 20
MAX_BYTES = 2 * 2**30
START_SECONDS = 120  # imports, and writing the valid files of a kind


def main() -> None:
    """Fuzz the readers and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="+", choices=(*KINDS, "all"), metavar="KIND", help=", ".join((*KINDS, "all")))
    parser.add_argument("--files", type=int, default=2000, help="files of each kind (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="N", help="only this file")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="save failing files here")
    parser.add_argument("--verbose", action="store_true", help="print the outcome of every file")
    options = parser.parse_args()
    numbers = range(options.files) if options.only is None else (options.only,)
    print(f"{'kind':12}" + "".join(f"{outcome:>11}" for outcome in OUTCOMES) + f"{'seconds':>11}")
    failures = 0
    with Fuzzer(KINDS, options.keep) as fuzzer:
        for kind in KINDS if "all" in options.kinds else options.kinds:
            start_time, counts = time.monotonic(), Counter[str]()
            for number in numbers:
                result = fuzzer.run(kind, options.seed, number)
                counts[result.outcome] += 1
                if options.verbose or result.outcome not in PASSED:
                    print(f"{kind} {number} ({result.file}): {result.outcome} {result.message}", file=sys.stderr)
            failures += sum(count for outcome, count in counts.items() if outcome not in PASSED)
            seconds = time.monotonic() - start_time
            print(f"{kind:12}" + "".join(f"{counts[outcome]:11}" for outcome in OUTCOMES) + f"{seconds:11.1f}")
    sys.exit(bool(failures))


class Fuzzer:
    """Run files in a worker process, limit its time and memory, and replace it when a file ends it.

    Args:
      kinds: kind -> "module:function" that writes its valid files (see fuzzing/worker.py).
      keep: folder for failing files.
    """

    def __init__(
        self,
        kinds: Mapping[str, str],
        keep: Path | None,
        *,
        max_seconds: float = MAX_SECONDS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._kinds, self._keep = kinds, keep
        self._max_seconds, self._max_bytes = max_seconds, max_bytes
        self._folder = tempfile.TemporaryDirectory(prefix="flaxtl-fuzz-")
        self._scratch = Path(self._folder.name)
        self._process: multiprocessing.process.BaseProcess | None = None

    def __enter__(self) -> "Fuzzer":
        """Start no process yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the worker and delete its folder."""
        self._stop()
        self._folder.cleanup()

    def run(self, kind: str, seed: int, number: int) -> Result:
        """Damage and read one file. A hang is tried twice, because the machine may be busy."""
        result = self._run(kind, seed, number)
        return self._run(kind, seed, number) if result.outcome == "hang" else result

    def _run(self, kind: str, seed: int, number: int) -> Result:
        if self._process is None:
            self._start()
        if kind not in self._prepared:
            self._prepare(kind)
        result = self._request((kind, f"{seed} {number}"), self._max_seconds)
        if result.outcome not in PASSED:
            self._save(f"{kind}-{seed}-{number}", result)
        if result.outcome in ("hang", "crash", "memory"):
            self._stop()
        return result

    def _start(self) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)
        (self._scratch / "tmp").mkdir(parents=True)
        os.environ.update(ENVIRONMENT)
        context = multiprocessing.get_context("spawn")
        self._connection, connection = context.Pipe()
        self._process = context.Process(target=serve, args=(connection, self._scratch, dict(self._kinds)), daemon=True)
        self._process.start()
        connection.close()
        self._prepared: set[str] = set()
        self._base_bytes = 0

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None

    def _prepare(self, kind: str) -> None:
        result = self._request((kind, None), START_SECONDS)
        if result.outcome != "accepted":
            raise RuntimeError(f"The valid files of {kind!r} cannot be read: {result.outcome} {result.message}")
        self._prepared.add(kind)
        assert self._process is not None
        self._base_bytes = _peak_bytes(self._process.pid)

    def _request(self, request: tuple[str, str | None], seconds: float) -> Result:
        assert self._process is not None
        assert self._process.pid is not None
        self._connection.send(request)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._connection.poll(0.05):
                try:
                    result: Result = self._connection.recv()
                except EOFError:
                    self._process.join()
                    return self._interrupted("crash", f"exit code {self._process.exitcode}: {self._stderr()}")
                return result._replace(outcome="memory") if self._growth() > self._max_bytes else result
            if self._growth() > self._max_bytes:
                return self._interrupted("memory", f"{self._growth():,} bytes")
        os.kill(self._process.pid, signal.SIGUSR1)  # faulthandler writes the traceback
        time.sleep(0.5)
        return self._interrupted("hang", f"no result after {seconds} s: {self._stderr()}")

    def _growth(self) -> int:
        """Peak memory in bytes, minus the peak after the valid files were written."""
        assert self._process is not None
        return _peak_bytes(self._process.pid) - self._base_bytes if self._base_bytes else 0

    def _stderr(self) -> str:
        return (self._scratch / "stderr").read_text(errors="replace")[-3000:]

    def _interrupted(self, outcome: str, message: str) -> Result:
        """The damaged file is the newest one."""
        files = sorted((self._scratch / "case").rglob("*"), key=lambda file: file.lstat().st_mtime_ns)
        return Result(files[-1].name if files else "?", outcome, message)

    def _save(self, name: str, result: Result) -> None:
        damaged = next(iter(sorted((self._scratch / "case").rglob(Path(result.file).name))), None)
        if self._keep is not None and damaged is not None:
            self._keep.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(damaged, self._keep / f"{name}-{damaged.name}")
            (self._keep / f"{name}.txt").write_text(f"{result.outcome}\n{result.message}\n", errors="replace")


def _peak_bytes(pid: int | None) -> int:
    """Return the peak resident memory of a process (Linux), or 0 if unknown."""
    try:
        match = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return 1024 * int(match[1]) if match else 0


if __name__ == "__main__":
    main()
