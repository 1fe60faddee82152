"""Plain texts as Markdown: words that mean nothing to Markdown, code, tables."""

import re
from collections.abc import Iterable, Sequence

_SPECIAL = re.compile(r"([\\*_{}\[\]|#])")


def text(words: str) -> str:
    """`words` as they stand; what is in backticks stays code."""
    parts = re.split(r"(`[^`]+`)", words)
    return "".join(part if part.startswith("`") else _plain(part) for part in parts)


def _plain(words: str) -> str:
    return _SPECIAL.sub(r"\\\1", words).replace("<", "&lt;").replace("`", r"\`")


def code(words: str) -> str:
    """`words` as code; a table leaves a | in it alone."""
    return f"`{words}`"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def reference(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table that a phone shows as paragraphs (docs/site.css)."""
    return f'<div class="reference" markdown>\n\n{table(columns, rows)}\n\n</div>'
