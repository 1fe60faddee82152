"""Files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def whole(path: Path, mode: str = "w", **options: Any) -> Iterator[IO[Any]]:
    """`path` opened for writing (`mode` 'w' or 'wb'); it takes its name only when the block ends without an error.

    Whoever reads `path` meanwhile sees the old file, and two processes may write it at once. Its bytes are on the disk
    before it takes its name, so that a loss of power leaves the old file or the new one. `options` are those of open();
    text is UTF-8 unless they say otherwise.
    """
    if "b" not in mode:
        options = {"encoding": "utf-8", **options}
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with scratch.open(mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file as `whole` does."""
    with whole(path) as file:
        file.write(text)
