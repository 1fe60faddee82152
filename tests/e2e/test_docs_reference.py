"""The pages that the code writes itself leave nothing out."""

import argparse
import re
from pathlib import Path

from helpers.doc_pages import NOTEBOOK
from reference import commands, configs, lecture, markdown, networks

from flaxtl.config import DEFAULTS, PHASE_DEFAULTS, __file__, flatten_config
from flaxtl.models import registry


def told(name):
    return {one.key: one for one in configs.settings(name) if not one.section}


def flat(defaults):
    """The settings as a config has them; the fractions are one."""
    keys = dict(flatten_config(defaults))
    fractions = {key: keys.pop(key) for key in list(keys) if key.startswith("data.fractions.")}
    return keys | (
        {"data.fractions": {key.split(".")[-1]: value for key, value in fractions.items()}} if fractions else {}
    )


def test_every_setting_is_told_with_its_default():
    assert {key: one.default for key, one in told("DEFAULTS").items()} == flat(DEFAULTS)
    phase = {key: one.default for key, one in told("PHASE_DEFAULTS").items()}
    assert phase == PHASE_DEFAULTS.to_dict()


def test_every_setting_has_a_comment_on_a_line_of_its_own():
    """Of two settings on one line the comment would be told of both."""
    for name in ("DEFAULTS", "PHASE_DEFAULTS"):
        settings = configs.settings(name)
        assert [one.key for one in settings if not (one.meaning or one.section)] == []
        lines = [one.line for one in settings]
        assert len(set(lines)) == len(lines)


def test_the_comment_beside_a_setting_is_its_meaning():
    batch = told("DEFAULTS")["batch_size"]
    line = Path(__file__).read_text(encoding="utf-8").splitlines()[batch.line - 1]
    assert batch.meaning
    assert line.endswith(f"  # {batch.meaning}")
    page = configs.page()
    assert f"| `batch_size`{{ #batch_size }} | integer | `32` | {markdown.text(batch.meaning)} |" in page
    assert "`data.fractions`{ #data.fractions } | numbers by name |" in page
    assert "`warmup_steps`{ #phase.warmup_steps }" in page
    assert all(f"`{key}`{{ #" in page for key in (*told("DEFAULTS"), *told("PHASE_DEFAULTS")))


def test_every_option_of_every_command_has_a_help():
    parsers = commands.commands()
    assert {"train", "predict", "models"} <= parsers.keys()
    wanting = [
        f"{name} {option.dest}"
        for name, each in parsers.items()
        for option in commands.options(each)
        if not option.help
    ]
    assert wanting == []


def test_a_command_is_told_with_its_options():
    page = commands.page()
    for name, each in commands.commands().items():
        chapter = page.split(f"## flaxtl {name} {{ #{name} }}")[1].split("\n## ")[0]
        for option in commands.options(each):
            assert f"`{option.option_strings[-1]}" in chapter
    assert re.search(r"\| `--split train\|validation\|test` \| [^|]+\. \*Default:\* `test`\. \|", page)
    assert re.search(r"\| `--input PATH \.\.\.` \| [^|]+\. \*Required\.\* \|", page)


def test_a_switch_has_no_value():
    parser = argparse.ArgumentParser()
    parser.add_argument("--link", action="store_true", help="hard links")
    assert [commands._name(option) for option in commands.options(parser)] == ["`--link`"]


def test_every_network_is_told():
    page = networks.page()
    for row in registry.MODELS.values():
        assert page.count(f"`{row.name}`") == 2  # its figures, its paper
    assert "| `vgg16` | 138,357,544 | 14,714,688 | 224 | 32 | 71.3 | 90.0 | `caffe` |" in page
    assert "[arXiv:1409.1556](https://arxiv.org/abs/1409.1556) | `vgg16`, `vgg19` |" in page


def test_the_notebook_is_told_cell_by_cell():
    page = lecture.page(NOTEBOOK)
    assert re.match(r"# .*\bnotebook\n", page)
    assert lecture.DOWNLOAD in page
    assert '```python\nconfig.phases = ("frozen",)\n' in page


def test_words_stay_words():
    assert markdown.text("{'a': *b*} | `c_d` <e> [f]") == r"\{'a': \*b\*\} \| `c_d` &lt;e> \[f\]"
    assert markdown.code("a|b") == "`a|b`"
