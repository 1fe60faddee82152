"""Time the convolutions of a network one by one, in turns with Keras: which of them make a forward pass slow.

Each convolution runs alone, without bias, activation and batch norm, on random inputs of its shape in the network.
Equal ones are timed once.
"""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.compare import ENVIRONMENT, Subject
from fresh_process import ProcessError, call

from flaxtl import console
from flaxtl.errors import UserError


def compare_layers(title: str, subjects: Sequence[Subject], settings: Mapping[str, Any], repeats: int) -> list[Any]:
    """Measure the subjects in turns, print a table, and return its rows; the milliseconds are of all equal layers.

    Raises:
      UserError: a subject is not installed, or fails.
    """
    for subject in subjects:
        if missing := subject.missing():
            raise UserError(f"{subject.name}: {missing}.")
    rows = _call("flaxtl", "benchmarks.with_flaxtl:list_convolutions", settings)
    settings = {**settings, "convolutions": rows}
    turns: dict[str, list[list[float]]] = {subject.name: [] for subject in subjects}
    for _ in range(repeats):
        for subject in subjects:
            arguments = ("benchmarks.trial:time_convolutions", subject.module, settings)
            turns[subject.name].append(_call(subject.name, *arguments, environment=subject.environment))
    for number, row in enumerate(rows):
        row["milliseconds"] = {
            name: 1000 * row["layers"] * median(turn[number] for turn in done) for name, done in turns.items()
        }
    rows.sort(key=lambda row: -row["milliseconds"][subjects[0].name])
    _print(title, rows, list(turns))
    return list(rows)


def _call(name: str, target: str, *arguments: object, environment: Mapping[str, str] = {}) -> Any:
    try:
        return call(target, *arguments, environment=ENVIRONMENT | dict(environment))
    except ProcessError as error:
        raise UserError(f"{name} failed: {error}") from error


def _print(title: str, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    sums: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        sums.setdefault(f"all {_describe_kernel(row)}", []).append(row)
    sums["all"] = list(rows)
    table = [[_describe_input(row), *_cells([row], names)] for row in rows]
    table += [[name, *_cells(members, names)] for name, members in sums.items()]
    columns = ["input, kernel, outputs", "layers", *(f"{name}, ms per image" for name in names)]
    console.make_console().print(console.make_table(title, columns, table))


def _cells(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    times = (sum(row["milliseconds"][name] for row in rows) for name in names)
    return [str(sum(row["layers"] for row in rows)), *(f"{milliseconds:.2f}" for milliseconds in times)]


def _describe_input(row: Mapping[str, Any]) -> str:
    outputs = "" if row["kind"] == "depthwise" else f", {row['outputs']}"
    return f"{row['height']}x{row['width']}x{row['inputs']}, {_describe_kernel(row)}{outputs}"


def _describe_kernel(row: Mapping[str, Any]) -> str:
    size = "x".join(map(str, row["kernel"]))
    stride = f" stride {row['stride']}" if row["stride"] > 1 else ""
    kind = " depthwise" if row["kind"] == "depthwise" else f" in {row['groups']} groups" if row["groups"] > 1 else ""
    return f"{size}{kind}{stride}"
