"""The table of a sweep in words, for the console and for the page."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup
from rich import table as rich_table

from flaxtl.console import MAX_ROWS, make_table, truncate_rows
from flaxtl.fileio import atomic_write
from flaxtl.report import plots
from flaxtl.report.templating import format_count, format_duration, load_template
from flaxtl.tuning.sweep_grid import text_of
from flaxtl.tuning.sweep_results import RUNS, MeanStd, SweepPoint, SweepResults


def table_columns(found: SweepResults) -> list[str]:
    """The names of the columns: first the settings of the grids."""
    settings = list(found.plan.keys) or ["point"]
    own = ["validation accuracy", "validation loss", "learning parameters", "time of a run"]
    return [*settings, *own, *(["runs"] if _repeated(found) else []), *(["test accuracy"] if _tested(found) else [])]


def table_cells(found: SweepResults, point: SweepPoint) -> list[str]:
    """A point's cells under `columns`."""
    values = [text_of(point.values[key]) for key in found.plan.keys] or [point.name]
    done, wanted = len(point.results), len(point.runs)
    runs = [str(wanted) if done == wanted else f"{done} of {wanted}"] if _repeated(found) else []
    loss = point.loss
    return [
        *values,
        percent_text(point.accuracy) or ("failed" if point.failures else "–"),
        f"{loss.mean:.4f}" + (f" ± {loss.deviation:.4f}" if loss.deviation is not None else "") if loss else "",
        format_count(point.learning),
        format_duration(point.seconds),
        *runs,
        *([percent_text(point.test)] if _tested(found) else []),
    ]


def percent_text(share: MeanStd | None) -> str:
    """A share as 87.20 %, with its deviation where there is one: 87.20 % ± 0.53; '' for none."""
    if share is None:
        return ""
    told = f"{100 * share.mean:.2f} %"
    return told if share.deviation is None else f"{told} ± {100 * share.deviation:.2f}"


def results_table(found: SweepResults) -> rich_table.Table:
    """The points as a table on the console; of very many the best."""
    rows: Sequence[Sequence[str]] = [table_cells(found, point) for point in found.points]
    return make_table(
        "Points, the best on validation first", table_columns(found), truncate_rows(rows, " in sweep.csv")
    )


def result_sentences(found: SweepResults) -> Iterator[str]:
    """What there is to say below the table: what is missing, what failed, what was chosen."""
    if _repeated(found):
        yield "±: sample standard deviation over the runs of a point"
    if found.missing:
        yield f"{found.missing} run(s) still to come: the same flaxtl sweep trains them"
    for name, reason in list(found.failures.items())[:MAX_ROWS]:
        yield f"{name} failed: {reason}"
    if found.chosen:
        yield f"chosen by validation: {found.chosen.name}"
    if found.chosen and found.chosen.test:
        yield f"its accuracy on the test images, which nothing was chosen by: {percent_text(found.chosen.test)}"


def _repeated(found: SweepResults) -> bool:
    return found.plan.seeded or found.plan.folds > 0


def _tested(found: SweepResults) -> bool:
    return any(point.test for point in found.points)


def write_sweep_report(found: SweepResults, file: Path) -> None:
    """Write the page; it links to the reports of the runs beside it."""
    with atomic_write(file) as stream:
        stream.write(render_sweep_report(found, file.resolve().parent.name))


def render_sweep_report(found: SweepResults, name: str) -> str:
    """The page as text, under the sweep's `name`."""
    return load_template("sweep.html.jinja", percent=percent_text).render(
        name=name,
        found=found,
        best=found.points[0] if found.points and found.points[0].complete else None,
        columns=table_columns(found),
        settings=len(found.plan.keys) or 1,
        rows=[(table_cells(found, point), _reports(point)) for point in found.points],
        images=[Markup(_image(found, key)) for key in found.plan.keys] if _drawn(found.points) else [],
    )


def _reports(point: SweepPoint) -> list[tuple[str, str]]:
    """(name, address) of the report of every complete run."""
    return [(run.name, f"{RUNS}/{quote(run.name)}/report/index.html") for run in point.runs if point.complete]


def _drawn(points: Sequence[SweepPoint]) -> list[SweepPoint]:
    return [point for point in points if point.complete]


def _image(found: SweepResults, key: str) -> str:
    """Validation accuracy over the values of one setting: a line through the points that share all others."""
    points = _drawn(found.points)
    values = _in_order([point.values[key] for point in points])
    lines: dict[str, plots.MetricLine] = {}
    for point in points:
        others = ", ".join(f"{name}={text_of(value)}" for name, value in point.values.items() if name != key)
        line = lines.setdefault(others, plots.MetricLine(others, {}, is_best=not lines))  # the first point is the best
        accuracy = point.accuracy
        assert accuracy is not None, "it is complete"
        line.values[values.index(point.values[key])] = accuracy.mean, accuracy.deviation or 0.0
    return plots.plot_metric_vs_setting(key, [text_of(value) for value in values], list(lines.values()))


def _in_order(values: Sequence[Any]) -> list[Any]:
    """Each once; numbers from low to high, others by their texts."""
    once = list({json.dumps(value): value for value in values}.values())
    numeric = all(isinstance(value, int | float) for value in once)
    return sorted(once) if numeric else sorted(once, key=_natural)


def _natural(value: Any) -> tuple[int, list[float], str]:
    """Tuples of numbers by length, then by their numbers."""
    numbers = value if isinstance(value, list) and all(isinstance(part, int | float) for part in value) else []
    return len(numbers), list(numbers), text_of(value)
