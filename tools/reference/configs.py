"""Generate the config reference from flaxtl/config.py: type and default of each setting, and the comment next to it."""

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from flaxtl.config import __file__
from reference.markdown import code, reference, text

TYPE_NAMES = {
    bool: "true or false",
    int: "integer",
    float: "number",
    str: "text",
    tuple: "list",
    dict: "numbers by name",
}

INTRODUCTION = """# Config reference

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
    source = Path(__file__).read_text(encoding="utf-8")
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
    raise LookupError(f"{__file__} has no {name}")


def _walk(node: ast.Dict, comments: dict[int, str], prefix: str) -> Iterator[Setting]:
    for key, value in zip(node.keys, node.values, strict=True):
        path = prefix + ast.literal_eval(key)
        is_section = isinstance(value, ast.Dict) and value.end_lineno > value.lineno
        yield Setting(path, ast.literal_eval(value), comments.get(key.lineno, ""), key.lineno, is_section)
        if is_section:
            yield from _walk(value, comments, path + ".")


def page() -> str:
    """Return the page in Markdown: general settings, a chapter per section, settings of a phase."""
    defaults = settings("DEFAULTS")
    parts = [INTRODUCTION, "## General { #general }", _table(setting for setting in defaults if _is_general(setting))]
    for section in (setting for setting in defaults if setting.is_section):
        parts.append(f"## {section.key} {{ #{section.key} }}")
        parts += [text(f"{section.meaning[:1].upper()}{section.meaning[1:]}.")] if section.meaning else []
        parts.append(_table(setting for setting in defaults if setting.key.startswith(section.key + ".")))
    parts += [PHASE, _table(settings("PHASE_DEFAULTS"), "phase.")]
    return "\n\n".join(parts) + "\n"


def _is_general(setting: Setting) -> bool:
    return not setting.is_section and "." not in setting.key


def _table(rows: Iterator[Setting] | list[Setting], anchor: str = "") -> str:
    columns = ("key", "type", "default", "meaning")
    return reference(columns, [_row(setting, anchor) for setting in rows])


def _row(setting: Setting, anchor: str) -> tuple[str, ...]:
    key = f"{code(setting.key)}{{ #{anchor}{setting.key} }}"
    return key, TYPE_NAMES[type(setting.default)], code(_format(setting.default)), text(setting.meaning)


def _format(default: Any) -> str:
    """Format a default as on the command line: a non-empty string has no quotes."""
    return default if isinstance(default, str) and default else repr(default)
