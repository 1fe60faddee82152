"""The HTML report of a run: report/index.html, and beside it model_card.md and label_issues.csv."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from markupsafe import Markup
from PIL import Image

from flaxtl.config import config_to_json
from flaxtl.console import printable
from flaxtl.data.augment.config import AugmentConfig, example_keys
from flaxtl.data.augment.ops import augment
from flaxtl.data.decode import decode
from flaxtl.errors import UserError
from flaxtl.evaluation import classification, label_issues
from flaxtl.evaluation.calibration import CalibrationReport, describe_fit
from flaxtl.evaluation.run_files import RunRecord, read_run
from flaxtl.evaluation.run_verdict import run_verdict
from flaxtl.fileio import atomic_write_text, exclusive_lock
from flaxtl.report import model_card, plots, run_summary
from flaxtl.report.earlier_images import keep_images
from flaxtl.report.galleries import make_galleries
from flaxtl.report.model_card import MAX_TABLE_ROWS
from flaxtl.report.photos import jpeg_data_uri
from flaxtl.report.run_summary import SPLITS
from flaxtl.report.templating import load_template
from flaxtl.train import run_dir
from flaxtl.train.rounding import percent_digits, rounded_accuracy
from flaxtl.train.setup import RunSetup

LABEL_ISSUES_FILE = "label_issues.csv"


class AugmentedExample(NamedTuple):
    """A training image and random augmentations of it."""

    original: Image.Image
    samples: Sequence[Image.Image]


@dataclass(frozen=True)
class ClassRow:
    """One row of the per-class table; metrics in [0, 1] or nan."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int
    num_correct: int

    @property
    def digits(self) -> int:
        """Number of decimals in percent that the number of its images supports."""
        return percent_digits(self.num_correct, self.support)


@dataclass(frozen=True)
class EvaluationSection:
    """Confusion matrix and metrics of the classes on the evaluated split.

    Attributes:
      confusion: the confusion matrix as SVG.
      num_shown: number of classes in it.
      balanced_accuracy: mean recall of the classes, as text.
      class_rows: one for each class.
    """

    confusion: Markup
    num_shown: int
    balanced_accuracy: str
    class_rows: Sequence[ClassRow]


@dataclass(frozen=True)
class CalibrationSection:
    """Calibration and selective prediction on the evaluated split; plots are SVG.

    Attributes:
      metrics: the figures.
      description: what the temperature means, such as "overconfident"; "" without a temperature.
      reliability: diagram of confidence and accuracy.
      risk_coverage: accuracy if the least confident images are left out.
    """

    metrics: CalibrationReport
    description: str
    reliability: Markup
    risk_coverage: Markup


@dataclass(frozen=True)
class LabelIssueSection:
    """How many of the `num_images` labels of some splits look wrong.

    Attributes:
      are_reliable: whether the model is accurate enough; otherwise the section is folded.
    """

    are_reliable: bool
    count: int
    num_images: int
    splits: Sequence[str]


def write_report(workdir: Path, *, augmented: Sequence[AugmentedExample] = ()) -> Path:
    """Write index.html, model_card.md and, if there are predictions, label_issues.csv to workdir/report.

    Images that cannot be read any more are taken from the earlier index.html, if there is one.

    Args:
      workdir: run directory of a finished or unfinished run.
      augmented: examples for the section on augmentation.

    Returns:
      The page, one self-contained file.

    Raises:
      UserError: workdir is not a run directory, or one of its files cannot be read.
    """
    run, file = read_run(workdir), run_dir.report_path(workdir)
    folder = file.parent
    folder.mkdir(exist_ok=True)
    # `flaxtl report` of a run in training may take longer than the rest of the run: its page must not replace the last.
    with exclusive_lock(folder / ".lock"):
        page = render_report(run, augmented)
        atomic_write_text(folder / "model_card.md", model_card.render_model_card(run))
        if predictions := run.calibrated_predictions:
            issues = label_issues.find_label_issues(predictions)
            label_issues.write_label_issues(folder / LABEL_ISSUES_FILE, predictions, issues)
        else:
            (folder / LABEL_ISSUES_FILE).unlink(missing_ok=True)
        if file.is_file():
            page = keep_images(page, file.read_text(encoding="utf-8", errors="replace"))
        atomic_write_text(file, page)  # last, because `flaxtl train` writes a report again that has no page
    return file


def render_report(run: RunRecord, augmented: Sequence[AugmentedExample] = ()) -> str:
    """Return the page as HTML."""
    headline = run_summary.headline(run)
    return load_template("report.html.jinja", partial(printable, keep="\n")).render(
        run=run,
        name=run.workdir.resolve().name,
        headline=headline,
        unfinished=run_summary.describe_unfinished(run),
        facts=run_summary.facts(run),
        verdict=run_verdict(run),
        phase_results=run_summary.phase_results(run, headline.split) if headline else [],
        phases=run_summary.phase_rows(run),
        curves=run_summary.training_curves(run),
        evaluation=evaluation_section(run),
        calibration=calibration_section(run),
        label_issues=label_issue_section(run),
        label_issues_file=LABEL_ISSUES_FILE,
        min_accuracy=label_issues.MIN_ACCURACY,
        galleries=make_galleries(run),
        augmented=[
            (jpeg_data_uri(original), [jpeg_data_uri(sample) for sample in samples]) for original, samples in augmented
        ],
        splits=run.manifest.splits,
        image_counts=Counter((example.label, example.split) for example in run.manifest.examples),
        max_table_rows=MAX_TABLE_ROWS,
        config=json.dumps(config_to_json(run.config), indent=2, ensure_ascii=False),
    )


