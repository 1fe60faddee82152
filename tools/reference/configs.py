"""Every setting of a config with its type, its default and its meaning: the comment beside it in flaxtl/config.py."""

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from flaxtl.config import __file__
from reference.markdown import code, reference, text

KINDS = {
    bool: "true or false",
    int: "integer",
    float: "number",
    str: "text",
    tuple: "list",
    dict: "numbers by name",
}
"""How a default's type is called."""

INTRODUCTION = """# Config reference

A config is a Python file with `get_config()`, which returns an `ml_collections.ConfigDict`. Whatever it leaves out has
the default below, and every setting can be changed on the command line: `--config.KEY=VALUE`, such as
`--config.head.units='(256,128)'`. A key that does not exist is an error that suggests the right one.
"""

PHASE = """## Settings of a phase { #phase }

Every name in `phases` has these settings of its own: with `c.phases = ("frozen",)` they are `c.frozen.epochs` and so
on, on the command line `--config.frozen.epochs=20`. A group's rate is `--config.frozen.lr.head=1e-3`.
"""


class Setting(NamedTuple):
    """One key of the defaults; `line` is its own in the source, and `section` tells whether others lie beneath it."""

    key: str
    default: Any
    meaning: str
    line: int
    section: bool


def settings(name: str) -> list[Setting]:
    """The settings of DEFAULTS or PHASE_DEFAULTS, in the source's order; a dict on one line is one setting.

    The meaning is '' where there is no comment.
    """
    source = Path(__file__).read_text(encoding="utf-8")
    comments = {
        token.start[0]: token.string.removeprefix("#").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    return list(_walk(_literal(ast.parse(source), name), comments, ""))


def _literal(tree: ast.Module, name: str) -> ast.Dict:
    """The dict in `name = ConfigDict({...})`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return node.value.args[0]
    raise LookupError(f"{__file__} has no {name}")


def _walk(node: ast.Dict, comments: dict[int, str], prefix: str) -> Iterator[Setting]:
    for key, value in zip(node.keys, node.values, strict=True):
        path = prefix + ast.literal_eval(key)
        section = isinstance(value, ast.Dict) and value.end_lineno > value.lineno
        yield Setting(path, ast.literal_eval(value), comments.get(key.lineno, ""), key.lineno, section)
        if section:
            yield from _walk(value, comments, path + ".")


def page() -> str:
    """The page in Markdown: general settings, a chapter for each section, the settings of a phase."""
    found = settings("DEFAULTS")
    parts = [INTRODUCTION, "## General { #general }", _table(one for one in found if _is_general(one))]
    for section in (one for one in found if one.section):
        parts.append(f"## {section.key} {{ #{section.key} }}")
        parts += [text(f"{section.meaning[:1].upper()}{section.meaning[1:]}.")] if section.meaning else []
        parts.append(_table(one for one in found if one.key.startswith(section.key + ".")))
    parts += [PHASE, _table(settings("PHASE_DEFAULTS"), "phase.")]
    return "\n\n".join(parts) + "\n"


def _is_general(setting: Setting) -> bool:
    return not setting.section and "." not in setting.key


def _table(rows: Iterator[Setting] | list[Setting], anchor: str = "") -> str:
    columns = ("key", "type", "default", "meaning")
    return reference(columns, [_row(one, anchor) for one in rows])


def _row(setting: Setting, anchor: str) -> tuple[str, ...]:
    key = f"{code(setting.key)}{{ #{anchor}{setting.key} }}"
    return key, KINDS[type(setting.default)], code(_shown(setting.default)), text(setting.meaning)


def _shown(default: Any) -> str:
    """As Python has it; a text without its quotes, as the command line takes it, unless it is empty."""
    return default if isinstance(default, str) and default else repr(default)
