"""The model card, as Markdown and as rendered by a Markdown parser (markdown-it, a dependency of rich)."""

import csv
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from markdown_it import MarkdownIt

from flaxtl.evaluation import predictions
from flaxtl.evaluation.run_files import read_run
from flaxtl.report import model_card, report

PARSER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
SCRIPT = "<script>alert(1)</script>"


class RenderedCard(HTMLParser):
    """Text (table cells side by side) and tags of the rendered card."""

    def __init__(self, card):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(PARSER.render(card))
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
    return RenderedCard(model_card.render_model_card(read_run(finished)))


def card_after(workdir, name, **values):
    """Return the text of the card after top-level entries of a JSON file are set."""
    file = workdir / name
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return RenderedCard(model_card.render_model_card(read_run(workdir))).text


def test_card_names_the_dtype_of_cached_features_if_it_is_another_one(workdir, card):
    other = card_after(workdir, "config.json", feature_cache={"compute_dtype": "bfloat16"})
    assert "precision default; cached features in bfloat16" in other
    assert "cached features" not in card.text


def test_card_folds_tables_of_many_classes(workdir, card, monkeypatch):
    """With a thousand classes they would hide the results between them."""
    assert "details" not in card.tags
    monkeypatch.setattr(model_card, "MAX_TABLE_ROWS", 1)
    folded = RenderedCard(model_card.render_model_card(read_run(workdir)))
    assert folded.tags.count("details") == 2
    assert folded.tags.count("table") == card.tags.count("table")
    assert re.findall(r"(?:Images|Recall) of 4 classes.*", folded.text) == [
        "Images of 4 classes by split| class | train | validation | test | all ",
        "Recall of 4 classes| class | recall | 95 % interval | correct | images ",
    ]


def license_lines(text):
    """Return the lines on the licenses of weights and data, which precede that of flaxtl."""
    lines = text.splitlines()
    (own,) = (number for number, line in enumerate(lines) if line.endswith("Apache-2.0"))
    return lines[own - 2 : own]


def test_write_report_writes_card(workdir):
    report.write_report(workdir)
    assert (workdir / "report" / "model_card.md").read_text(encoding="utf-8") == model_card.render_model_card(
        read_run(workdir)
    )


def test_card_results_and_intervals(card):
    headline = card.text.split("|")[0]
    assert re.search(r"(?s)\b81 %.*\btest\b.*\b13 of 16\b.*\b95 %.*\b57 to 93 %", headline)
    assert "| accuracy | 81 % | 57 to 93 % " in card.text
    # Wilson intervals of 1 of 4 and 4 of 4, from published tables
    assert "| daisy | 25 % | 5 to 70 % | 1 | 4 " in card.text
    assert f"| {SCRIPT} | 100 % | 51 to 100 % | 4 | 4 " in card.text
    assert "| balanced accuracy (mean recall) | 81 % " in card.text
    assert re.search(r"\| [^|\n]*\b90 %[^|\n]*\b0\.434964\b[^|\n]*\| 87 % ", card.text)
    assert re.search(r"(?i)\btemperature\b[^|\n]*\b8 validation\b", card.text)


def test_card_data_and_phases(card):
    assert "| class | train | validation | test | all \n| daisy | 3 | 2 | 4 | 9 \n" in card.text
    assert "| all | 12 | 8 | 16 | 36 \n" in card.text
    assert "Source: folder:/p" in card.text
    assert "| frozen | head 0.001 | off | 2 | 75 % | 75 % \n" in card.text
    assert "| finetune | head 1e-6, top 1e-6 | on | 3 | 75 % | 81 % \n" in card.text


def test_card_known_failures(card):
    assert f"| daisy | {SCRIPT} | 2 of 4 | 50 % \n| daisy | tulips | 1 of 4 | 25 % \n" in card.text


def test_card_how_to_reproduce(card):
    assert "flaxtl train --config=a.py --workdir='<b>'\n" in card.text
    assert re.search(r"(?i)\bseed\W+7\b", card.text)
    assert "jax 0.10.0\n" in card.text


@pytest.mark.parametrize(
    ("weights", "model", "license"),
    [
        ({"path": "imagenet"}, {"name": "vgg16"}, "CC BY 4.0 (K. Simonyan, A. Zisserman)"),
        ({"path": "builtin"}, {"name": "VGG-16"}, "CC BY 4.0 (K. Simonyan, A. Zisserman)"),
        ({"path": "/vgg16.h5"}, {"name": "vgg16"}, model_card.UNKNOWN_LICENSE),
        ({"path": "imagenet"}, {"name": "</a>"}, model_card.UNKNOWN_LICENSE),
        ({"path": "random"}, {"name": "vgg16"}, "random"),
    ],
)
def test_card_weights_license(workdir, weights, model, license):
    shown, _ = license_lines(card_after(workdir, "config.json", weights=weights, model=model))
    assert license in shown if license == "random" else shown.endswith(f": {license}")