def render_notebook_summary(run: RunRecord, title: str) -> str:
    """Return the phases, curves and confusion matrix of a run as an HTML fragment for a notebook."""
    evaluation = evaluation_section(run)
    return load_template("notebook.html.jinja").render(
        title=title,
        splits=SPLITS,
        phases=run_summary.phase_rows(run),
        curves=run_summary.training_curves(run),
        confusion=evaluation.confusion if evaluation else None,
    )


def augmented_samples(setup: RunSetup, num_images: int = 5, num_samples: int = 5) -> list[AugmentedExample]:
    """Return the first training image of up to `num_images` classes, augmented as in its first `num_samples` epochs.

    Fewer samples if the run repeats fewer cached views; empty if no phase augments. Images that can no longer be read
    are left out.
    """
    phases = [phase for phase in setup.phases if phase.augment]
    if not phases:
        return []
    views = setup.config.feature_cache.views
    if views and all(phase.cut_layer for phase in phases):
        num_samples = min(num_samples, views)
    examples = setup.manifest.of_split("train")
    first_indices = {example.label: index for index, example in reversed(list(enumerate(examples)))}
    augmented = []
    for label in sorted(first_indices)[:num_images]:
        index = first_indices[label]
        try:
            image = decode(Path(examples[index].path), setup.resize)
        except UserError:
            continue
        samples = _augment_copies(setup.config.seed, setup.augmentation, num_samples, image, np.int32(index))
        pixels = np.asarray(samples)
        augmented.append(AugmentedExample(Image.fromarray(image), [Image.fromarray(sample) for sample in pixels]))
    return augmented


@partial(jax.jit, static_argnums=(0, 1, 2))
def _augment_copies(
    seed: int, augmentation: AugmentConfig, num_samples: int, image: jax.Array, index: jax.Array
) -> jax.Array:
    """Return training image `index` as in its first epochs, uint8 [num_samples, height, width, 3]; one program."""
    epochs = jnp.arange(num_samples, dtype=jnp.int32)
    keys = example_keys(seed, epochs, jnp.full_like(epochs, index))
    samples = augment(keys, jnp.broadcast_to(image, (num_samples, *image.shape)), augmentation)
    return samples.round().clip(0, 255).astype(jnp.uint8)


def evaluation_section(run: RunRecord) -> EvaluationSection | None:
    """Return the section on the predictions of the evaluated split; None if there are none."""
    predictions = run.eval_predictions
    if predictions is None:
        return None
    classes = predictions.classes
    matrix = predictions.confusion_matrix
    metrics = classification.class_metrics(matrix)
    columns = (metrics.precision, metrics.recall, metrics.f1, metrics.support, matrix.diagonal())
    return EvaluationSection(
        confusion=Markup(plots.plot_confusion(matrix, classes)),
        num_shown=min(len(classes), plots.MAX_CONFUSION_CLASSES),
        balanced_accuracy=rounded_accuracy(classification.balanced_accuracy(matrix), len(predictions)),
        class_rows=_worst_first(
            [ClassRow(*row) for row in zip(classes, *(column.tolist() for column in columns), strict=True)]
        ),
    )


def _worst_first(rows: list[ClassRow]) -> list[ClassRow]:
    """Sort a table of more than MAX_TABLE_ROWS classes by recall; classes without images come last."""
    if len(rows) <= MAX_TABLE_ROWS:
        return rows
    return sorted(rows, key=lambda row: (math.isnan(row.recall), row.recall))


def calibration_section(run: RunRecord) -> CalibrationSection | None:
    """Return the section on the confidence of the evaluated split; None if there are no predictions."""
    metrics = run.calibration
    if not metrics:
        return None
    after = metrics.calibrated.reliability if metrics.calibrated else None
    return CalibrationSection(
        metrics=metrics,
        description=describe_fit(run.summary.calibration) if run.summary.calibration else "",
        reliability=Markup(plots.plot_reliability(metrics.uncalibrated.reliability, after)),
        risk_coverage=Markup(plots.plot_risk_coverage(metrics.risk_coverage)),
    )


def label_issue_section(run: RunRecord) -> LabelIssueSection | None:
    """Return the section on labels that look wrong; None if there are no predictions."""
    predictions = run.calibrated_predictions
    if not predictions:
        return None
    issues = label_issues.find_label_issues(predictions)
    return LabelIssueSection(
        are_reliable=label_issues.are_reliable(predictions),
        count=len(issues.rows),
        num_images=len(predictions.paths),
        splits=[split for split in SPLITS if split in predictions.splits],
    )
