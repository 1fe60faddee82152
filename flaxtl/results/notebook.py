"""A run from Python, in four lines: load a recipe, change it, train, look.

    from flaxtl.results import notebook
    config = notebook.load("configs/folder.py", "data.source=folder:PATH")
    config.frozen.epochs = 5
    notebook.train(config, "runs/mine")

The directory is that of `flaxtl train`: every command goes on with it, and it with what a command began.
"""

from pathlib import Path
from typing import Any

from markupsafe import Markup
from ml_collections import ConfigDict

from flaxtl import recipe
from flaxtl.results import formats, overview, plots, report, run_files
from flaxtl.results.pages import template
from flaxtl.results.run import run as whole_run
from flaxtl.terminal import console
from flaxtl.train.interruption import Stopped


class Result:
    """A run directory. A notebook shows its phases, curves and confusion matrix, a console one sentence."""

    def __init__(self, workdir: str | Path) -> None:
        """Of a finished run or of one under way; raises UserError where there is none."""
        self.workdir = Path(workdir)
        self.files = run_files.read(self.workdir)

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """A row an epoch: phase, epoch, step, seconds, train_... and validation_...; as pandas.DataFrame takes them."""
        return [dict(row) for row in self.files.epochs]

    @property
    def page(self) -> Path:
        """The report, once there is one."""
        return self.workdir / "report" / "index.html"

    def __repr__(self) -> str:
        """What stands on top of the report."""
        found = overview.headline(self.files)
        if found is None:
            return f"{self.workdir}: no phase has ended yet"
        right = f"{formats.percent(found.accuracy)} of {formats.count(found.n)} {found.split} pictures right"
        return f"{self.workdir}: {right}; {self.page if self.page.is_file() else 'no report yet'}"

    def _repr_html_(self) -> str:
        files, evaluation = self.files, report.evaluation(self.files)
        return template("notebook.html.jinja").render(
            sentence=repr(self),
            splits=overview.SPLITS,
            phases=overview.phases(files),
            curves=[Markup(plots.curve(files.epochs, kind)) for kind in ("loss", "accuracy")] if files.epochs else [],
            matrix=evaluation.matrix if evaluation else None,
        )


def load(spec: str, *overrides: str) -> ConfigDict:
    """The recipe FILE or FILE:VARIANT with overrides 'key=value'; its settings can be changed, none can be added.

    Raises UserError for a missing or broken file and for keys that do not exist.
    """
    return recipe.load(spec, [f"--config.{override}" for override in overrides])


def train(config: ConfigDict, workdir: str | Path) -> Result:
    """What `flaxtl train` does: train, or go on, judge, write the report.

    Raises UserError for what is wrong with recipe or pictures, KeyboardInterrupt where the kernel was interrupted: the
    same call then goes on.
    """
    try:
        whole_run(recipe.pruned(config), Path(workdir), console(), "flaxtl.results.notebook.train")
    except Stopped as stopped:
        raise KeyboardInterrupt from stopped
    return Result(workdir)
