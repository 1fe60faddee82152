"""Numbers as text, and Markdown escaping, tested against a Markdown parser (markdown-it, a dependency of rich)."""

from html import unescape

import numpy as np
import pytest
from markdown_it import MarkdownIt

from flaxtl.report import templating

PARSER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])

HOSTILE = [
    "<script>alert(1)</script>",
    "</td><img src=x onerror=alert(1)>",
    "[a](javascript:alert(1))",
    "![a](http://x/y.png)",
    "**bold** __bold__ *a* _a_ ~~gone~~",
    "`code` ``more``",
    "a | b || c \\| d \\\\",
    "&lt;b&gt; &amp; &#60;",
    "$x_{1}$",
    "# no heading #",
    "<http://x.y>",
    "- 1. + > [ ] [x]",
    "snow_drop-2 (small), été",
]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("place", ["# A {}", "a {} b", "- a: {}", "| a | b |\n|---|---|\n| {} | c |"])
def test_markdown_text_hostile_names_are_text(name, place):
    plain = PARSER.render(place.format("WORD"))
    assert unescape(PARSER.render(place.format(templating.markdown_text(name)))) == plain.replace("WORD", name)


def test_markdown_text_controls_are_replaced():
    assert templating.markdown_text("a\nb\x1b[2J\u202e\udcff") == "a\ufffdb\ufffd\\[2J\ufffd\ufffd"


@pytest.mark.parametrize("url", ["http://x.y", "https://x.y", "www.x.y"])
def test_markdown_text_urls_are_not_links(url):
    """GitHub links bare URLs unless they contain a backslash; markdown-it has no such rule."""
    assert url not in templating.markdown_text(url)


@pytest.mark.parametrize("value", ["flaxtl train", "a ``` b", "```\n# out\n````", "<b>\n\n</b>", ""])
def test_markdown_code_is_one_block(value):
    (block,) = PARSER.parse(templating.markdown_code(value))
    assert (block.type, block.content) == ("fence", f"{value}\n")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "–"),
        (0.0123, "12 ms"),
        (0.9996, "1.0 s"),
        (12.34, "12.3 s"),
        (59.97, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3599.6, "1 h 00 min"),
        (3725, "1 h 02 min"),
    ],
)
def test_format_duration(seconds, shown):
    assert templating.format_duration(seconds) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(0.001, "0.001"), (1e-6, "1e-6"), (3.5e-5, "3.5e-5"), (0.1, "0.1"), (1, "1")]
)
def test_format_lr(value, shown):
    assert templating.format_lr(value) == shown


def test_format_threshold_rounds_down():
    assert templating.format_threshold(np.float32(0.97)) == "0.970000"
    assert templating.format_threshold(0.9999999) == "0.999999"
    assert templating.format_threshold(1.0) == "1.000000"
    assert templating.format_threshold(float("nan")) == templating.format_threshold(float("inf")) == "–"


@pytest.mark.parametrize(("count", "total", "shown"), [(13, 16, "81 %"), (655, 734, "89.2 %"), (0, 0, "–")])
def test_format_share_has_the_digits_that_the_total_supports(count, total, shown):
    assert templating.format_share(count, total).replace("\N{NARROW NO-BREAK SPACE}", " ") == shown


def test_format_percent_and_points():
    assert templating.format_percent(float("nan")) == templating.format_percent(None) == "–"
    assert templating.format_percent(0.92609, 1) == "92.6\N{NARROW NO-BREAK SPACE}%"
    assert templating.format_points(-0.0288) == "\N{MINUS SIGN}2.88"
    assert templating.format_points(-0.001, 0) == "+0"
