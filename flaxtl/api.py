"""A whole run: trained, judged, reported."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.console import Console

from flaxtl.config import load_config, prune_phases
from flaxtl.console import make_console
from flaxtl.evaluation import gradcam, run_files
from flaxtl.evaluation.evaluate import evaluate_run
from flaxtl.evaluation.predictor import TrainedRun
from flaxtl.parallel import devices, processes
from flaxtl.report import report, run_summary, templating
from flaxtl.report.report import augmented_samples
from flaxtl.train import run_dir, trainer
from flaxtl.train.signals import StopRequested, StopSignal


def train_and_report(config: Any, workdir: Path, console: Console, command: str) -> None:
    """Train the config in `workdir`, or go on with it, and write the report; `command` is noted in the summary.

    Of a run of many processes, which have joined before, each calls it; the first one writes and speaks. Raises Stopped
    where a signal ended it, UserError where somebody else is at work in `workdir`.
    """
    devices.enable_compilation_cache()
    if config.deterministic:
        devices.make_deterministic()
    alone = run_dir.run_dir_lock(workdir) if processes.is_main_process() else nullcontext()
    if not processes.is_main_process():
        console = Console(quiet=True)
    with processes.exit_on_peer_loss(), alone, StopSignal(processes.request_stop).listening() as interruption:
        if config.deterministic and jax.default_backend() == "gpu":
            console.print("deterministic=true: kernels that give the same bits in every run, some of them slower")
        outcome = trainer.train(config, workdir, console, command, interruption)
        parameters = None if outcome is None else evaluate_run(outcome, console)
        processes.shutdown()
        if outcome is not None and parameters is not None and processes.is_main_process():
            trained = TrainedRun(outcome.setup, parameters, outcome.setup.phases[-1].name)

            def say(sentence: str) -> None:
                console.print(sentence, highlight=False, markup=False, soft_wrap=True)

            gradcam.update_heatmaps(workdir, lambda: trained, say)
            say(f"report: {report.write_report(workdir, augmented=augmented_samples(outcome.setup))}")


class RunResult:
    """A run directory. A notebook shows its phases, curves and confusion matrix, a console one sentence."""

    def __init__(self, workdir: str | Path) -> None:
        """Of a finished run or of one under way; raises UserError without one."""
        self.workdir = Path(workdir)
        self.files = run_files.read_run(self.workdir)

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """A row an epoch: phase, epoch, step, seconds, train_... and validation_...; as pandas.DataFrame takes them."""
        return [epoch.to_json() for epoch in self.files.epochs]

    @property
    def page(self) -> Path:
        """The report, once there is one."""
        return self.workdir / "report" / "index.html"

    def __repr__(self) -> str:
        """What stands on top of the report."""
        found = run_summary.headline(self.files)
        if found is None:
            return f"{self.workdir}: no phase has ended yet"
        n = templating.format_count(found.num_images)
        share = f"{templating.format_percent(found.accuracy)} of {n} {found.split} images"
        return f"{self.workdir}: {share} correct; {self.page if self.page.is_file() else 'no report yet'}"

    def _repr_html_(self) -> str:
        return report.render_notebook_summary(self.files, title=repr(self))


def load_run(spec: str, *overrides: str) -> ConfigDict:
    """The config FILE or FILE:VARIANT with overrides 'key=value'; its settings can be changed, none can be added.

    Raises UserError for a missing or broken file and for keys that do not exist.
    """
    return load_config(spec, [f"--config.{override}" for override in overrides])


def train(config: ConfigDict, workdir: str | Path) -> RunResult:
    """What `flaxtl train` does: train, or go on, judge, write the report.

    Raises UserError for what is wrong with config or images, KeyboardInterrupt where the kernel was interrupted: the
    same call then goes on.
    """
    try:
        train_and_report(prune_phases(config), Path(workdir), make_console(), "flaxtl.api.train")
    except StopRequested as stopped:
        raise KeyboardInterrupt from stopped
    return RunResult(workdir)
