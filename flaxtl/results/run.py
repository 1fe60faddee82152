"""A whole run: trained, judged, reported."""

from pathlib import Path
from typing import Any

from rich.console import Console

from flaxtl.results import report
from flaxtl.results.judge import judge
from flaxtl.results.samples import augmented_samples
from flaxtl.train import lock, loop
from flaxtl.train.interruption import Interruption


def run(config: Any, workdir: Path, console: Console, command: str) -> None:
    """Train the recipe in `workdir`, or go on with it, and write the report; `command` is noted in the summary.

    Raises Stopped where a signal ended it, UserError where another process is at work in `workdir`.
    """
    with lock.held(workdir), Interruption().listening() as interruption:
        outcome = loop.train(config, workdir, console, command, interruption)
        if outcome is not None:
            judge(outcome, console)
            page = report.write(workdir, augmented=augmented_samples(outcome.setup))
            console.print(f"report: {page}", highlight=False, markup=False, soft_wrap=True)
