"""How numbers are written for people, in the report and in the model card."""

import math
import re
from collections.abc import Callable
from typing import Any

import jinja2
from markupsafe import Markup

from flaxtl.console import printable


def format_percent(share: float | None, digits: int = 2) -> str:
    """0.9261 -> 92.61 %; a dash for what is unknown or undefined."""
    return "–" if share is None or math.isnan(share) else f"{100 * share:.{digits}f}\N{NARROW NO-BREAK SPACE}%"


def format_threshold(share: float) -> str:
    """A confidence that is asked for: 0.979999, as predict writes it, but rounded down, so that who has it passes."""
    return f"{math.floor(1e6 * share) / 1e6:.6f}" if math.isfinite(share) else "–"


def format_points(gain: float) -> str:
    """A difference of two shares in percentage points: 0.0288 -> +2.88."""
    return f"{100 * gain:+.2f}".replace("-", "\N{MINUS SIGN}")


def format_count(number: int | None) -> str:
    """14714688 -> 14,714,688; a dash for what is unknown."""
    return "–" if number is None else f"{number:,}"


def format_duration(seconds: float | None) -> str:
    """Seconds -> 850 ms, 12.3 s, 2 min 05 s or 1 h 02 min; a dash for what is unknown."""
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def format_lr(value: float) -> str:
    """A learning rate as people write it: 0.001, 1e-6."""
    mantissa, exponent, power = f"{value:g}".partition("e")
    return mantissa + (f"e{int(power)}" if exponent else "")


def round_lr(rate: float) -> float:
    """As exactly as a curve tells a learning rate: 0.00077406 -> 0.00077."""
    return float(f"{rate:.2g}")


FILTERS = {
    "percent": format_percent,
    "threshold": format_threshold,
    "points": format_points,
    "count": format_count,
    "duration": format_duration,
    "rate": format_lr,
}
"""By the names that templates call them."""


_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}  # not escaped by a backslash: what knows no Markdown shows HTML
_PUNCTUATION = re.compile(r"[\\`*_\[\]|~$#!]|:(?=//)|(?<=www)\.")
"""What forms emphasis, code, links, images, cells, formulas and headings, and what makes a link of an address."""


def markdown_text(value: str) -> Markup:
    """`value` as a run of plain text on one line, also within a table's cell.

    Markup, here as in templates, is text that is not to be escaped (again).
    """
    plain = _PUNCTUATION.sub(lambda found: "\\" + found[0], printable(value))
    return Markup(re.sub("[&<>]", lambda found: _ENTITIES[found[0]], plain))


def markdown_code(value: str) -> Markup:
    """`value` as a block of code, between fences longer than any run of backticks in it."""
    shown = printable(value, keep="\n")
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", shown)), default=0))
    return Markup(f"{fence}\n{shown}\n{fence}")


def load_template(
    name: str, text: Callable[[str], str] = printable, *, trailing_newline: bool = False, **filters: Callable[..., str]
) -> jinja2.Template:
    """One of templates/, with the number filters of formats.py, and `filters` before them.

    Names of files, classes and settings may be anybody's text: each passes through `text`, and then is escaped unless
    that returns Markup.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("flaxtl.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=trailing_newline,
        finalize=_only_of_texts(text),
    )
    environment.filters |= {**FILTERS, **filters}
    return environment.get_template(name)


def _only_of_texts(text: Callable[[str], str]) -> Callable[[Any], Any]:
    return lambda value: text(value) if type(value) is str else value