def test_card_data_license(workdir, card):
    assert license_lines(card.text)[1].endswith(f": {model_card.UNKNOWN_LICENSE}")
    _, shown = license_lines(card_after(workdir, "config.json", data={"source": "synthetic"}))
    assert re.search(r"\bflaxtl\b", shown)


def test_card_counts_skipped_images_and_label_issues(workdir):
    stored = predictions.read_predictions(workdir / "predictions.csv")
    stored.probabilities[2] = (0.01, 0.97, 0.01, 0.01)
    predictions.write_predictions(workdir / "predictions.csv", stored)
    shown = card_after(workdir, "summary.json", skipped={"a.png": "empty", "b.png": "empty"})
    assert re.search(r"(?i)\blabels\b.*\b1 of 24\b.*\blabel_issues\.csv\b", shown)
    assert "difficult images with a correct label" not in shown
    stored.probabilities[:2] = (0.01, 0.97, 0.01, 0.01)  # validation images: 6 of 8 are correct
    predictions.write_predictions(workdir / "predictions.csv", stored)
    shown = card_after(workdir, "summary.json")
    assert re.search(r"Fewer than 85.% of the validation images .* difficult images with a correct label", shown)
    assert re.search(r"(?m)\bskipped: 2, .*\bsummary\.json\b", shown)


def test_card_without_test_split(workdir):
    stored = predictions.read_predictions(workdir / "predictions.csv")
    predictions.write_predictions(workdir / "predictions.csv", stored.of_split("validation"))
    shown = RenderedCard(model_card.render_model_card(read_run(workdir))).text
    assert re.search(r"\b8 validation \w+:\n", shown)
    assert re.search(r"(?i)\bno test\b", shown)
    assert re.search(r"(?i)\btemperature\b[^|\n]*\b8 validation \w+, \w", shown)  # the same images
    assert re.search(r"\bAll 8 validation\b", shown)
    assert "images that differ from the validation images" in shown


def test_card_of_config_alone(workdir):
    for path in workdir.glob("*.*"):
        if path.name != "config.json":
            path.unlink()
    shown = RenderedCard(model_card.render_model_card(read_run(workdir))).text
    for fact in (r"\bevaluated\b", r"\bfinished\b", r"\bno manifest\.csv\b",
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


def test_card_hostile_names_are_text(tmp_path):
    """Classes, phases, groups, model, source, versions and command are injections; every table keeps its shape."""
    workdir = tmp_path / "run # `a` <b>"
    workdir.mkdir()
    splits = ("train", "validation", "test")
    rows = [(f"/{i}{split}.png", name, split, "0" * 64) for i, name in enumerate(NAMES) for split in splits]
    with (workdir / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split", "sha256"), *rows])
    labels = np.arange(len(NAMES))
    probabilities = np.eye(len(NAMES), dtype=np.float32)[np.roll(labels, 1)]  # all wrong
    paths, splits = tuple(f"/{i}.png" for i in labels), ("test",) * len(NAMES)
    stored = predictions.Predictions(paths, splits, labels, probabilities, NAMES)
    predictions.write_predictions(workdir / "predictions.csv", stored)
    injection = " ".join(NAMES)
    phases = {name: {"lr": dict.fromkeys(NAMES, 0.1)} for name in NAMES}
    config = {"phases": NAMES, "model": {"name": injection}, "data": {"source": injection}, **phases}
    (workdir / "config.json").write_text(json.dumps({"format_version": 2, **config}))
    (workdir / "summary.json").write_text(
        json.dumps({"format_version": 2, "command": injection, "versions": dict.fromkeys(NAMES, injection)})
    )
    card = RenderedCard(model_card.render_model_card(read_run(workdir)))
    expected_tags = {"h1", "h2", "p", "strong", "ul", "li", "table", "thead", "tbody", "tr", "th", "td", "pre", "code"}
    assert set(card.tags) == expected_tags
    assert card.tags.count("code") == 1  # the command
    assert card.text.startswith("Model card: run # `a` <b>\n")
    lrs = ", ".join(f"{name} 0.1" for name in sorted(NAMES))
    for name, next_ in zip(NAMES, np.roll(NAMES, 1), strict=True):
        assert f"| {name} | 1 | 1 | 1 | 3 \n" in card.text
        assert f"| {name} | {lrs} | off | 0 of 10 | – | – \n" in card.text
        assert f"| {name} | {next_} | 1 of 1 | 100 % \n" in card.text
        assert f"{name} {injection}\n" in card.text
    assert f"\n{injection}\n" in card.text
