"""Medians taken in turns, and what they were measured on."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax

PACKAGES = ("flaxtl", "jax", "jaxlib", "flax", "numpy", "pillow", "keras", "tensorflow", "tensorflow-cpu", "torch")

Work = Callable[[], int]
"""Does something once and returns how many images went through."""


def rates(ways: Mapping[str, Work], repeats: int) -> dict[str, list[float]]:
    """Images a second of every way and repetition; a first turn, which compiles and warms up, is not counted."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, work in ways.items():
            started = time.perf_counter()
            images = work()
            seconds = time.perf_counter() - started
            if turn:
                found[name].append(images / seconds)
    return found


def median(values: list[float]) -> float:
    """The median."""
    return statistics.median(values)


def spread(values: list[float]) -> float:
    """From the lowest to the highest, relative to the median."""
    return (max(values) - min(values)) / median(values)


def machine() -> dict[str, object]:
    """The hardware, in words."""
    return {
        "devices": [device.device_kind for device in jax.devices()],
        "cores": os.cpu_count(),
        "processor": _processor(),
        "system": platform.platform(),
    }


def _processor() -> str:
    """Its name; Linux tells it in a file."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
