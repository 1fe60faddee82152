"""Medians taken in turns, and what they were measured on."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version

import jax

PACKAGES = ("flaxtl", "jax", "numpy", "pillow", "keras", "tensorflow", "tensorflow-cpu", "torch")

Work = Callable[[], int]
"""Does something once and returns how many pictures went through."""


def rates(ways: Mapping[str, Work], repeats: int) -> dict[str, list[float]]:
    """Pictures a second of every way and repetition; a first turn, which compiles and warms up, is not counted."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, work in ways.items():
            started = time.perf_counter()
            pictures = work()
            seconds = time.perf_counter() - started
            if turn:
                found[name].append(pictures / seconds)
    return found


def median(values: list[float]) -> float:
    """The median."""
    return statistics.median(values)


def machine() -> dict[str, object]:
    """The hardware, in words."""
    return {
        "devices": [device.device_kind for device in jax.devices()],
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
