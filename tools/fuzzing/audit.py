"""What no damaged file may bring about: a write outside the run directory, a pickle, a connection, a program."""

import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Audit:
    """Between enter and exit collects what Python's audit events tell of such acts; the list is what `as` gives."""

    def __init__(self, scratch: Path) -> None:
        """Writes below `scratch` are allowed. An audit hook stays for the life of the process."""
        self._allowed = (str(scratch.resolve()) + os.sep, os.devnull)
        self._crimes: list[str] = []
        self._watching = False
        sys.addaudithook(self._hear)

    def __enter__(self) -> list[str]:
        """Start a new list."""
        self._crimes = []
        self._watching = True
        return self._crimes

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Stop."""
        self._watching = False

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._watching:
            return
        if event in _CHANGES or (event == "open" and arguments[2] & _WRITES):
            self._place(event, arguments[0])
        elif event in ("pickle.find_class", "socket.connect", "os.system", "os.exec", "os.posix_spawn"):
            self._crimes.append(f"{event} {arguments}")
        elif event == "subprocess.Popen" and os.fsdecode(arguments[0]) != sys.executable:
            self._crimes.append(f"{event} {arguments[1]}")

    def _place(self, event: str, path: Any) -> None:
        if isinstance(path, int):  # of a file that is open already
            return
        full = os.path.realpath(os.fsdecode(path))
        if not full.startswith(self._allowed) and not full.endswith(".pyc"):
            self._crimes.append(f"{event} {full}")
