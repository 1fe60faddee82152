"""One command of a sweep at a time, as a process of its own: what befalls it ends no other.

A run that fails, even where the system kills it for its memory, is one failed run; and each begins with the whole of
the accelerator's memory.
"""

import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console

from flaxtl import fileio
from flaxtl.config import load_config
from flaxtl.console import progress_bar
from flaxtl.data import split_writer
from flaxtl.data.manifest import Manifest
from flaxtl.data.sources.image_folder import DatasetIndex, SourceImage
from flaxtl.errors import UserError
from flaxtl.pretrained import backbone
from flaxtl.train import run_dir
from flaxtl.train.setup import ModelInfo, build_manifest, build_setup
from flaxtl.train.signals import GRACE_SECONDS, SIGNALS, StopRequested, StopSignal, exit_code
from flaxtl.tuning import sweep_grid, sweep_report, sweep_results
from flaxtl.tuning.sweep_grid import SweepPlan, SweepRun
from flaxtl.tuning.sweep_results import SweepPoint, SweepResults

PROGRAM = (sys.executable, "-m", "flaxtl")

PATIENCE_SECONDS = GRACE_SECONDS + 5
"""For a process that was told to end: it has its own grace, which begins a moment later."""


class SweepProcesses:
    """Starts commands, and passes on to the one at work that it shall end."""

    def __init__(self) -> None:
        """Nothing is at work yet. `interruption` is to be listened to around all commands."""
        self.interruption = StopSignal(self._tell, PATIENCE_SECONDS)
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, arguments: Sequence[str], log: Path) -> str | None:
        """Run `flaxtl ARGUMENTS`, adding what it says to the file `log`; returns why it failed, or None.

        Raises Stopped where a signal ended it, which was sent to this process or to that one.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as said:
            start = said.tell()
            code = self._code([*PROGRAM, *arguments], said.fileno())
        if code:
            _stop_if_told(code)
        return _reason(code, log, start) if code else None

    def _code(self, command: Sequence[str], output: int) -> int:
        """In a session of its own, so that Ctrl-C reaches it once, through this process."""
        with self.interruption.deferred():
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                if self.interruption.requested:  # before there was a process to tell
                    self._tell()
                code = self._process.wait()
            except StopRequested:  # asked a second time: it shall not finish its step either
                self._tell()
                self._process.wait()
                raise
            finally:
                self._process = None
        if self.interruption.requested:
            self.interruption.stop()
        return code

    def _tell(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)


def _stop_if_told(code: int) -> None:
    """Somebody told the process itself to end, as a cluster does that signals all of a job's processes."""
    for number in SIGNALS:
        if code in (exit_code(number), -number):
            raise StopRequested(number)


def _reason(code: int, log: Path, start: int) -> str:
    """The sentence that the process ended with, without 'flaxtl: ', or its exit code."""
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").splitlines()
    sentences = [line.removeprefix("flaxtl: ") for line in lines if line.startswith("flaxtl: ")]
    if sentences:
        return sentences[-1]
    ended = f"it was killed by {signal.Signals(-code).name}" if code < 0 else f"it ended with exit code {code}"
    return f"{ended}; {log} holds what it said"


DEVELOPMENT, TEST, FOLDS = "development.csv", "test.csv", "folds"
"""Files of a sweep's directory, which are csv: sources, and the folder of fold-1.csv, fold-2.csv, ..."""


def kept_images(workdir: Path) -> Manifest | None:
    """The development images that were written here before."""
    file = workdir / DEVELOPMENT
    return Manifest.read(file) if file.is_file() else None


def development_images(manifest: Manifest) -> Manifest:
    """All but the test images."""
    return Manifest(manifest.classes, tuple(example for example in manifest.examples if example.split != "test"))


def write_fold_lists(
    workdir: Path, manifest: Manifest, folds: int, seed: int, near_duplicates: int, console: Console
) -> None:
    """Write the lists; that of development, the sign that the others are there, last.

    Of `folds`, if there are any, each deals the development images out to training and validation: stratified, and
    images that differ in at most `near_duplicates` bits together. Raises UserError where a class is too small.
    """
    learned_from = development_images(manifest)
    if folds and not (workdir / FOLDS).is_dir():
        _write_folds(workdir, learned_from, folds, seed, near_duplicates, console)
    if "test" in manifest.splits:
        Manifest(manifest.classes, manifest.of_split("test")).write(workdir / TEST)
    learned_from.write(workdir / DEVELOPMENT)


