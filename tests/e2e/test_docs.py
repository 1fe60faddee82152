"""The documentation: the names in its code blocks exist, the blocks run, and the site works offline.

Blocks of ```bash and ```python are run, page by page, in a folder that holds configs/, tools/ and images/, in which
is a folder of images for each class. What cannot run in a test is ```text or ```console.
"""

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import reference
from helpers import doc_pages

from flaxtl.config import flatten_config
from flaxtl.data.sources import synthetic
from flaxtl.defaults import ATOMIC_SETTINGS, DEFAULTS, PHASE_DEFAULTS

LANGUAGES = {"bash", "python", "text", "console", "json", ""}
DRAWS_ITS_OWN = "docs/custom_dataset.md"  # folder of images
PLACEHOLDERS = {"key", "KEY"}
FILES = {".py", ".json", ".csv", ".safetensors"}
"""Suffixes of file names such as `data.json`, which are not settings of data."""

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

TEXTS = {name: file.read_text(encoding="utf-8") for name, file in doc_pages.WRITTEN.items()}
TEXTS["docs/lecture.ipynb"] = reference.notebook_page(doc_pages.NOTEBOOK)
FOLLOWED = [
    name
    for name, text in TEXTS.items()
    if name in doc_pages.WRITTEN and any(block.language in ("bash", "python") for block in doc_pages.blocks(text))
]


def unknown_options(text):
    """'COMMAND --option' of every option that its command does not take."""
    wrong = []
    for piece in doc_pages.code(text):
        for command, rest in re.findall(r"(?<!from )\bflaxtl +([a-z][a-z-]*)\b([^\n;&]*)", piece):
            if command not in reference.commands():
                wrong.append(command)
                continue
            taken = {flag for option in reference.commands()[command]._actions for flag in option.option_strings}
            given = re.findall(r"(?<![\w-])(--[a-z][a-z-]*)(?![\w.-])", rest)
            wrong += [f"{command} {flag}" for flag in given if flag not in taken]
    return wrong


def unknown_settings(text):
    """Keys of --config.KEY and of --grid config.KEY, and quoted ones such as `data.pipeline`, that no config has.

    A quoted `model.predict` is nearly always another library's.
    """
    keys = []
    for piece in doc_pages.code(text):
        keys += re.findall(r"--config\.([\w.]*\w)", piece) + re.findall(r"--grid \"?config\.([\w.]*\w)", piece)
    for piece in doc_pages.inline(text):
        quoted = re.fullmatch(r"(([a-z]+)(?:\.\w+)+)(=.*)?", piece)
        if quoted and quoted[2] in SECTIONS - {"model"} and Path(piece).suffix not in FILES:
            keys.append(quoted[1])
    return [key for key in keys if not is_setting(key)]


SETTINGS = dict(flatten_config(DEFAULTS))
SECTIONS = {key.split(".")[0] for key in SETTINGS if "." in key}


def is_setting(key):
    """Whether a config may have this key: a default, a setting of a phase, or an argument of an optimizer."""
    first, _, rest = key.partition(".")
    if key in SETTINGS or key in ATOMIC_SETTINGS or key in PLACEHOLDERS or first == "optimizer":
        return True
    return first not in SETTINGS | dict.fromkeys(SECTIONS) and rest.split(".")[0] in PHASE_DEFAULTS


def test_what_does_not_exist_is_found():
    page = """
`--config.data.pipelin=auto`, `data.heigth`, `--config.frozen.epoch=3`, `flaxtl trian`, `model.json`, `optimizer.eps`

    ```text
    flaxtl split --source=synthetic --output=DIR \\
      --fractoins=0.5,0.2,0.3 --config.finetune.lr.block5=1e-6
    flaxtl sweep --grid "config.head.unit=(256,128)" && flaxtl evaluate --kfold=3
    ```
"""
    assert unknown_options(page) == ["split --fractoins", "evaluate --kfold", "trian"]
    assert unknown_settings(page) == ["head.unit", "data.pipelin", "frozen.epoch", "data.heigth"]
    assert [block.line for block in doc_pages.blocks(page)] == [4]
    assert doc_pages.blocks(page)[0].text.startswith("flaxtl split")


