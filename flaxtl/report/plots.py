"""Plots as SVG text that is placed inline in an HTML page.

Text stays text, the background is transparent, and the colors belong to the page: `currentColor` for ink and the custom
property `--accent` for what matters, so that one plot suits a light page, a dark page and paper. Plots are 400 units
wide, about the width of a phone, so that text of 12 units stays readable there.
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
from flaxtl.evaluation.calibration import NUM_BINS, ReliabilityDiagram, RiskCoverage
from flaxtl.report.templating import format_lr, round_lr
from flaxtl.train.rounding import rounded_percent, wilson_interval

# Placeholders that matplotlib accepts. Each is replaced by a color of the page in the finished SVG.
INK, ACCENT = "#010203", "#040506"
PAGE_COLORS = {INK: "currentColor", ACCENT: "var(--accent, #1a8f83)"}

FIGURE_WIDTH = 400 / 72  # inches; matplotlib writes 72 SVG units per inch
FONT_SIZES = {"small": 10, "normal": 12, "large": 14}  # SVG units
RC_PARAMS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text, not glyph outlines
    "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib and measures widths; the page sets its own family
    "font.size": FONT_SIZES["normal"],
    "text.parse_math": False,  # a dollar sign in a class name is not math
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
MAX_CONFUSION_CLASSES = 40  # more class names are not readable along one edge
MAX_NUMBERED_CLASSES = 20  # with more classes the counts do not fit into their cells
MAX_CURVE_POINTS = 200  # two units apart
MAX_MARKED_POINTS = 12  # lines with more points need no markers
MAX_LEGEND_LINES = 6  # with more lines the legend is larger than the plot
MAX_NAME_LENGTH = 14  # characters of a class name
DASHED = (0, (3, 3))
MARKERS = "osD^vP"  # distinguish lines of one color


class MetricLine(NamedTuple):
    """One line of `plot_metric_vs_setting`.

    Attributes:
      name: the label of the line.
      values: index of the setting's value -> (mean, standard deviation) of the accuracy, both in [0, 1].
      is_best: draw this line in the accent color.
    """

    name: str
    values: dict[int, tuple[float, float]]
    is_best: bool


def plot_curves(epochs: Sequence[Mapping[str, Any]], metric: Literal["loss", "accuracy"]) -> str:
    """Plot a training and validation metric over all phases on one epoch axis.

    Args:
      epochs: the lines of metrics.jsonl in order. Each has a "phase" and, if measured, "train_METRIC" and
        "validation_METRIC"; a value that is missing, None or not finite leaves a gap.
      metric: the metric to plot.
    """
    with _figure(aspect=0.72) as figure:
        axes = figure.add_subplot()
        x = np.arange(1, len(epochs) + 1)
        training, validation = (_series(epochs, f"{split}_{metric}") for split in ("train", "validation"))
        marker = "o" if len(epochs) <= MAX_MARKED_POINTS else ""
        style: dict[str, Any] = {"marker": marker, "clip_on": metric == "loss"}  # do not cut a line at 100 % in half
        axes.plot(x, training, color=INK, alpha=0.5, linewidth=1.3, markersize=3, label="training", **style)
        axes.plot(x, validation, color=ACCENT, linewidth=2, markersize=4, label="validation", **style)
        axes.set_xlim(0.5, len(epochs) + 0.5)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
        _set_y_limits(axes, np.concatenate([training, validation]), metric)
        _use_gridlines(axes, percent=metric == "accuracy")
        _mark_phases(axes, [str(epoch["phase"]) for epoch in epochs])
        _add_legend(axes)
        return _to_svg(figure, f"{metric.capitalize()} of training and validation over {len(epochs)} epochs")


def plot_confusion(matrix: classification.CountArray, classes: Sequence[str]) -> str:
    """Plot a confusion matrix (row: true, column: predicted) with counts and row percentages.

    The title gives the accuracy and the number of errors. Above MAX_CONFUSION_CLASSES classes, those with the most
    errors are shown. The opacity of a cell is the square root of its share of the row, so that 2 % is still visible.
    """
    num_correct, num_errors, num_images = int(np.trace(matrix)), classification.num_errors(matrix), int(matrix.sum())
    title = "No images"
    if num_images:
        plural = "s" if num_errors != 1 else ""
        accuracy = rounded_percent(num_correct, num_images)
        title = f"Accuracy {accuracy}, {num_errors:,} error{plural} in {num_images:,}"
    shown = classification.classes_with_most_errors(matrix, MAX_CONFUSION_CLASSES)
    n = len(shown)
    counts, shares = matrix[np.ix_(shown, shown)], classification.normalize_rows(matrix[shown])[:, shown]
    with _figure(aspect=1.06) as figure:
        axes = figure.add_subplot(aspect="equal")
        axes.set_xlim(0, n)
        axes.set_ylim(n, 0)
        numbered = n <= MAX_NUMBERED_CLASSES
        for true, predicted in np.argwhere(np.ones_like(counts) if numbered else counts):
            share = float(np.nan_to_num(shares[true, predicted]))
            _draw_cell(axes, true, predicted, share)
            if numbered:
                _write_count(axes, true, predicted, int(counts[true, predicted]), share, n)
        _label_classes(axes, [classes[index] for index in shown])
        figure.suptitle(title, fontsize=FONT_SIZES["large"], fontweight="bold")  # may be wider than the axes
        return _to_svg(figure, f"Confusion matrix of {n} classes. {title}.")


def plot_reliability(before: ReliabilityDiagram, after: ReliabilityDiagram | None) -> str:
    """Plot a reliability diagram: accuracy by confidence, and below it the share of predictions in each bin.

    Bars with 95 % intervals show the uncalibrated probabilities, dots the calibrated ones if there is a temperature.
    Perfect calibration lies on the diagonal.
    """
    left_edges, filled = np.arange(NUM_BINS) / NUM_BINS, before.count > 0
    centers = left_edges + 0.46 / NUM_BINS
    with _figure(aspect=0.96) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        bars: dict[str, Any] = {"width": 0.92 / NUM_BINS, "align": "edge", "linewidth": 0}
        upper.plot([0, 1], [0, 1], color=INK, alpha=0.45, linewidth=1, linestyle=DASHED)
        upper.bar(left_edges[filled], before.accuracy[filled], color=ACCENT, alpha=0.45, label="uncalibrated", **bars)
        for center, count, accuracy in zip(centers, before.count, before.accuracy, strict=True):
            if count:
                interval = wilson_interval(round(count * accuracy), int(count))
                upper.plot([center, center], interval, color=INK, alpha=0.3, linewidth=1)
        if after is not None:
            style: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 4.5, "clip_on": False}
            upper.plot(after.confidence, after.accuracy, color=INK, label="calibrated", **style)
        lower.bar(left_edges[filled], before.count[filled] / before.count.sum(), color=INK, alpha=0.3, **bars)
        upper.set_xlim(0, 1)
        upper.set_ylim(0, 1)
        upper.set_ylabel("accuracy")
        lower.set_xlabel("confidence")
        lower.set_ylabel("predictions")
        for axes in (upper, lower):
            _use_gridlines(axes, percent=True)
        lower.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        _add_legend(upper)  # leave space for dots at 100 %
        return _to_svg(figure, f"Reliability diagram of {int(before.count.sum()):,} predictions")


def plot_risk_coverage(curve: RiskCoverage) -> str:
    """Plot the accuracy of the most confident predictions against their share of all images (coverage)."""
    n = int(curve.num_covered[-1])
    points = np.unique(np.linspace(0, len(curve.num_covered) - 1, MAX_CURVE_POINTS).round().astype(np.int64))
    num_covered, accuracy = curve.num_covered[points], curve.num_correct[points] / curve.num_covered[points]
    with _figure(aspect=0.72) as figure:
        axes = figure.add_subplot()
        marker = "o" if len(points) <= MAX_MARKED_POINTS else ""
        axes.plot(num_covered / n, accuracy, color=ACCENT, linewidth=2, marker=marker, markersize=4, clip_on=False)
        axes.set_xlim(0, 1)
        _set_y_limits(axes, accuracy, "accuracy")
        axes.set_xlabel("coverage")
        axes.set_ylabel("accuracy")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        _use_gridlines(axes, percent=True)
        return _to_svg(figure, f"Accuracy against coverage of {n:,} images")


def plot_metric_vs_setting(
    setting: str, values: Sequence[str], lines: Sequence[MetricLine], *, ordered: bool = True
) -> str:
    """Plot validation accuracy over the values of a setting, evenly spaced; the best line is highlighted.

    Values that are not `ordered`, such as names of models, are not joined: there is nothing between two of them.
    """
    with _figure(aspect=0.72) as figure:
        axes = figure.add_subplot()
        for number, line in enumerate(sorted(lines, key=lambda line: line.is_best)):  # the best one is drawn last
            x = sorted(line.values)
            mean, deviation = np.array([line.values[index] for index in x]).T
            style: dict[str, Any] = {"color": ACCENT, "linewidth": 2, "markersize": 6}
            if not line.is_best:
                style = {"color": INK, "alpha": 0.5, "linewidth": 1.3, "markersize": 4}
            axes.errorbar(
                x, mean, deviation if deviation.any() else None, capsize=3, label=_shorten(line.name, 40),
                marker=MARKERS[number % len(MARKERS)], linestyle="-" if ordered else "", **style,
            )  # fmt: skip
        axes.set_xlim(-0.5, len(values) - 0.5)
        axes.set_xlabel(_shorten(setting, 40))
        _label_values(axes, values)
        _use_gridlines(axes, percent=True)
        if 1 < len(lines) <= MAX_LEGEND_LINES:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1.02), frameon=False, fontsize=FONT_SIZES["small"])
        return _to_svg(figure, f"Validation accuracy over {len(values)} values of {printable(setting)}")


def plot_lr_curve(points: Sequence[tuple[float, float, float]], num_skipped: int, suggested: float | None) -> str:
    """Plot the loss over learning rates on a logarithmic axis: dots for batches, a line for their moving average.

    Args:
      points: (learning rate, loss, smoothed loss); values that are not finite leave a gap.
      num_skipped: how many of the first points do not count yet, because the moving average is still noisy. The y
        axis covers the descent to the lowest average of the others; a diverging loss may leave it.
      suggested: the learning rate to mark, if any.
    """
    lrs, losses, smoothed = np.array(points, np.float64).T
    with _figure(aspect=0.72) as figure:
        axes = figure.add_subplot(xscale="log")
        axes.plot(lrs, losses, color=INK, alpha=0.3, linestyle="", marker="o", markersize=2, label="batch")
        axes.plot(lrs, smoothed, color=ACCENT, linewidth=2, label="moving average")
        if suggested is not None:
            axes.axvline(suggested, color=INK, alpha=0.6, linewidth=1, linestyle=DASHED)
            axes.text(suggested, 1.02, format_lr(suggested), transform=axes.get_xaxis_transform(), ha="center")
        usable = np.where(np.isfinite(smoothed) & (np.arange(len(smoothed)) >= num_skipped), smoothed, np.inf)
        descent = smoothed[: usable.argmin() + 1]
        if np.isfinite(descent).any():
            axes.set_ylim(0, 1.15 * descent[np.isfinite(descent)].max() or 1.0)
        axes.set_xlabel("learning rate")
        axes.xaxis.set_major_locator(LogLocator(numticks=9))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_lr(value)))
        axes.xaxis.set_minor_locator(NullLocator())
        _use_gridlines(axes, percent=False)
        _add_legend(axes)
        first, last = format_lr(lrs[0]), format_lr(round_lr(lrs[-1]))
        return _to_svg(figure, f"Loss over learning rates from {first} to {last}")


def heat_colors(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Map 0..255 of any shape to RGB, uint8 [..., 3], by matplotlib's inferno (black to pale yellow).

    Its brightness rises in even steps, so that it is readable in grayscale and with any color vision.
    """
    colors: npt.NDArray[np.uint8] = mpl.colormaps["inferno"](values, bytes=True)[..., :3]
    return colors


