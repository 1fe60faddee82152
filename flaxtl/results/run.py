"""A whole run: trained, judged, reported."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from flaxtl.results import gradcam, report
from flaxtl.results.judge import judge
from flaxtl.results.samples import augmented_samples
from flaxtl.results.trained import Trained
from flaxtl.train import compiled, hosts, lock, loop, mesh
from flaxtl.train.interruption import Interruption


def run(config: Any, workdir: Path, console: Console, command: str) -> None:
    """Train the recipe in `workdir`, or go on with it, and write the report; `command` is noted in the summary.

    Of a run of many processes, which have joined before, each calls it; the first one writes and speaks. Raises Stopped
    where a signal ended it, UserError where somebody else is at work in `workdir`.
    """
    compiled.keep()
    if config.deterministic:
        mesh.make_deterministic()
    alone = lock.held(workdir) if hosts.writes() else nullcontext()
    if not hosts.writes():
        console = Console(quiet=True)
    with hosts.noticing_loss(), alone, Interruption(hosts.tell_all).listening() as interruption:
        if config.deterministic and jax.default_backend() == "gpu":
            console.print("deterministic=true: kernels that give the same bits in every run, some of them slower")
        outcome = loop.train(config, workdir, console, command, interruption)
        parameters = None if outcome is None else judge(outcome, console)
        hosts.leave()
        if outcome is not None and parameters is not None and hosts.writes():
            trained = Trained(outcome.setup, parameters, outcome.setup.phases[-1].name)

            def say(sentence: str) -> None:
                console.print(sentence, highlight=False, markup=False, soft_wrap=True)

            gradcam.ensure(workdir, lambda: trained, say)
            say(f"report: {report.write(workdir, augmented=augmented_samples(outcome.setup))}")
