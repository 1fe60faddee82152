"""Sweeps: train each run of a plan in its own process, and compare the runs on the validation images.

The directory of a sweep holds:

    sweep.json            the plan: all runs
    development.csv       the images that runs train and validate on; folds/fold-K.csv splits them for cross-validation
    test.csv              the test images; only the best point is evaluated on them, after all runs have ended
    features/             cached features, shared by all runs
    runs/NAME/            run directories; logs/NAME.log has their output, logs/NAME.failed why a run failed
    test/NAME.json        metrics on the test images
    sweep.csv, sweep.html the results
"""

import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console

from flaxtl import fileio
from flaxtl.config import load_config
from flaxtl.console import message, progress_bar
from flaxtl.data.manifest import Manifest
from flaxtl.errors import UserError, join_names
from flaxtl.models.classifier import Classifier
from flaxtl.pretrained.backbone import load_backbone
from flaxtl.train.rounding import rounded_accuracy
from flaxtl.train.run_dir import LOCK_NAME, run_dir_lock
from flaxtl.train.setup import build_manifest, build_setup, check_config
from flaxtl.train.signals import GRACE_SECONDS, SIGNALS, StopRequested, StopSignal, exit_code
from flaxtl.tuning import sweep_results
from flaxtl.tuning.sweep_grid import SweepPlan, SweepRun, keep_run_names, merge_plans, read_plan, shard_runs
from flaxtl.tuning.sweep_images import (
    DEVELOPMENT_NAME,
    TEST_NAME,
    image_list_source,
    read_development_images,
    without_test_images,
    write_image_lists,
)
from flaxtl.tuning.sweep_report import result_messages, results_table, write_sweep_report
from flaxtl.tuning.sweep_results import SweepPoint, SweepResults, read_results, write_results_csv

PLAN_NAME, TABLE_NAME, PAGE_NAME = "sweep.json", "sweep.csv", "sweep.html"

FEATURES, SHARD_LOCKS = "features", "shards"
"""Folders of a sweep: cached features, and a lock for each shard that is being trained."""

FLAXTL = (sys.executable, "-m", "flaxtl")

STOP_SECONDS = GRACE_SECONDS + 5
"""Time that a run has to stop: longer than its own grace period, which starts a moment later."""


class SweepConfig(NamedTuple):
    """The config of a sweep, as `load_config` takes it, and the '--config.key=value' overrides of all runs."""

    spec: str
    overrides: Sequence[str]


def run_sweep(base: SweepConfig, plan: SweepPlan, workdir: Path, shard: str | None, console: Console) -> bool:
    """Train the runs of a plan that are not complete, and write the results.

    Args:
      base: the config.
      plan: the requested runs; the directory may hold more of the same sweep.
      workdir: directory of the sweep.
      shard: 'I/N' to train only this part of the runs; None for all.
      console: shows progress and results.

    Returns:
      Whether no run has failed.

    Raises:
      UserError: the config of a run is invalid, or another process trains the same shard.
      StopRequested: a signal stopped the sweep.
    """
    _check_unused(workdir)
    plan = _with_earlier_names(plan, workdir)
    runs = shard_runs(shard, plan.runs) if shard else plan.runs
    with run_dir_lock(workdir / SHARD_LOCKS / shard.replace("/", "-of-") if shard else workdir):
        sweep = Sweep(base, workdir, plan, console)
        with sweep.processes.stop_signal.listening():
            sweep.prepare()
            trained = sweep.train(runs)
            return sweep.finish() and trained


def collect_sweep(base: SweepConfig, plan: SweepPlan, workdir: Path, console: Console) -> bool:
    """Write the results of the runs that are complete; train nothing. Returns whether no run has failed."""
    if not (workdir / PLAN_NAME).is_file():
        raise UserError(f"{workdir} does not contain a sweep yet. Omit --collect.")
    sweep = Sweep(base, workdir, _with_earlier_names(plan, workdir), console)
    with sweep.processes.stop_signal.listening():
        return sweep.finish()


def _check_unused(workdir: Path) -> None:
    """Raise UserError if a new sweep in `workdir` would overwrite files, or read a list of images that is another's."""
    if (workdir / PLAN_NAME).is_file():
        return
    names = [name for name in (DEVELOPMENT_NAME, TEST_NAME, TABLE_NAME, PAGE_NAME) if (workdir / name).exists()]
    if foreign := [name for name in names if not _is_manifest(workdir / name)]:  # manifests precede the plan
        raise UserError(
            f"{workdir} is not a sweep, but has {join_names(foreign)}, which a sweep would overwrite. "
            "Use another --workdir."
        )


def _is_manifest(file: Path) -> bool:
    try:
        Manifest.read(file)
    except UserError:
        return False
    return True


def _with_earlier_names(plan: SweepPlan, workdir: Path) -> SweepPlan:
    """Return the plan with the run names of the sweep in `workdir`, if there is one."""
    file = workdir / PLAN_NAME
    return keep_run_names(plan, read_plan(file)) if file.is_file() else plan


