"""Pages of a run and of a data set whose names are attacks: opened by a browser, and read without one."""

import csv
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from helpers.image_folders import image
from helpers.tiny_run import bar

from flaxtl.data import doctor
from flaxtl.data.sources import image_folder
from flaxtl.evaluation import predictions
from flaxtl.evaluation.predictions import Predictions
from flaxtl.report import doctor_report, report

ATTACK = "document.title=String.fromCharCode(112,119,110,101,100)"  # 'pwned', which no page says before it is run
CLASSES = (
    f"<script>{ATTACK}<",  # with the slash of a path and a file's name behind it: </script>
    f'"><img src=x onerror={ATTACK}>',
    f"' autofocus onfocus={ATTACK} x='",
    f"--><svg onload={ATTACK}>",
    f"]]><iframe srcdoc=a onload={ATTACK}>",
    "&lt;b id=injected&gt;",
    "<b id=injected>",
    "javascript:{{ 7*7 }}",
    "\u202egpj.\x1b[2J\n<b id=injected>",
)
FILES = ("script><b id=injected>.png", "style><b id=injected>.png", f'" onmouseover={ATTACK} ".png')
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Three images in each of the folders; of every second class one is broken, one a copy."""
    folder = tmp_path_factory.mktemp("set") / "<b id=injected>"
    for place, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number, file in enumerate(FILES):
            image(2 * place + number // 2).save(folder / name / file)
        if place % 2:
            (folder / name / FILES[0]).write_bytes(b"<html>")
    return folder


@pytest.fixture(scope="module")
def pages(images, tmp_path_factory) -> dict[str, Path]:
    """The doctor's page of them, and the report of a run on them."""
    folder = tmp_path_factory.mktemp("pages")
    survey = image_folder.inspect_folder(images)
    doctor_report.write_doctor_report(
        doctor.check_dataset(survey, bar), f"folder:{images}</title><b id=injected>", folder / "doctor.html"
    )
    workdir = folder / f"<b id=injected>{ATTACK}"
    workdir.mkdir()
    return {"doctor": folder / "doctor.html", "report": _report(workdir, survey.index.images)}


def _report(workdir: Path, found) -> Path:
    splits = ["train", "validation", "test"] * len(CLASSES)
    rows = [(str(one.path), one.label, split) for one, split in zip(found, splits, strict=True)]
    with (workdir / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label", "split", "sha256"), *((*row, "0" * 64) for row in rows)])
    tested = [row for row in rows if row[2] == "test"]
    classes = tuple(sorted(CLASSES))
    labels = np.array([classes.index(row[1]) for row in tested])
    answers = np.eye(len(classes), dtype=np.float32)[np.roll(labels, 1)]  # every one wrong
    paths = tuple(row[0] for row in tested)
    said = Predictions(paths, ("test",) * len(paths), labels, answers, classes)
    predictions.write_predictions(workdir / "predictions.csv", said)
    attack = '"</code><b id=injected>"'
    (workdir / "config.json").write_text(f'{{"phases": [{attack}], "model": {{"name": {attack}}}, "seed": {attack}}}')
    (workdir / "summary.json").write_text(f'{{"command": {attack}, "versions": {{{attack}: {attack}}}}}')
    return report.write_report(workdir)


class Danger(HTMLParser):
    """What a page must not hold: elements that act or load, handlers, links to anywhere, elements of an attack."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[tuple[str, str | None]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag in ("script", "iframe", "object", "embed", "base", "form", "input"):
            self.images.append((tag, None))
        for name, value in attrs:
            outside = name in ("src", "href", "xlink:href") and not (value or "").startswith(("data:", "#"))
            if name.startswith("on") or outside or value == "injected":
                self.images.append((tag, f"{name}={value}"))

    def handle_data(self, data):
        self.texts.append(data)


@pytest.mark.parametrize("name", ["doctor", "report"])
def test_names_are_text_to_a_parser(pages, name):
    page = Danger()
    page.feed(pages[name].read_text(encoding="utf-8"))
    assert page.found == []
    assert any("<b id=injected>" in text for text in page.texts)  # they are there, to be read
    assert "\x1b" not in "".join(page.texts)


def dom(page: Path, profile: Path) -> str:
    """The page as it stands in a browser, three seconds after it was opened."""
    flags = "--headless --no-sandbox --disable-gpu --disable-background-networking --no-first-run --disable-sync"
    quiet = "--disable-component-update --disable-quic --dump-dom --virtual-time-budget=3000"
    command = [CHROMIUM, *flags.split(), *quiet.split(), f"--user-data-dir={profile}", page.as_uri()]
    return subprocess.run(command, capture_output=True, check=True, timeout=60).stdout.decode()


def lively(page: str) -> str:
    """A page without its Content-Security-Policy, so that escaping has to hold alone."""
    assert "Content-Security-Policy" in page
    return page.replace('http-equiv="Content-Security-Policy"', 'name="none"')


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
@pytest.mark.parametrize("name", ["doctor", "report"])
def test_nothing_comes_to_life_in_a_browser(pages, name, tmp_path):
    bare = tmp_path / "page.html"
    bare.write_text(lively(pages[name].read_text(encoding="utf-8")), encoding="utf-8")
    seen = dom(bare, tmp_path / "profile")
    assert "pwned" not in seen
    page = Danger()
    page.feed(seen)
    assert page.found == []


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_the_browser_would_tell(tmp_path):
    """What escaping keeps out does come to life where it is missing."""
    page = tmp_path / "page.html"
    page.write_text(f"<!DOCTYPE html><title>x</title><p>{CLASSES[1]}<b id=injected></b>", encoding="utf-8")
    seen = dom(page, tmp_path / "profile")
    assert "pwned" in seen
    danger = Danger()
    danger.feed(seen)
    assert ("b", "id=injected") in danger.found
