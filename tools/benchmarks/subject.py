"""Measure one subject in its own process: an implementation of `forward` or `train`, or the course's Keras script.

Frameworks that share a process share its threads, and Keras chooses its backend once per process.
"""

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

TOOLS = Path(__file__).parents[1]

ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join(filter(None, (str(TOOLS), str(TOOLS.parent), os.environ.get("PYTHONPATH")))),
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


class Unsupported(Exception):
    """The framework does not have this network; the message is shown in the table."""


class Subject(NamedTuple):
    """One implementation: functions of `benchmarks.MODULE`, measured if all `packages` are installed."""

    name: str
    module: str
    packages: tuple[str, ...] = ()
    settings: Mapping[str, Any] = {}
    environment: Mapping[str, str] = {}

    def run(self, function: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Run a function in a new process and return its result, or {"note": reason} if that is impossible."""
        if missing := [package for package in self.packages if not is_installed(package)]:
            return {"note": f"not installed: {', '.join(missing)}"}
        arguments = (self.module, function, json.dumps({**settings, **self.settings}))
        process = subprocess.run(
            [sys.executable, "-m", "benchmarks.subject", *arguments],
            env={**os.environ, **ENVIRONMENT, **self.environment},
            capture_output=True,
            text=True,
            check=False,
        )
        if process.returncode:
            lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
            return {"note": f"failed: {lines[-1]}"}
        result: dict[str, Any] = json.loads(process.stdout)
        return result


@dataclass
class Trial:
    """Work to be timed.

    Attributes:
      step: processes one batch.
      wait: blocks until a result of `step` is computed.
      asynchronous: wait only after the last step, as accelerators need it.
      facts: added to the result, such as the device.
    """

    step: Callable[[], Any]
    wait: Callable[[Any], object]
    asynchronous: bool
    facts: dict[str, Any] = field(default_factory=dict)

    def run(self, steps: int) -> float:
        """Return the seconds that `steps` steps take."""
        start_time = time.perf_counter()
        for number in range(steps):
            result = self.step()
            if not self.asynchronous or number == steps - 1:
                self.wait(result)
        return time.perf_counter() - start_time

    def measure(self, batch: int, seconds: float) -> dict[str, Any]:
        """Compile, then measure images per second and processor seconds per image for about `seconds`."""
        self.run(2)
        steps = max(1, round(seconds / self.run(1)))
        cpu_start = time.process_time()
        elapsed, images = self.run(steps), steps * batch
        cpu_seconds = time.process_time() - cpu_start
        return self.facts | {"images_per_second": images / elapsed, "cpu_seconds_per_image": cpu_seconds / images}


def is_installed(package: str) -> bool:
    """Return whether a package can be imported."""
    return find_spec(package) is not None


def main() -> None:
    """Call `MODULE FUNCTION SETTINGS`, and print its result, or the measurements of its Trial, as JSON."""
    module, function, settings = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    with os.fdopen(os.dup(1), "w") as stdout:
        os.dup2(2, 1)  # libraries may print
        try:
            result = getattr(importlib.import_module(f"benchmarks.{module}"), function)(settings)
            if isinstance(result, Trial):
                result = result.measure(settings["batch"], settings["seconds"])
        except Unsupported as error:
            result = {"note": str(error)}
        json.dump(result, stdout)


if __name__ == "__main__":
    from benchmarks import subject

    subject.main()  # not __main__'s, whose Trial is another class than that of the imported modules
