"""Templates of the pages that are written for people."""

from collections.abc import Callable
from typing import Any

import jinja2

from flaxtl.results import formats
from flaxtl.terminal import printable


def template(
    name: str, text: Callable[[str], str] = printable, *, trailing_newline: bool = False, **filters: Callable[..., str]
) -> jinja2.Template:
    """One of templates/, with the number filters of formats.py, and `filters` before them.

    Names of files, classes and settings may be anybody's text: each passes through `text`, and then is escaped unless
    that returns Markup.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("flaxtl.results"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=trailing_newline,
        finalize=_only_of_texts(text),
    )
    environment.filters |= {**formats.FILTERS, **filters}
    return environment.get_template(name)


def _only_of_texts(text: Callable[[str], str]) -> Callable[[Any], Any]:
    return lambda value: text(value) if type(value) is str else value
