"""Originals beside their augmented samples, for the report."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from markupsafe import Markup
from PIL import Image

from flaxtl.console import printable
from flaxtl.data.augment.config import example_keys
from flaxtl.data.augment.ops import augment
from flaxtl.data.decode import decode
from flaxtl.errors import UserError
from flaxtl.evaluation import classification, gradcam, label_issues
from flaxtl.evaluation.run_files import CalibrationReport, RunRecord, calibration_report, read_run
from flaxtl.fileio import atomic_write_text
from flaxtl.report import galleries, model_card, plots, run_summary
from flaxtl.report.run_summary import SPLITS
from flaxtl.report.templating import load_template
from flaxtl.train.setup import RunSetup

AugmentedExample = tuple[Image.Image, list[Image.Image]]


def augmented_samples(setup: RunSetup, images: int = 5, each: int = 5) -> list[AugmentedExample]:
    """The first training image of up to `images` classes, each as the first `each` passes would augment it.

    Empty if no phase augments. What can no longer be read is left out: a report outlives its images.
    """
    if not any(phase.augment for phase in setup.phases):
        return []
    examples = setup.manifest.of_split("train")
    firsts = {example.label: number for number, example in reversed(list(enumerate(examples)))}
    samples = (
        _sample(setup, Path(examples[firsts[label]].path), firsts[label], each) for label in sorted(firsts)[:images]
    )
    return [sample for sample in samples if sample]


def _sample(setup: RunSetup, path: Path, index: int, each: int) -> AugmentedExample | None:
    try:
        original = decode(path, setup.resize)
    except UserError:
        return None
    passes = jnp.arange(each, dtype=jnp.int32)
    random = example_keys(setup.config.seed, passes, jnp.full(each, index, jnp.int32))
    changed = jax.jit(augment, static_argnums=2)(
        random, jnp.broadcast_to(original, (each, *original.shape)), setup.augmentation
    )
    pixels = np.asarray(changed.round().clip(0, 255), np.uint8)
    return Image.fromarray(original), [Image.fromarray(image) for image in pixels]


PAIRS, TILES_PER_PAIR, TOP_LOSSES, RIGHT_ANSWERS, LABEL_ISSUES = 6, 12, 18, 12, 18  # up to 120 thumbnails
LABELS = "label_issues.csv"

FOLDED = 30  # rows of a table beyond which the page shows it when asked


@dataclass(frozen=True)
class ClassRow:
    """One row of the per-class table; measures in [0, 1] or nan."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class EvaluationSection:
    """What the predictions of the judged split show; `shown` is the number of classes in the image of the matrix."""

    matrix: Markup
    balanced_accuracy: float
    errors: int
    rows: Sequence[ClassRow]
    shown: int
    pairs: Sequence[galleries.ConfusedPair]
    top_losses: Sequence[galleries.Thumbnail]
    right_answers: Sequence[galleries.Thumbnail]


@dataclass(frozen=True)
class CalibrationSection:
    """How far the confidence of the answers on the judged split is to be believed; plots are SVG."""

    figures: CalibrationReport
    reliability: Markup
    abstention: Markup


@dataclass(frozen=True)
class LabelSection:
    """The labels that look wrong: how many of n images' of which splits, and the most suspicious of them."""

    count: int
    n: int
    splits: Sequence[str]
    tiles: Sequence[galleries.Thumbnail]


def write_report(
    workdir: Path, *, augmented: Sequence[tuple[PIL.Image.Image, Sequence[PIL.Image.Image]]] = ()
) -> Path:  # fmt: skip
    """Write the report of a run: the page, and beside it model_card.md and, once there are predictions, LABELS.

    Args:
        workdir: a run directory, of a finished run or of one under way.
        augmented: pairs of an original image and samples of its augmentation, to be shown side by side.

    Returns:
        The page, workdir/report/index.html, one self-contained file.

    Raises:
        UserError: workdir is no run directory, or one of its files cannot be read.
    """
    run = read_run(workdir)
    page, card = render_report(run, augmented), model_card.render_model_card(run)
    folder = workdir / "report"
    folder.mkdir(exist_ok=True)
    atomic_write_text(folder / "index.html", page)
    atomic_write_text(folder / "model_card.md", card)
    if run.predictions:
        label_issues.write_label_issues(
            folder / LABELS, run.predictions, label_issues.find_label_issues(run.predictions)
        )
    else:
        (folder / LABELS).unlink(missing_ok=True)
    return folder / "index.html"


