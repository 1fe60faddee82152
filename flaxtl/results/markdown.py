"""Anybody's text inside a Markdown page, where it must be read and do nothing."""

import re

from markupsafe import Markup

from flaxtl.terminal import printable

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}  # not escaped by a backslash: what knows no Markdown shows HTML
_PUNCTUATION = re.compile(r"[\\`*_\[\]|~$#!]|:(?=//)|(?<=www)\.")
"""What forms emphasis, code, links, pictures, cells, formulas and headings, and what makes a link of an address."""


def text(value: str) -> Markup:
    """`value` as a run of plain text on one line, also within a table's cell.

    Markup, here as in templates, is text that is not to be escaped (again).
    """
    plain = _PUNCTUATION.sub(lambda found: "\\" + found[0], printable(value))
    return Markup(re.sub("[&<>]", lambda found: _ENTITIES[found[0]], plain))


def code(value: str) -> Markup:
    """`value` as a block of code, between fences longer than any run of backticks in it."""
    shown = printable(value, keep="\n")
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", shown)), default=0))
    return Markup(f"{fence}\n{shown}\n{fence}")
