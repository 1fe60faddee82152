"""Escaping against a reader of Markdown: markdown-it, which rich brings along."""

from html import unescape

import pytest
from markdown_it import MarkdownIt

from flaxtl.report import templating

READER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])

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
def test_text_is_read_as_it_is(name, place):
    plain = READER.render(place.format("WORD"))
    assert unescape(READER.render(place.format(templating.markdown_text(name)))) == plain.replace("WORD", name)


def test_controls_and_ends_of_lines_are_replaced():
    assert templating.markdown_text("a\nb\x1b[2J\u202e\udcff") == "a\ufffdb\ufffd\\[2J\ufffd\ufffd"


@pytest.mark.parametrize("url", ["http://x.y", "https://x.y", "www.x.y"])
def test_no_address_becomes_a_link(url):
    """GitHub links bare addresses, unless a backslash stands in them; the reader at hand has no such rule."""
    assert url not in templating.markdown_text(url)


@pytest.mark.parametrize("value", ["flaxtl train", "a ``` b", "```\n# out\n````", "<b>\n\n</b>", ""])
def test_code_stays_in_its_block(value):
    (block,) = READER.parse(templating.markdown_code(value))
    assert (block.type, block.content) == ("fence", f"{value}\n")
