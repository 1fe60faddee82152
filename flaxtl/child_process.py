"""Python child processes that run a few lines of code with flaxtl's modules."""

import sys
from pathlib import Path

_SEARCH_PATH_FIRST = "import sys; sys.path[:] = sys.argv[2:]\n"


def python_command(code: str, argument: str) -> list[str]:
    """Return the command of a Python process that runs `code`, where `sys.argv[1]` is `argument`.

    It starts fast, without the user's settings, and searches modules where this process does, this package first: an
    editable install is on no path.
    """
    search_path = [str(Path(__file__).parents[1]), *filter(None, sys.path)]
    return [sys.executable, "-I", "-S", "-c", _SEARCH_PATH_FIRST + code, argument, *search_path]
