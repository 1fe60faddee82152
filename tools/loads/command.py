"""The real `flaxtl` command in a process of its own: how long it took, how much memory, and what it said."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
ROOT = Path(__file__).parents[2]

CONFIG = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({config!r})
"""


@dataclass(frozen=True)
class Done:
    """A command that has ended.

    Attributes:
        what: its name in the table.
        seconds: wall time, start-up included.
        mebibytes: the largest resident set.
        code: exit code; negative for a signal.
        said: standard output and error together.
    """

    what: str
    seconds: float
    mebibytes: float
    code: int
    said: str

    @property
    def lines(self) -> int:
        """Lines on the console."""
        return len(self.said.splitlines())

    @property
    def last(self) -> str:
        """The last line that was said."""
        return self.said.strip().splitlines()[-1] if self.said.strip() else ""


def flaxtl(what: str, *arguments: object, cache: Path, before: Sequence[str] = ()) -> Done:
    """Run `flaxtl ARGUMENTS` to its end; `before` are words in front of it, such as those of setpriv."""
    command = [*before, sys.executable, "-m", "flaxtl", *map(str, arguments)]
    environment = {"JAX_PLATFORMS": "cpu", **os.environ, "FLAXTL_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
    with tempfile.NamedTemporaryFile() as output:
        # By a process between: one that has used much memory hands its peak on to the commands that it starts.
        seconds, peak, code = apart(_measured, command, output.name, environment, cache.parent)
        said = output.read().decode(errors="replace")
    return Done(what, seconds, peak / (2**20 if sys.platform == "darwin" else 2**10), code, said)


def _measured(command: list[str], output: str, environment: dict[str, str], folder: Path) -> tuple[float, int, int]:
    """Run a command to its end: its seconds, its peak memory in the system's unit, and its exit code."""
    started = time.perf_counter()
    with Path(output).open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=folder)
    _, status, usage = os.wait4(process.pid, 0)  # of this process alone, where getrusage would mix all
    process.returncode = os.waitstatus_to_exitcode(status)
    return time.perf_counter() - started, usage.ru_maxrss, process.returncode


def apart(work: Callable[..., T], *arguments: object) -> T:
    """What `work` returns, done in a process of its own: a command starts out with the peak memory of its parent."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def config(file: Path, source: str, side: int = 32, **data: object) -> Path:
    """Write a config of one short phase on one block of VGG16 with random weights; `data` as in flaxtl/config.py."""
    values = {
        "batch_size": 32,
        "data": {"source": source, "height": side, "width": side, **data},
        "weights": {"path": "random"},
        "model": {"name": "vgg16", "output_layer": "block1_pool"},
        "head": {"pooling": "global_average", "units": (16,), "dropout": 0.0},
        "param_groups": (("head", "head/.*"), ("base", "backbone/.*")),
        "phases": ("frozen",),
        "frozen": {"epochs": 1, "steps_per_epoch": 4, "lr": {"head": 1e-3, "base": 0.0}},
    }
    file.write_text(CONFIG.format(config=values), encoding="utf-8")
    return file
