"""Images of numbers, as SVG text that stands inline in a page.

Text stays text, the background is transparent, and colours are the page's own: `currentColor` for ink and the custom
property `--accent` for what matters, so that one image suits a light page, a dark one and paper. Images are drawn
400 units wide, about the width of a phone, so that 12 units of type remain readable there.
"""

import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from flaxtl.console import printable
from flaxtl.evaluation import classification
from flaxtl.evaluation.calibration import BINS, Reliability, RiskCoverage
from flaxtl.report.templating import format_lr, round_lr

# stand-ins that matplotlib understands, each exchanged for a colour of the page once the SVG is written
INK, ACCENT = "#010203", "#040506"
PAGE_COLORS = {INK: "currentColor", ACCENT: "var(--accent, #1a8f83)"}

WIDTH = 400 / 72  # inches; matplotlib writes 72 SVG units an inch
TYPE = {"small": 10, "normal": 12, "large": 14}  # SVG units
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text, not outlines of letters
    "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib; measures widths, the page sets its own family
    "font.size": TYPE["normal"],
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
NAMED_CLASSES = 40  # more names than this cannot be told apart along one edge, so that no more classes are shown
NUMBERED_CLASSES = 20  # more counts than this do not fit their cells
CURVE_POINTS = 200  # two units apart: more cannot be seen
MARKERS = "osD^vP"  # tell lines of one colour apart
NAMED_LINES = 6  # more than this and their names take more room than the lines


class MetricLine(NamedTuple):
    """Accuracies at some values of a setting: index of the value -> (mean, standard deviation), both in [0, 1]."""

    name: str
    values: dict[int, tuple[float, float]]
    is_best: bool


def plot_curves(epochs: Sequence[Mapping[str, Any]], quantity: Literal["loss", "accuracy"]) -> str:
    """Training and validation over all phases on one epoch axis, as SVG.

    Args:
        epochs: the lines of metrics.jsonl in order: each has a "phase" and, as far as measured, "train_QUANTITY" and
            "validation_QUANTITY"; what is missing, None or not finite leaves no point.
        quantity: what to draw.
    """
    with _figure(aspect=0.72) as figure:
        axes = figure.add_subplot()
        x = np.arange(1, len(epochs) + 1)
        training, validation = (_series(epochs, f"{split}_{quantity}") for split in ("train", "validation"))
        marker = "o" if len(epochs) <= 12 else ""  # a line through one epoch would be invisible
        style: dict[str, Any] = {"marker": marker, "clip_on": quantity == "loss"}  # at 100 % a line is seen in full
        axes.plot(x, training, color=INK, alpha=0.5, linewidth=1.3, markersize=3, label="training", **style)
        axes.plot(x, validation, color=ACCENT, linewidth=2, markersize=4, label="validation", **style)
        axes.set_xlim(0.5, len(epochs) + 0.5)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True))
        _limit(axes, np.concatenate([training, validation]), quantity)
        _grid(axes, percent=quantity == "accuracy")
        _legend(axes, rows=_mark_phases(axes, [str(epoch["phase"]) for epoch in epochs]))
        return _svg(figure, f"{quantity} of training and validation over {len(epochs)} epochs")


def plot_confusion(matrix: classification.Matrix, classes: Sequence[str]) -> str:
    """The confusion matrix (row true, column predicted) with counts and row shares, as SVG; its title has the errors.

    Of more classes than can be told apart, those with the most errors are shown. Cells are as opaque as the square root
    of their share of the row, so that an error of 2 % can still be seen.
    """
    right, wrong, total = int(np.trace(matrix)), classification.errors(matrix), int(matrix.sum())
    title = "No images"
    if total:
        title = f"Accuracy {100 * right / total:.2f} %, {wrong:,} error{'s' if wrong != 1 else ''} in {total:,}"
    shown = classification.most_mistaken(matrix, NAMED_CLASSES)
    n = len(shown)
    counts, shares = matrix[np.ix_(shown, shown)], classification.row_shares(matrix)[np.ix_(shown, shown)]
    with _figure(aspect=1.06) as figure:
        axes = figure.add_subplot(aspect="equal")
        axes.set_xlim(0, n)
        axes.set_ylim(n, 0)
        numbered = n <= NUMBERED_CLASSES
        for true, predicted in np.argwhere(np.ones_like(counts) if numbered else counts):
            share = float(np.nan_to_num(shares[true, predicted]))
            _cell(axes, true, predicted, share)
            if numbered:
                _number(axes, true, predicted, int(counts[true, predicted]), share, n)
        _name_classes(axes, [classes[index] for index in shown])
        axes.set_title(title, fontsize=TYPE["large"], fontweight="bold", pad=12)
        return _svg(figure, f"Confusion matrix of {n} classes. {title}.")


