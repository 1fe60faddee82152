"""What the report says of confidence and of labels."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.finished_run import Page, write

from flaxtl.errors import UserError
from flaxtl.evaluation import predictions
from flaxtl.report import report

AS_ANSWERED, CALIBRATED = "88.75 % 17.25 % 0.4676", "64.97 % 33.19 % 0.6144"
"""Confidence, calibration error and cross-entropy; worked out in the first test."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return write(tmp_path_factory.mktemp("run"))


@pytest.fixture
def workdir(finished, tmp_path):
    """A copy of the finished run that a test may take apart."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(scope="module")
def page(finished):
    return Page(report.write_report(finished).read_text(encoding="utf-8"))


def text(workdir):
    return Page(report.write_report(workdir).read_text(encoding="utf-8")).text


def test_confidence_before_and_after_the_temperature(page):
    """Of 16 answers 13 are right and 0.94 sure, 3 are wrong: 0.64, 0.79 and 0.55 sure, each in a bin of its own."""
    confidence, loss = 13 * 0.94 + 0.64 + 0.79 + 0.55, -13 * np.log(0.94) - sum(np.log([0.12, 0.07, 0.15]))
    error = 13 * (1 - 0.94) + 0.64 + 0.79 + 0.55
    assert f"{confidence / 16:.2%} {error / 16:.2%} {loss / 16:.4f}".replace("%", " %") == AS_ANSWERED
    # at 2 the answers go by square roots: the wrong ones are 0.435, 0.528 and 0.390 sure, again in bins of their own
    sure = np.sqrt([0.94, 0.64, 0.79, 0.55])
    sure /= sure + 3 * np.sqrt([0.02, 0.12, 0.07, 0.15])
    confidence, error = 13 * sure[0] + sure[1:].sum(), 13 * (1 - sure[0]) + sure[1:].sum()
    loss = -13 * np.log(sure[0]) - np.log((1 - sure[1:]) / 3).sum()
    assert f"{confidence / 16:.2%} {error / 16:.2%} {loss / 16:.4f}".replace("%", " %") == CALIBRATED
    assert 0 < page.text.find(AS_ANSWERED) < page.text.find(CALIBRATED)
    assert re.search(r"\b2\.000\b[^.\d]*\b8 validation\b", page.text)
    assert not re.search(r"(?i)\b(flattered|optimistic|biased)\b", page.text)
    labels = [value for _, name, value in page.attributes if name == "aria-label"]
    assert any(re.match(r"(?i)reliability diagram\D*\b16\b", label) for label in labels)


def test_abstention(page):
    # 13 answers are 0.94 sure and right, the others wrong; as float32 0.64 and 0.94 are a little less, 0.55 a bit more
    rows = "100 % 16 0.550000 81.25 % 95 % 16 0.550000 81.25 % 90 % 15 0.639999 86.67 % 80 % 13 0.939999 100.00 %"
    assert f"{rows} 50 % 13 0.939999 100.00 %" in page.text


def test_labels_that_look_right(page, finished):
    """Of 24 images three have another class that is more probable; no class is as sure of them as of its own."""
    assert re.search(r"\b24 validation and test\b", page.text)
    assert not re.search(r"\b\d+ of (the )?24\b", page.text)
    assert (finished / "report" / "label_issues.csv").read_text() == "path,label,suggested_label,probability\n"


def test_a_wrong_label_is_shown_and_listed(workdir):
    said = predictions.read_predictions(workdir / "predictions.csv")
    said.probabilities[2] = (0.01, 0.97, 0.01, 0.01)
    predictions.write_predictions(workdir / "predictions.csv", said)
    shown = text(workdir)
    count = re.search(r"\b1 of (the )?24 validation and test\b", shown)
    assert count
    tile = f"daisy → <script>alert(1)</script> 97 % loss {-np.log(0.01):.2f} 0_5&<b>.png"
    assert shown[count.end() :].count(tile) == 1
    with (workdir / "report" / "label_issues.csv").open(newline="") as file:
        assert list(csv.reader(file))[1:] == [[said.paths[2], "daisy", "<script>alert(1)</script>", "0.97"]]
    (workdir / "predictions.csv").unlink()
    shown = text(workdir)
    assert not re.search(r"\b24 validation and test\b", shown)
    assert re.search(r"(?i)\blabels\b[^.]*\bpredictions\b", shown)
    assert not (workdir / "report" / "label_issues.csv").exists()


@pytest.mark.parametrize(
    ("calibration", "reason"),
    [
        (None, r"(?i)\bno temperature\b(?![^.]*\bvalidation\b)"),
        ({"temperature": None, "n": 0}, r"(?i)\bno temperature\b[^.\d]*\bvalidation\b"),
        ({"temperature": None, "n": 8}, r"(?i)\bno temperature\b\D*\b0\.01\D+100\D+8 validation\b"),
    ],
)
def test_without_a_temperature(workdir, calibration, reason):
    summary = json.loads((workdir / "summary.json").read_text())
    del summary["calibration"]
    (workdir / "summary.json").write_text(json.dumps(summary | ({"calibration": calibration} if calibration else {})))
    shown = text(workdir)
    assert re.search(reason, shown)
    assert AS_ANSWERED in shown
    assert CALIBRATED not in shown


@pytest.mark.parametrize(
    ("calibration", "reason"),
    [
        ([], r"\bcalibration\b.*\bobject\b"),
        ({"temperature": 1.0}, r"\bcalibration\b.*'n'"),
        *(({"temperature": bad, "n": 8}, r"\btemperature\b") for bad in (0, -1.0, 1e-300, 1e300, "1", True)),
    ],
)
def test_a_temperature_that_is_none_is_refused(workdir, calibration, reason):
    (workdir / "summary.json").write_text(json.dumps({"calibration": calibration}))
    with pytest.raises(UserError, match=reason):
        report.write_report(workdir)
