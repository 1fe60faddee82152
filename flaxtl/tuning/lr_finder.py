"""Which learning rates the curve of a range test suggests, by the rules of fastai's lr_find."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from markupsafe import Markup
from rich import table as rich_table
from rich.console import Console

from flaxtl import fileio
from flaxtl.config import TOP_GROUP
from flaxtl.console import make_table, progress_bar
from flaxtl.errors import join_names
from flaxtl.fileio import atomic_write
from flaxtl.parallel import devices
from flaxtl.report import plots
from flaxtl.report.templating import format_lr, load_template, round_lr
from flaxtl.report.templating import format_lr as written
from flaxtl.train import run_dir
from flaxtl.train.datasets import remove_intermediate_files
from flaxtl.train.lr_range_test import LrCurve, LrPoint, LrRange, PhaseStart, load_phase_start, range_test
from flaxtl.train.signals import StopSignal

FEWEST_POINTS = 5
"""Of a curve that can be read at all."""


class Suggestion(NamedTuple):
    """A rate, in two digits, the name of the rule that suggests it, and what it is."""

    name: str
    rate: float
    reason: str


def suggestions(curve: LrCurve) -> tuple[Suggestion, ...]:
    """What the rules make of the curve; the rate to be proposed first, none if no loss fell."""
    settled = curve.settled
    if curve.diverged:
        settled = settled[:-1]  # its loss may be no number
    if len(settled) < FEWEST_POINTS or min(settled, key=_smoothed) is settled[0]:
        return ()
    found = (
        ("valley", settled[_valley(settled)].rate, "half-way down the longest descent of the loss"),
        ("steepest", settled[_steepest(settled)].rate, "where the loss falls fastest"),
        ("lowest / 10", min(settled, key=_smoothed).rate / 10, "a tenth of the rate with the lowest loss"),
    )
    return tuple(Suggestion(name, round_lr(rate), reason) for name, rate, reason in found)


def _smoothed(point: LrPoint) -> float:
    return point.smoothed


def _steepest(points: Sequence[LrPoint]) -> int:
    """Before the largest drop; rates are evenly spaced on a logarithmic axis."""
    return int(np.argmin(np.diff([point.smoothed for point in points])))


def _valley(points: Sequence[LrPoint]) -> int:
    """Half the length of the longest falling subsequence before its end, which noise breaks less than a run."""
    end, length = _longest_descent([point.smoothed for point in points])
    return end - length // 2


def _longest_descent(values: Sequence[float]) -> tuple[int, int]:
    """Where the first of the longest strictly falling subsequences ends, and how many values it has."""
    lasts: list[float] = []  # negated: the highest value that a descent of each length can end with
    end = 0
    for place, value in enumerate(values):
        length = bisect_left(lasts, -value)
        if length == len(lasts):
            end = place
        lasts[length : length + 1] = [-value]
    return end, len(lasts)


def render_lr_page(found: "LrSuggestions", config: Any) -> str:
    """The page as text."""
    points = found.curve.points
    image = plots.plot_lr_curve(points, found.curve.unsettled, found.proposed)
    facts = {
        "learns": join_names(found.shares),
        "optimizer": config.optimizer.name,
        "images a step": f"{config.batch_size:,}",
        "steps": f"{len(points):,} of {found.rates.steps:,}",
        "rates from": format_lr(found.rates.lowest),
        "to": format_lr(round_lr(points[-1].rate)),
    }
    return load_template("learning_rate.html.jinja").render(found=found, image=Markup(image), facts=facts)


FOLDER_NAME = "learning_rate"


class LrSuggestions(NamedTuple):
    """What a range test found of a phase.

    `shares` are the rates of the groups that learn by their name in the config, as shares of the fastest.
    """

    phase: str
    rates: LrRange
    curve: LrCurve
    shares: Mapping[str, float]
    suggestions: tuple[Suggestion, ...]

    @property
    def proposed(self) -> float | None:
        """The one rate to begin with, of the fastest group; None if no loss ever fell."""
        return self.suggestions[0].rate if self.suggestions else None

    @property
    def options(self) -> str:
        """What sets the proposed rate on the command line."""
        assert self.proposed is not None, "there is a proposal"
        rates = {group: round_lr(self.proposed * share) for group, share in self.shares.items()}
        return " ".join(f"--config.{self.phase}.lr.{group}={written(rate)}" for group, rate in rates.items())

    @property
    def remark(self) -> str:
        """One sentence on how far the curve may be believed; '' where it speaks for itself."""
        if self.proposed is None and self.curve.diverged:
            return "the loss ran away before it fell; a lower --lowest may show where it does"
        if self.proposed is None:
            return "the loss never fell; a higher --highest may show where it does"
        if min(self.curve.settled, key=lambda point: point.smoothed) is self.curve.points[-1]:
            return "the loss still falls at the highest rate; a higher --highest shows where it turns"
        return ""


def find_learning_rate(
    config: Any, workdir: Path, phase: str | None, rates: LrRange, console: Console
) -> tuple[LrSuggestions, Path]:
    """Test a phase of the config, its first one without a name; returns what was found and the page.

    Raises UserError for what `open_phase` and `Rates` refuse, and where somebody else is at work in `workdir`.
    """
    rates.check()
    devices.enable_compilation_cache()
    if config.deterministic:
        devices.make_deterministic()
    with run_dir.run_dir_lock(workdir), StopSignal().listening():
        start = load_phase_start(config, workdir, phase, console)
        found = _run_range_test(start, rates, console)
        page = _write_results(found, workdir / FOLDER_NAME, start)
        if run_dir.read_summary(workdir).get("complete"):  # no flaxtl train will want them
            remove_intermediate_files(start.material.setup)
    return found, page


def _run_range_test(start: PhaseStart, rates: LrRange, console: Console) -> LrSuggestions:
    config, phase = start.material.setup.config, start.phase
    with progress_bar(console, f"{phase.name}: steps", rates.steps) as advance:
        curve = range_test(start.material, phase, start.parameters, rates, advance)
    own = phase.param_groups.lrs
    fastest = max(own.values())
    shares = {
        group if group in config[phase.name].lr else TOP_GROUP: own[group] / fastest for group in own if own[group]
    }
    return LrSuggestions(phase.name, rates, curve, shares, suggestions(curve))


def _write_results(found: LrSuggestions, folder: Path, start: PhaseStart) -> Path:

    folder.mkdir(exist_ok=True)
    name = quote(found.phase, safe=" ")
    with atomic_write(folder / f"{name}.csv", newline="") as stream:
        fileio.write_csv(stream, [LrPoint._fields, *found.curve.points])
    page = folder / f"{name}.html"
    with atomic_write(page) as stream:
        stream.write(render_lr_page(found, start.material.setup.config))
    return page


def suggestions_table(found: LrSuggestions) -> rich_table.Table:
    """The suggestions as a table on the console."""
    cells = [(each.name, written(each.rate), each.reason) for each in found.suggestions]
    return make_table(f"Learning rates for {found.phase}", ("rule", "rate", "what it is"), cells)
