"""The report of a run: one HTML page that carries everything it shows and asks nothing of the network.

The page tells what the files of the run directory say; what a file would have told and does not yet is a sentence.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import PIL.Image
from markupsafe import Markup

from flaxtl.files import whole
from flaxtl.results import gallery, measures, plots
from flaxtl.results.run_files import Json, Run, read
from flaxtl.terminal import printable

SPLITS = ("train", "validation", "test")
PAIRS, TILES_PER_PAIR, TOP_LOSSES, RIGHT_ANSWERS = 6, 12, 18, 12  # about a hundred thumbnails, 1 MB

FOLDED = 30  # rows of a table beyond which the page shows it when asked


@dataclass(frozen=True)
class Headline:
    """The result in one line: `right` of `n` pictures of a split, an accuracy in [0, 1] and its 95 % interval."""

    split: str
    accuracy: float
    right: int
    n: int
    interval: tuple[float, float]


@dataclass(frozen=True)
class Phase:
    """One row of the phase table; accuracies by split, None where not measured; seconds of wall time."""

    name: str
    rates: Mapping[str, float]
    parameters: int | None
    verified: int | None
    augment: bool
    epochs: int
    planned: int
    seconds: float | None
    accuracy: Mapping[str, float | None]


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


def write(
    workdir: Path, *, augmented: Sequence[tuple[PIL.Image.Image, Sequence[PIL.Image.Image]]] = ()
) -> Path:  # fmt: skip
    """Write the report of a run.

    Args:
        workdir: a run directory, of a finished run or of one under way.
        augmented: pairs of an original picture and samples of its augmentation, to be shown side by side.

    Returns:
        The page, workdir/report/index.html, one self-contained file.

    Raises:
        UserError: workdir is no run directory, or one of its files cannot be read.
    """
    page = render(read(workdir), augmented)
    path = workdir / "report" / "index.html"
    path.parent.mkdir(exist_ok=True)
    with whole(path) as file:
        file.write(page)
    return path


def render(run: Run, augmented: Sequence[tuple[PIL.Image.Image, Sequence[PIL.Image.Image]]] = ()) -> str:
    """The page as text; `augmented` as in `write`."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("flaxtl.results"),
        autoescape=True,  # file and class names are anybody's text
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value, keep="\n") if type(value) is str else value,
    )
    environment.globals["folded"] = FOLDED
    environment.filters |= {"percent": percent, "points": points, "count": count, "duration": duration, "rate": rate}
    return environment.get_template("report.html.jinja").render(
        run=run,
        name=run.workdir.resolve().name,
        headline=headline(run),
        facts=facts(run),
        phases=phases(run),
        curves=[Markup(plots.curve(run.epochs, quantity)) for quantity in ("loss", "accuracy")] if run.epochs else [],
        evaluation=evaluation(run),
        augmented=[(gallery.data_uri(one), [gallery.data_uri(sample) for sample in many]) for one, many in augmented],
        splits=[split for split in SPLITS if any(row["split"] == split for row in run.manifest)],
        pictures=Counter((row["label"], row["split"]) for row in run.manifest),
        recipe=json.dumps(run.config, indent=2, ensure_ascii=False),
    )


def headline(run: Run) -> Headline | None:
    """The result that stands on top; from the predictions, else the summary, else the last epoch; None before that."""
    split = run.judged
    if run.predictions and split in run.predictions.splits:
        judged = run.predictions.of_split(split)
        return _headline(split, int((judged.predicted == judged.labels).sum()), len(judged.paths))
    last: Json = next(reversed(run.summary.get("phases", {}).values()), {})
    for split in ("test", "validation"):
        if split in last:
            n = int(last[split]["n"])
            return _headline(split, round(last[split]["accuracy"] * n), n)
    if run.epochs and run.epochs[-1].get("validation_accuracy") is not None:
        n = sum(row["split"] == "validation" for row in run.manifest)
        return _headline("validation", round(run.epochs[-1]["validation_accuracy"] * n), n)
    return None


def _headline(split: str, right: int, n: int) -> Headline | None:
    return Headline(split, right / n, right, n, measures.wilson_interval(right, n)) if n else None


def facts(run: Run) -> list[tuple[str, str]]:
    """Terms and values of the line of facts below the headline."""
    data, model = run.config.get("data", {}), run.config.get("model", {})
    network = str(model.get("name", "–")) + (f" up to {model['stop']}" if model.get("stop") else "")
    devices: Counter[str] = Counter(run.summary.get("devices", []))
    return [
        ("Network", network),
        ("Input", f"{data['height']} × {data['width']}" if {"height", "width"} <= data.keys() else "–"),
        ("Weights", str(run.summary.get("weights", {}).get("origin", "–"))),
        ("Classes", count(len(run.classes))),
        ("Pictures", count(len(run.manifest)) if run.manifest else "–"),
        ("Seed", str(run.config.get("seed", "–"))),
        ("Wall time", duration(run.summary.get("wall_seconds"))),
        ("Devices", ", ".join(f"{n} × {kind}" for kind, n in devices.items()) or "–"),
    ]


def phases(run: Run) -> list[Phase]:
    """The phases in the recipe's order: as summed up, else as far as the epochs tell, else as planned."""
    rows = []
    for name in run.config.get("phases", []):
        plan, done = run.config.get(name, {}), run.summary.get("phases", {}).get(name, {})
        epochs = [epoch for epoch in run.epochs if epoch.get("phase") == name]
        accuracy = {split: done.get(split, {}).get("accuracy") for split in SPLITS}
        if not done and epochs:
            accuracy |= {split: epochs[-1].get(f"{split}_accuracy") for split in ("train", "validation")}
        seconds = sum(float(epoch.get("seconds", 0)) for epoch in epochs) if epochs else None
        rows.append(
            Phase(
                name=name,
                rates=done.get("rates") or plan.get("lr", {}),
                parameters=done.get("learning_parameters"),
                verified=done.get("frozen_leaves_unchanged"),
                augment=bool(done.get("augment", plan.get("augment", False))),
                epochs=int(done.get("epochs", len(epochs))),
                planned=int(plan.get("epochs", 0)),
                seconds=done.get("wall_seconds", seconds),
                accuracy=accuracy,
            )
        )
    return rows


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


def _worst_first(rows: list[ClassRow]) -> list[ClassRow]:
    """Of more than FOLDED classes those of the lowest recall first, and those without pictures last; else unchanged."""
    if len(rows) <= FOLDED:
        return rows
    return sorted(rows, key=lambda row: (math.isnan(row.recall), row.recall))


def percent(share: float | None, digits: int = 2) -> str:
    """0.9261 -> 92.61 %; a dash for what is unknown or undefined."""
    return "–" if share is None or math.isnan(share) else f"{100 * share:.{digits}f}\N{NARROW NO-BREAK SPACE}%"


def points(gain: float) -> str:
    """A difference of two shares in percentage points: 0.0288 -> +2.88."""
    return f"{100 * gain:+.2f}".replace("-", "\N{MINUS SIGN}")


def count(number: int | None) -> str:
    """14714688 -> 14,714,688; a dash for what is unknown."""
    return "–" if number is None else f"{number:,}"


def duration(seconds: float | None) -> str:
    """Seconds -> 850 ms, 12.3 s, 2 min 05 s or 1 h 02 min; a dash for what is unknown."""
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def rate(value: float) -> str:
    """A learning rate as people write it: 0.001, 1e-6."""
    mantissa, exponent, power = f"{value:g}".partition("e")
    return mantissa + (f"e{int(power)}" if exponent else "")
