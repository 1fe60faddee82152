"""`flaxtl sweep`: the product of grids, seeds and folds, a run each, compared on the validation pictures.

A sweep's directory holds sweep.json (its runs), development.csv and test.csv (its pictures, dealt out once), folds/,
features/ (what frozen layers make of the pictures, computed by the first run that wants it), runs/NAME/ (a run
directory each), logs/, test/, and what they came to: sweep.csv and sweep.html.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console

from flaxtl import files, recipe
from flaxtl.data.manifest import Manifest
from flaxtl.errors import UserError
from flaxtl.results import sweep_grid, sweep_page, sweep_pictures, sweep_shown, sweep_table
from flaxtl.results.sweep_grid import Plan, Run
from flaxtl.results.sweep_process import Processes
from flaxtl.results.sweep_table import Point, Table
from flaxtl.terminal import advancing
from flaxtl.train import lock, pretrained
from flaxtl.train.setup import Network, manifest_of, prepare

PLAN, FEATURES, SHARES = "sweep.json", "features", "shares"


class Recipe(NamedTuple):
    """FILE or FILE:VARIANT, and the overrides of all runs as '--config.key=value'."""

    spec: str
    overrides: Sequence[str]


class Sweep:
    """The runs of one sweep in its directory."""

    def __init__(self, base: Recipe, workdir: Path, plan: Plan, console: Console) -> None:
        """`plan` is of the runs that are asked for now; there may have been others before."""
        self._base, self._workdir, self._console = base, workdir, console
        self._config = recipe.load(base.spec, base.overrides)
        self._now = plan
        self.processes = Processes()
        file = workdir / PLAN
        self.plan = sweep_grid.joined(sweep_grid.read(file), plan, workdir) if file.is_file() else plan

    def begin(self) -> None:
        """Check the recipe of every run, deal out the pictures, and write down what the sweep consists of.

        Nothing is written before all of it is right.
        """
        # The accelerators are for the runs: a process that only looks at them would take their memory, or all of them.
        jax.config.update("jax_platforms", "cpu")
        kept = sweep_pictures.kept(self._workdir)
        manifest = kept or manifest_of(self._config, self._workdir, self._console)
        self._check(sweep_pictures.development(manifest))
        if kept is None:
            near, seed = self._config.data.near_duplicates, self._config.seed
            sweep_pictures.write(self._workdir, manifest, self.plan.folds, seed, near, self._console)
        self.plan.write(self._workdir / PLAN)

    def train(self, runs: Sequence[Run]) -> None:
        """Train those that are not complete, one after the other; one that fails is noted, and the next begins."""
        to_do = self._missing(runs)
        if len(to_do) < len(runs):
            self._say(f"{len(runs) - len(to_do)} of {len(runs)} runs are complete")
        if not to_do:
            return
        self._say(f"what the runs say: {self._workdir / sweep_table.LOGS}")
        with advancing(self._console, "runs", len(to_do)) as advance:
            for run in to_do:
                self._train(run)
                advance(1)

    def end(self) -> bool:
        """Write and print the table; as soon as all runs have ended, judge the chosen point by the test pictures.

        Of several shares of a sweep one does it at a time, so that the last one sees all runs. Returns whether
        nothing failed.
        """
        alone = files.claimed(self._workdir / ".table", wait=True)
        assert alone is not None, "it waited"
        with alone:
            found = self._read()
            judged = found.chosen is None or self._judge(found.chosen)
            found = self._read()
            sweep_table.write_csv(found, self._workdir / "sweep.csv")
            sweep_page.write(found, self._workdir / "sweep.html")
            (self._workdir / ".table").unlink()
        self._console.print(sweep_shown.as_table(found))
        for sentence in sweep_shown.sentences(found):
            self._say(sentence)
        self._say(f"table: {self._workdir / 'sweep.html'}, {self._workdir / 'sweep.csv'}")
        return judged and not found.failures

    def _read(self) -> Table:
        return sweep_table.read(self._workdir, self.plan)

    def _check(self, manifest: Manifest) -> None:
        """Everything that a run checks before it computes, of every point that is not complete.

        Weights are looked at once for each network.
        """
        looked_at: set[tuple[str, str, str]] = set()
        points = {str(run.point): run for run in self._missing(self._now.runs)}
        for run in points.values():
            config = recipe.load(self._base.spec, [*self._base.overrides, *run.settings])
            try:
                setup = prepare(config, self._workdir, manifest)
                self._check_weights(config, setup.network, looked_at)
            except UserError as error:
                raise UserError(f"{run.name}: {error}") from error

    def _missing(self, runs: Sequence[Run]) -> list[Run]:
        return [run for run in runs if sweep_table.result_of(self._workdir, run) is None]

    def _check_weights(self, config: Any, network: Network, looked_at: set[tuple[str, str, str]]) -> None:
        request = str(config.weights.path)
        key = config.model.name, config.model.stop, request
        if request != "random" and key not in looked_at:
            pretrained.load_base(network.model, request, self._say)
        looked_at.add(key)

    def _train(self, run: Run) -> None:
        failed = sweep_table.failure_file(self._workdir, run)
        failed.unlink(missing_ok=True)
        reason = self.processes.run(self._command(run), self._log(run))
        if reason is not None:
            self._say(f"{run.name} failed: {reason}")
        result = sweep_table.result_of(self._workdir, run)
        if result is None:
            files.write_text(failed, reason or "it ended without a result")
        else:
            self._say(f"{run.name}: validation accuracy {result.accuracy:.2%} in {result.seconds:.1f} s")

    def _judge(self, chosen: Point) -> bool:
        """Measure all runs of the chosen point on the test pictures, if there are any; whether that worked."""
        if chosen.test is None and (self._workdir / sweep_pictures.TEST).is_file():
            return all(self._test(run) for run in chosen.runs)
        return True

    def _test(self, run: Run) -> bool:
        file = sweep_table.test_file(self._workdir, run)
        file.parent.mkdir(exist_ok=True)
        part = file.with_name(f".{file.name}")  # takes its name when it is whole
        workdir, data = self._workdir / sweep_table.RUNS / run.name, self._workdir / sweep_pictures.TEST
        command = ["evaluate", f"--workdir={workdir}", f"--data=csv:{data}", "--split=test", f"--json={part}"]
        if (reason := self.processes.run(command, self._log(run))) is not None:
            self._say(f"{run.name} could not be judged by the test pictures: {reason}")
            return False
        part.replace(file)
        return True

    def _command(self, run: Run) -> list[str]:
        own = [
            *run.settings,
            f"--config.data.source={sweep_pictures.source(self._workdir, run.fold)}",
            "--config.data.near_duplicates=-1",  # looked for when the pictures were dealt out
        ]
        if not self._config.features.directory:
            own.append(f"--config.features.directory={self._workdir.resolve() / FEATURES}")
        replaced = {setting.split("=")[0] for setting in own}
        kept = [override for override in self._base.overrides if override.split("=")[0] not in replaced]
        workdir = self._workdir / sweep_table.RUNS / run.name
        return ["train", f"--config={self._base.spec}", f"--workdir={workdir}", *kept, *own]

    def _log(self, run: Run) -> Path:
        return self._workdir / sweep_table.LOGS / f"{run.name}.log"

    def _say(self, sentence: str) -> None:
        self._console.print(sentence, highlight=False, markup=False, soft_wrap=True)


def sweep(base: Recipe, plan: Plan, workdir: Path, points: str | None, console: Console) -> bool:
    """Train the runs of `plan` that are not complete, and write the table; whether nothing failed.

    `points` is the share 'I/N' of the runs that this process trains; without it, all. Raises Stopped where a signal
    ended it, UserError where somebody else is at work on the same share.
    """
    runs = sweep_grid.share_of(points, plan.runs) if points else plan.runs
    with lock.held(workdir / SHARES / points.replace("/", "-of-") if points else workdir):
        made = Sweep(base, workdir, plan, console)
        with made.processes.interruption.listening():
            made.begin()
            made.train(runs)
            return made.end()


def collect(base: Recipe, plan: Plan, workdir: Path, console: Console) -> bool:
    """Write the table of what is there, and train nothing; whether nothing failed."""
    if not (workdir / PLAN).is_file():
        raise UserError(f"{workdir} holds no sweep yet; leave out --collect")
    made = Sweep(base, workdir, plan, console)
    with made.processes.interruption.listening():
        return made.end()
