"""The model card, as text and as a reader of Markdown shows it (markdown-it, which rich brings along)."""

import csv
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from helpers.finished_run import write
from markdown_it import MarkdownIt

from flaxtl.evaluation import classification, predictions
from flaxtl.evaluation.run_files import read_run
from flaxtl.report import model_card, report
from flaxtl.report.templating import format_percent

READER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
SCRIPT = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return write(tmp_path_factory.mktemp("run"))


@pytest.fixture
def workdir(finished, tmp_path):
    """A copy of the finished run that a test may take apart."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


class Shown(HTMLParser):
    """What a reader shows: the lines of text with the cells of a table side by side, and the elements."""

    def __init__(self, card):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(READER.render(card))
        self.text = self.text.replace("\N{NARROW NO-BREAK SPACE}", " ")

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.text += "| " if tag in ("td", "th") else ""

    def handle_endtag(self, tag):
        self.text += " " if tag in ("td", "th") else "\n" if tag in ("h1", "h2", "p", "tr", "li") else ""

    def handle_data(self, data):
        self.text += data if data.strip() else ""  # lines between elements


@pytest.fixture(scope="module")
def card(finished):
    return Shown(model_card.render_model_card(read_run(finished)))


def altered(workdir, name, **values):
    """The card after top-level entries of a JSON file of the run were set."""
    file = workdir / name
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return Shown(model_card.render_model_card(read_run(workdir))).text


def licences(text):
    """What the card says of the weights' licence and of the data's, which stand above flaxtl's own."""
    lines = text.splitlines()
    (own,) = (number for number, line in enumerate(lines) if line.endswith("Apache-2.0"))
    return lines[own - 2 : own]


def test_the_report_writes_the_card(workdir):
    report.write_report(workdir)
    assert (workdir / "report" / "model_card.md").read_text(encoding="utf-8") == model_card.render_model_card(
        read_run(workdir)
    )


def test_result_and_intervals(card):
    low, high = (
        format_percent(end).replace("\N{NARROW NO-BREAK SPACE}", " ") for end in classification.wilson_interval(13, 16)
    )
    headline = card.text.split("|")[0]
    assert re.search(rf"(?s)\b81\.25 %.*\btest\b.*\b13 of 16\b.*\b95 %.*\b{low} to {high}", headline)
    assert f"| accuracy | 81.25 % | {low} to {high} " in card.text
    # Wilson's interval of 1 of 4 and of 4 of 4, from tables of it
    assert "| daisy | 25.0 % | 4.6 % to 69.9 % | 1 | 4 " in card.text
    assert f"| {SCRIPT} | 100.0 % | 51.0 % to 100.0 % | 4 | 4 " in card.text
    assert re.search(r"\| [^|\n]*\b90 %[^|\n]*\b0\.639999\b[^|\n]*\| 86\.67 % ", card.text)
    assert re.search(r"(?i)\btemperature\b[^|\n]*\b8 validation\b", card.text)


def test_data_and_config(card):
    assert "| class | train | validation | test | all \n| daisy | 3 | 2 | 4 | 9 \n" in card.text
    assert "| all | 12 | 8 | 16 | 36 \n" in card.text
    assert "Source: folder:/p" in card.text
    assert "| frozen | head 0.001 | off | 2 | 75.00 % | 75.00 % \n" in card.text
    assert "| finetune | head 1e-6, top 1e-6 | on | 3 | 75.00 % | 81.25 % \n" in card.text


def test_known_failures(card):
    assert f"| daisy | {SCRIPT} | 2 of 4 | 50.0 % \n| daisy | tulips | 1 of 4 | 25.0 % \n" in card.text


def test_how_to_reproduce(card):
    assert "flaxtl train --config=a.py --workdir='<b>'\n" in card.text
    assert re.search(r"(?i)\bseed\W+7\b", card.text)
    assert "jax 0.10.0\n" in card.text


@pytest.mark.parametrize(
    ("weights", "model", "licence"),
    [
        ({"path": "imagenet"}, {"name": "vgg16"}, "CC BY 4.0 (K. Simonyan, A. Zisserman)"),
        ({"path": "builtin"}, {"name": "VGG-16"}, "CC BY 4.0 (K. Simonyan, A. Zisserman)"),
        ({"path": "/vgg16.h5"}, {"name": "vgg16"}, model_card.NOT_KNOWN),
        ({"path": "imagenet"}, {"name": "</a>"}, model_card.NOT_KNOWN),
        ({}, {}, model_card.NOT_KNOWN),
        ({"path": "random"}, {"name": "vgg16"}, "random"),
    ],
)
def test_licence_of_weights(workdir, weights, model, licence):
    shown, _ = licences(altered(workdir, "config.json", weights=weights, model=model))
    assert licence in shown if licence == "random" else shown.endswith(f": {licence}")


