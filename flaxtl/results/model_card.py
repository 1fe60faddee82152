"""The model card of a run: what a person who is handed the network should know of it, as Markdown.

Its parts are those of Mitchell et al. (2019), "Model Cards for Model Reporting", as far as the run directory tells.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from flaxtl.errors import UserError
from flaxtl.models import catalog
from flaxtl.results import label_issues, markdown, measures, overview
from flaxtl.results.confidence import confidence
from flaxtl.results.overview import SPLITS
from flaxtl.results.pages import template
from flaxtl.results.run_files import Run

PAIRS = 10
NOT_KNOWN = "not known: ask who gave them"


@dataclass(frozen=True)
class Recall:
    """How many of the n pictures of a class were found, and the 95 % interval of their share."""

    name: str
    right: int
    n: int
    interval: tuple[float, float]


@dataclass(frozen=True)
class Mistake:
    """`count` of the n pictures of class `true` were taken for class `predicted`."""

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


def render(run: Run) -> str:
    """The card as text; what no file of the run tells yet is a sentence."""
    return template("model_card.md.jinja", markdown.text, trailing_newline=True, code=markdown.code).render(
        run=run,
        name=run.workdir.resolve().name,
        headline=overview.headline(run),
        facts=overview.facts(run),
        phases=overview.phases(run),
        results=results(run),
        confidence=confidence(run),
        label_issues=len(label_issues.find(run.predictions).rows) if run.predictions else None,
        splits=[split for split in SPLITS if any(row["split"] == split for row in run.manifest)],
        pictures=Counter((row["label"], row["split"]) for row in run.manifest),
        totals=Counter(row["split"] for row in run.manifest),
        licence_of_weights=licence_of_weights(run),
        licence_of_data=licence_of_data(run),
    )


def results(run: Run) -> Results | None:
    """Recalls and mistakes on the judged split; None when there are no predictions of it."""
    if not run.predictions or run.judged not in run.predictions.splits:
        return None
    judged = run.predictions.of_split(run.judged)
    matrix = measures.confusion_matrix(judged.labels, judged.predicted, len(judged.classes))
    right, n = matrix.diagonal().tolist(), matrix.sum(axis=1).tolist()
    return Results(
        balanced_accuracy=measures.balanced_accuracy(matrix),
        recalls=[
            Recall(name, right[row], n[row], measures.wilson_interval(right[row], n[row]))
            for row, name in enumerate(judged.classes)
        ],
        mistakes=[
            Mistake(judged.classes[pair.true], judged.classes[pair.predicted], pair.count, n[pair.true])
            for pair in measures.most_confused(matrix, PAIRS)
        ],
    )


def licence_of_weights(run: Run) -> str:
    """Of the pretrained weights: the catalog's for published ones; of a file that was given nothing is known."""
    request = run.config.get("weights", {}).get("path")
    if request == "random":
        return "none needed: training began with random weights"
    if request not in ("imagenet", "builtin"):
        return NOT_KNOWN
    try:
        return catalog.find(run.config.get("model", {}).get("name", "")).licence
    except UserError:  # an older run, or a newer one
        return NOT_KNOWN


def licence_of_data(run: Run) -> str:
    """Of the pictures: no source tells whose they are, but for those that flaxtl draws."""
    if run.config.get("data", {}).get("source") == "garden":
        return "none needed: the pictures were drawn by flaxtl"
    return NOT_KNOWN
