"""The report of a run: one HTML page that carries everything it shows and asks nothing of the network.

The page tells what the files of the run directory say; what a file would have told and does not yet is a sentence.
"""

import csv
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import PIL.Image
from markupsafe import Markup

from flaxtl.errors import UserError
from flaxtl.files import whole
from flaxtl.results import gallery, measures, plots, predictions_file
from flaxtl.results.predictions_file import Predictions

SPLITS = ("train", "validation", "test")
PAIRS, TILES_PER_PAIR, TOP_LOSSES, RIGHT_ANSWERS = 6, 12, 18, 12  # about a hundred thumbnails, 1 MB

Json = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """The files of a run directory; what is missing is empty, or None."""

    workdir: Path
    config: Json
    epochs: list[Json]
    manifest: list[dict[str, str]]
    predictions: Predictions | None
    layers: list[Json]
    summary: Json

    @cached_property
    def judged(self) -> str:
        """The split that judges the run: test if it was predicted (or is to be), else validation."""
        predicted = set(self.predictions.splits) if self.predictions else set()
        return "test" if "test" in (predicted or {row["split"] for row in self.manifest}) else "validation"

    @cached_property
    def classes(self) -> list[str]:
        """Class names in the order of the network's outputs, as far as the run knows it."""
        if self.predictions:
            return list(self.predictions.classes)
        return list(self.summary.get("classes") or sorted({row["label"] for row in self.manifest}))


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
    """What the predictions of the judged split show."""

    matrix: Markup
    balanced_accuracy: float
    errors: int
    rows: Sequence[ClassRow]
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
    with whole(path, errors="replace") as file:  # a file name that is not valid UTF-8 is shown with question marks
        file.write(page)
    return path


def read(workdir: Path) -> Run:
    """Read the files of a run directory; only config.json has to be there.

    Raises:
        UserError: workdir is no run directory, or one of its files cannot be read.
    """
    if not (workdir / "config.json").is_file():
        raise UserError(f"{workdir} is no run directory: it has no config.json; name the --workdir of a `flaxtl train`")
    predictions = workdir / "predictions.csv"
    return Run(
        workdir=workdir,
        config=_object(workdir / "config.json"),
        epochs=_epochs(workdir / "metrics.jsonl"),
        manifest=_manifest(workdir / "manifest.csv"),
        predictions=predictions_file.read(predictions) if predictions.exists() else None,
        layers=_json(workdir / "layers.json", list),
        summary=_object(workdir / "summary.json"),
    )


def render(run: Run, augmented: Sequence[tuple[PIL.Image.Image, Sequence[PIL.Image.Image]]] = ()) -> str:
    """The page as text; `augmented` as in `write`."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("flaxtl.results"),
        autoescape=True,  # file and class names are anybody's text
        trim_blocks=True,
        lstrip_blocks=True,
    )
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
        rows=[ClassRow(*row) for row in zip(judged.classes, *columns, strict=True)],
        pairs=gallery.confused_pairs(judged, PAIRS, TILES_PER_PAIR),
        top_losses=gallery.top_losses(judged, TOP_LOSSES),
        right_answers=gallery.right_answers(judged, RIGHT_ANSWERS),
    )


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


def _json(path: Path, kind: type[Any]) -> Any:
    """The JSON value of a file, which has to be of `kind`; an empty one for a missing file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return kind()
    except ValueError as error:  # neither JSON nor UTF-8
        raise UserError(f"{path} cannot be read: {error}; restore the file or train anew") from None
    if not isinstance(value, kind):
        raise UserError(f"{path} cannot be read: a JSON {kind.__name__} was expected; restore the file or train anew")
    return value


def _object(path: Path) -> Json:
    value: Json = _json(path, dict)
    return value


def _epochs(path: Path) -> list[Json]:
    """The lines of metrics.jsonl; a last line without its end is still being written and does not count."""
    if not path.exists():
        return []
    *lines, _ = path.read_text(encoding="utf-8").split("\n")
    try:
        return [json.loads(line) for line in lines if line]
    except ValueError as error:
        raise UserError(f"{path} cannot be read: {error}; remove the broken line or train anew") from None


def _manifest(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = csv.DictReader(file)
        if not {"path", "label", "split"} <= set(rows.fieldnames or ()):
            raise UserError(f"{path} is no manifest: it needs columns path, label and split; restore it or train anew")
        return list(rows)
