"""The model card of a run as Markdown, after Mitchell et al. (2019), "Model Cards for Model Reporting".

The sections are those of the paper, as far as the files of the run directory have the information.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from flaxtl.errors import UserError
from flaxtl.evaluation import classification, label_issues
from flaxtl.evaluation.run_files import RunRecord
from flaxtl.models import registry
from flaxtl.pretrained.backbone import PUBLISHED
from flaxtl.report import run_summary
from flaxtl.report.templating import load_template, markdown_code, markdown_text
from flaxtl.train.rounding import rounded_accuracy, rounded_interval

MAX_CONFUSIONS = 10
MAX_TABLE_ROWS = 30  # longer tables of the card and of the report are collapsed
UNKNOWN_LICENSE = "unknown; ask the provider"


@dataclass(frozen=True)
class ClassRecall:
    """How many of the `num_images` images of a class are predicted correctly; 95 % interval of the recall, as text."""

    name: str
    num_correct: int
    num_images: int
    interval: str


@dataclass(frozen=True)
class ConfusionRow:
    """`count` of the `num_images` images of class `true` are predicted as `predicted`."""

    true: str
    predicted: str
    count: int
    num_images: int


@dataclass(frozen=True)
class LabelIssueCount:
    """`count` of `num_images` checked labels look wrong; below `label_issues.MIN_ACCURACY` the list is not reliable."""

    count: int
    num_images: int
    are_reliable: bool


@dataclass(frozen=True)
class Results:
    """Results on the evaluated split: recalls in the order of the classes, the most frequent confusions first."""

    balanced_accuracy: str
    recalls: Sequence[ClassRecall]
    confusions: Sequence[ConfusionRow]


def render_model_card(run: RunRecord) -> str:
    """Return the card as Markdown; missing information is stated as such."""
    template = load_template("model_card.md.jinja", markdown_text, keep_trailing_newline=True, code=markdown_code)
    return template.render(
        run=run,
        name=run.workdir.resolve().name,
        headline=run_summary.headline(run),
        unfinished=run_summary.describe_unfinished(run),
        facts=[*run_summary.facts(run), ("Arithmetic", _arithmetic(run))],
        phases=run_summary.phase_rows(run),
        results=_results(run),
        calibration=run.calibration,
        label_issues=_label_issue_count(run),
        min_accuracy=label_issues.MIN_ACCURACY,
        splits=run.manifest.splits,
        image_counts=Counter((example.label, example.split) for example in run.manifest.examples),
        split_totals=Counter(example.split for example in run.manifest.examples),
        weights_license=_weights_license(run),
        data_license=_data_license(run),
        max_table_rows=MAX_TABLE_ROWS,
    )


def _label_issue_count(run: RunRecord) -> LabelIssueCount | None:
    """Return how many labels look wrong; None if there are no predictions yet."""
    predictions = run.calibrated_predictions
    if predictions is None:
        return None
    count = len(label_issues.find_label_issues(predictions).rows)
    return LabelIssueCount(count, len(predictions), label_issues.are_reliable(predictions))


def _arithmetic(run: RunRecord) -> str:
    """Return the dtype of the layers and the precision of their products, which a TPU rounds to bfloat16 by default."""
    cached = run.config.feature_cache.compute_dtype
    features = f"; cached features in {cached}" if cached not in ("", run.config.dtype) else ""
    return f"{run.config.dtype}, matrix products with precision {run.config.precision}{features}"


def _results(run: RunRecord) -> Results | None:
    """Return recalls and confusions on the evaluated split; None if there are no predictions of it."""
    predictions = run.eval_predictions
    if predictions is None:
        return None
    classes = predictions.classes
    matrix = predictions.confusion_matrix
    num_correct, num_images = matrix.diagonal().tolist(), matrix.sum(axis=1).tolist()
    return Results(
        balanced_accuracy=rounded_accuracy(classification.balanced_accuracy(matrix), len(predictions)),
        recalls=[
            ClassRecall(name, correct, total, rounded_interval(correct, total) if total else "–")
            for name, correct, total in zip(classes, num_correct, num_images, strict=True)
        ],
        confusions=[
            ConfusionRow(classes[pair.true], classes[pair.predicted], pair.count, num_images[pair.true])
            for pair in classification.most_confused_pairs(matrix, MAX_CONFUSIONS)
        ],
    )


def _weights_license(run: RunRecord) -> str:
    """Return the license of the pretrained weights, known for published weights but not for other files."""
    weights = run.config.weights.path
    if weights == "random":
        return "none needed; training started from random weights"
    if weights not in PUBLISHED:
        return UNKNOWN_LICENSE
    try:
        return registry.get_spec(run.config.model.name).license
    except UserError:  # a model of another version
        return UNKNOWN_LICENSE


def _data_license(run: RunRecord) -> str:
    """Return the license of the images, known only for those that flaxtl generates."""
    if run.config.data.source == "synthetic":
        return "none needed; the images were generated by flaxtl"
    return UNKNOWN_LICENSE