def plot_reliability(before: Reliability, after: Reliability | None) -> str:
    """A reliability diagram: how many answers are right, by how sure they are; below, where the answers lie. As SVG.

    Bars are the answers as they are, with 95 % intervals, dots those at a temperature, if there is one; both should lie
    on the diagonal.
    """
    left, held = np.arange(BINS) / BINS, before.count > 0
    with _figure(aspect=0.96) as figure:
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        bars: dict[str, Any] = {"width": 0.92 / BINS, "align": "edge", "linewidth": 0}
        axes.plot([0, 1], [0, 1], color=INK, alpha=0.45, linewidth=1, linestyle=(0, (3, 3)))
        axes.bar(left[held], before.accuracy[held], color=ACCENT, alpha=0.45, label="as answered", **bars)
        for centre, count, accuracy in zip(left + 0.46 / BINS, before.count, before.accuracy, strict=True):
            if count:
                interval = classification.wilson_interval(round(count * accuracy), int(count))
                axes.plot([centre, centre], interval, color=INK, alpha=0.3, linewidth=1)
        if after is not None:
            style: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 4.5, "clip_on": False}
            axes.plot(after.confidence, after.accuracy, color=INK, label="at the temperature", **style)
        below.bar(left[held], before.count[held] / before.count.sum(), color=INK, alpha=0.3, **bars)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_ylabel("right")
        below.set_xlabel("confidence")
        below.set_ylabel("answers")
        for each in (axes, below):
            _grid(each, percent=True)
        below.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        _legend(axes, rows=1)  # one is left free, for dots at 100 %
        return _svg(figure, f"Reliability diagram of {int(before.count.sum()):,} answers")


def plot_risk_coverage(curve: RiskCoverage) -> str:
    """Accuracy of the answers against the share of images that are answered, the surest first, as SVG."""
    n = int(curve.answered[-1])
    points = np.unique(np.linspace(0, len(curve.answered) - 1, CURVE_POINTS).round().astype(np.int64))
    answered, right = curve.answered[points], curve.right[points]
    with _figure(aspect=0.72) as figure:
        axes = figure.add_subplot()
        marker = "o" if len(points) <= 12 else ""
        axes.plot(answered / n, right / answered, color=ACCENT, linewidth=2, marker=marker, markersize=4, clip_on=False)
        axes.set_xlim(0, 1)
        _limit(axes, right / answered, "accuracy")
        axes.set_xlabel("images answered")
        axes.set_ylabel("right")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        _grid(axes, percent=True)
        return _svg(figure, f"Accuracy against the share of {n:,} images answered")


def plot_metric_vs_setting(setting: str, values: Sequence[str], lines: Sequence[MetricLine]) -> str:
    """Validation accuracy over the values of a setting, evenly spaced, as SVG; the chosen line stands out."""
    with _figure(aspect=0.72) as figure:
        axes = figure.add_subplot()
        for number, line in enumerate(sorted(lines, key=lambda line: line.is_best)):  # the chosen one on top
            x = sorted(line.values)
            mean, deviation = np.array([line.values[place] for place in x]).T
            style: dict[str, Any] = {"color": ACCENT, "linewidth": 2, "markersize": 6}
            if not line.is_best:
                style = {"color": INK, "alpha": 0.5, "linewidth": 1.3, "markersize": 4}
            axes.errorbar(
                x, mean, deviation if deviation.any() else None, capsize=3, label=_printable(line.name, 40),
                marker=MARKERS[number % len(MARKERS)], **style,
            )  # fmt: skip
        axes.set_xlim(-0.5, len(values) - 0.5)
        axes.set_xlabel(_printable(setting, 40))
        _name_values(axes, values)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None, symbol=" %"))
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.8)
        axes.tick_params(length=0, pad=6)
        axes.spines["left"].set_visible(False)
        if 1 < len(lines) <= NAMED_LINES:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1.02), frameon=False, fontsize=TYPE["small"])
        return _svg(figure, f"validation accuracy over {len(values)} values of {printable(setting)}")