def _series(epochs: Sequence[Mapping[str, Any]], key: str) -> npt.NDArray[np.float64]:
    """Return one value per epoch, nan where it is missing or not finite."""
    values = [epoch.get(key) for epoch in epochs]
    series = np.array([np.nan if value is None else value for value in values], np.float64)
    series[~np.isfinite(series)] = np.nan
    return series


def _use_gridlines(axes: Axes, *, percent: bool) -> None:
    """Replace the left axis by horizontal grid lines, labeled in percent if `percent`."""
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None, symbol=" %"))
    axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.8)
    axes.tick_params(length=0, pad=6)
    axes.spines["left"].set_visible(False)


def _add_legend(axes: Axes) -> None:
    """Place the legend above the axes, with space for one row of text between."""
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.095), ncols=2, frameon=False, borderaxespad=0,
        handlelength=1.4, columnspacing=1.6, borderpad=0.2,
    )  # fmt: skip


def _set_y_limits(axes: Axes, values: npt.NDArray[np.float64], metric: str) -> None:
    """Fit the axis to the bulk of the values: the loss of the first epochs may be a hundred times that of the last."""
    values = values[np.isfinite(values)]
    if not values.size:
        return
    if metric == "accuracy":
        axes.set_ylim(max(0.0, float(values.min()) - 0.04), min(1.0, float(values.max()) + 0.04))
        return
    highest, bulk = float(values.max()), 1.5 * float(np.percentile(values, 96))
    axes.set_ylim(0, bulk if highest > 2 * bulk else 1.06 * highest or 1.0)
    if highest > 2 * bulk:
        axes.text(0.06, 0.98, f"↑ to {highest:.3g}", transform=axes.transAxes, va="top", fontsize=FONT_SIZES["small"])


