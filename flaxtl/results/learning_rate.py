"""`flaxtl lr`: the loss of a phase's first steps while the learning rate grows, and the rate that it suggests.

What is found lies in WORKDIR/learning_rate/, a table PHASE.csv and a page PHASE.html; nothing else there is changed,
but that features and decoded pictures, which the next flaxtl train would compute, are kept for it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from rich import table as rich_table
from rich.console import Console

from flaxtl import csv_rows
from flaxtl.files import whole
from flaxtl.recipe import TOP
from flaxtl.results import rate_suggestions
from flaxtl.results.formats import rate as written
from flaxtl.results.formats import two_digits
from flaxtl.results.rate_suggestions import Suggestion
from flaxtl.terminal import advancing, table
from flaxtl.train import compiled, lock, mesh, rundir
from flaxtl.train.inputs import tidy
from flaxtl.train.interruption import Interruption
from flaxtl.train.phase_start import PhaseStart, open_phase
from flaxtl.train.range_test import Curve, Point, Rates, range_test

FOLDER = "learning_rate"


class Found(NamedTuple):
    """What a range test found of a phase.

    `shares` are the rates of the groups that learn by their name in the recipe, as shares of the fastest.
    """

    phase: str
    rates: Rates
    curve: Curve
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
        rates = {group: two_digits(self.proposed * share) for group, share in self.shares.items()}
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


def find(config: Any, workdir: Path, phase: str | None, rates: Rates, console: Console) -> tuple[Found, Path]:
    """Test a phase of the recipe, its first one without a name; returns what was found and the page.

    Raises UserError for what `open_phase` and `Rates` refuse, and where somebody else is at work in `workdir`.
    """
    rates.check()
    compiled.keep()
    if config.deterministic:
        mesh.make_deterministic()
    with lock.held(workdir), Interruption().listening():
        start = open_phase(config, workdir, phase, console)
        found = _test(start, rates, console)
        page = _write(found, workdir / FOLDER, start)
        if rundir.summary(workdir).get("complete"):  # no flaxtl train will want them
            tidy(start.material.setup)
    return found, page


def _test(start: PhaseStart, rates: Rates, console: Console) -> Found:
    config, phase = start.material.setup.config, start.phase
    with advancing(console, f"{phase.name}: steps", rates.steps) as advance:
        curve = range_test(start.material, phase, start.parameters, rates, advance)
    own = phase.split.rates
    fastest = max(own.values())
    shares = {group if group in config[phase.name].lr else TOP: own[group] / fastest for group in own if own[group]}
    return Found(phase.name, rates, curve, shares, rate_suggestions.suggestions(curve))


def _write(found: Found, folder: Path, start: PhaseStart) -> Path:
    from flaxtl.results import learning_rate_page

    folder.mkdir(exist_ok=True)
    name = quote(found.phase, safe=" ")
    with whole(folder / f"{name}.csv", newline="") as stream:
        csv_rows.write(stream, [Point._fields, *found.curve.points])
    page = folder / f"{name}.html"
    with whole(page) as stream:
        stream.write(learning_rate_page.render(found, start.material.setup.config))
    return page


def as_table(found: Found) -> rich_table.Table:
    """The suggestions as a table on the console."""
    cells = [(each.name, written(each.rate), each.reason) for each in found.suggestions]
    return table(f"Learning rates for {found.phase}", ("rule", "rate", "what it is"), cells)