@pytest.mark.parametrize("page", TEXTS)
def test_commands_options_and_settings_exist(page):
    assert unknown_options(TEXTS[page]) == []
    assert unknown_settings(TEXTS[page]) == []


@pytest.mark.parametrize("page", TEXTS)
def test_blocks_say_whether_they_run(page):
    """A block with a misspelled language would never run; mermaid would be fetched over the network."""
    assert {block.language for block in doc_pages.blocks(TEXTS[page])} <= LANGUAGES


def test_no_block_is_overlooked():
    for page, text in TEXTS.items():
        assert text.count("```") == 2 * len(doc_pages.blocks(text)), page


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Run the checkout's flaxtl in every command; pages share compiled programs and the synthetic dataset."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    cache = str(tmp_path_factory.mktemp("cache"))
    return os.environ | {
        "PATH": path,
        "PYTHONPATH": f"{doc_pages.ROOT}{os.pathsep}{doc_pages.ROOT / 'tests'}",
        "FLAXTL_CACHE": cache,
    }


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Files that a reader is expected to have."""
    return synthetic.generate_dataset(tmp_path_factory.mktemp("brought") / "images", per_class=12)


@pytest.mark.slow
@pytest.mark.parametrize("page", FOLLOWED)
def test_a_page_can_be_followed(page, environment, images, tmp_path):
    if page != DRAWS_ITS_OWN:
        (tmp_path / "images").symlink_to(images)
    for folder in ("configs", "tools"):
        (tmp_path / folder).symlink_to(doc_pages.ROOT / folder)
    command = [sys.executable, doc_pages.ROOT / "tests" / "helpers" / "follow_page.py", doc_pages.WRITTEN[page]]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


class Requests(HTMLParser):
    """External resources that a browser would fetch for a page."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        told = dict(attrs)
        address = told.get("src") or (told.get("href") if tag == "link" else None) or ""
        if re.match(r"(https?:)?//", address) and told.get("rel") != "canonical":
            self.found.append(address)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built documentation."""
    pytest.importorskip("mkdocs", reason="make docs installs it")
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", folder]
    subprocess.run(command, cwd=doc_pages.ROOT, check=True)
    return folder


@pytest.mark.slow
def test_the_site_asks_nothing_of_the_network(site):
    built = list(site.rglob("*.html"))
    assert len(built) > len(doc_pages.WRITTEN)  # README is not a page of the site, but the generated pages are
    for file in built:
        reader = Requests()
        reader.feed(file.read_text(encoding="utf-8"))
        assert reader.found == [], file
    for file in site.rglob("*.css"):
        assert re.findall(r"url\([\"']?https?://|@import", file.read_text(encoding="utf-8")) == [], file


@pytest.mark.slow
def test_python_reference_has_the_call_of_a_model(site):
    page = (site / "reference" / "api.html").read_text(encoding="utf-8")
    assert 'id="flaxtl.models.image_classifier.ImageClassifier.__call__"' in page
    assert 'id="flaxtl.models.image_classifier.ImageClassifier.setup"' not in page


@pytest.mark.slow
def test_returned_value_of_several_lines_is_one_row(site):
    page = (site / "reference" / "api.html").read_text(encoding="utf-8")
    tables = re.findall(r">Returns:<.*?</table>", page, re.DOTALL)
    assert len(tables) > 5
    assert {table.count('class="doc-section-item"') for table in tables} == {1}


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
def test_search_works_in_a_page_opened_as_a_file(site, tmp_path):
    flags = [
        "--headless=new",
        "--no-sandbox",
        f"--user-data-dir={tmp_path}",
        "--virtual-time-budget=20000",
        "--dump-dom",
    ]
    page = f"{(site / 'index.html').as_uri()}?q=min_steps"
    shown = subprocess.run([CHROMIUM, *flags, page], capture_output=True, text=True, check=True).stdout
    assert re.search(r"[1-9]\d* matching documents?<", shown)
