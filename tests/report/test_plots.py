import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import matplotlib
import numpy as np
import pytest

from flaxtl.evaluation import calibration
from flaxtl.report import plots

SVG = "{http://www.w3.org/2000/svg}"


def epochs(**phases):
    return [
        {"phase": phase, "train_loss": 1 / (i + 1), "validation_loss": 2 / (i + 1), "train_accuracy": 0.5,
         "validation_accuracy": 0.25 + 0.01 * i}
        for phase, n in phases.items() for i in range(n)
    ]  # fmt: skip


def texts(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter(SVG + "text")]


def words(svg):
    """All texts with words, in lower case."""
    return [text.lower() for text in texts(svg) if text and re.search("[a-z]{2}", text)]


def shows(svg, *patterns):
    """Whether each pattern is found in some text of the SVG."""
    return all(any(re.search(pattern, text) for text in words(svg)) for pattern in patterns)


def test_curves_label_phases_axes_and_lines():
    svg = plots.plot_curves(epochs(frozen=20, augmented=20, finetune=30), "loss")
    assert {"frozen", "augmented", "finetune"} <= set(texts(svg))
    assert shows(svg, "epoch", "train", "validation")
    assert svg.count("stroke-dasharray") == 2  # a boundary after each phase but the last


def test_curves_of_accuracy_use_percent():
    assert any(re.fullmatch(r"[\d.]+ %", text) for text in texts(plots.plot_curves(epochs(frozen=20), "accuracy")))


def test_curves_phase_names_are_on_one_line():
    svg = plots.plot_curves(epochs(first_phase=1, second_phase=1, third_phase=60, last_phase=1), "loss")
    names = [element for element in ElementTree.fromstring(svg).iter(SVG + "text") if element.text.endswith("_phase")]
    assert len(names) == 4
    assert len({element.get("y") for element in names}) == 1
    lefts = [float(element.get("x")) for element in names]
    assert all(right - left > 6 * len(names[0].text) for left, right in pairwise(lefts))  # a letter is 6 units wide


def test_curves_many_phases_have_shortened_names():
    shown = texts(plots.plot_curves(epochs(**{f"phase_number_{number}": 2 for number in range(9)}), "loss"))
    assert sum(text.startswith("pha") and text.endswith("…") for text in shown) == 9


@pytest.mark.parametrize("missing", [None, float("nan"), float("inf")])
def test_curves_missing_values_leave_gaps(missing):
    lines = epochs(frozen=3)
    lines[1]["validation_loss"] = missing
    del lines[2]["train_loss"]
    assert "nan" not in plots.plot_curves(lines, "loss")


def test_curves_of_one_epoch_have_one_tick():
    svg = plots.plot_curves(epochs(frozen=1), "accuracy")
    assert [text for text in texts(svg) if re.fullmatch(r"[\d.]+", text)] == ["1"]


def test_curves_without_values_are_drawn():
    assert shows(plots.plot_curves([{"phase": "frozen"}], "loss"), "epoch")


def test_curves_high_first_loss_is_cut():
    lines = epochs(frozen=100)
    lines[0]["train_loss"] = 500.0
    assert any(re.search(r"↑.*\b500\b", text) for text in texts(plots.plot_curves(lines, "loss")))


def test_confusion_shows_counts_shares_and_names():
    svg = plots.plot_confusion(np.array([[3, 1], [0, 2]]), ["cat", "dog"])
    shown = texts(svg)
    assert {"3", "1", "0", "2", "75 %", "25 %", "0 %", "100 %"} <= set(shown)
    assert shows(svg, r"\b83 %\D*\b1\b\D*\b6\b")
    assert shown.count("cat") == 2  # on both edges


def test_confusion_many_classes_shows_most_confused():
    matrix = np.eye(1000, dtype=np.int64) * 7
    matrix[300, 900] = matrix[5, 6] = 1
    svg = plots.plot_confusion(matrix, [f"class{i}" for i in range(1000)])
    shown = texts(svg)
    assert shows(svg, r"\b99\.97 %\D*\b2\b\D*\b7,002\b")
    assert {"class300", "class900", "class5", "class6"} <= set(shown)
    assert len([text for text in shown if text.startswith("class")]) == 2 * plots.MAX_CONFUSION_CLASSES
    assert len(svg) < 100_000


