"""This machine: how much of its memory a process may use, and what its processor can do."""

import hashlib
import os
import platform
from collections.abc import Iterator
from functools import cache
from pathlib import Path

BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Linux' names of the instructions that multiply bfloat16: two of x86, one of ARM."""


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


def machine_name() -> str:
    """Return a name for this type of processor: machines may share a home folder, but not compiled programs."""
    return f"{platform.machine()}-{hashlib.sha256(chr(10).join(_processor_features()).encode()).hexdigest()[:12]}"


@cache
def multiplies_bfloat16() -> bool:
    """Return whether the processor has instructions for products of bfloat16; False if the system does not say so."""
    return any(not BFLOAT16_FLAGS.isdisjoint(line.split()) for line in _processor_features())


def _processor_features() -> list[str]:
    """Return the lines that describe the processors, each once, sorted; only a name on systems other than Linux."""
    lines = _read(Path("/proc/cpuinfo")).splitlines() or [platform.processor()]
    return sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}) or lines


def _read(file: Path) -> str:
    """Return the text of a file; "" if there is none, as on systems other than Linux."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