class Sweep:
    """The runs of one sweep in its directory."""

    def __init__(self, base: SweepConfig, workdir: Path, plan: SweepPlan, console: Console) -> None:
        """Load the config. Arguments as for `run_sweep`."""
        self._base, self._workdir, self._console = base, workdir, console
        self._config = load_config(base.spec, base.overrides)
        self._requested = plan
        self.processes = SweepProcesses()

    @property
    def plan(self) -> SweepPlan:
        """The requested runs, added to those of other calls: another process may add some at any time.

        Raises:
          UserError: they are of another sweep.
        """
        file = self._workdir / PLAN_NAME
        return merge_plans(read_plan(file), self._requested, self._workdir) if file.is_file() else self._requested

    def prepare(self) -> None:
        """Check every config with the images; then write the lists of images and the plan.

        A new sweep reads all images first, which may take minutes, so every config is checked before that without them.
        Shards that are started at once do this one after the other, so that all have the same lists and plan.
        """
        # Accelerators are for the runs: a process that only looks at them would allocate their memory.
        jax.config.update("jax_platforms", "cpu")
        waiting = "Another process prepares the sweep; waiting for it."
        with fileio.exclusive_lock(self._workdir / ".preparation", lambda: self._notify(waiting)):
            plan = self.plan
            development = read_development_images(self._workdir)
            if development is None:
                self._check_configs(check_config)
            manifest = development or build_manifest(self._config, self._workdir, self._console)
            development_images, checked_weights = without_test_images(manifest), set[tuple[str, ...]]()

            def check_start(config: Any) -> None:
                setup = build_setup(config, self._workdir, development_images)
                self._check_weights(config, setup.model_info.model, checked_weights)

            self._check_configs(check_start)
            if development is None:
                near_duplicates, seed = self._config.data.near_duplicates, self._config.seed
                write_image_lists(self._workdir, manifest, plan.folds, seed, near_duplicates, self._console)
            plan.write(self._workdir / PLAN_NAME)

    def train(self, runs: Sequence[SweepRun]) -> bool:
        """Train the runs that are not complete, one after the other. A failed run does not end the sweep.

        Returns:
          Whether none has failed. One that fails after its evaluation, as its report is written, has a result.
        """
        incomplete = self._incomplete(runs)
        if len(incomplete) < len(runs):
            self._notify(f"{len(runs) - len(incomplete)} of {len(runs)} runs are complete")
        if not incomplete:
            return True
        self._notify(f"Logs of the runs: {self._workdir / sweep_results.LOGS}")
        with progress_bar(self._console, "Training runs", len(incomplete)) as advance:
            succeeded = True
            for run in incomplete:
                succeeded &= self._train(run)
                advance(1)
        return succeeded

    def finish(self) -> bool:
        """Write and print the results. Once all runs have ended, evaluate the best point on the test images.

        If several shards are trained at once, one at a time does this, so that the last one sees all runs.

        Returns:
          Whether nothing has failed.
        """
        with fileio.exclusive_lock(self._workdir / ".table"):
            results = self._read_results()
            evaluated = results.best is None or self._evaluate(results.best)
            results = self._read_results()
            write_results_csv(results, self._workdir / TABLE_NAME)
            write_sweep_report(results, self._workdir / PAGE_NAME)
        self._console.print(results_table(results))
        for text in result_messages(results):
            self._notify(text)
        self._notify(f"results: {self._workdir / PAGE_NAME}, {self._workdir / TABLE_NAME}")
        return evaluated and not results.failures

    def _read_results(self) -> SweepResults:
        return read_results(self._workdir, self.plan)

    def _check_configs(self, check: Callable[[Any], None]) -> None:
        """Call `check` with the config of every incomplete point; its error names the run."""
        runs = {str(run.point): run for run in self._incomplete(self._requested.runs)}
        for run in runs.values():
            config = load_config(self._base.spec, [*self._base.overrides, *run.overrides])
            try:
                check(config)
            except UserError as error:
                raise UserError(f"{run.name}: {error}") from error

    def _incomplete(self, runs: Sequence[SweepRun]) -> list[SweepRun]:
        return [run for run in runs if sweep_results.read_outcome(self._workdir, run) is None]

    def _check_weights(self, config: Any, model: Classifier, checked: set[tuple[str, ...]]) -> None:
        path, skip_layers = config.weights.path, config.weights.skip_layers
        key = config.model.name, config.model.output_layer, path, skip_layers
        if path != "random" and key not in checked:
            load_backbone(model, path, self._notify, skip_layers=skip_layers)
        checked.add(key)

    def _train(self, run: SweepRun) -> bool:
        """Train one run in its own process; report its accuracy, or why it failed. Returns whether it has not."""
        self._wait_for_other_process(run)
        failure_file = sweep_results.failure_file(self._workdir, run)
        failure_file.unlink(missing_ok=True)
        failure = self.processes.run(self._train_arguments(run), self._log(run))
        if failure is not None:
            self._notify(f"{run.name} failed: {failure}")
        outcome = sweep_results.read_outcome(self._workdir, run)
        if outcome is None:
            fileio.atomic_write_text(failure_file, failure or "it ended without a result")
        else:
            accuracy = rounded_accuracy(outcome.accuracy, outcome.num_images)
            self._notify(f"{run.name}: validation accuracy {accuracy} in {outcome.seconds:.1f} s")
        return failure is None

    def _wait_for_other_process(self, run: SweepRun) -> None:
        """Wait until no other process trains a run: that of a sweep which was killed goes on to its end."""
        waiting = f"{run.name} is trained by another process; waiting for it."
        with (
            suppress(FileNotFoundError),  # nobody has begun it, or whoever did has removed its empty folder
            fileio.exclusive_lock(self._run_dir(run) / LOCK_NAME, lambda: self._notify(waiting)),
        ):
            pass

    def _train_arguments(self, run: SweepRun) -> list[str]:
        own_overrides = [
            *run.overrides,
            f"--config.data.source={image_list_source(self._workdir, run.fold)}",
            "--config.data.near_duplicates=-1",  # the lists keep near-duplicates together already
        ]
        if not self._config.feature_cache.dir:
            own_overrides.append(f"--config.feature_cache.dir={self._workdir.resolve() / FEATURES}")
        replaced = {override.split("=")[0] for override in own_overrides}
        shared_overrides = [override for override in self._base.overrides if override.split("=")[0] not in replaced]
        workdir = self._run_dir(run)
        return ["train", f"--config={self._base.spec}", f"--workdir={workdir}", *shared_overrides, *own_overrides]

    def _evaluate(self, point: SweepPoint) -> bool:
        """Evaluate all runs of a point on the test images, if there are any; returns whether that worked."""
        if point.test is None and (self._workdir / TEST_NAME).is_file():
            return all(self._evaluate_run(run) for run in point.runs)
        return True

    def _evaluate_run(self, run: SweepRun) -> bool:
        file = sweep_results.test_file(self._workdir, run)
        file.parent.mkdir(exist_ok=True)
        workdir, test_list = self._run_dir(run), self._workdir / TEST_NAME
        arguments = [f"--workdir={workdir}", f"--data=csv:{test_list}", "--split=test", f"--json={file}"]
        if (failure := self.processes.run(["evaluate", *arguments], self._log(run))) is not None:
            self._notify(f"{run.name} could not be evaluated on the test images: {failure}")
            return False
        return True

    def _run_dir(self, run: SweepRun) -> Path:
        return self._workdir / sweep_results.RUNS / run.name

    def _log(self, run: SweepRun) -> Path:
        return self._workdir / sweep_results.LOGS / f"{run.name}.log"

    def _notify(self, text: str) -> None:
        message(self._console, text)


