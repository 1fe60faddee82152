"""The results of a sweep on the console and as an HTML page."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup
from rich.table import Table

from flaxtl.console import MAX_ROWS, make_table, truncate_rows
from flaxtl.fileio import atomic_write
from flaxtl.report.plots import MetricLine, plot_metric_vs_setting
from flaxtl.report.templating import format_count, format_duration, load_template
from flaxtl.train.rounding import percent_digits
from flaxtl.tuning.sweep_grid import format_value
from flaxtl.tuning.sweep_results import RUNS, MeanStd, SweepPoint, SweepResults


def results_table(results: SweepResults) -> Table:
    """Return the table of points for the console; if there are very many, of the best."""
    rows: Sequence[Sequence[str]] = [table_cells(results, point) for point in results.points]
    title = "Results, best validation accuracy first"
    return make_table(title, table_columns(results), truncate_rows(rows, " in sweep.csv"))


def result_messages(results: SweepResults) -> Iterator[str]:
    """Yield the lines below the table: what is missing, what failed, and the best point."""
    if _is_repeated(results):
        yield "±: sample standard deviation over the runs of a point"
    if results.num_missing:
        missing = f"{results.num_missing:,} of {len(results.plan.runs):,} runs"
        yield f"Not trained yet: {missing}. To train them, run the command without --collect, for every --shard."
    for name, reason in list(results.failures.items())[:MAX_ROWS]:
        yield f"{name} failed: {reason}"
    if results.best:
        yield f"best on validation: {results.best.name}"
    if results.ties:
        yield results.ties
    if results.best and results.best.test:
        yield f"its test accuracy, which was not used to choose it: {format_accuracy(results.best.test)}"


def write_sweep_report(results: SweepResults, file: Path) -> None:
    """Write the HTML page; it links to the reports of the runs next to it."""
    with atomic_write(file) as stream:
        stream.write(render_sweep_report(results, file.resolve().parent.name))


def render_sweep_report(results: SweepResults, name: str) -> str:
    """Return the HTML page; `name` is that of the sweep."""
    complete = [point for point in results.points if point.complete]
    return load_template("sweep.html.jinja", accuracy=format_accuracy).render(
        name=name,
        results=results,
        best=complete[0] if complete else None,
        num_complete=len(complete),
        columns=table_columns(results),
        num_settings=len(results.plan.keys) or 1,
        rows=[(table_cells(results, point), _report_links(point)) for point in results.points],
        plots=[Markup(_plot_setting(complete, key)) for key in results.plan.keys] if complete else [],
    )


def table_columns(results: SweepResults) -> list[str]:
    """Return the names of the columns; the settings of the grids come first."""
    settings = list(results.plan.keys) or ["point"]
    metrics = ["validation accuracy", "validation loss", "trained weights", "training time"]
    runs = ["runs"] if _is_repeated(results) else []
    return [*settings, *metrics, *runs, *(["test accuracy"] if _is_tested(results) else [])]


def table_cells(results: SweepResults, point: SweepPoint) -> list[str]:
    """Return the cells of a point, one per column of `table_columns`."""
    settings = [format_value(point.values[key]) for key in results.plan.keys] or [point.name]
    num_complete, num_runs = len(point.outcomes), len(point.runs)
    runs = [str(num_runs) if num_complete == num_runs else f"{num_complete} of {num_runs}"]
    return [
        *settings,
        format_accuracy(point.accuracy) or ("failed" if point.failures else "–"),
        _format_loss(point.loss),
        format_count(point.trainable_params),
        format_duration(point.seconds),
        *(runs if _is_repeated(results) else []),
        *([format_accuracy(point.test)] if _is_tested(results) else []),
    ]


def format_accuracy(accuracy: MeanStd | None) -> str:
    """Format as 87.2 %, or 87.2 % ± 0.5 if there is a standard deviation, as `rounding` does; '' for None."""
    if accuracy is None:
        return ""
    digits = percent_digits(round(accuracy.mean * accuracy.num_images), accuracy.num_images)
    std = "" if accuracy.std is None else f" ± {100 * accuracy.std:.{digits}f}"
    return f"{100 * accuracy.mean:.{digits}f} %{std}"


def _format_loss(loss: MeanStd | None) -> str:
    if loss is None:
        return ""
    return f"{loss.mean:.4f}" + ("" if loss.std is None else f" ± {loss.std:.4f}")


def _is_repeated(results: SweepResults) -> bool:
    return results.plan.seeded or results.plan.folds > 0


def _is_tested(results: SweepResults) -> bool:
    return any(point.test for point in results.points)


def _report_links(point: SweepPoint) -> list[tuple[str, str]]:
    """Return (run name, URL of its report) for the runs of a complete point."""
    return [(run.name, f"{RUNS}/{quote(run.name)}/report/index.html") for run in point.runs if point.complete]


def _plot_setting(points: Sequence[SweepPoint], key: str) -> str:
    """Plot validation accuracy over one setting; a line connects points that agree in all other settings."""
    values = _axis_values([point.values[key] for point in points])
    lines: dict[str, MetricLine] = {}
    for point in points:
        others = ", ".join(f"{name}={format_value(value)}" for name, value in point.values.items() if name != key)
        line = lines.setdefault(others, MetricLine(others, {}, is_best=not lines))  # the first point is the best
        assert point.accuracy is not None, "the point is complete"
        line.values[values.index(point.values[key])] = point.accuracy.mean, point.accuracy.std or 0.0
    names = [format_value(value) for value in values]
    return plot_metric_vs_setting(key, names, list(lines.values()), ordered=_are_numbers(values))


def _axis_values(values: Sequence[Any]) -> list[Any]:
    """Return the distinct values in order: numbers ascending, others as text."""
    distinct = list({json.dumps(value): value for value in values}.values())
    return sorted(distinct) if _are_numbers(distinct) else sorted(distinct, key=_sort_key)


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _sort_key(value: Any) -> tuple[int, list[float], str]:
    """Sort lists of numbers by length, then by their numbers."""
    numbers = value if isinstance(value, list) and all(isinstance(part, int | float) for part in value) else []
    return len(numbers), list(numbers), format_value(value)
