"""What is damaged: one of a few valid files that a reader of flaxtl takes together."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Subject(NamedTuple):
    """Valid files in a folder, the names of those to be damaged, one at a time, and what reads them.

    The reader is given a folder like `folder` and the name of the damaged file.
    """

    folder: Path
    files: tuple[str, ...]
    read: Callable[[Path, str], None]
    text: bool = False
