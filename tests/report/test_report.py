"""The page of a run: every section, on finished and unfinished runs and on broken files."""

import csv
import json
import re
from contextlib import contextmanager

import numpy as np
import pytest
from helpers import tiny_run
from helpers.finished_run import CLASSES, Page
from PIL import Image

from flaxtl.errors import UserError
from flaxtl.evaluation.predictions import read_predictions, write_predictions
from flaxtl.fileio import exclusive_lock
from flaxtl.report import galleries, report, templating
from flaxtl.report.report import AugmentedExample

pytestmark = pytest.mark.usefixtures("unplotted")


@pytest.fixture(scope="module")
def html(finished):
    """The page with its plots: made before they are switched off for a test, because it is of the module."""
    image = Image.new("RGB", (20, 20), "red")
    path = report.write_report(finished, augmented=[AugmentedExample(image, [image, image.rotate(30)])])
    assert path == finished / "report" / "index.html"
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def headline(percent, split, counted):
    """Return a pattern of the first figures on the page: accuracy, split and number of correct predictions."""
    accuracy = re.escape(percent) + " %"
    return rf"^[^%]*?({accuracy}[^%\d]*\b{split}\b|\b{split}\b[^%\d]*{accuracy})\D*\b{counted}\b"


def text(workdir):
    return Page(report.write_report(workdir).read_text(encoding="utf-8")).text


def test_report_headline_and_facts(page):
    assert re.search(headline("81", "test", "13 of 16"), page.text)
    assert "95 % confidence interval: 57 to 93 %" in page.text.replace("\N{NO-BREAK SPACE}", " ")
    assert "finetune 81 % +6 points" in page.text
    labels = r"[A-Z][a-z]+( [a-z]+)?"
    facts = ("vgg16", "200 × 180", r"vgg16\.h5", "4", "36", "7", "1 h 02 min", "2 × H200")
    assert "Training time 1 h 02 min" in page.text
    assert re.search(rf"\b{labels} " + rf" {labels} ".join(facts) + r"\b", page.text)


def test_report_phases(page):
    assert "frozen head 0.001 590,597 off 2 1 min 01 s 75 % 75 % 75 %" in page.text
    assert "finetune head 1e-6 top 1e-6 590,597 on 3 1 min 01 s 75 % 75 % 81 %" in page.text
    assert re.search(r"\b26\b[^.\d]+\bfrozen\b[^.\d]+\b26\b[^.\d]+\bfinetune\b", page.text)


def test_report_phases_round_training_accuracy_by_its_images(workdir):
    summary = json.loads((workdir / "summary.json").read_text())
    summary["phases"]["frozen"]["train"] |= {"accuracy": 0.9991, "n": 1088}  # uses of 12 images
    (workdir / "summary.json").write_text(json.dumps(summary))
    assert "frozen head 0.001 590,597 off 2 1 min 01 s 100 % 75 % 75 %" in text(workdir)


def test_report_names_elements_that_have_a_role(html):
    assert '<span class="arrow" role="img" aria-label="predicted as">' in html
    assert not re.search(r"<(span|div)(?![^>]* role=)[^>]* aria-label=", html)  # ARIA 1.2 forbids names without one


def test_report_confusion_and_class_table(page):
    assert re.search(r"\b81 %\D+\b3\b\D+\b16\b", page.text)
    # one of four daisies is found, and nothing else is predicted as daisy
    assert "daisy 100 % 25 % 40 % 4" in page.text
    assert re.search(r"(?i)\bbalanced accuracy\b\W+81 %", page.text)


def test_report_errors_with_thumbnails(page):
    assert re.search(r"daisy → <script>alert\(1\)</script> 2 [a-z]", page.text)
    gone, broken = r"(?i)\b(missing|not found)\b", r"(?i)\b(cannot|unreadable|damaged)\b"
    assert re.search(gone + r"[a-z ]* daisy → <script>alert\(1\)</script> 53 % loss 1\.85 0_6&<b>\.png", page.text)
    assert re.search(broken + r"[a-z ]* daisy → tulips 39 % loss 1\.59 0_7&<b>\.png", page.text)


