"""Convert the course notebook to a page with its text and code, without outputs."""

import json
from pathlib import Path
from typing import Any

DOWNLOAD = "[Download this notebook](lecture.ipynb){ .md-button }"


def page(notebook: Path) -> str:
    """Return the page in Markdown, with a download button below the first cell, which contains the title."""
    first, *cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join([_format(first), DOWNLOAD, *map(_format, cells)]) + "\n"


def _format(cell: dict[str, Any]) -> str:
    source = "".join(cell["source"])
    return f"```python\n{source}\n```" if cell["cell_type"] == "code" else source
