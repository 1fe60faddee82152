"""Work to be timed in a process of its own: what the functions of with_flaxtl.py and the peers' modules return."""

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fresh_process import peak_mebibytes

CLASSES = 5
"""Outputs of the new head, as in the course."""


class Unsupported(Exception):
    """The framework does not have this network; the message is shown below the table."""


@dataclass
class Trial:
    """Work to be timed.

    Attributes:
      step: processes `images` images.
      wait: blocks until a result of `step` is computed.
      asynchronous: wait only after the last step, as accelerators need it.
      facts: added to the figures, such as the device.
    """

    step: Callable[[], Any]
    images: int
    wait: Callable[[Any], object] = lambda result: None
    asynchronous: bool = False
    facts: dict[str, Any] = field(default_factory=dict)

    def run(self, steps: int) -> float:
        """Return the seconds that `steps` steps take."""
        start_time = time.perf_counter()
        for number in range(steps):
            result = self.step()
            if not self.asynchronous or number == steps - 1:
                self.wait(result)
        return time.perf_counter() - start_time

    def measure(self, seconds: float) -> dict[str, Any]:
        """Warm up, then measure steps for about `seconds`."""
        self.run(2)
        steps = max(1, round(seconds / self.run(1)))
        cpu_start = time.process_time()
        elapsed, images = self.run(steps), steps * self.images
        figures = {
            "images_per_second": images / elapsed,
            "cpu_seconds_per_image": (time.process_time() - cpu_start) / images,
            "peak_mebibytes": peak_mebibytes(),
        }
        return figures | self.facts


def measure(module: str, function: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Measure the Trial that `function` of benchmarks.MODULE returns, or return {"note": why it cannot be}."""
    try:
        trial: Trial = getattr(importlib.import_module(f"benchmarks.{module}"), function)(settings)
    except Unsupported as error:
        return {"note": str(error)}
    return trial.measure(settings["seconds"])


def time_convolutions(module: str, settings: dict[str, Any]) -> list[float]:
    """Return the processor seconds per image of each of the `convolutions`, by `convolution` of benchmarks.MODULE."""
    convolution = importlib.import_module(f"benchmarks.{module}").convolution
    trials = (convolution(settings, shape) for shape in settings["convolutions"])
    return [trial.measure(settings["seconds"])["cpu_seconds_per_image"] for trial in trials]


def image_files(settings: dict[str, Any]) -> list[Path]:
    """Return the images of a folder with one folder for each class."""
    return sorted(Path(settings["folder"]).glob("*/*"))