def test_licence_of_data(workdir, card):
    assert licences(card.text)[1].endswith(f": {model_card.NOT_KNOWN}")
    _, shown = licences(altered(workdir, "config.json", data={"source": "synthetic"}))
    assert re.search(r"\bflaxtl\b", shown)


def test_images_that_were_left_out_and_wrong_labels_are_counted(workdir):
    said = predictions.read_predictions(workdir / "predictions.csv")
    said.probabilities[2] = (0.01, 0.97, 0.01, 0.01)
    predictions.write_predictions(workdir / "predictions.csv", said)
    shown = altered(workdir, "summary.json", skipped={"a.png": "empty", "b.png": "empty"})
    assert re.search(r"(?i)\blabels\b.*\b1 of 24\b.*\blabel_issues\.csv\b", shown)
    assert re.search(r"(?m)^2 .*\bsummary\.json\b", shown)


def test_without_a_test_split(workdir):
    said = predictions.read_predictions(workdir / "predictions.csv")
    predictions.write_predictions(workdir / "predictions.csv", said.of_split("validation"))
    shown = Shown(model_card.render_model_card(read_run(workdir))).text
    assert re.search(r"\b8 validation \w+:\n", shown)
    assert re.search(r"(?i)\bno test\b", shown)
    assert re.search(r"(?i)\btemperature\b[^|\n]*\b8 validation \w+, \w", shown)  # which are not independent
    assert re.search(r"\b8 validation\b.*\bwrong\b", shown)


def test_config_alone_is_enough(workdir):
    for path in workdir.glob("*.*"):
        path.unlink()
    (workdir / "config.json").write_text("{}")
    shown = Shown(model_card.render_model_card(read_run(workdir))).text
    for fact in (r"\bevaluated\b", r"\bfinished\b", r"\bno manifest\.csv\b", r"\bno phases\b",
                 r"\bno predictions\b", r"\bsummary\.json\b.*\bcommand\b"):  # fmt: skip
        assert re.search(fact, shown, re.IGNORECASE)
    assert "None" not in shown


NAMES = (
    SCRIPT,
    "</td><img src=x onerror=y>",
    "[a](javascript:b)",
    "a | b",
    "**a** `b` _c_",
    "&lt;b&gt;",
    "```",
    "$x_{1}$",
)


def test_hostile_names_are_text(tmp_path):
    """Classes, phases, groups, network, source, versions and command are attacks; every table keeps its shape."""
    workdir = tmp_path / "run # `a` <b>"
    workdir.mkdir()
    rows = [(f"/{i}.png", name, split) for i, name in enumerate(NAMES) for split in ("train", "validation", "test")]
    with (workdir / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    labels = np.arange(len(NAMES))
    answers = np.eye(len(NAMES), dtype=np.float32)[np.roll(labels, 1)]  # every one wrong
    paths, splits = tuple(f"/{i}.png" for i in labels), ("test",) * len(NAMES)
    said = predictions.Predictions(paths, splits, labels, answers, NAMES)
    predictions.write_predictions(workdir / "predictions.csv", said)
    attack = " ".join(NAMES)
    phases = {name: {"lr": dict.fromkeys(NAMES, 0.1)} for name in NAMES}
    config = {"phases": NAMES, "model": {"name": attack}, "data": {"source": attack}, "seed": attack, **phases}
    (workdir / "config.json").write_text(json.dumps(config))
    (workdir / "summary.json").write_text(json.dumps({"command": attack, "versions": dict.fromkeys(NAMES, attack)}))
    card = Shown(model_card.render_model_card(read_run(workdir)))
    plain = {"h1", "h2", "p", "strong", "ul", "li", "table", "thead", "tbody", "tr", "th", "td", "pre", "code"}
    assert set(card.tags) == plain
    assert card.tags.count("code") == 1  # the command
    assert card.text.startswith("Model card: run # `a` <b>\n")
    rate = ", ".join(f"{name} 0.1" for name in NAMES)
    for name, next_ in zip(NAMES, np.roll(NAMES, 1), strict=True):
        assert f"| {name} | 1 | 1 | 1 | 3 \n" in card.text
        assert f"| {name} | {rate} | off | 0 | – | – \n" in card.text
        assert f"| {name} | {next_} | 1 of 1 | 100.0 % \n" in card.text
        assert f"{name} {attack}\n" in card.text
    assert f"\n{attack}\n" in card.text