def _mark_phases(axes: Axes, phases: Sequence[str]) -> None:
    """Write each phase's name above its first epoch, all on one line, and draw a line at the end of each phase."""
    starts = [i for i, phase in enumerate(phases) if i == 0 or phases[i - 1] != phase]
    names, lefts = _place_names([phases[start] for start in starts], [start / len(phases) for start in starts])
    for name, left in zip(names, lefts, strict=True):
        axes.text(left, 1.02, name, transform=axes.transAxes, fontsize=FONT_SIZES["small"])
    for start in starts[1:]:
        axes.axvline(start + 0.5, color=INK, alpha=0.45, linewidth=1, linestyle=DASHED)


def _place_names(names: Sequence[str], starts: Sequence[float]) -> tuple[list[str], list[float]]:
    """Return the names, shortened until all fit on one line, and where each begins, as fractions of the axis.

    Each begins at its start, or as little to its right or left as the others need.
    """
    letter = 0.6 * FONT_SIZES["small"] / 340  # a letter is 0.6 of the font size, the axis 340 units
    for limit in range(22, 0, -1):
        shown = [_shorten(name, limit) for name in names]
        widths = [(len(name) + 1) * letter for name in shown]
        lefts: list[float] = []
        for start in starts:
            previous = lefts[-1] + widths[len(lefts) - 1] if lefts else 0.0
            lefts.append(max(start, previous))
        end = 1.0
        for index in reversed(range(len(lefts))):
            lefts[index] = min(lefts[index], end - widths[index])
            end = lefts[index]
        if lefts[0] >= 0:
            break
    return shown, lefts


