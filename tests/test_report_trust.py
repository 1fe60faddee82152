"""What the report says of confidence and of labels."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from finished import Page, write

from flaxtl.errors import UserError
from flaxtl.results import predictions_file, report


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return write(tmp_path_factory.mktemp("run"))


@pytest.fixture
def workdir(finished, tmp_path):
    """A copy of the finished run that a test may take apart."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(scope="module")
def page(finished):
    return Page(report.write(finished).read_text(encoding="utf-8"))


def text(workdir):
    return Page(report.write(workdir).read_text(encoding="utf-8")).text


def test_confidence_before_and_after_the_temperature(page):
    """Of 16 answers 13 are right and 0.94 sure, 3 are wrong: 0.64, 0.79 and 0.55 sure, each in a bin of its own."""
    confidence, loss = 13 * 0.94 + 0.64 + 0.79 + 0.55, -13 * np.log(0.94) - sum(np.log([0.12, 0.07, 0.15]))
    error = 13 * (1 - 0.94) + 0.64 + 0.79 + 0.55
    assert f"as answered {confidence / 16:.2%} {error / 16:.2%} {loss / 16:.4f}".replace("%", " %") in page.text
    # at 2 the answers go by square roots: the wrong ones are 0.435, 0.528 and 0.390 sure, again in bins of their own
    sure = np.sqrt([0.94, 0.64, 0.79, 0.55])
    sure /= sure + 3 * np.sqrt([0.02, 0.12, 0.07, 0.15])
    confidence, error = 13 * sure[0] + sure[1:].sum(), 13 * (1 - sure[0]) + sure[1:].sum()
    loss = -13 * np.log(sure[0]) - np.log((1 - sure[1:]) / 3).sum()
    assert f"at the temperature {confidence / 16:.2%} {error / 16:.2%} {loss / 16:.4f}".replace("%", " %") in page.text
    assert "T = 2.000 gives the 8 validation pictures the least cross-entropy." in page.text
    assert "flattered" not in page.text
    assert "Reliability diagram of 16 answers" in [value for _, name, value in page.attributes if name == "aria-label"]


def test_abstention(page):
    # 13 answers are 0.94 sure and right, the others wrong; as float32 0.64 and 0.94 are a little less, 0.55 a bit more
    rows = "100 % 16 0.550000 81.25 % 95 % 16 0.550000 81.25 % 90 % 15 0.639999 86.67 % 80 % 13 0.939999 100.00 %"
    assert f"{rows} 50 % 13 0.939999 100.00 %" in page.text


def test_labels_that_look_right(page, finished):
    """Of 24 pictures three have another class that is more probable; no class is as sure of them as of its own."""
    assert "No label of the 24 validation and test pictures looks wrong." in page.text
    assert (finished / "report" / "label_issues.csv").read_text() == "path,label,suggested_label,probability\n"


def test_a_wrong_label_is_shown_and_listed(workdir):
    said = predictions_file.read(workdir / "predictions.csv")
    said.probabilities[2] = (0.01, 0.97, 0.01, 0.01)
    predictions_file.write(workdir / "predictions.csv", said)
    shown = text(workdir)
    assert "1 of the 24 validation and test pictures has a label that looks wrong" in shown
    tile = f"daisy → <script>alert(1)</script> 97 % loss {-np.log(0.01):.2f} 0_5&<b>.png"
    assert shown[shown.index("1 of the 24") :].count(tile) == 1
    with (workdir / "report" / "label_issues.csv").open(newline="") as file:
        assert list(csv.reader(file))[1:] == [[said.paths[2], "daisy", "<script>alert(1)</script>", "0.97"]]
    (workdir / "predictions.csv").unlink()
    assert "Labels that look wrong are shown here once there are predictions." in text(workdir)
    assert not (workdir / "report" / "label_issues.csv").exists()


@pytest.mark.parametrize(
    ("calibration", "sentence"),
    [
        (None, "No temperature was kept with this run"),
        ({"temperature": None, "n": 0}, "the run has no validation pictures to fit one on."),
        ({"temperature": None, "n": 8}, "none between 0.01 and 100 is best for the 8 validation pictures"),
    ],
)
def test_without_a_temperature(workdir, calibration, sentence):
    summary = json.loads((workdir / "summary.json").read_text())
    del summary["calibration"]
    (workdir / "summary.json").write_text(json.dumps(summary | ({"calibration": calibration} if calibration else {})))
    shown = text(workdir)
    assert sentence in shown
    assert "as answered" in shown
    assert "at the temperature" not in shown


@pytest.mark.parametrize(
    ("calibration", "reason"),
    [
        ([], "calibration is not an object"),
        ({"temperature": 1.0}, "calibration has no 'n'"),
        *(({"temperature": bad, "n": 8}, "not a temperature") for bad in (0, -1.0, 1e-300, 1e300, "1", True)),
    ],
)
def test_a_temperature_that_is_none_is_refused(workdir, calibration, reason):
    (workdir / "summary.json").write_text(json.dumps({"calibration": calibration}))
    with pytest.raises(UserError, match=reason):
        report.write(workdir)