def plot_lr_curve(points: Sequence[tuple[float, float, float]], proposed: float | None) -> str:
    """Losses over learning rates on a logarithmic axis, as SVG: batches as dots, their moving average as a line.

    `points` are (rate, loss, smoothed); what is not finite leaves no point. The proposed rate is marked.
    """
    rates, losses, smoothed = np.array(points, np.float64).T
    with _figure(aspect=0.72) as figure:
        axes = figure.add_subplot(xscale="log")
        axes.plot(rates, losses, color=INK, alpha=0.3, linestyle="", marker="o", markersize=2, label="a batch")
        axes.plot(rates, smoothed, color=ACCENT, linewidth=2, label="moving average")
        if proposed is not None:
            axes.axvline(proposed, color=INK, alpha=0.6, linewidth=1, linestyle=(0, (3, 3)))
            axes.text(proposed, 1.02, format_lr(proposed), transform=axes.get_xaxis_transform(), ha="center")
        finite = smoothed[np.isfinite(smoothed)]
        if finite.size:  # the axis is for the descent; what runs away may leave it
            axes.set_ylim(0, 1.15 * finite[: finite.argmin() + 1].max() or 1.0)
        axes.set_xlabel("learning rate")
        axes.xaxis.set_major_locator(LogLocator(numticks=9))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_lr(value)))
        axes.xaxis.set_minor_locator(NullLocator())
        _grid(axes, percent=False)
        _legend(axes, rows=1)
        return _svg(figure, f"Loss over learning rates from {format_lr(rates[0])} to {format_lr(round_lr(rates[-1]))}")


def _series(epochs: Sequence[Mapping[str, Any]], key: str) -> npt.NDArray[np.float64]:
    values = [epoch.get(key) for epoch in epochs]
    series = np.array([np.nan if value is None else value for value in values], np.float64)
    series[~np.isfinite(series)] = np.nan
    return series


def _grid(axes: Axes, *, percent: bool) -> None:
    """Fine lines across instead of an axis on the left, whose values are shares of 1 to be read in percent, or not."""
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None, symbol=" %"))
    axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.8)
    axes.tick_params(length=0, pad=6)
    axes.spines["left"].set_visible(False)


def _legend(axes: Axes, rows: int) -> None:
    """What is what, above the axes and the `rows` of names that stand there."""
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.02 + 0.075 * rows), ncols=2, frameon=False, borderaxespad=0,
        handlelength=1.4, columnspacing=1.6, borderpad=0.2,
    )  # fmt: skip


def _limit(axes: Axes, values: npt.NDArray[np.float64], quantity: str) -> None:
    """Give the axis to the bulk of the values: the first epochs' loss may be a hundred times the last one's."""
    values = values[np.isfinite(values)]
    if not values.size:
        return
    if quantity == "accuracy":
        axes.set_ylim(max(0.0, float(values.min()) - 0.04), min(1.0, float(values.max()) + 0.04))
        return
    highest, bulk = float(values.max()), 1.5 * float(np.percentile(values, 96))
    axes.set_ylim(0, bulk if highest > 2 * bulk else 1.06 * highest or 1.0)
    if highest > 2 * bulk:
        axes.text(0.06, 0.98, f"↑ to {highest:.3g}", transform=axes.transAxes, va="top", fontsize=TYPE["small"])