def test_report_data_layers_and_config(page):
    assert "Class Train Validation Test All daisy 3 2 4 9" in page.text
    assert "All 12 8 16 36" in page.text
    assert re.search(r"\b2 layers\b\D+\b2,359,808\b", page.text)
    assert "block5_conv1 conv 12 × 12 × 512 2,359,808 top finetune imagenet: vgg16.h5" in page.text
    assert "flaxtl train --config=a.py --workdir='<b>'" in page.text
    assert '"seed": 7' in page.text
    assert "decode 250 ms" in page.text
    assert "jax 0.10.0" in page.text


def test_report_needs_no_internet(page, html):
    assert "default-src 'none'" in html
    assert f"script-src '{templating.SCRIPT_HASH}'" in html
    assert page.tags.count("script") == html.count(f"<script>{templating.SCRIPT}</script>") == 1
    assert not {"iframe", "object", "base"} & set(page.tags)
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "action"):
            assert value.startswith(("data:", "#")), (tag, name, value)
    assert not re.search(r"@import|url\((?!#)", html)


def test_report_is_accessible(page):
    images = page.tags.count("img")
    assert images > 0
    assert sum(tag == "img" and name == "alt" and value != "" for tag, name, value in page.attributes) == images
    assert ("html", "lang", "en") in page.attributes
    assert all(value in ("col", "row") for tag, name, value in page.attributes if tag == "th" and name == "scope")
    assert sum(tag == "th" and name == "scope" for tag, name, _ in page.attributes) == page.tags.count("th")
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    anchors = {value[1:] for tag, name, value in page.attributes if tag == "a" and name == "href"}
    assert anchors <= set(ids)


def test_report_shows_augmented_samples(page):
    alts = [value for tag, name, value in page.attributes if tag == "img" and name == "alt"]
    assert all(
        re.fullmatch(pattern, alt)
        for pattern, alt in zip(("Original.* 1", "Augmented.* 1", "Augmented.* 2"), alts[-3:], strict=True)
    )
    assert not any(re.match("Original|Augmented", alt) for alt in alts[:-3])


@pytest.mark.parametrize(
    ("settings", "num_shown"),
    [
        ({}, 3),
        ({"feature_cache": {"views": 2}}, 2),  # training never sees a third one
        ({"feature_cache": {"views": 9}}, 3),
        ({"feature_cache": {"views": 2}, "finetune": {"lr": dict.fromkeys(("head", "block2", "base"), 1e-3)}}, 3),
    ],
    ids=["fresh", "views", "many_views", "nothing_frozen"],
)
def test_augmented_samples_are_those_that_training_sees(tmp_path, settings, num_shown):
    setup = tiny_run.setup(tiny_run.images(tmp_path / "images"), tmp_path / "run", **settings)
    (example,) = report.augmented_samples(setup, num_images=1, num_samples=3)
    assert len(example.samples) == num_shown
    assert len({sample.tobytes() for sample in example.samples}) == num_shown


def test_augmented_samples_without_augmentation_are_empty(tmp_path):
    images = tiny_run.images(tmp_path / "images")
    setup = tiny_run.setup(images, tmp_path / "run", finetune={"augment": False})
    assert report.augmented_samples(setup) == []


def test_write_report_twice_gives_same_files(workdir):
    first = report.write_report(workdir).read_bytes()
    assert report.write_report(workdir).read_bytes() == first
    names = sorted(path.name for path in (workdir / "report").iterdir())
    assert names == ["index.html", "label_issues.csv", "model_card.md"]


