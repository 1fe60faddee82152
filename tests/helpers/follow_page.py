"""Run the code of a documentation page: `python tests/helpers/follow_page.py PAGE.md`.

Its blocks of bash and python are run in the working directory, one after the other, the python in one namespace.
"""

import subprocess
import sys
from pathlib import Path

from helpers import doc_pages


def main(page: Path) -> None:
    """Stop at the first block that fails and print its position."""
    namespace = {"__name__": "__main__"}
    for block in doc_pages.blocks(page.read_text(encoding="utf-8")):
        if block.language in ("bash", "python"):
            print(f"--- {page}:{block.line}", flush=True)
        if block.language == "bash":
            subprocess.run(["bash", "-euo", "pipefail", "-c", block.text], check=True)
        elif block.language == "python":
            exec(
                compile("\n" * block.line + block.text, str(page), "exec"), namespace
            )  # tracebacks show the line of the page


if __name__ == "__main__":
    main(Path(sys.argv[1]))
