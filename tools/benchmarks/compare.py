"""Measure several implementations of the same work in turns, and compare them in a table."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from statistics import median
from typing import Any, NamedTuple

from fresh_process import ProcessError, call

from flaxtl import console
from flaxtl.cli import huge_pages

ENVIRONMENT = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "JAX_TRACEBACK_FILTERING": "off",  # the last line of an error is then its message
}


class Subject(NamedTuple):
    """An implementation: functions of benchmarks.MODULE, measured if all `packages` are installed."""

    name: str
    module: str = "with_flaxtl"
    packages: tuple[str, ...] = ()
    settings: Mapping[str, Any] = {}
    environment: Mapping[str, str] = {}

    def missing(self) -> str:
        """Return why it cannot be measured here, or ''."""
        missing = [package for package in self.packages if not find_spec(package)]
        return f"not installed: {', '.join(missing)}" if missing else ""

    def measure(self, function: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Measure a function in a process of its own, or return {"note": why that is impossible}."""
        if note := self.missing():
            return {"note": note}
        arguments = (self.module, function, {**settings, **self.settings})
        try:
            return dict(call("benchmarks.trial:measure", *arguments, environment=ENVIRONMENT | dict(self.environment)))
        except ProcessError as error:
            return {"note": f"failed: {error}"}


def own(name: str = "flaxtl", packages: tuple[str, ...] = (), **settings: Any) -> Subject:
    """Return flaxtl, with memory in huge pages as its command asks for."""
    environment = {huge_pages.VARIABLE: huge_pages.TUNABLES}
    return Subject(name, packages=packages, settings=settings, environment=environment)


def keras(backend: str, name: str) -> Subject:
    """Return Keras 3 with a backend."""
    return Subject(name, "with_keras", ("keras", backend), environment={"KERAS_BACKEND": backend})


PEERS = {
    "keras-tensorflow": keras("tensorflow", "Keras 3 on TensorFlow"),
    "keras-jax": keras("jax", "Keras 3 on JAX"),
    "torch": Subject("PyTorch", "with_torch", ("torch", "torchvision"), {"compile": False}),
    "torch-compiled": Subject("PyTorch, compiled", "with_torch", ("torch", "torchvision"), {"compile": True}),
}

DATA_PEERS = {
    "keras-tensorflow": keras("tensorflow", "Keras' ImageDataGenerator"),
    "torch": Subject("PyTorch's DataLoader", "with_torch", ("torch", "torchvision")),
}


MEDIANS = (
    *("images_per_second", "cpu_seconds_per_image", "peak_mebibytes"),
    *("temporary_mebibytes", "flop_per_image", "matmul_flop_per_second"),
)


def compare(
    title: str, function: str, subjects: Sequence[Subject], settings: Mapping[str, Any], repeats: int
) -> list[dict[str, Any]]:
    """Measure the subjects in turns, print a table, and return its rows."""
    rows = measure_in_turns(function, subjects, settings, repeats)
    print_rows(title, rows, [_cells(row, rows[0], settings["batch"]) for row in rows])
    return rows


def measure_in_turns(
    function: str, subjects: Sequence[Subject], settings: Mapping[str, Any], repeats: int
) -> list[dict[str, Any]]:
    """Measure the subjects in turns (A B C A B C ...); return a row with turns, medians and relative speeds of each.

    A subject that cannot be measured, or fails, is not tried again.
    """
    rows: list[dict[str, Any]] = [{"subject": subject.name, "turns": [], "note": ""} for subject in subjects]
    for _ in range(repeats):
        for subject, row in zip(subjects, rows, strict=True):
            if not row["note"]:
                result = subject.measure(function, settings)
                row["note"] = result.get("note", "")
                row["turns"] += [] if row["note"] else [result]
    for row in rows:
        for key in MEDIANS:
            values = [turn[key] for turn in row["turns"] if turn.get(key) is not None]
            row[key] = median(values) if values else None
        row["times"] = {other["subject"]: _ratio(row, other) for other in rows if row["turns"] and other["turns"]}
    return rows


def _ratio(row: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Return how many times faster a row is than another: the median of the turns of both."""
    pairs = zip(row["turns"], other["turns"], strict=False)
    return median(ours["images_per_second"] / theirs["images_per_second"] for ours, theirs in pairs)


def spread(values: Sequence[float]) -> float:
    """Return (largest - smallest) / median."""
    return (max(values) - min(values)) / median(values)


def print_rows(title: str, rows: Sequence[Mapping[str, Any]], cells: Sequence[Mapping[str, str]]) -> None:
    """Print a table with the `cells` of each row (column -> text) and, below it, why rows were not measured."""
    columns = list(dict.fromkeys(column for row in cells for column, text in row.items() if text))
    terminal = console.make_console()
    table = [[row.get(column, "") for column in columns] for row in cells]
    terminal.print(console.make_table(title, columns, table))
    for row in rows:
        if row["note"]:
            console.message(terminal, f"{row['subject']}: {row['note']}")
    devices = {turn["device"] for row in rows for turn in row["turns"] if "device" in turn}
    console.message(terminal, f"device: {', '.join(sorted(devices)) or 'cpu'}")


def _cells(row: Mapping[str, Any], first: Mapping[str, Any], batch: int) -> dict[str, str]:
    """Format a row; the peers need as many operations as flaxtl, the first row."""
    if not row["turns"]:
        return {"implementation": row["subject"], "images/s": row["note"].split(":")[0]}
    rate, cpu_seconds, memory = (row[key] for key in MEDIANS[:3])
    operations, peak = row["flop_per_image"] or first["flop_per_image"], first["matmul_flop_per_second"]
    return {
        "implementation": row["subject"],
        "images/s": f"{rate:,.1f}",
        "spread": f"{spread([turn['images_per_second'] for turn in row['turns']]):.0%}",
        "ms/batch": f"{1000 * batch / rate:,.1f}",
        "CPU ms/batch": f"{1000 * batch * cpu_seconds:,.1f}" if cpu_seconds else "",
        "MiB": f"{memory:,.0f}" if memory else "",
        "of a matmul": f"{rate * operations / peak:.0%}" if operations and peak else "",
        **{f"x {name}": f"{times:.2f}" for name, times in row["times"].items() if not name.startswith("flaxtl")},
    }
