"""The report of a run: one HTML page that carries everything it shows and asks nothing of the network, and what a
person takes away from it: the model card, and the list of labels to be checked.

The page tells what the files of the run directory say; what a file would have told and does not yet is a sentence.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import PIL.Image
from markupsafe import Markup

from flaxtl.files import write_text
from flaxtl.results import gallery, gradcam_file, gradcam_gallery, label_issues, measures, model_card, overview, plots
from flaxtl.results.confidence import Confidence, confidence
from flaxtl.results.overview import SPLITS
from flaxtl.results.pages import template
from flaxtl.results.run_files import Run, read
from flaxtl.terminal import printable

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
class Evaluation:
    """What the predictions of the judged split show; `shown` is the number of classes in the picture of the matrix."""

    matrix: Markup
    balanced_accuracy: float
    errors: int
    rows: Sequence[ClassRow]
    shown: int
    pairs: Sequence[gallery.ConfusedPair]
    top_losses: Sequence[gallery.Tile]
    right_answers: Sequence[gallery.Tile]


@dataclass(frozen=True)
class Trust:
    """How far the confidence of the answers on the judged split is to be believed; plots are SVG."""

    figures: Confidence
    reliability: Markup
    abstention: Markup


@dataclass(frozen=True)
class Labels:
    """The labels that look wrong: how many of n pictures' of which splits, and the most suspicious of them."""

    count: int
    n: int
    splits: Sequence[str]
    tiles: Sequence[gallery.Tile]


def write(
    workdir: Path, *, augmented: Sequence[tuple[PIL.Image.Image, Sequence[PIL.Image.Image]]] = ()
) -> Path:  # fmt: skip
    """Write the report of a run: the page, and beside it model_card.md and, once there are predictions, LABELS.

    Args:
        workdir: a run directory, of a finished run or of one under way.
        augmented: pairs of an original picture and samples of its augmentation, to be shown side by side.

    Returns:
        The page, workdir/report/index.html, one self-contained file.

    Raises:
        UserError: workdir is no run directory, or one of its files cannot be read.
    """
    run = read(workdir)
    page, card = render(run, augmented), model_card.render(run)
    folder = workdir / "report"
    folder.mkdir(exist_ok=True)
    write_text(folder / "index.html", page)
    write_text(folder / "model_card.md", card)
    if run.predictions:
        label_issues.write(folder / LABELS, run.predictions, label_issues.find(run.predictions))
    else:
        (folder / LABELS).unlink(missing_ok=True)
    return folder / "index.html"


def render(run: Run, augmented: Sequence[tuple[PIL.Image.Image, Sequence[PIL.Image.Image]]] = ()) -> str:
    """The page as text; `augmented` as in `write`."""
    return template("report.html.jinja", partial(printable, keep="\n")).render(
        run=run,
        folded=FOLDED,
        name=run.workdir.resolve().name,
        headline=overview.headline(run),
        facts=overview.facts(run),
        phases=overview.phases(run),
        curves=[Markup(plots.curve(run.epochs, quantity)) for quantity in ("loss", "accuracy")] if run.epochs else [],
        evaluation=evaluation(run),
        trust=trust(run),
        labels=labels(run),
        labels_file=LABELS,
        looks=gradcam_gallery.looks(run, gradcam_file.read(run.workdir)),
        augmented=[(gallery.data_uri(one), [gallery.data_uri(sample) for sample in many]) for one, many in augmented],
        splits=[split for split in SPLITS if any(row["split"] == split for row in run.manifest)],
        pictures=Counter((row["label"], row["split"]) for row in run.manifest),
        recipe=json.dumps(run.config, indent=2, ensure_ascii=False),
    )


def evaluation(run: Run) -> Evaluation | None:
    """What the predictions of the judged split show; None when there are none."""
    if not run.predictions or run.judged not in run.predictions.splits:
        return None
    judged = run.predictions.of_split(run.judged)
    matrix = measures.confusion_matrix(judged.labels, judged.predicted, len(judged.classes))
    each = measures.per_class(matrix)
    columns = (column.tolist() for column in (each.precision, each.recall, each.f1, each.support))
    return Evaluation(
        matrix=Markup(plots.confusion(matrix, judged.classes)),
        balanced_accuracy=measures.balanced_accuracy(matrix),
        errors=measures.errors(matrix),
        rows=_worst_first([ClassRow(*row) for row in zip(judged.classes, *columns, strict=True)]),
        shown=min(len(judged.classes), plots.NAMED_CLASSES),
        pairs=gallery.confused_pairs(judged, PAIRS, TILES_PER_PAIR),
        top_losses=gallery.top_losses(judged, TOP_LOSSES),
        right_answers=gallery.right_answers(judged, RIGHT_ANSWERS),
    )


def trust(run: Run) -> Trust | None:
    """How sure the answers on the judged split were; None when there are none."""
    figures = confidence(run)
    if not figures:
        return None
    after = figures.after.reliability if figures.after else None
    return Trust(
        figures=figures,
        reliability=Markup(plots.reliability(figures.before.reliability, after)),
        abstention=Markup(plots.abstention(figures.curve)),
    )


def labels(run: Run) -> Labels | None:
    """The labels to be checked among the pictures that were predicted; None when there are none."""
    predictions = run.predictions
    if not predictions:
        return None
    issues = label_issues.find(predictions)
    return Labels(
        count=len(issues.rows),
        n=len(predictions.paths),
        splits=[split for split in SPLITS if split in predictions.splits],
        tiles=gallery.label_issues(predictions, issues, LABEL_ISSUES),
    )


def _worst_first(rows: list[ClassRow]) -> list[ClassRow]:
    """Of more than FOLDED classes those of the lowest recall first, and those without pictures last; else unchanged."""
    if len(rows) <= FOLDED:
        return rows
    return sorted(rows, key=lambda row: (math.isnan(row.recall), row.recall))