def _draw_cell(axes: Axes, true: int, predicted: int, share: float) -> None:
    # Opacity is at most 0.6, so that the text stays readable on a light page and on a dark one.
    color, alpha = (ACCENT, 0.6 * math.sqrt(share)) if share else (INK, 0.03)
    axes.add_patch(Rectangle((predicted + 0.03, true + 0.03), 0.94, 0.94, color=color, alpha=alpha, linewidth=0))


def _write_count(axes: Axes, true: int, predicted: int, count: int, share: float, num_classes: int) -> None:
    """Write the count into a cell and, if it fits, its share of the row."""
    x, y, size = predicted + 0.5, true + 0.5, min(FONT_SIZES["large"], 120 / num_classes)
    with_share = num_classes <= 8
    weight = "bold" if true == predicted else "normal"
    style: dict[str, Any] = {"ha": "center", "va": "center_baseline", "alpha": 1 if count else 0.45}
    axes.text(x, y - (0.12 if with_share else 0), f"{count:,}", fontsize=size, fontweight=weight, **style)
    if with_share:
        axes.text(x, y + 0.2, f"{100 * share:.0f} %", fontsize=min(FONT_SIZES["small"], 72 / num_classes), **style)


def _label_classes(axes: Axes, classes: Sequence[str]) -> None:
    n = len(classes)
    axes.set_xlabel("predicted", labelpad=8)
    axes.set_ylabel("true", labelpad=8)
    axes.tick_params(length=0, pad=4, labelsize=min(FONT_SIZES["normal"], 220 / n))
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    names, centers = _shorten_names(classes, MAX_NAME_LENGTH), np.arange(n) + 0.5
    axes.set_yticks(centers, names)
    axes.set_xticks(centers, names, **_label_rotation(names))


