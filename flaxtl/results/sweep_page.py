"""The page of a sweep: its table and a picture for each setting, in one file that asks nothing of the network."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from flaxtl.files import whole
from flaxtl.results import plots, sweep_shown
from flaxtl.results.pages import template
from flaxtl.results.sweep_grid import text_of
from flaxtl.results.sweep_table import RUNS, Point, Table


def write(found: Table, file: Path) -> None:
    """Write the page; it links to the reports of the runs beside it."""
    with whole(file) as stream:
        stream.write(render(found, file.resolve().parent.name))


def render(found: Table, name: str) -> str:
    """The page as text, under the sweep's `name`."""
    return template("sweep.html.jinja", percent=sweep_shown.percent).render(
        name=name,
        found=found,
        best=found.points[0] if found.points and found.points[0].complete else None,
        columns=sweep_shown.columns(found),
        settings=len(found.plan.keys) or 1,
        rows=[(sweep_shown.cells(found, point), _reports(point)) for point in found.points],
        pictures=[Markup(_picture(found, key)) for key in found.plan.keys] if _drawn(found.points) else [],
    )


def _reports(point: Point) -> list[tuple[str, str]]:
    """(name, address) of the report of every complete run."""
    return [(run.name, f"{RUNS}/{quote(run.name)}/report/index.html") for run in point.runs if point.complete]


def _drawn(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if point.complete]


def _picture(found: Table, key: str) -> str:
    """Validation accuracy over the values of one setting: a line through the points that share all others."""
    points = _drawn(found.points)
    values = _in_order([point.values[key] for point in points])
    lines: dict[str, plots.Line] = {}
    for point in points:
        others = ", ".join(f"{name}={text_of(value)}" for name, value in point.values.items() if name != key)
        line = lines.setdefault(others, plots.Line(others, {}, chosen=not lines))  # the first point is the best
        accuracy = point.accuracy
        assert accuracy is not None, "it is complete"
        line.values[values.index(point.values[key])] = accuracy.mean, accuracy.deviation or 0.0
    return plots.against(key, [text_of(value) for value in values], list(lines.values()))


def _in_order(values: Sequence[Any]) -> list[Any]:
    """Each once; numbers from low to high, others by their texts."""
    once = list({json.dumps(value): value for value in values}.values())
    numeric = all(isinstance(value, int | float) for value in once)
    return sorted(once) if numeric else sorted(once, key=_natural)


def _natural(value: Any) -> tuple[int, list[float], str]:
    """Tuples of numbers by length, then by their numbers."""
    numbers = value if isinstance(value, list) and all(isinstance(part, int | float) for part in value) else []
    return len(numbers), list(numbers), text_of(value)
