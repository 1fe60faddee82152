"""Jinja templates, and how they write numbers and arbitrary text."""

import base64
import hashlib
import math
import re
from collections.abc import Callable
from pathlib import Path

import jinja2
from markupsafe import Markup

from flaxtl import console
from flaxtl.console import printable
from flaxtl.train import rounding
from flaxtl.train.run_records import SplitMetrics


def load_template(
    name: str,
    clean: Callable[[str], str] = printable,
    *,
    keep_trailing_newline: bool = False,
    **filters: Callable[..., str],
) -> jinja2.Template:
    """Load a template of templates/ with the number filters below.

    Names of files, classes and settings may hold any text. Every string passes through `clean` and is then escaped,
    unless `clean` returns Markup.

    Args:
      name: file name of the template.
      clean: applied to every string that the template outputs.
      keep_trailing_newline: keep the newline at the end of the template.
      **filters: additional filters; they replace number filters of the same name.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("flaxtl.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=keep_trailing_newline,
        finalize=lambda value: clean(value) if type(value) is str else value,
    )
    environment.filters |= {**FILTERS, **filters}
    environment.globals |= {"script": SCRIPT, "script_hash": SCRIPT_HASH}
    return environment.get_template(name)


def format_percent(share: float | None, digits: int = 2) -> str:
    """0.9261 -> 92.61 %; a dash for None and nan."""
    return "–" if share is None or math.isnan(share) else f"{100 * share:.{digits}f}\N{NARROW NO-BREAK SPACE}%"


def format_rounded(metrics: SplitMetrics | None) -> str:
    """Accuracy of a split, with the digits that the number of its images supports; a dash if it was not measured."""
    if metrics is None or metrics.accuracy is None:
        return format_percent(None)
    return format_percent(metrics.accuracy, metrics_digits(metrics))


def metrics_digits(metrics: SplitMetrics) -> int:
    """Number of decimals of an accuracy that the number of its images supports."""
    return rounding.percent_digits(round((metrics.accuracy or 0) * metrics.n), metrics.n)


def format_share(count: int, total: int) -> str:
    """13, 16 -> 81 %: a share, with the digits that its total supports; a dash for a total of 0."""
    return format_units(rounding.rounded_percent(count, total)) if total else format_percent(None)


def format_units(text: str) -> str:
    """Keep every number of a sentence on one line with its percent sign, or with its plus-minus sign."""
    return re.sub(r"(?<=\d) (?=%)|(?<=±) ", "\N{NARROW NO-BREAK SPACE}", text)


def format_threshold(confidence: float) -> str:
    """0.9799996 -> 0.979999: rounded down, so that the confidence that gave the threshold still reaches it."""
    return f"{math.floor(1e6 * confidence) / 1e6:.6f}" if math.isfinite(confidence) else "–"


def format_points(difference: float, digits: int = 2) -> str:
    """Difference of two shares in percentage points: 0.0288 -> +2.88, and +0.00 for what rounds to zero."""
    return f"{100 * difference:+z.{digits}f}".replace("-", "\N{MINUS SIGN}")


def format_count(number: int | None) -> str:
    """14714688 -> 14,714,688; a dash for None."""
    return "–" if number is None else f"{number:,}"


def format_duration(seconds: float | None) -> str:
    """As `console.format_duration`; a dash for None."""
    return "–" if seconds is None else console.format_duration(seconds)


def format_lr(lr: float) -> str:
    """Learning rate without a padded exponent: 0.001, 1e-6."""
    mantissa, exponent, power = f"{lr:g}".partition("e")
    return mantissa + (f"e{int(power)}" if exponent else "")


def round_lr(lr: float) -> float:
    """Round to two significant digits, the precision of a range test: 0.00077406 -> 0.00077."""
    return float(f"{lr:.2g}")


FILTERS = {
    "percent": format_percent,
    "rounded": format_rounded,
    "share": format_share,
    "units": format_units,
    "threshold": format_threshold,
    "points": format_points,
    "count": format_count,
    "duration": format_duration,
    "lr": format_lr,
}
"""Filter name -> function, for every template."""

SCRIPT = Markup((Path(__file__).parent / "templates" / "copy.js").read_text(encoding="utf-8"))
"""The only script of a page: it shows the buttons that copy a command. Without scripts there are no buttons."""

SCRIPT_HASH = "sha256-" + base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
"""What the Content-Security-Policy of a page allows to run: SCRIPT and nothing else."""

_HTML_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}  # entities, because Markdown passes HTML through
_MARKDOWN_SYNTAX = re.compile(r"[\\`*_\[\]|~$#!]|:(?=//)|(?<=www)\.")
"""Characters of emphasis, code, links, images, table cells, math and headings, and what turns a URL into a link."""


def markdown_text(value: str) -> Markup:
    """Return `value` as plain text on one line of Markdown, also valid inside a table cell."""
    escaped = _MARKDOWN_SYNTAX.sub(lambda match: "\\" + match[0], printable(value))
    return Markup(re.sub("[&<>]", lambda match: _HTML_ENTITIES[match[0]], escaped))


def markdown_code(value: str) -> Markup:
    """Return `value` as a fenced code block, with a fence longer than any run of backticks inside."""
    code = printable(value, keep="\n")
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
    return Markup(f"{fence}\n{code}\n{fence}")
