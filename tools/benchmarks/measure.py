"""Rates of functions that take turns, and the machine and versions they were measured on."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax

PACKAGES = ("flaxtl", "jax", "jaxlib", "flax", "numpy", "pillow", "keras", "tensorflow", "tensorflow-cpu", "torch")

Work = Callable[[], int]
"""Does something once and returns how many images it processed."""


def rates(works: Mapping[str, Work], repeats: int) -> dict[str, list[float]]:
    """Return the images per second of each function and repetition; a first turn, for warm-up, is not counted."""
    result: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            start_time = time.perf_counter()
            images = work()
            seconds = time.perf_counter() - start_time
            if turn:
                result[name].append(images / seconds)
    return result


def spread(values: Sequence[float]) -> float:
    """Return (largest - smallest) / median."""
    return (max(values) - min(values)) / statistics.median(values)


def machine() -> dict[str, object]:
    """Describe the hardware."""
    return {
        "devices": [device.device_kind for device in jax.devices()],
        "cores": os.cpu_count(),
        "processor": _processor(),
        "system": platform.platform(),
    }


def _processor() -> str:
    """Return its name, on Linux from /proc/cpuinfo."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages."""
    result = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            result[package] = version(package)
        except PackageNotFoundError:
            continue
    return result