def test_confusion_long_names_keep_what_differs():
    names = ["garden flower no 1", "garden flower no 2", "another flower no 1"]
    shown = texts(plots.plot_confusion(np.eye(3, dtype=np.int64), names))
    assert {"…n flower no 1", "…n flower no 2", "another flowe…"} <= set(shown)


def test_confusion_title_of_long_names_is_centered():
    svg = plots.plot_confusion(np.eye(5, dtype=np.int64), [f"class {i} {'名' * 20}" for i in range(5)])
    root = ElementTree.fromstring(svg)
    (title,) = [element for element in root.iter(SVG + "text") if element.text.startswith("Accuracy")]
    assert float(title.get("x")) == pytest.approx(float(root.get("viewBox").split()[2]) / 2, abs=1)
    assert "text-anchor: middle" in title.get("style")


def test_confusion_without_images_is_drawn():
    svg = plots.plot_confusion(np.zeros((2, 2), np.int64), ["cat", "dog"])
    assert shows(svg, r"^no\b")
    assert {text for text in texts(svg) if re.search(r"\d", text)} == {"0", "0 %"}


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "$x_{", "a & b", 'quo"te', "\x07bell", "牡丹"])
def test_confusion_hostile_names_are_escaped(name):
    svg = plots.plot_confusion(np.eye(2, dtype=np.int64), [name, "dog"])
    assert "<script" not in svg
    shown = name.replace("\x07", "\N{REPLACEMENT CHARACTER}")
    assert (shown if len(shown) <= 14 else shown[:13] + "…") in texts(svg)


def binned(confidence, right):
    return calibration.reliability_diagram(np.array(confidence), np.array(right))


def dots(svg):
    return svg.count("<use ")


def test_reliability_shows_both_calibrations():
    before = binned([0.4, 0.9, 0.91, 0.99], [True, False, True, True])
    after = binned([0.3, 0.6, 0.61, 0.8], [True, False, True, True])
    alone, both = plots.plot_reliability(before, None), plots.plot_reliability(before, after)
    assert shows(alone, "confidence")
    assert len(set(words(alone))) == 4  # three axes, and the only entry of the legend
    (added,) = set(words(both)) - set(words(alone))
    assert added == "calibrated"
    # one dot for each filled bin (0.6 and 0.61 lie on both sides of an edge) and one in the legend
    assert dots(both) - dots(alone) == 5
    assert "nan" not in both


def test_risk_coverage_many_points_are_thinned():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(size=100_000)
    svg = plots.plot_risk_coverage(calibration.risk_coverage(confidence, rng.uniform(size=100_000) < confidence))
    assert len(set(words(svg))) == 2  # the axes
    assert "100 %" in texts(svg)
    assert re.search(r'aria-label="[^"]*\b100,000\b', svg)
    assert len(svg) < 20_000


@pytest.mark.parametrize("value", [1.0, float("nan")])
def test_reliability_and_coverage_of_one_prediction(value):
    right = np.array([True])
    assert shows(plots.plot_reliability(binned([value], [True]), None), "confidence")
    assert (
        len(set(words(plots.plot_risk_coverage(calibration.risk_coverage(np.array([value]), right))))) == 2
    )  # the axes


def test_svg_scales_and_ids_are_unique():
    one, two = plots.plot_curves(epochs(frozen=5), "loss"), plots.plot_curves(epochs(frozen=5), "accuracy")
    reliability = binned([0.5, 0.9], [False, True])
    calibration_plots = (
        plots.plot_reliability(reliability, reliability),
        plots.plot_risk_coverage(calibration.risk_coverage(np.array([0.5]), np.array([True]))),
    )
    for svg in (one, two, *calibration_plots):
        assert svg.startswith('<svg role="img" aria-label="')
        assert svg.endswith("</svg>")
        assert "<style" not in svg
        root = ElementTree.fromstring(svg)
        assert root.get("viewBox")
        assert root.get("width") is None  # the page gives the width
        assert not re.search(r"#0[0-9a-f]{5}", svg)  # only colors of the page
    ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in (one, two, *calibration_plots)]
    assert sum(map(len, ids)) == len(set.union(*ids))


