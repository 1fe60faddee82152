import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.finished_run import CLASSES, Page, write
from PIL import Image

from flaxtl.errors import UserError
from flaxtl.evaluation import classification
from flaxtl.evaluation import predictions as predictions_file
from flaxtl.report import galleries, report, templating


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return write(tmp_path_factory.mktemp("run"))


@pytest.fixture
def workdir(finished, tmp_path):
    """A copy of the finished run that a test may take apart."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(scope="module")
def html(finished):
    image = Image.new("RGB", (20, 20), "red")
    path = report.write_report(finished, augmented=[(image, [image, image.rotate(30)])])
    assert path == finished / "report" / "index.html"
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def headline(percent, split, counted):
    """A pattern of the first figures on the page: the accuracy on a split, and how many were right."""
    accuracy = re.escape(percent) + " %"
    return rf"^[^%]*?({accuracy}[^%\d]*\b{split}\b|\b{split}\b[^%\d]*{accuracy})\D*\b{counted}\b"


def text(workdir):
    return Page(report.write_report(workdir).read_text(encoding="utf-8")).text


def test_headline(page):
    low, high = (f"{100 * end:.2f} %" for end in classification.wilson_interval(13, 16))
    assert re.search(headline("81.25", "test", "13 of 16"), page.text)
    assert re.search(rf"\b{re.escape(low)}\D+{re.escape(high)}", page.text)
    assert "finetune 81.25 % +6.25 " in page.text
    labels = r"[A-Z][a-z]+( [a-z]+)?"
    facts = ("vgg16", "200 × 180", r"vgg16\.h5", "4", "36", "7", "1 h 02 min", "2 × H200")
    assert re.search(rf"\b{labels} " + rf" {labels} ".join(facts) + r"\b", page.text)


def test_phases(page):
    assert "frozen head 0.001 590,597 off 2 1 min 01 s 75.00 % 75.00 % 75.00 %" in page.text
    assert "finetune head 1e-6 top 1e-6 590,597 on 3 1 min 01 s 75.00 % 75.00 % 81.25 %" in page.text
    assert re.search(r"\b26\b[^.\d]+\bfrozen\b[^.\d]+\b26\b[^.\d]+\bfinetune\b", page.text)


def test_confusion_and_classes(page):
    assert re.search(r"\b81\.25 %\D+\b3\b\D+\b16\b", page.text)
    assert "daisy 100.0 % 25.0 % 40.0 % 4" in page.text  # one of four daisies found, and no other taken for one
    assert re.search(r"(?i)\bbalanced accuracy\b\W+81\.25 %", page.text)


def test_errors_come_with_their_images(page):
    assert re.search(r"daisy → <script>alert\(1\)</script> 2 [a-z]", page.text)
    gone, broken = r"(?i)\b(no longer|missing|not found)\b", r"(?i)\b(cannot|unreadable|damaged)\b"
    assert re.search(gone + r"[a-z ]+ daisy → <script>alert\(1\)</script> 79 % 0_6&<b>\.png", page.text)
    assert re.search(broken + r"[a-z ]+ daisy → tulips 55 % 0_7&<b>\.png", page.text)
    assert f"79 % loss {-np.log(0.07):.2f} 0_6&<b>.png" in page.text


def test_data_layers_and_config(page):
    assert "Class Train Validation Test All daisy 3 2 4 9" in page.text
    assert "All 12 8 16 36" in page.text
    assert re.search(r"\b2 layers\b\D+\b2,359,808\b", page.text)
    assert "block5_conv1 conv 12 × 12 × 512 2,359,808 top finetune imagenet: vgg16.h5" in page.text
    assert "flaxtl train --config=a.py --workdir='<b>'" in page.text
    assert '"seed": 7' in page.text
    assert "decode 250 ms" in page.text
    assert "jax 0.10.0" in page.text


def test_page_asks_nothing_of_the_network(page, html):
    assert "default-src 'none'" in html
    assert not {"script", "iframe", "object", "base"} & set(page.tags)
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "action"):
            assert value.startswith(("data:", "#")), (tag, name, value)
    assert not re.search(r"@import|url\((?!#)", html)


def test_page_is_accessible(page):
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


def test_original_stands_beside_its_augmented_samples(page):
    alts = [value for tag, name, value in page.attributes if tag == "img" and name == "alt"]
    assert all(
        re.fullmatch(pattern, alt)
        for pattern, alt in zip(("Original.* 1", "Augmented.* 1", "Augmented.* 2"), alts[-3:], strict=True)
    )
    assert not any(re.match("Original|Augmented", alt) for alt in alts[:-3])


def test_a_second_report_replaces_the_first(workdir):
    first = report.write_report(workdir).read_bytes()
    assert report.write_report(workdir).read_bytes() == first
    names = sorted(path.name for path in (workdir / "report").iterdir())
    assert names == ["index.html", "label_issues.csv", "model_card.md"]


def test_a_run_under_way(workdir):
    for name in ("summary.json", "predictions.csv"):
        (workdir / name).unlink()
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    (workdir / "metrics.jsonl").write_text("\n".join(lines[:3]) + "\n" + lines[3][:20])  # the fourth is being written
    shown = text(workdir)
    assert re.search(r"(?i)\bnot (yet )?finished\b", shown)
    assert re.search(headline("62.50", "validation", "5 of 8"), shown)
    assert "frozen head 0.001 – off 2 3.0 s 75.00 % 62.50 % –" in shown
    assert "finetune head 1e-6 top 1e-6 – on 1 of 3 1.5 s" in shown
    assert re.search(r"(?i)\bno predictions\b", shown)
    assert "summary.json" in shown


def test_config_alone_is_enough(workdir):
    for path in workdir.iterdir():
        if path.is_file() and path.name != "config.json":
            path.unlink()
    shown = text(workdir)
    for missing in ("accuracy", "epoch", r"manifest\.csv", r"layers\.json"):
        assert re.search(rf"(?i)\bno {missing}\b", shown)
    assert "finetune head 1e-6 top 1e-6 – on 0 of 3 –" in shown


def test_an_empty_config_is_no_crash(workdir):
    for path in workdir.glob("*.*"):
        path.unlink()
    (workdir / "config.json").write_text("{}")
    assert re.search(r"(?i)\bno phases\b", text(workdir))


def test_without_a_test_split_validation_judges(workdir):
    predictions = predictions_file.read_predictions(workdir / "predictions.csv")
    predictions_file.write_predictions(workdir / "predictions.csv", predictions.of_split("validation"))
    manifest = workdir / "manifest.csv"
    manifest.write_text("".join(line for line in manifest.read_text().splitlines(True) if ",test," not in line))
    shown = text(workdir)
    assert re.search(headline("100.00", "validation", "8 of 8"), shown)
    assert re.search(r"(?i)\bno test split\b", shown)
    assert re.search(r"(?i)\btemperature\b[^.]*\b(flattered|optimistic|biased)\b", shown)
    assert re.search(r"(?i)\b(none|not one|no|all)\b( of)?( the)? 8 validation\b", shown)


def test_a_test_split_that_was_not_predicted_does_not_judge(workdir):
    predictions = predictions_file.read_predictions(workdir / "predictions.csv")
    predictions_file.write_predictions(workdir / "predictions.csv", predictions.of_split("validation"))
    assert re.search(headline("100.00", "validation", "8 of 8"), text(workdir))


def test_without_predictions_the_summary_judges(workdir):
    (workdir / "predictions.csv").unlink()
    assert re.search(headline("81.25", "test", "13 of 16"), text(workdir))


def test_a_directory_that_is_no_run(tmp_path):
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
        ("manifest.csv", "a,b\n1,2\n", r"\bpath, label and split\b"),
        ("predictions.csv", "a,b\n1,2\n", "(?i)predictions file"),
    ],
)
def test_a_broken_file_is_named(workdir, name, content, reason):
    (workdir / name).write_text(content)
    with pytest.raises(UserError, match=reason) as error:
        report.write_report(workdir)
    assert str(workdir / name) in str(error.value)


def test_galleries_choose_the_images_that_tell_most(finished):
    predictions = predictions_file.read_predictions(finished / "predictions.csv").of_split("test")
    (first, second) = galleries.confused_pairs(predictions, pairs=5, each=1)
    assert (first.true, first.predicted, first.count) == ("daisy", CLASSES[1], 2)
    assert [tile.name for tile in first.tiles] == ["0_6&<b>.png"]  # the more confident of two
    assert (second.predicted, second.count) == ("tulips", 1)
    assert [tile.name for tile in galleries.top_losses(predictions, 2)] == ["0_6&<b>.png", "0_5&<b>.png"]
    assert len(galleries.top_losses(predictions, 99)) == 3  # the other images were answered right and surely
    assert [tile.true for tile in galleries.correct_predictions(predictions, 3)] == list(CLASSES[:3])


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "–"),
        (0.0123, "12 ms"),
        (12.34, "12.3 s"),
        (59.97, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3725, "1 h 02 min"),
    ],
)
def test_duration(seconds, shown):
    assert templating.format_duration(seconds) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(0.001, "0.001"), (1e-6, "1e-6"), (3.5e-5, "3.5e-5"), (0.1, "0.1"), (1, "1")]
)
def test_rate(value, shown):
    assert templating.format_lr(value) == shown


def test_a_threshold_lets_pass_who_has_it():
    assert templating.format_threshold(np.float32(0.97)) == "0.970000"
    assert templating.format_threshold(0.9999999) == "0.999999"
    assert templating.format_threshold(1.0) == "1.000000"
    assert templating.format_threshold(float("nan")) == templating.format_threshold(float("inf")) == "–"


def test_percent_and_points():
    assert templating.format_percent(float("nan")) == templating.format_percent(None) == "–"
    assert templating.format_percent(0.92609, 1) == "92.6\N{NARROW NO-BREAK SPACE}%"
    assert templating.format_points(-0.0288) == "\N{MINUS SIGN}2.88"
