"""One process at a time in a run directory."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flaxtl import files
from flaxtl.errors import UserError

NAME = ".lock"


@contextmanager
def held(workdir: Path) -> Iterator[None]:
    """`workdir`, which is made if it does not exist, for this process alone.

    The system lets go of the lock when the process ends, however it ends. A new directory in which nothing was written
    is removed again. Raises UserError if another process holds it, or if nothing can be written there.
    """
    new = [place for place in (workdir, *workdir.parents) if not place.exists()]
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = files.claimed(workdir / NAME, wait=False)
    except OSError as error:
        raise UserError(f"cannot write to {workdir} ({error.strerror}); choose another --workdir") from error
    if file is None:
        holder = (workdir / NAME).read_text(encoding="utf-8", errors="replace")[:200] or "another process"
        raise UserError(f"another flaxtl is at work in {workdir} ({holder}); wait for it, or choose another --workdir")
    with file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}".encode())
        file.flush()
        try:
            yield
        finally:
            with suppress(OSError):
                (workdir / NAME).unlink()
                for place in new:
                    place.rmdir()