def fold_source(workdir: Path, fold: int) -> str:
    """The source of a run; `fold` counts from 1, 0 without folds."""
    return f"csv:{workdir.resolve() / (f'{FOLDS}/fold-{fold}.csv' if fold else DEVELOPMENT)}"


def _write_folds(workdir: Path, images: Manifest, k: int, seed: int, near_duplicates: int, console: Console) -> None:
    found = tuple(SourceImage(Path(example.path), example.label, None, example.sha256) for example in images.examples)
    with progress_bar(console, f"dealing out {k} folds", len(found)) as advance:
        split_writer.write_folds(
            DatasetIndex(found, str(workdir / DEVELOPMENT)),
            workdir / FOLDS,
            k,
            seed,
            near_duplicates=near_duplicates,
            notify=partial(console.print, highlight=False, markup=False, soft_wrap=True),
            on_progress=lambda done: advance(1),
        )


PLAN, FEATURES, SHARES = "sweep.json", "features", "shares"


class SweepConfig(NamedTuple):
    """FILE or FILE:VARIANT, and the overrides of all runs as '--config.key=value'."""

    spec: str
    overrides: Sequence[str]


class Sweep:
    """The runs of one sweep in its directory."""

    def __init__(self, base: SweepConfig, workdir: Path, plan: SweepPlan, console: Console) -> None:
        """`plan` is of the runs that are asked for now; there may have been others before."""
        self._base, self._workdir, self._console = base, workdir, console
        self._config = load_config(base.spec, base.overrides)
        self._now = plan
        self.processes = SweepProcesses()
        file = workdir / PLAN
        self.plan = sweep_grid.merge_plans(sweep_grid.read_plan(file), plan, workdir) if file.is_file() else plan

    def begin(self) -> None:
        """Check the config of every run, deal out the images, and write down what the sweep consists of.

        Nothing is written before all of it is right.
        """
        # The accelerators are for the runs: a process that only looks at them would take their memory, or all of them.
        jax.config.update("jax_platforms", "cpu")
        kept = kept_images(self._workdir)
        manifest = kept or build_manifest(self._config, self._workdir, self._console)
        self._check(development_images(manifest))
        if kept is None:
            near, seed = self._config.data.near_duplicates, self._config.seed
            write_fold_lists(self._workdir, manifest, self.plan.folds, seed, near, self._console)
        self.plan.write(self._workdir / PLAN)

    def train(self, runs: Sequence[SweepRun]) -> None:
        """Train those that are not complete, one after the other; one that fails is noted, and the next begins."""
        to_do = self._missing(runs)
        if len(to_do) < len(runs):
            self._say(f"{len(runs) - len(to_do)} of {len(runs)} runs are complete")
        if not to_do:
            return
        self._say(f"what the runs say: {self._workdir / sweep_results.LOGS}")
        with progress_bar(self._console, "runs", len(to_do)) as advance:
            for run in to_do:
                self._train(run)
                advance(1)

    def end(self) -> bool:
        """Write and print the table; as soon as all runs have ended, judge the chosen point by the test images.

        Of several shares of a sweep one does it at a time, so that the last one sees all runs. Returns whether
        nothing failed.
        """
        alone = fileio.file_lock(self._workdir / ".table", wait=True)
        assert alone is not None, "it waited"
        with alone:
            found = self._read()
            judged = found.chosen is None or self._judge(found.chosen)
            found = self._read()
            sweep_results.write_results_csv(found, self._workdir / "sweep.csv")
            sweep_report.write_sweep_report(found, self._workdir / "sweep.html")
            (self._workdir / ".table").unlink()
        self._console.print(sweep_report.results_table(found))
        for sentence in sweep_report.result_sentences(found):
            self._say(sentence)
        self._say(f"table: {self._workdir / 'sweep.html'}, {self._workdir / 'sweep.csv'}")
        return judged and not found.failures

    def _read(self) -> SweepResults:
        return sweep_results.read_results(self._workdir, self.plan)

    def _check(self, manifest: Manifest) -> None:
        """Everything that a run checks before it computes, of every point that is not complete.

        Weights are looked at once for each network.
        """
        looked_at: set[tuple[str, str, str]] = set()
        points = {str(run.point): run for run in self._missing(self._now.runs)}
        for run in points.values():
            config = load_config(self._base.spec, [*self._base.overrides, *run.settings])
            try:
                setup = build_setup(config, self._workdir, manifest)
                self._check_weights(config, setup.model_info, looked_at)
            except UserError as error:
                raise UserError(f"{run.name}: {error}") from error

    def _missing(self, runs: Sequence[SweepRun]) -> list[SweepRun]:
        return [run for run in runs if sweep_results.result_of(self._workdir, run) is None]

    def _check_weights(self, config: Any, network: ModelInfo, looked_at: set[tuple[str, str, str]]) -> None:
        request = str(config.weights.path)
        key = config.model.name, config.model.output_layer, request
        if request != "random" and key not in looked_at:
            backbone.load_backbone(network.model, request, self._say)
        looked_at.add(key)

    def _train(self, run: SweepRun) -> None:
        failed = sweep_results.failure_file(self._workdir, run)
        failed.unlink(missing_ok=True)
        reason = self.processes.run(self._command(run), self._log(run))
        if reason is not None:
            self._say(f"{run.name} failed: {reason}")
        result = sweep_results.result_of(self._workdir, run)
        if result is None:
            fileio.atomic_write_text(failed, reason or "it ended without a result")
        else:
            self._say(f"{run.name}: validation accuracy {result.accuracy:.2%} in {result.seconds:.1f} s")

    def _judge(self, chosen: SweepPoint) -> bool:
        """Measure all runs of the chosen point on the test images, if there are any; whether that worked."""
        if chosen.test is None and (self._workdir / TEST).is_file():
            return all(self._test(run) for run in chosen.runs)
        return True

    def _test(self, run: SweepRun) -> bool:
        file = sweep_results.test_file(self._workdir, run)
        file.parent.mkdir(exist_ok=True)
        part = file.with_name(f".{file.name}")  # takes its name when it is whole
        workdir, data = self._workdir / sweep_results.RUNS / run.name, self._workdir / TEST
        command = ["evaluate", f"--workdir={workdir}", f"--data=csv:{data}", "--split=test", f"--json={part}"]
        if (reason := self.processes.run(command, self._log(run))) is not None:
            self._say(f"{run.name} could not be judged by the test images: {reason}")
            return False
        part.replace(file)
        return True

    def _command(self, run: SweepRun) -> list[str]:
        own = [
            *run.settings,
            f"--config.data.source={fold_source(self._workdir, run.fold)}",
            "--config.data.near_duplicates=-1",  # looked for when the images were dealt out
        ]
        if not self._config.feature_cache.dir:
            own.append(f"--config.feature_cache.dir={self._workdir.resolve() / FEATURES}")
        replaced = {setting.split("=")[0] for setting in own}
        kept = [override for override in self._base.overrides if override.split("=")[0] not in replaced]
        workdir = self._workdir / sweep_results.RUNS / run.name
        return ["train", f"--config={self._base.spec}", f"--workdir={workdir}", *kept, *own]

    def _log(self, run: SweepRun) -> Path:
        return self._workdir / sweep_results.LOGS / f"{run.name}.log"

    def _say(self, sentence: str) -> None:
        self._console.print(sentence, highlight=False, markup=False, soft_wrap=True)


def run_sweep(base: SweepConfig, plan: SweepPlan, workdir: Path, points: str | None, console: Console) -> bool:
    """Train the runs of `plan` that are not complete, and write the table; whether nothing failed.

    `points` is the share 'I/N' of the runs that this process trains; without it, all. Raises Stopped where a signal
    ended it, UserError where somebody else is at work on the same share.
    """
    runs = sweep_grid.shard_runs(points, plan.runs) if points else plan.runs
    with run_dir.run_dir_lock(workdir / SHARES / points.replace("/", "-of-") if points else workdir):
        made = Sweep(base, workdir, plan, console)
        with made.processes.interruption.listening():
            made.begin()
            made.train(runs)
            return made.end()


def collect_sweep(base: SweepConfig, plan: SweepPlan, workdir: Path, console: Console) -> bool:
    """Write the table of what is there, and train nothing; whether nothing failed."""
    if not (workdir / PLAN).is_file():
        raise UserError(f"{workdir} holds no sweep yet; leave out --collect")
    made = Sweep(base, workdir, plan, console)
    with made.processes.interruption.listening():
        return made.end()
