"""The model card of a run: what a person who is handed the network should know of it, as Markdown.

Its parts are those of Mitchell et al. (2019), "Model Cards for Model Reporting", as far as the run directory tells.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from flaxtl.errors import UserError
from flaxtl.evaluation import classification, label_issues
from flaxtl.evaluation.run_files import RunRecord, calibration_report
from flaxtl.models import registry
from flaxtl.report import run_summary, templating
from flaxtl.report.run_summary import SPLITS
from flaxtl.report.templating import load_template

PAIRS = 10
NOT_KNOWN = "not known: ask who gave them"


@dataclass(frozen=True)
class Recall:
    """How many of the n images of a class were found, and the 95 % interval of their share."""

    name: str
    right: int
    n: int
    interval: tuple[float, float]


@dataclass(frozen=True)
class Mistake:
    """`count` of the n images of class `true` were taken for class `predicted`."""

    true: str
    predicted: str
    count: int
    n: int


@dataclass(frozen=True)
class Results:
    """What the predictions of the judged split show, in the order of the classes; the most frequent mistakes first."""

    balanced_accuracy: float
    recalls: Sequence[Recall]
    mistakes: Sequence[Mistake]


def render_model_card(run: RunRecord) -> str:
    """The card as text; what no file of the run tells yet is a sentence."""
    return load_template(
        "model_card.md.jinja", templating.markdown_text, trailing_newline=True, code=templating.markdown_code
    ).render(
        run=run,
        name=run.workdir.resolve().name,
        headline=run_summary.headline(run),
        facts=run_summary.facts(run),
        phases=run_summary.phase_rows(run),
        results=results(run),
        confidence=calibration_report(run),
        label_issues=len(label_issues.find_label_issues(run.predictions).rows) if run.predictions else None,
        splits=[split for split in SPLITS if any(row["split"] == split for row in run.manifest)],
        images=Counter((row["label"], row["split"]) for row in run.manifest),
        totals=Counter(row["split"] for row in run.manifest),
        licence_of_weights=licence_of_weights(run),
        licence_of_data=licence_of_data(run),
    )


def results(run: RunRecord) -> Results | None:
    """Recalls and mistakes on the judged split; None when there are no predictions of it."""
    if not run.predictions or run.eval_split not in run.predictions.splits:
        return None
    judged = run.predictions.of_split(run.eval_split)
    matrix = classification.confusion_matrix(judged.labels, judged.predicted, len(judged.classes))
    right, n = matrix.diagonal().tolist(), matrix.sum(axis=1).tolist()
    return Results(
        balanced_accuracy=classification.balanced_accuracy(matrix),
        recalls=[
            Recall(name, right[row], n[row], classification.wilson_interval(right[row], n[row]))
            for row, name in enumerate(judged.classes)
        ],
        mistakes=[
            Mistake(judged.classes[pair.true], judged.classes[pair.predicted], pair.count, n[pair.true])
            for pair in classification.most_confused_pairs(matrix, PAIRS)
        ],
    )


def licence_of_weights(run: RunRecord) -> str:
    """Of the pretrained weights: the catalog's for published ones; of a file that was given nothing is known."""
    request = run.config.get("weights", {}).get("path")
    if request == "random":
        return "none needed: training began with random weights"
    if request not in ("imagenet", "builtin"):
        return NOT_KNOWN
    try:
        return registry.get_spec(run.config.get("model", {}).get("name", "")).license
    except UserError:  # an older run, or a newer one
        return NOT_KNOWN


def licence_of_data(run: RunRecord) -> str:
    """Of the images: no source tells whose they are, but for those that flaxtl draws."""
    if run.config.get("data", {}).get("source") == "synthetic":
        return "none needed: the images were drawn by flaxtl"
    return NOT_KNOWN
