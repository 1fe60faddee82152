"""Runs side by side: curves, phases, and whether the difference of two accuracies is more than chance."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from rich import table as rich_table

from flaxtl.console import make_table
from flaxtl.errors import UserError
from flaxtl.evaluation import classification, run_files
from flaxtl.evaluation.run_files import RunRecord
from flaxtl.fileio import atomic_write_text
from flaxtl.report import plots, run_summary, templating
from flaxtl.report.templating import load_template


@dataclass(frozen=True)
class RunComparison:
    """One run on the images that all runs judged, beside the first run.

    Attributes:
        name: the run's directory, as it was given.
        right: images that it answered right.
        n: images that were compared.
        only_first: of them, those that the first run alone of the two answered right; 0 for the first run.
        only_this: those that this run alone answered right.
    """

    name: str
    right: int
    n: int
    only_first: int
    only_this: int

    @property
    def accuracy(self) -> float:
        """In [0, 1]."""
        return self.right / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, Wilson's."""
        return classification.wilson_interval(self.right, self.n)

    @property
    def p(self) -> float:
        """See measures.mcnemar."""
        return classification.mcnemar(self.only_first, self.only_this)


@dataclass(frozen=True)
class Comparison:
    """Runs by the split that judges them all; `left_out` images are not in all runs, or not with the same label."""

    split: str
    rows: Sequence[RunComparison]
    left_out: int


def compare(runs: Sequence[RunRecord]) -> Comparison:
    """Judge all runs by the images that they have in common.

    Raises UserError where a run has no predictions, or there are no such images.
    """
    split = "test" if all(run.eval_split == "test" for run in runs) else "validation"
    answers = [_answers(run, split) for run in runs]
    common = set(answers[0]).intersection(*answers[1:])
    same = [path for path in answers[0] if path in common and len({answer[path][0] for answer in answers}) == 1]
    if not same:
        names = " and ".join(str(run.workdir) for run in runs)
        raise UserError(f"{names} judged no image in common with one label; compare runs of the same images")
    first = [answers[0][path][1] for path in same]
    rows = []
    for run, answer in zip(runs, answers, strict=True):
        own = [answer[path][1] for path in same]
        pairs = list(zip(first, own, strict=True))
        rows.append(
            RunComparison(str(run.workdir), sum(own), len(own), pairs.count((True, False)), pairs.count((False, True)))
        )
    return Comparison(split, rows, len(set().union(*answers)) - len(same))


def _answers(run: RunRecord, split: str) -> dict[str, tuple[str, bool]]:
    """path -> (label, whether the answer was right) of a split's images."""
    judged = run.predictions.of_split(split) if run.predictions else None
    if judged is None or not judged.paths:
        raise UserError(f"{run.workdir} has no predictions of {split} images; let flaxtl train end it")
    right = judged.predicted == judged.labels
    labels = (judged.classes[label] for label in judged.labels)
    return {path: (label, bool(each)) for path, label, each in zip(judged.paths, labels, right, strict=True)}


def comparison_table(found: Comparison) -> rich_table.Table:
    """For the console."""
    title = f"{templating.format_count(found.rows[0].n)} {found.split} images"
    return make_table(title, ("run", *COLUMNS), [(row.name, *cells(row, found)) for row in found.rows])


COLUMNS = ("accuracy", "95 % interval", "only the first right", "only this right", "p")


def cells(row: RunComparison, found: Comparison) -> tuple[str, ...]:
    """A row's figures as text, by COLUMNS."""
    low, high = (templating.format_percent(bound, 1) for bound in row.interval)
    own = templating.format_percent(row.accuracy), f"{low} – {high}"
    if row is found.rows[0]:
        return (*own, "", "", "")
    return (*own, str(row.only_first), str(row.only_this), f"{row.p:.2g}")


def write_comparison(workdirs: Sequence[Path], output: Path | None) -> tuple[Path, Comparison]:
    """Write the page, the first run's report/comparison.html unless told.

    Raises UserError as `compare` does, and for a run that is given twice.
    """
    if len({workdir.resolve() for workdir in workdirs}) < len(workdirs):
        raise UserError(f"of {' and '.join(map(str, workdirs))} two are the same run; leave one out")
    runs = [run_files.read_run(workdir) for workdir in workdirs]
    found = compare(runs)
    file = output or workdirs[0] / "report" / "comparison.html"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(file, render_comparison(runs, found))
    except OSError as error:
        raise UserError(f"cannot write {file} ({error.strerror}); choose another --output") from error
    return file, found


def render_comparison(runs: Sequence[RunRecord], found: Comparison) -> str:
    """The page as text."""
    return load_template("comparison.html.jinja").render(
        found=found,
        columns=COLUMNS,
        rows=[(row.name, cells(row, found)) for row in found.rows],
        splits=run_summary.SPLITS,
        runs=[(row.name, run_summary.phase_rows(run), _curves(run)) for row, run in zip(found.rows, runs, strict=True)],
    )


def _curves(run: RunRecord) -> list[Markup]:
    return [Markup(plots.plot_curves(run.epochs, kind)) for kind in ("loss", "accuracy")] if run.epochs else []
