"""How much memory of the host this process may use."""

import os
from collections.abc import Iterator
from pathlib import Path


def host_memory(membership: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the memory of the machine in bytes, or the lower limit of a control group that this process is in.

    Containers and job schedulers such as Slurm limit memory so: Linux ends a process that exceeds the limit.

    Args:
      membership: the file that lists the control groups of this process.
      groups: the folder of all control groups.
    """
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *_limits(membership, groups)])


def _limits(membership: Path, groups: Path) -> Iterator[int]:
    """Yield the limits in bytes of the control groups of this process and of the groups around them.

    In a container the folder of the inner group may be missing; its own limit is then that of the outermost group.
    """
    for line in _read(membership).splitlines():
        _, controllers, group = line.split(":", 2)
        if not controllers:  # version 2
            root, name = groups, "memory.max"
        elif "memory" in controllers.split(","):  # version 1
            root, name = groups / "memory", "memory.limit_in_bytes"
        else:
            continue
        folder = root / group.lstrip("/")
        for place in (folder, *folder.parents):
            if place.is_relative_to(root) and (limit := _read(place / name).strip()).isdigit():  # not "max"
                yield int(limit)


def _read(file: Path) -> str:
    """Return the text of a file; "" if there is none, as on systems other than Linux."""
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""