class SweepProcesses:
    """Runs one flaxtl command at a time in its own process, and forwards signals to it.

    A run that fails, even if the system kills it for its memory, does not affect others; and each run starts with all
    of the accelerator's memory.
    """

    def __init__(self) -> None:
        """`stop_signal` must be listening around all calls of `run`."""
        self.stop_signal = StopSignal(self._terminate, STOP_SECONDS)
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, arguments: Sequence[str], log: Path) -> str | None:
        """Run `flaxtl ARGUMENTS` and append its output to the file `log`.

        Returns:
          Why it failed; None if it succeeded.

        Raises:
          StopRequested: a signal stopped this process or that one.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            start = output.tell()
            code = self._wait([*FLAXTL, *arguments], output.fileno())
        if not code:
            return None
        for number in SIGNALS:  # a cluster may signal all processes of a job
            if code in (exit_code(number), -number):
                raise StopRequested(SIGNALS[number])
        return _failure(code, log, start)

    def _wait(self, command: Sequence[str], output: int) -> int:
        """Return the exit code. The process has its own session, so that Ctrl-C reaches it once, through this one."""
        with self.stop_signal.deferred():
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                if self.stop_signal.requested:  # before the process existed
                    self._terminate()
                code = self._process.wait()
            except StopRequested:  # a second signal: do not wait for the end of the step
                self._terminate()
                self._process.wait()
                raise
            finally:
                self._process = None
        if self.stop_signal.requested:
            self.stop_signal.stop()
        return code

    def _terminate(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)


def _failure(code: int, log: Path, start: int) -> str:
    """Return the error message of a process, without 'flaxtl: ', or how it ended; its log begins at byte `start`."""
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").splitlines()
    messages = [line.removeprefix("flaxtl: ") for line in lines if line.startswith("flaxtl: ")]
    if messages:
        return messages[-1]
    end = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"{end}; see {log}"
