"""Comparison of runs: accuracies on their common images, McNemar's test, phases and curves."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from flaxtl.console import make_table
from flaxtl.errors import UserError
from flaxtl.evaluation import classification
from flaxtl.evaluation.run_files import RunRecord, read_run
from flaxtl.fileio import atomic_write_text
from flaxtl.report import run_summary
from flaxtl.report.templating import format_count, load_template
from flaxtl.train.rounding import rounded_interval, rounded_percent


@dataclass(frozen=True)
class ComparedRun:
    """One run on the images that all runs have in common, compared with the first run.

    Attributes:
      name: run directory as given.
      num_correct: correct predictions.
      num_images: images compared.
      only_first: images that only the first run predicts correctly; 0 for the first run itself.
      only_this: images that only this run predicts correctly.
    """

    name: str
    num_correct: int
    num_images: int
    only_first: int
    only_this: int

    @property
    def p_value(self) -> float:
        """Of McNemar's exact test against the first run."""
        return classification.mcnemar(self.only_first, self.only_this)


@dataclass(frozen=True)
class Comparison:
    """Runs on one split; `num_excluded` images are not in all runs or do not have the same label in all."""

    split: str
    runs: Sequence[ComparedRun]
    num_excluded: int

    @property
    def num_images(self) -> int:
        """Images compared."""
        return self.runs[0].num_images


def write_comparison(workdirs: Sequence[Path], output: Path | None) -> tuple[Path, Comparison]:
    """Write the comparison page to `output` or else to report/comparison.html of the first run.

    Raises UserError as `compare_runs` does, if a run is given twice, and if the file cannot be written.
    """
    if len({workdir.resolve() for workdir in workdirs}) < len(workdirs):
        raise UserError(f"The same run is given twice: {' and '.join(map(str, workdirs))}. Remove one --workdir.")
    runs = [read_run(workdir) for workdir in workdirs]
    comparison = compare_runs(runs)
    file = output or workdirs[0] / "report" / "comparison.html"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(file, render_comparison(runs, comparison))
    except OSError as error:
        raise UserError(f"Cannot write {file} ({error.strerror}). Choose another --output.") from error
    return file, comparison


def compare_runs(runs: Sequence[RunRecord]) -> Comparison:
    """Compare runs on the images that all of them predict.

    Raises UserError if a run has no predictions, or if no image has the same label in all runs.
    """
    split = "test" if all(run.eval_split == "test" for run in runs) else "validation"
    results = [_labels_and_correctness(run, split) for run in runs]
    common = set(results[0]).intersection(*results[1:])
    images = [image for image in results[0] if image in common and len({result[image][0] for result in results}) == 1]
    if not images:
        names = " and ".join(str(run.workdir) for run in runs)
        raise UserError(
            f"{names} have no {split} image with the same label in common. Compare runs on the same images."
        )
    first = [results[0][image][1] for image in images]
    compared = []
    for run, result in zip(runs, results, strict=True):
        correct = [result[image][1] for image in images]
        outcomes = list(zip(first, correct, strict=True))
        compared.append(
            ComparedRun(
                name=str(run.workdir),
                num_correct=sum(correct),
                num_images=len(correct),
                only_first=outcomes.count((True, False)),
                only_this=outcomes.count((False, True)),
            )
        )
    return Comparison(split, compared, num_excluded=len(set().union(*results)) - len(images))


def _labels_and_correctness(run: RunRecord, split: str) -> dict[tuple[str, int], tuple[str, bool]]:
    """Return image -> (label, whether the prediction is correct) of the images of a split.

    An image is the SHA-256 of its file, of which each run may have its own copy, and a number for files of equal bytes.
    """
    if run.predictions is None or split not in run.predictions.splits:
        raise UserError(f"{run.workdir} has no predictions of {split} images. Run flaxtl train until it is complete.")
    predictions = run.predictions.of_split(split)
    digests = {example.path: example.sha256 for example in run.manifest.examples}
    results: dict[tuple[str, int], tuple[str, bool]] = {}
    counts: Counter[str] = Counter()
    for path, label, correct in zip(predictions.paths, predictions.labels, predictions.correct, strict=True):
        digest = digests.get(path, path)
        results[digest, counts[digest]] = predictions.classes[label], bool(correct)
        counts[digest] += 1
    return results


COLUMNS = ("accuracy", "95 % interval", "only first correct", "only this correct", "p")


def comparison_table(comparison: Comparison) -> Table:
    """Return the accuracies as a table for the console."""
    title = f"{format_count(comparison.num_images)} {comparison.split} images"
    if comparison.num_excluded:
        title += f"; left out: {format_count(comparison.num_excluded)} that not all runs have with the same label"
    return make_table(title, ("run", *COLUMNS), [(run.name, *_cells(run, comparison)) for run in comparison.runs])


def render_comparison(runs: Sequence[RunRecord], comparison: Comparison) -> str:
    """Return the page as HTML."""
    return load_template("comparison.html.jinja").render(
        comparison=comparison,
        columns=COLUMNS,
        rows=[(run.name, _cells(run, comparison)) for run in comparison.runs],
        splits=run_summary.SPLITS,
        phases=[
            (compared.name, phase)
            for compared, run in zip(comparison.runs, runs, strict=True)
            for phase in run_summary.phase_rows(run)
        ],
        curves=[
            (compared.name, run_summary.training_curves(run))
            for compared, run in zip(comparison.runs, runs, strict=True)
        ],
    )


def _cells(run: ComparedRun, comparison: Comparison) -> tuple[str, ...]:
    """Return the figures of a run as text, in the order of COLUMNS."""
    accuracy = rounded_percent(run.num_correct, run.num_images), rounded_interval(run.num_correct, run.num_images)
    if run is comparison.runs[0]:
        return (*accuracy, "", "", "")
    return (*accuracy, str(run.only_first), str(run.only_this), f"{run.p_value:.2g}")
