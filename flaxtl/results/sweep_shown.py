"""The table of a sweep in words, for the console and for the page."""

from collections.abc import Iterator, Sequence

from rich import table as rich_table

from flaxtl.results.formats import count, duration
from flaxtl.results.sweep_grid import text_of
from flaxtl.results.sweep_table import Point, Spread, Table
from flaxtl.terminal import SCREENFUL, screenful, table


def columns(found: Table) -> list[str]:
    """The names of the columns: first the settings of the grids."""
    settings = list(found.plan.keys) or ["point"]
    own = ["validation accuracy", "validation loss", "learning parameters", "time of a run"]
    return [*settings, *own, *(["runs"] if _repeated(found) else []), *(["test accuracy"] if _tested(found) else [])]


def cells(found: Table, point: Point) -> list[str]:
    """A point's cells under `columns`."""
    values = [text_of(point.values[key]) for key in found.plan.keys] or [point.name]
    done, wanted = len(point.results), len(point.runs)
    runs = [str(wanted) if done == wanted else f"{done} of {wanted}"] if _repeated(found) else []
    loss = point.loss
    return [
        *values,
        percent(point.accuracy) or ("failed" if point.failures else "–"),
        f"{loss.mean:.4f}" + (f" ± {loss.deviation:.4f}" if loss.deviation is not None else "") if loss else "",
        count(point.learning),
        duration(point.seconds),
        *runs,
        *([percent(point.test)] if _tested(found) else []),
    ]


def percent(share: Spread | None) -> str:
    """A share as 87.20 %, with its deviation where there is one: 87.20 % ± 0.53; '' for none."""
    if share is None:
        return ""
    told = f"{100 * share.mean:.2f} %"
    return told if share.deviation is None else f"{told} ± {100 * share.deviation:.2f}"


def as_table(found: Table) -> rich_table.Table:
    """The points as a table on the console; of very many the best."""
    rows: Sequence[Sequence[str]] = [cells(found, point) for point in found.points]
    return table("Points, the best on validation first", columns(found), screenful(rows, " in sweep.csv"))


def sentences(found: Table) -> Iterator[str]:
    """What there is to say below the table: what is missing, what failed, what was chosen."""
    if _repeated(found):
        yield "±: sample standard deviation over the runs of a point"
    if found.missing:
        yield f"{found.missing} run(s) still to come: the same flaxtl sweep trains them"
    for name, reason in list(found.failures.items())[:SCREENFUL]:
        yield f"{name} failed: {reason}"
    if found.chosen:
        yield f"chosen by validation: {found.chosen.name}"
    if found.chosen and found.chosen.test:
        yield f"its accuracy on the test pictures, which nothing was chosen by: {percent(found.chosen.test)}"


def _repeated(found: Table) -> bool:
    return found.plan.seeded or found.plan.folds > 0


def _tested(found: Table) -> bool:
    return any(point.test for point in found.points)