def test_report_of_unfinished_run(workdir):
    (workdir / "predictions.csv").unlink()
    summary = workdir / "summary.json"
    summary.write_text(json.dumps({"format_version": json.loads(summary.read_text())["format_version"]}))
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    (workdir / "metrics.jsonl").write_text("\n".join(lines[:3]) + "\n" + lines[3][:20])  # the fourth is being written
    shown = text(workdir)
    assert re.search(r"(?i)\bnot (yet )?finished\b", shown)
    assert re.search(headline("62", "validation", "5 of 8"), shown)
    assert "frozen head 0.001 – off 2 3.0 s 75 % 62 % –" in shown
    assert "finetune head 1e-6 top 1e-6 – on 1 of 3 1.5 s" in shown
    assert re.search(r"(?i)\bno predictions\b", shown)
    assert "summary.json" in shown


def test_report_photos_left_out_of_a_pair_are_not_above(workdir, monkeypatch):
    monkeypatch.setattr(galleries, "IMAGES_PER_CLASS", 0)
    monkeypatch.setattr(galleries, "IMAGES_PER_PAIR", 1)
    assert "2 images, 1 shown here" in text(workdir)


def test_report_of_a_run_in_its_second_phase_shows_that_phase(workdir):
    (workdir / "predictions.csv").unlink()
    summary = workdir / "summary.json"
    values = json.loads(summary.read_text())
    del values["phases"]["finetune"], values["complete"]
    summary.write_text(json.dumps(values))
    epochs = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [epoch["phase"] for epoch in epochs[:3]] == ["frozen", "frozen", "finetune"]
    epochs[2]["validation_accuracy"] = 0.375
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs[:3]))
    shown = text(workdir)
    assert re.search(headline("38", "validation", "3 of 8"), shown)
    assert "frozen 75 % finetune 38 % −38 points" in shown  # validation accuracy, as the headline
    assert "This run is not finished. The figures are those so far; run flaxtl report again later." in shown


def test_report_of_a_diverged_run_says_where_and_what_to_do(workdir):
    (workdir / "predictions.csv").unlink()
    summary = workdir / "summary.json"
    values = json.loads(summary.read_text())
    stop = {"phase": "finetune", "epoch": 2, "step": 1234, "images": []}
    summary.write_text(json.dumps({**values, "complete": False, "nonfinite_step": stop}))
    notice = "loss or gradient became NaN or inf in phase finetune, epoch 2, step 1,234."
    assert notice in text(workdir)
    assert "again later" not in text(workdir)


def test_report_of_config_only(workdir):
    for path in workdir.iterdir():
        if path.is_file() and path.name != "config.json":
            path.unlink()
    shown = text(workdir)
    for missing in ("accuracy", "epoch", r"manifest\.csv", r"layers\.json"):
        assert re.search(rf"(?i)\bno {missing}\b", shown)
    assert "finetune head 1e-6 top 1e-6 – on 0 of 3 –" in shown


def test_report_without_test_split_uses_validation(workdir):
    predictions = read_predictions(workdir / "predictions.csv")
    write_predictions(workdir / "predictions.csv", predictions.of_split("validation"))
    manifest = workdir / "manifest.csv"
    manifest.write_text("".join(line for line in manifest.read_text().splitlines(True) if ",test," not in line))
    shown = text(workdir)
    assert re.search(headline("100", "validation", "8 of 8"), shown)
    assert re.search(r"(?i)\bno test split\b", shown)
    assert re.search(r"(?i)\btemperature\b[^.]*\boptimistic\b", shown)
    assert re.search(r"(?i)\ball 8 validation\b", shown)


def test_report_recall_has_the_digits_of_the_model_card(workdir):
    predictions = read_predictions(workdir / "predictions.csv").of_split("test")
    daisies = np.flatnonzero(predictions.labels == CLASSES.index("daisy")).repeat(50)
    write_predictions(workdir / "predictions.csv", predictions.take(daisies))
    assert "daisy 100 % 25 % 40 % 200" in text(workdir)
    assert "| daisy | 25\u202f% |" in (workdir / "report" / "model_card.md").read_text()


