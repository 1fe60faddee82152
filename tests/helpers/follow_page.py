"""Run the code of a documentation page: `python tests/helpers/follow_page.py PAGE.md`.

Its blocks of bash and python are run in the working directory, one after the other, the python in one namespace. A
block that imports a library of OTHER_LIBRARIES which is not installed is left out.
"""

import subprocess
import sys
from pathlib import Path

from helpers import doc_pages

OTHER_LIBRARIES = {"sklearn"}
"""Libraries that a page uses together with flaxtl; `make slow` installs them."""


def main(page: Path) -> None:
    """Stop at the first block that fails and print its position."""
    namespace = {"__name__": "__main__"}
    for block in doc_pages.blocks(page.read_text(encoding="utf-8")):
        if block.language in ("bash", "python"):
            print(f"--- {page}:{block.line}", flush=True)
        if block.language == "bash":
            subprocess.run(["bash", "-euo", "pipefail", "-c", block.text], check=True)
        elif block.language == "python":
            try:
                code = "\n" * block.line + block.text  # tracebacks show the line of the page
                exec(compile(code, str(page), "exec"), namespace)
            except ModuleNotFoundError as error:
                if error.name not in OTHER_LIBRARIES:
                    raise
                print(f"left out: {error.name} is not installed", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