def _label_values(axes: Axes, values: Sequence[str]) -> None:
    names = _shorten_names(values, 18)
    axes.set_xticks(range(len(names)), names, **_label_rotation(names))


def _label_rotation(names: Sequence[str]) -> dict[str, Any]:
    """Return the text style of tick labels: horizontal if they fit (42 letters across 280 units), else slanted."""
    fits = max(map(len, names)) * len(names) <= 42
    return {} if fits else {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}


def _shorten(name: str, limit: int, *, keep_end: bool = False) -> str:
    """Return a name without control characters, cut to `limit` characters."""
    name = printable(name)
    if len(name) <= limit:
        return name
    return "…" + name[1 - limit :] if keep_end else name[: limit - 1] + "…"


def _shorten_names(names: Sequence[str], limit: int) -> list[str]:
    """Return the names cut to `limit` characters; those that only differ in their ends keep these."""
    shown = [_shorten(name, limit) for name in names]
    return [_shorten(name, limit, keep_end=shown.count(cut) > 1) for name, cut in zip(names, shown, strict=True)]


@contextmanager
def _figure(aspect: float) -> Iterator[Figure]:
    """Yield an empty figure with the common style; its height is `aspect` times its width."""
    with mpl.rc_context(RC_PARAMS), warnings.catch_warnings():
        # A name may have characters that the measuring font lacks; the reader's browser has them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield Figure(figsize=(FIGURE_WIDTH, FIGURE_WIDTH * aspect), layout="constrained")


def _to_svg(figure: Figure, description: str) -> str:
    """Return one <svg> element that scales with its container and has `description` as its accessible label."""
    file = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    # ids are hashes of shapes and the description: plots of one page with the same description share equal shapes only
    with mpl.rc_context({"svg.hashsalt": description}):
        figure.savefig(file, format="svg", transparent=True, metadata=no_metadata)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    referenced = set(re.findall(r"#([\w.]+)", svg))
    # the other ids count up from 1 in every plot and would not be unique on the page
    svg = re.sub(r' id="([^"]+)"', lambda match: match[0] if match[1] in referenced else "", svg)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)  # it would style the whole page
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    for placeholder, color in PAGE_COLORS.items():
        svg = svg.replace(placeholder, color)
    label = escape(description, quote=True)
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}" style="stroke-linejoin: round"', 1).strip()