def test_report_unpredicted_test_split_is_not_used(workdir):
    predictions = read_predictions(workdir / "predictions.csv")
    write_predictions(workdir / "predictions.csv", predictions.of_split("validation"))
    assert re.search(headline("100", "validation", "8 of 8"), text(workdir))


def test_report_without_predictions_uses_summary(workdir):
    (workdir / "predictions.csv").unlink()
    assert re.search(headline("81", "test", "13 of 16"), text(workdir))


def test_write_report_not_a_run_directory_raises(tmp_path):
    with pytest.raises(UserError, match=re.escape(str(tmp_path)) + r"\b.*\bconfig\.json"):
        report.write_report(tmp_path)
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "gone")) + r"\b.*\bconfig\.json"):
        report.write_report(tmp_path / "gone")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("config.json", "{", "line 1 column 2"),
        ("config.json", "[]", r"\bobject\b"),
        ("layers.json", "{}", r"\blist\b"),
        ("metrics.jsonl", "{oops}\n{}\n", "line 1 column 2"),
        ("manifest.csv", "a,b\n1,2\n", r"\bpath,label,split\b"),
        ("predictions.csv", "a,b\n1,2\n", r"\bpath,split,label\b"),
    ],
)
def test_write_report_broken_file_is_named(workdir, name, content, reason):
    (workdir / name).write_text(content)
    with pytest.raises(UserError, match=reason) as error:
        report.write_report(workdir)
    assert str(workdir / name) in str(error.value)


UNCALIBRATED, CALIBRATED = "88.75 % 17.25 % 0.4676", "64.97 % 33.19 % 0.6144"
"""Mean confidence, ECE and NLL, derived in test_report_calibration_metrics."""


def test_report_calibration_metrics(page):
    """13 of 16 predictions are correct (confidence 0.94); 3 are wrong (0.64, 0.79, 0.55), each in its own bin."""
    confidence, loss = 13 * 0.94 + 0.64 + 0.79 + 0.55, -13 * np.log(0.94) - sum(np.log([0.12, 0.07, 0.15]))
    error = 13 * (1 - 0.94) + 0.64 + 0.79 + 0.55
    assert f"{confidence / 16:.2%} {error / 16:.2%} {loss / 16:.4f}".replace("%", " %") == UNCALIBRATED
    # temperature 2 takes square roots: the wrong ones have 0.435, 0.528 and 0.390, again each in its own bin
    scaled = np.sqrt([0.94, 0.64, 0.79, 0.55])
    scaled /= scaled + 3 * np.sqrt([0.02, 0.12, 0.07, 0.15])
    confidence, error = 13 * scaled[0] + scaled[1:].sum(), 13 * (1 - scaled[0]) + scaled[1:].sum()
    loss = -13 * np.log(scaled[0]) - np.log((1 - scaled[1:]) / 3).sum()
    assert f"{confidence / 16:.2%} {error / 16:.2%} {loss / 16:.4f}".replace("%", " %") == CALIBRATED
    assert 0 < page.text.find(UNCALIBRATED) < page.text.find(CALIBRATED)
    assert re.search(r"\b2\.000\b[^.\d]*\b8 validation\b", page.text)
    assert not re.search(r"(?i)\boptimistic\b", page.text)
    labels = [value for _, name, value in page.attributes if name == "aria-label"]
    assert any(re.match(r"(?i)reliability diagram\D*\b16\b", label) for label in labels)


def test_report_coverage_table(page):
    # 13 predictions are correct with 0.94, the others wrong with 0.64, 0.79 and 0.55; see above for temperature 2
    rows = "100 % 16 0.389605 81 % 95 % 16 0.389605 81 % 90 % 15 0.434964 87 % 80 % 13 0.695606 100 %"
    assert f"{rows} 50 % 13 0.695606 100 %" in page.text


