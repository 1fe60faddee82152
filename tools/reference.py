"""Generate the documentation pages that come from the code: commands, settings, networks, and the notebook."""

import argparse
import ast
import io
import json
import re
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from flaxtl import defaults
from flaxtl.cli import parser
from flaxtl.models import registry
from flaxtl.models.spec import ModelSpec

USAGE_WIDTH = 80

COMMANDS = """# Command reference

An image `SOURCE` is the path of a folder, an archive or a CSV file (also written `folder:PATH`, `archive:FILE`,
`csv:FILE`), `hf:ORG/NAME`, `tfds:NAME` or `synthetic`. Commands that take a config also take any number of
`--config.KEY=VALUE` ([Config reference](config.md)). Invalid input ends with a message and exit code 2; `--debug`, an
option of all commands, adds the traceback.
"""


def commands() -> dict[str, argparse.ArgumentParser]:
    """Return command -> parser, in the order of `flaxtl --help`."""
    (choices,) = (action for action in parser.make_parser()._actions if isinstance(action, argparse._SubParsersAction))
    return dict(choices.choices)


def options(command: argparse.ArgumentParser) -> list[argparse.Action]:
    """Return the options of a command, without those of all commands."""
    return [action for action in command._actions if action.dest not in ("help", "debug")]


def commands_page() -> str:
    """Return the page in Markdown."""
    return "\n".join([COMMANDS, *(_chapter(name, command) for name, command in commands().items())])


def _chapter(name: str, command: argparse.ArgumentParser) -> str:
    command.formatter_class = partial(argparse.HelpFormatter, width=USAGE_WIDTH)
    indented = command.format_usage().removeprefix("usage: ")
    usage = indented.replace("\n" + " " * len("usage: "), "\n")
    rows = [(_name(option), " ".join(_describe(option))) for option in options(command)]
    return "\n".join(
        [
            f"## flaxtl {name} {{ #{name} }}\n",
            text(f"{command.description or ''}\n"),
            f"```text\n{usage}```\n",
            reference_table(("option", "meaning"), rows),
            "",
        ]
    )


def _name(option: argparse.Action) -> str:
    flag = option.option_strings[-1] if option.option_strings else ""
    return code(flag if option.nargs == 0 else f"{flag} {_value(option)}".strip())


def _value(option: argparse.Action) -> str:
    value = option.metavar or (option.dest.upper() if option.choices is None else "|".join(option.choices))
    return f"{value} ..." if option.nargs == "+" else str(value)


def _describe(option: argparse.Action) -> Iterator[str]:
    meaning = re.sub(r" \(default: %\(default\)\w\)", "", option.help or "")  # the default is added below
    yield text(f"{meaning[:1].upper()}{meaning[1:]}.") if meaning else ""
    if option.required:
        yield "*Required.*"
    if isinstance(option, argparse._AppendAction):
        yield "*Can be repeated.*"
    if option.nargs != 0 and option.default not in (None, [], ""):
        yield f"*Default:* {code(str(option.default))}."


TYPE_NAMES = {
    bool: "true or false",
    int: "integer",
    float: "number",
    str: "text",
    tuple: "list",
    dict: "numbers by name",
}

CONFIG = """# Config reference

A config is a Python file with `get_config()`, which returns an `ml_collections.ConfigDict`. Settings that it omits have
the defaults below. Every setting can be changed on the command line: `--config.KEY=VALUE`, such as
`--config.head.units='(256,128)'`. An unknown key is an error that suggests the closest one.
"""

PHASE = """## Settings of a phase { #phase }

Each name in `phases` has these settings: with `c.phases = ("frozen",)` they are `c.frozen.epochs` and so on, on the
command line `--config.frozen.epochs=20`. The learning rate of a group is `--config.frozen.lr.head=1e-3`.
"""


class Setting(NamedTuple):
    """One key of the defaults, with its line in the source; a section contains other settings."""

    key: str
    default: Any
    meaning: str
    line: int
    is_section: bool


