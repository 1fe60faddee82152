"""The generated documentation pages are complete."""

import argparse
import re
from pathlib import Path

import reference
from helpers.doc_pages import NOTEBOOK

from flaxtl.config import flatten_config
from flaxtl.defaults import DEFAULTS, PHASE_DEFAULTS, __file__
from flaxtl.models import registry


def settings_of(name):
    return {setting.key: setting for setting in reference.settings(name) if not setting.is_section}


def flat(defaults):
    """Flatten defaults like reference.settings, where the fractions are one setting."""
    keys = dict(flatten_config(defaults))
    fractions = {key: keys.pop(key) for key in list(keys) if key.startswith("data.fractions.")}
    return keys | (
        {"data.fractions": {key.split(".")[-1]: value for key, value in fractions.items()}} if fractions else {}
    )


def test_settings_have_the_defaults_of_the_config():
    assert {key: setting.default for key, setting in settings_of("DEFAULTS").items()} == flat(DEFAULTS)
    phase = {key: setting.default for key, setting in settings_of("PHASE_DEFAULTS").items()}
    assert phase == PHASE_DEFAULTS.to_dict()


def test_settings_have_comments_and_separate_lines():
    """A comment on a line with two settings would describe both."""
    for name in ("DEFAULTS", "PHASE_DEFAULTS"):
        settings = reference.settings(name)
        assert [setting.key for setting in settings if not (setting.meaning or setting.is_section)] == []
        lines = [setting.line for setting in settings]
        assert len(set(lines)) == len(lines)


def test_config_page_shows_comments_as_meanings():
    batch = settings_of("DEFAULTS")["batch_size"]
    line = Path(__file__).read_text(encoding="utf-8").splitlines()[batch.line - 1]
    assert batch.meaning
    assert line.endswith(f"  # {batch.meaning}")
    page = reference.config_page()
    assert f"| `batch_size`{{ #batch_size }} | integer | `32` | {reference.text(batch.meaning)} |" in page
    assert "`data.fractions`{ #data.fractions } | numbers by name |" in page
    assert "`warmup_steps`{ #phase.warmup_steps }" in page
    assert all(f"`{key}`{{ #" in page for key in (*settings_of("DEFAULTS"), *settings_of("PHASE_DEFAULTS")))


def test_options_of_all_commands_have_help():
    parsers = reference.commands()
    assert {"train", "predict", "models"} <= parsers.keys()
    without_help = [
        f"{name} {option.dest}"
        for name, each in parsers.items()
        for option in reference.options(each)
        if not option.help
    ]
    assert without_help == []


def test_command_page_contains_all_options():
    page = reference.commands_page()
    for name, each in reference.commands().items():
        chapter = page.split(f"## flaxtl {name} {{ #{name} }}")[1].split("\n## ")[0]
        for option in reference.options(each):
            assert f"`{(option.option_strings or [option.metavar])[-1]}" in chapter
    assert re.search(r"\| `--split train\|validation\|test` \| [^|]+\. \*Default:\* `test`\. \|", page)
    assert re.search(r"\| `--input PATH \.\.\.` \| [^|]+\. \*Required\.\* \|", page)
    assert re.search(r"\| `--skip-layers REGEX` \| [^|*]+\. \|", page)  # an empty default is none


def test_option_name_of_flag_has_no_value():
    parser = argparse.ArgumentParser()
    parser.add_argument("--link", action="store_true", help="hard links")
    assert [reference._name(option) for option in reference.options(parser)] == ["`--link`"]


def test_network_page_contains_all_models():
    page = reference.networks_page()
    for name in registry.MODELS:
        assert page.count(f"`{name}`") == 2  # figures and paper
    assert "| `vgg16` | 138,357,544 | 14,714,688 | 224 | 32 | 71.3 | 90.0 | `caffe` |" in page
    assert "[arXiv:1409.1556](https://arxiv.org/abs/1409.1556) | `vgg16`, `vgg19` |" in page


def test_notebook_page_contains_text_and_code():
    page = reference.notebook_page(NOTEBOOK)
    assert re.match(r"# .*\bnotebook\n", page)
    assert reference.DOWNLOAD in page
    assert '```python\nconfig.phases = ("frozen",)\n' in page


def test_markdown_text_is_escaped():
    assert reference.text("{'a': *b*} | `c_d` <e> [f]") == r"\{'a': \*b\*\} \| `c_d` &lt;e> \[f\]"
    assert reference.code("a|b") == "`a|b`"