def test_report_without_label_issues(page, finished):
    """Three of 24 images have a more probable class, but not more probable than for the images with that label."""
    assert re.search(r"\b24 validation and test\b", page.text)
    assert not re.search(r"\b\d+ of (the )?24\b", page.text)
    assert (finished / "report" / "label_issues.csv").read_text() == "path,label,suggested_label,probability\n"


def test_report_label_issue_is_shown_and_listed(workdir):
    predictions = read_predictions(workdir / "predictions.csv")
    predictions.probabilities[2] = (0.01, 0.97, 0.01, 0.01)
    write_predictions(workdir / "predictions.csv", predictions)
    shown = text(workdir)
    assert re.search(r"\b1 of (the )?24 validation and test\b", shown)
    scaled = np.sqrt([0.97, 0.01]) / (np.sqrt(0.97) + 3 * np.sqrt(0.01))  # at temperature 2
    assert scaled.round(4).tolist() == [0.7665, 0.0778]
    photo = f"daisy → {CLASSES[1]} 77 % loss {-np.log(scaled[1]):.2f} label? maybe {CLASSES[1]} 0_5&<b>.png"
    assert shown.count(photo) == shown.count("0_5&<b>.png") == 1
    with (workdir / "report" / "label_issues.csv").open(newline="") as file:
        (row,) = list(csv.reader(file))[1:]
    assert row[:3] == [predictions.paths[2], "daisy", "<script>alert(1)</script>"]
    assert float(row[3]) == pytest.approx(scaled[0], rel=1e-6)  # float32
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
        ({"temperature": None, "n": 8}, r"(?i)\bno temperature\b\D*\b0\.01\D+10000\D+8 validation\b"),
    ],
)
def test_report_without_temperature_gives_reason(workdir, calibration, reason):
    summary = json.loads((workdir / "summary.json").read_text())
    del summary["calibration"]
    (workdir / "summary.json").write_text(json.dumps(summary | ({"calibration": calibration} if calibration else {})))
    shown = text(workdir)
    assert re.search(reason, shown)
    assert UNCALIBRATED in shown
    assert CALIBRATED not in shown


@pytest.mark.parametrize(
    ("interval", "meaning", "shown"),
    [([1.3, 3.1], "overconfident", "1.30 to 3.10"), ([0.7, 123], "not clearly overconfident", "0.70 to 123.00")],
)
def test_report_shows_the_interval_of_the_temperature(workdir, interval, meaning, shown):
    summary = json.loads((workdir / "summary.json").read_text())
    summary["calibration"]["interval"] = interval
    (workdir / "summary.json").write_text(json.dumps(summary))
    page = text(workdir)
    assert f"it is {meaning}." in page
    assert f"(95 % interval {shown})." in page


@pytest.mark.parametrize(
    ("calibration", "reason"),
    [
        ([], r"(?=.*\bcalibration\b)(?=.*\bobject\b)"),
        ({"temperature": 1.0}, r"(?=.*\bcalibration\b)(?=.*`n`)"),
        *(({"temperature": bad, "n": 8}, r"\btemperature\b") for bad in (0, -1.0, 1e-300, 1e300, "1", True)),
    ],
)
def test_write_report_invalid_temperature_raises(workdir, calibration, reason):
    (workdir / "summary.json").write_text(json.dumps({"format_version": 2, "calibration": calibration}))
    with pytest.raises(UserError, match=reason):
        report.write_report(workdir)


def test_write_report_waits_for_another_before_it_reads_the_run(workdir, monkeypatch):
    """It is started during training, and finds the run finished once `flaxtl train` has written its report."""
    predictions = (workdir / "predictions.csv").rename(workdir / "not written yet")

    @contextmanager
    def lock(path):
        with exclusive_lock(path):
            predictions.rename(workdir / "predictions.csv")
            yield

    monkeypatch.setattr(report, "exclusive_lock", lock)
    assert re.search(headline("81", "test", "13 of 16"), text(workdir))
    assert (workdir / "report" / "label_issues.csv").is_file()