def settings(name: str) -> list[Setting]:
    """Return the settings of DEFAULTS or PHASE_DEFAULTS in source order. A dict on one line is one setting."""
    source = Path(defaults.__file__).read_text(encoding="utf-8")
    comments = {
        token.start[0]: token.string.removeprefix("#").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    return list(_walk(_literal(ast.parse(source), name), comments, ""))


def _literal(tree: ast.Module, name: str) -> ast.Dict:
    """Find the dict in `name = ConfigDict({...})`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return node.value.args[0]
    raise LookupError(f"{defaults.__file__} has no {name}")


def _walk(node: ast.Dict, comments: dict[int, str], prefix: str) -> Iterator[Setting]:
    for key, value in zip(node.keys, node.values, strict=True):
        path = prefix + ast.literal_eval(key)
        is_section = isinstance(value, ast.Dict) and value.end_lineno > value.lineno
        yield Setting(path, ast.literal_eval(value), comments.get(key.lineno, ""), key.lineno, is_section)
        if is_section:
            yield from _walk(value, comments, path + ".")


def config_page() -> str:
    """Return the page in Markdown: general settings, a chapter per section, settings of a phase."""
    rows = settings("DEFAULTS")
    parts = [
        CONFIG,
        "## General { #general }",
        _settings_table(setting for setting in rows if _is_general(setting)),
    ]
    for section in (setting for setting in rows if setting.is_section):
        parts.append(f"## {section.key} {{ #{section.key} }}")
        parts += [text(f"{section.meaning[:1].upper()}{section.meaning[1:]}.")] if section.meaning else []
        parts.append(_settings_table(setting for setting in rows if setting.key.startswith(section.key + ".")))
    parts += [PHASE, _settings_table(settings("PHASE_DEFAULTS"), "phase.")]
    return "\n\n".join(parts) + "\n"


def _is_general(setting: Setting) -> bool:
    return not setting.is_section and "." not in setting.key


def _settings_table(rows: Iterator[Setting] | list[Setting], anchor: str = "") -> str:
    columns = ("key", "type", "default", "meaning")
    return reference_table(columns, [_setting_row(setting, anchor) for setting in rows])


def _setting_row(setting: Setting, anchor: str) -> tuple[str, ...]:
    key = f"{code(setting.key)}{{ #{anchor}{setting.key} }}"
    return key, TYPE_NAMES[type(setting.default)], code(_format_default(setting.default)), text(setting.meaning)


def _format_default(default: Any) -> str:
    """Format a default as on the command line: without quotes, unless it is an empty string."""
    if default and isinstance(default, tuple) and all(isinstance(item, str) for item in default):
        return ",".join(default)
    return default if isinstance(default, str) and default else repr(default)


NETWORKS = """# Networks in figures

*Parameters* counts the whole network with its 1,000 ImageNet classes, *base* the part that transfer learning starts
from; both include batch statistics. *Input* is the image size that the weights were trained for, *minimum* the
smallest size that the base accepts, in pixels per side. Accuracies are in percent, on the ImageNet validation images
with one center crop, as published. *Preprocessing* is part of the model: inputs are plain RGB images. `flaxtl models`
also shows which weights are available offline.
"""

PAPER_URLS = {"arXiv": "https://arxiv.org/abs/", "doi": "https://doi.org/"}


def networks_page() -> str:
    """Return the page in Markdown."""
    columns = ("network", "parameters", "base", "input", "minimum", "top-1", "top-5", "preprocessing")
    figures = table(columns, map(_figures, registry.MODELS.values()))
    papers = table(("paper", "networks", "license of the weights"), _papers())
    return f"{NETWORKS}\n{figures}\n\n## Papers and licenses\n\n{papers}\n"


def _figures(spec: ModelSpec) -> tuple[str, ...]:
    counts = (spec.num_params, spec.num_params_no_top, spec.input_size, spec.min_input_size)
    accuracies = (f"{accuracy:.1f}" if accuracy else "–" for accuracy in (spec.top1, spec.top5))
    return code(spec.name), *(f"{count:,}" for count in counts), *accuracies, code(spec.preprocessing)


def _papers() -> list[tuple[str, ...]]:
    """Return a row for each paper and license, with its models."""
    names: dict[tuple[str, str], list[str]] = {}
    for spec in registry.MODELS.values():
        names.setdefault((spec.paper, spec.license), []).append(code(spec.name))
    return [(_link(paper), ", ".join(models), text(license)) for (paper, license), models in names.items()]


def _link(paper: str) -> str:
    kind, _, number = paper.partition(":")
    return f"[{paper}]({PAPER_URLS[kind]}{number})"


DOWNLOAD = "[Download this notebook](lecture.ipynb){ .md-button }"


def notebook_page(notebook: Path) -> str:
    """Return a notebook's text, code and outputs, with a download button below its first cell, the title."""
    title, *cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    parts = ["".join(title["source"]), DOWNLOAD]
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        else:
            parts += [f"```python\n{source}\n```", *map(_output, cell["outputs"])]
    return "\n\n".join(parts) + "\n"


def _output(output: dict[str, Any]) -> str:
    """Return what a cell printed or returned: an image, HTML on one line, which Markdown leaves as it is, or text."""
    data = output.get("data", {"text/plain": output.get("text", "")})
    if "image/png" in data:
        return f'<img alt="" src="data:image/png;base64,{"".join(data["image/png"].split())}">'
    if "text/html" in data and "<pre" not in "".join(data["text/html"]):
        return f'<div class="output">{" ".join("".join(data["text/html"]).split())}</div>'
    return f"```text\n{''.join(data['text/plain']).strip()}\n```"


_SPECIAL = re.compile(r"([\\*_{}\[\]|#])")


def text(words: str) -> str:
    """Escape a text, except code in backticks."""
    parts = re.split(r"(`[^`]+`)", words)
    return "".join(part if part.startswith("`") else _plain(part) for part in parts)


def _plain(words: str) -> str:
    return _SPECIAL.sub(r"\\\1", words).replace("<", "&lt;").replace("`", r"\`")


def code(words: str) -> str:
    """Format as code; a | in it is allowed in tables."""
    return f"`{words}`"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells that are Markdown already."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def reference_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table that narrow screens show as paragraphs (docs/site.css)."""
    return f'<div class="reference" markdown>\n\n{table(columns, rows)}\n\n</div>'