def test_svg_is_deterministic():
    assert plots.plot_curves(epochs(frozen=5), "loss") == plots.plot_curves(epochs(frozen=5), "loss")


def test_plots_keep_matplotlib_settings():
    before = matplotlib.rcParams.copy()
    plots.plot_confusion(np.eye(2, dtype=int), ["cat", "dog"])
    assert matplotlib.rcParams.copy() == before


@pytest.mark.slow
def test_plots_do_not_import_pyplot():
    program = """
import sys, numpy
from flaxtl.report import plots
plots.plot_confusion(numpy.eye(2, dtype=int), ["cat", "dog"])
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_metric_vs_setting_labels_values_and_lines():
    lines = [
        plots.MetricLine("dropout=0", {0: (0.5, 0.0), 1: (0.75, 0.125)}, is_best=True),
        plots.MetricLine("dropout=<0.4>", {1: (0.25, 0.0)}, is_best=False),
    ]
    svg = plots.plot_metric_vs_setting("head.units", ["64", "(128, 64)"], lines)
    assert {"head.units", "64", "(128, 64)", "dropout=0", "dropout=<0.4>"} <= set(texts(svg))
    assert any(re.fullmatch(r"[\d.]+ %", text) for text in texts(svg))
    assert "var(--accent" in svg
    assert svg == plots.plot_metric_vs_setting("head.units", ["64", "(128, 64)"], lines)


def test_metric_vs_setting_categories_are_not_joined():
    line = plots.MetricLine("", {0: (0.8, 0.0), 1: (0.9, 0.0)}, is_best=True)
    joined, separate = (
        plots.plot_metric_vs_setting("model.name", ["vgg16", "resnet50"], [line], ordered=ordered)
        for ordered in (True, False)
    )
    path = r'<path d="M [^"]*" clip-path[^>]*stroke: var\(--accent'
    assert len(re.findall(path, joined)) == 1
    assert re.findall(path, separate) == []


@pytest.mark.parametrize("last", [9.0, float("nan"), float("inf")])
def test_lr_curve_shows_log_axis_and_suggestion(last):
    points = [(10.0**power, 2.0, 2.0 - 0.1 * power) for power in range(-7, 1)] + [(10.0, last, last)]
    svg = plots.plot_lr_curve(points, 0, 0.00077)
    assert {"1e-6", "0.01", "1", "0.00077"} <= set(texts(svg))
    assert shows(svg, "learning rate", "batch", "average")
    assert "nan" not in svg
    assert re.search(r'aria-label="[^"]*\b1e-7\b[^"]*\b10\b', svg)
    assert "0.00077" not in texts(plots.plot_lr_curve(points, 0, None))


def test_lr_curve_y_axis_ignores_skipped_points():
    points = [(1e-7, 0.1, 0.1), *((10.0**power, 1.0 - 0.1 * power, 1.0 - 0.1 * power) for power in range(-6, 1))]

    def y_labels(num_skipped):
        return {
            text for text in texts(plots.plot_lr_curve(points, num_skipped, None)) if re.fullmatch(r"\d\.\d+", text)
        }

    assert "1.50" in y_labels(1)
    assert "1.50" not in y_labels(0)  # the axis ends at the lowest loss, that of the first batch


def test_metric_vs_setting_many_lines_have_no_legend():
    lines = [plots.MetricLine(f"line {n}", {0: (0.5, 0.0)}, is_best=not n) for n in range(plots.MAX_LEGEND_LINES + 1)]
    assert not [text for text in texts(plots.plot_metric_vs_setting("x", ["1"], lines)) if text.startswith("line")]
    assert "line 1" in texts(plots.plot_metric_vs_setting("x", ["1"], lines[:2]))
    assert "line 0" not in texts(plots.plot_metric_vs_setting("x", ["1"], lines[:1]))  # a single line needs no legend
