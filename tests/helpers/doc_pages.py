"""The pages of the documentation as tests read them: blocks of code, and code within sentences."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "lecture.ipynb"
WRITTEN = {
    file.relative_to(ROOT).as_posix(): file for file in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}
"""Name -> file of every page that is written by hand, except the notebook."""

FENCED = re.compile(
    r"^(?P<indent>[ \t]*)(?P<fence>`{3,})[ \t]*(?P<language>\w*)[^\n`]*\n(?P<body>.*?)^(?P=indent)(?P=fence)[ \t]*$",
    re.MULTILINE | re.DOTALL,
)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


class Block(NamedTuple):
    """A fenced block: its language ('' if none is given), the line of the page that it begins after, and its text."""

    language: str
    line: int
    text: str


def blocks(markdown: str) -> list[Block]:
    """The fenced blocks of a page, also those in lists and admonitions."""
    found = []
    for match in FENCED.finditer(markdown):
        body = re.sub(f"^{match['indent']}", "", match["body"], flags=re.MULTILINE)
        found.append(Block(match["language"], markdown.count("\n", 0, match.start("body")), body))
    return found


def inline(markdown: str) -> list[str]:
    """Return the inline code of a page."""
    return INLINE.findall(FENCED.sub("", markdown))


def code(markdown: str) -> list[str]:
    """Return all code of a page, each command on one line: its blocks and its inline code."""
    return [re.sub(r"\\\n\s*", " ", block.text) for block in blocks(markdown)] + inline(markdown)
