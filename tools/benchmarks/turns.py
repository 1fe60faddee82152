"""Ways to do the same work, each in a process of its own, that take turns: A B C A B C ...

One backend a process, because Keras chooses its own once and frameworks that share a process share its threads. All
of them stay alive, so that every turn is one of a warm process, and a slow moment of the machine meets them all.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.peers import installed

TOOLS = Path(__file__).parents[1]

ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join(filter(None, (str(TOOLS), str(TOOLS.parent), os.environ.get("PYTHONPATH")))),
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # on a GPU that several processes share
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


class Way(NamedTuple):
    """One way to do the work: `benchmarks.MODULE` does it, if every one of `packages` is installed."""

    name: str
    module: str
    packages: tuple[str, ...] = ()
    settings: Mapping[str, Any] = {}
    environment: Mapping[str, str] = {}


@dataclass
class Outcome:
    """Images a second, turn by turn; what the process told of itself; why there is nothing, or no more."""

    rates: list[float] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    note: str = ""


class Unavailable(Exception):
    """A way cannot be measured here; says why."""


class Worker:
    """The process of one way (see worker.py); a context manager that ends it."""

    def __init__(self, way: Way, work: str, settings: Mapping[str, Any]) -> None:
        """Starts the process, which makes everything ready for `work`; `facts` are what it tells of it.

        Raises Unavailable, with the reason, where it cannot.
        """
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **ENVIRONMENT, **way.environment},
        )
        try:
            self.facts = self._ask({"module": way.module, "work": work, "settings": {**settings, **way.settings}})
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> "Worker":
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def turn(self) -> float:
        """Images a second of one turn."""
        return float(self._ask("turn")["rate"])

    def _ask(self, question: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps(question), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise Unavailable(self._last_words()) from None
        line = self._process.stdout.readline()
        if not line:
            raise Unavailable(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise Unavailable(answer["failed"])
        return answer

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"failed: {lines[-1] if lines else f'exit code {self._process.wait()}'}"


def take_turns(ways: Sequence[Way], work: str, settings: Mapping[str, Any], repeats: int) -> dict[str, Outcome]:
    """The outcome of every way, in their order."""
    outcomes = {way.name: Outcome() for way in ways}
    workers: dict[str, Worker] = {}
    with ExitStack() as stack:
        for way in ways:
            if missing := [package for package in way.packages if not installed(package)]:
                outcomes[way.name].note = f"not installed: {', '.join(missing)}"
                continue
            try:
                workers[way.name] = stack.enter_context(Worker(way, work, settings))
                outcomes[way.name].facts = workers[way.name].facts
            except Unavailable as error:
                outcomes[way.name].note = str(error)
        for _ in range(repeats):
            for name in list(workers):
                try:
                    outcomes[name].rates.append(workers[name].turn())
                except Unavailable as error:
                    outcomes[name].note = str(error)
                    del workers[name]
    return outcomes