def _mark_phases(axes: Axes, phases: Sequence[str]) -> int:
    """Name each phase above the axes at its first epoch, with a line where one ends; the number of rows of names."""
    starts = [i for i, phase in enumerate(phases) if i == 0 or phases[i - 1] != phase]
    free: list[float] = []  # where each row of names is free again, as a share of the axis
    for start in starts:
        name, left = _printable(phases[start], 22), start / len(phases)
        width = (len(name) + 2) * 0.6 * TYPE["small"] / 340  # a letter is 0.6 of the type size, the axis 340 units
        left = max(0.0, min(left, 1 - width))
        row = next((row for row, end in enumerate(free) if end <= left), len(free))
        free[row : row + 1] = [left + width]
        axes.text(left, 1.02 + 0.075 * row, name, transform=axes.transAxes, fontsize=TYPE["small"])
        if start:
            axes.axvline(start + 0.5, color=INK, alpha=0.45, linewidth=1, linestyle=(0, (3, 3)))
    return len(free)


def _cell(axes: Axes, true: int, predicted: int, share: float) -> None:
    # at most 0.6 opaque: ink stays readable on the accent, dark on light as well as light on dark
    colour, alpha = (ACCENT, 0.6 * math.sqrt(share)) if share else (INK, 0.03)
    axes.add_patch(Rectangle((predicted + 0.03, true + 0.03), 0.94, 0.94, color=colour, alpha=alpha, linewidth=0))


def _number(axes: Axes, true: int, predicted: int, count: int, share: float, n: int) -> None:
    """Write the count into a cell and, where there is room, its share of the row."""
    x, y, size = predicted + 0.5, true + 0.5, min(TYPE["large"], 120 / n)
    with_share = n <= 8
    weight = "bold" if true == predicted else "normal"
    style: dict[str, Any] = {"ha": "center", "va": "center_baseline", "alpha": 1 if count else 0.45}
    axes.text(x, y - (0.12 if with_share else 0), f"{count:,}", fontsize=size, fontweight=weight, **style)
    if with_share:
        axes.text(x, y + 0.2, f"{100 * share:.1f} %", fontsize=min(TYPE["small"], 72 / n), **style)


def _name_classes(axes: Axes, classes: Sequence[str]) -> None:
    n = len(classes)
    axes.set_xlabel("predicted", labelpad=8)
    axes.set_ylabel("true", labelpad=8)
    axes.tick_params(length=0, pad=4, labelsize=min(TYPE["normal"], 220 / n))
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    names = [_printable(name, 14) for name in classes]
    centres = np.arange(n) + 0.5
    axes.set_yticks(centres, names)
    axes.set_xticks(centres, names, **_slant(names))


def _name_values(axes: Axes, values: Sequence[str]) -> None:
    names = [_printable(value, 18) for value in values]
    axes.set_xticks(range(len(names)), names, **_slant(names))


def _slant(names: Sequence[str]) -> dict[str, Any]:
    """How names stand below an axis: upright where they fit side by side, 42 letters below 280 units."""
    fits = max(map(len, names)) * len(names) <= 42
    return {} if fits else {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}


def heat_colors(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """0..255 in any shape -> RGB, uint8 [..., 3]: matplotlib's inferno, from black to a pale yellow.

    It grows brighter in even steps, so that it tells the same without colour, and whatever colours the reader sees.
    """
    colours: npt.NDArray[np.uint8] = mpl.colormaps["inferno"](values, bytes=True)[..., :3]
    return colours


def _printable(name: str, limit: int) -> str:
    """A name without control characters, cut to `limit` characters."""
    name = printable(name)
    return name if len(name) <= limit else name[: limit - 1] + "…"


@contextmanager
def _figure(aspect: float) -> Iterator[Figure]:
    """An empty figure in the house style, `aspect` times as high as wide."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        # a name may be written in letters that the measuring font lacks; the reader's browser has them
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield Figure(figsize=(WIDTH, WIDTH * aspect), layout="constrained")


def _svg(figure: Figure, description: str) -> str:
    """The figure as one <svg> element that scales with its container and has a description for screen readers."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    # ids are hashed with the description, so that two images on a page do not share them
    with mpl.rc_context({"svg.hashsalt": description}):
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    needed = set(re.findall(r"#([\w.]+)", svg))
    # ids count up from 1 in every image; only those that are referred to are unique, and needed
    svg = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in needed else "", svg)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)  # it would style the whole page
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    for stand_in, colour in PAGE_COLORS.items():
        svg = svg.replace(stand_in, colour)
    label = escape(description, quote=True)
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}" style="stroke-linejoin: round"', 1).strip()
