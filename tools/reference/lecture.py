"""The notebook of the lecture as a page: its texts and its code, without outputs."""

import json
from pathlib import Path
from typing import Any

DOWNLOAD = "[Download this notebook](lecture.ipynb){ .md-button }"


def page(notebook: Path) -> str:
    """The page in Markdown; the notebook's first cell begins with its title."""
    first, *cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join([_shown(first), DOWNLOAD, *map(_shown, cells)]) + "\n"


def _shown(cell: dict[str, Any]) -> str:
    source = "".join(cell["source"])
    return f"```python\n{source}\n```" if cell["cell_type"] == "code" else source
