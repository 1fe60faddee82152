"""Write Markdown: escaped text, code, tables, and the page of a notebook."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

_SPECIAL = re.compile(r"([\\*_{}\[\]|#])")


def text(words: str) -> str:
    """Escape a text, except code in backticks."""
    parts = re.split(r"(`[^`]+`)", words)
    return "".join(part if part.startswith("`") else _plain(part) for part in parts)


def _plain(words: str) -> str:
    return _SPECIAL.sub(r"\\\1", words).replace("<", "&lt;").replace("`", r"\`")


def code(words: str) -> str:
    """Format as code; a | in it is allowed in tables."""
    return f"`{words}`"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells that are Markdown already."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def reference(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table that narrow screens show as paragraphs (docs/site.css)."""
    return f'<div class="reference" markdown>\n\n{table(columns, rows)}\n\n</div>'


DOWNLOAD = "[Download this notebook](lecture.ipynb){ .md-button }"


def notebook_page(notebook: Path) -> str:
    """Return a notebook's text and code, with a download button below its first cell, which contains the title."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    formats = {"code": "```python\n{}\n```", "markdown": "{}"}
    title, *parts = (formats[cell["cell_type"]].format("".join(cell["source"])) for cell in cells)
    return "\n\n".join([title, DOWNLOAD, *parts]) + "\n"