def render_report(run: RunRecord, augmented: Sequence[tuple[PIL.Image.Image, Sequence[PIL.Image.Image]]] = ()) -> str:
    """The page as text; `augmented` as in `write`."""
    return load_template("report.html.jinja", partial(printable, keep="\n")).render(
        run=run,
        folded=FOLDED,
        name=run.workdir.resolve().name,
        headline=run_summary.headline(run),
        facts=run_summary.facts(run),
        phases=run_summary.phase_rows(run),
        curves=[Markup(plots.plot_curves(run.epochs, quantity)) for quantity in ("loss", "accuracy")]
        if run.epochs
        else [],
        evaluation=evaluation_section(run),
        trust=calibration_section(run),
        labels=label_section(run),
        labels_file=LABELS,
        looks=galleries.heatmap_section(run, gradcam.read_heatmaps(run.workdir)),
        augmented=[
            (galleries.data_uri(one), [galleries.data_uri(sample) for sample in many]) for one, many in augmented
        ],
        splits=[split for split in SPLITS if any(row["split"] == split for row in run.manifest)],
        images=Counter((row["label"], row["split"]) for row in run.manifest),
        config=json.dumps(run.config, indent=2, ensure_ascii=False),
    )


def evaluation_section(run: RunRecord) -> EvaluationSection | None:
    """What the predictions of the judged split show; None when there are none."""
    if not run.predictions or run.eval_split not in run.predictions.splits:
        return None
    judged = run.predictions.of_split(run.eval_split)
    matrix = classification.confusion_matrix(judged.labels, judged.predicted, len(judged.classes))
    each = classification.class_metrics(matrix)
    columns = (column.tolist() for column in (each.precision, each.recall, each.f1, each.support))
    return EvaluationSection(
        matrix=Markup(plots.plot_confusion(matrix, judged.classes)),
        balanced_accuracy=classification.balanced_accuracy(matrix),
        errors=classification.num_errors(matrix),
        rows=_worst_first([ClassRow(*row) for row in zip(judged.classes, *columns, strict=True)]),
        shown=min(len(judged.classes), plots.MAX_CONFUSION_CLASSES),
        pairs=galleries.confused_pairs(judged, PAIRS, TILES_PER_PAIR),
        top_losses=galleries.top_losses(judged, TOP_LOSSES),
        right_answers=galleries.correct_predictions(judged, RIGHT_ANSWERS),
    )


def calibration_section(run: RunRecord) -> CalibrationSection | None:
    """How sure the answers on the judged split were; None when there are none."""
    figures = calibration_report(run)
    if not figures:
        return None
    after = figures.calibrated.reliability if figures.calibrated else None
    return CalibrationSection(
        figures=figures,
        reliability=Markup(plots.plot_reliability(figures.uncalibrated.reliability, after)),
        abstention=Markup(plots.plot_risk_coverage(figures.risk_coverage)),
    )


def label_section(run: RunRecord) -> LabelSection | None:
    """The labels to be checked among the images that were predicted; None when there are none."""
    predictions = run.predictions
    if not predictions:
        return None
    issues = label_issues.find_label_issues(predictions)
    return LabelSection(
        count=len(issues.rows),
        n=len(predictions.paths),
        splits=[split for split in SPLITS if split in predictions.splits],
        tiles=galleries.label_issue_tiles(predictions, issues, LABEL_ISSUES),
    )


def _worst_first(rows: list[ClassRow]) -> list[ClassRow]:
    """Of more than FOLDED classes those of the lowest recall first, and those without images last; else unchanged."""
    if len(rows) <= FOLDED:
        return rows
    return sorted(rows, key=lambda row: (math.isnan(row.recall), row.recall))
