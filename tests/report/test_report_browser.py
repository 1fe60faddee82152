"""The doctor page and the report with injections as names, checked by a parser and in a real browser."""

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
from flaxtl.report.templating import SCRIPT

INJECTED = "document.title=String.fromCharCode(112,119,110,101,100)"  # 'pwned', only if the code runs
CLASSES = (
    f"<script>{INJECTED}<",  # together with the slash of a path and the file name below: </script>
    f'"><img src=x onerror={INJECTED}>',
    f"' autofocus onfocus={INJECTED} x='",
    f"--><svg onload={INJECTED}>",
    f"]]><iframe srcdoc=a onload={INJECTED}>",
    "&lt;b id=injected&gt;",
    "<b id=injected>",
    "javascript:{{ 7*7 }}",
    "\u202egpj.\x1b[2J\n<b id=injected>",
)
FILES = ("script><b id=injected>.png", "style><b id=injected>.png", f'" onmouseover={INJECTED} ".png')
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Three images per class; in every second class one is broken and one a copy."""
    folder = tmp_path_factory.mktemp("set") / "<b id=injected>"
    for index, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number, file in enumerate(FILES):
            image(2 * index + number // 2).save(folder / name / file)
        if index % 2:
            (folder / name / FILES[0]).write_bytes(b"<html>")
    return folder


@pytest.fixture(scope="module")
def pages(images, tmp_path_factory) -> dict[str, Path]:
    """The doctor page of these images, and the report of a run on them."""
    folder = tmp_path_factory.mktemp("pages")
    index_report = image_folder.inspect_folder(images)
    diagnosis = doctor.check_dataset(index_report, bar)
    page = doctor_report.render_doctor_report(diagnosis, f"folder:{images}</title><b id=injected>")
    (folder / "doctor.html").write_text(page, encoding="utf-8")
    workdir = folder / f"<b id=injected>{INJECTED}"
    workdir.mkdir()
    return {"doctor": folder / "doctor.html", "report": _report(workdir, index_report.index.images)}


def _report(workdir: Path, images) -> Path:
    splits = ["train", "validation", "test"] * len(CLASSES)
    rows = [(str(image.path), image.label, split) for image, split in zip(images, splits, strict=True)]
    with (workdir / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label", "split", "sha256"), *((*row, "0" * 64) for row in rows)])
    tested = [row for row in rows if row[2] == "test"]
    classes = tuple(sorted(CLASSES))
    labels = np.array([classes.index(row[1]) for row in tested])
    probabilities = np.eye(len(classes), dtype=np.float32)[np.roll(labels, 1)]  # all wrong
    paths = tuple(row[0] for row in tested)
    stored = Predictions(paths, ("test",) * len(paths), labels, probabilities, classes)
    predictions.write_predictions(workdir / "predictions.csv", stored)
    injection = '"</code><b id=injected>"'
    version = '"format_version": 2'
    (workdir / "config.json").write_text(
        f'{{{version}, "phases": [{injection}], {injection}: {{}}, "model": {{"name": {injection}}}}}'
    )
    summary = f'{{{version}, "command": {injection}, "versions": {{{injection}: {injection}}}}}'
    (workdir / "summary.json").write_text(summary)
    return report.write_report(workdir)


class UnsafeContent(HTMLParser):
    """Collects what a page must not contain: active elements, event handlers, external links, injected elements."""

    def __init__(self) -> None:
        super().__init__()
        self.unsafe: list[tuple[str, str | None]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag in ("script", "iframe", "object", "embed", "base", "form", "input"):
            self.unsafe.append((tag, None))
        for name, value in attrs:
            is_external = name in ("src", "href", "xlink:href") and not (value or "").startswith(("data:", "#"))
            if name.startswith("on") or is_external or value == "injected":
                self.unsafe.append((tag, f"{name}={value}"))

    def handle_data(self, data):
        self.texts.append(data)


def without_own_script(page: str) -> str:
    """Return a page without the script of flaxtl that copies commands."""
    return page.replace(f"<script>{SCRIPT}</script>", "", 1)


@pytest.mark.parametrize("name", ["doctor", "report"])
def test_pages_hostile_names_are_text(pages, name):
    page = UnsafeContent()
    page.feed(without_own_script(pages[name].read_text(encoding="utf-8")))
    assert page.unsafe == []
    assert any("<b id=injected>" in text for text in page.texts)  # they are on the page as text
    assert "\x1b" not in "".join(page.texts)


def load_dom(page: Path, profile: Path) -> str:
    """Return the DOM of a page in the browser after three seconds."""
    flags = "--headless --no-sandbox --disable-gpu --disable-background-networking --no-first-run --disable-sync"
    quiet = "--disable-component-update --disable-quic --dump-dom --virtual-time-budget=3000"
    command = [CHROMIUM, *flags.split(), *quiet.split(), f"--user-data-dir={profile}", page.as_uri()]
    return subprocess.run(command, capture_output=True, check=True, timeout=60).stdout.decode()


def without_csp(page: str) -> str:
    """Return a page without its Content-Security-Policy, so that only escaping protects it."""
    assert "Content-Security-Policy" in page
    return page.replace('http-equiv="Content-Security-Policy"', 'name="none"')


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("name", ["doctor", "report"])
def test_pages_hostile_names_do_not_run_in_browser(pages, name, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(without_csp(pages[name].read_text(encoding="utf-8")), encoding="utf-8")
    dom = load_dom(file, tmp_path / "profile")
    assert "pwned" not in dom
    page = UnsafeContent()
    page.feed(without_own_script(dom))
    assert page.unsafe == []


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_browser_runs_unescaped_names(tmp_path):
    """Control: without escaping the same names do run."""
    page = tmp_path / "page.html"
    page.write_text(f"<!DOCTYPE html><title>x</title><p>{CLASSES[1]}<b id=injected></b>", encoding="utf-8")
    dom = load_dom(page, tmp_path / "profile")
    assert "pwned" in dom
    content = UnsafeContent()
    content.feed(dom)
    assert ("b", "id=injected") in content.unsafe
