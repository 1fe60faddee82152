"""What this machine's processor is and can do."""

import hashlib
import platform
from functools import cache
from pathlib import Path

BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Linux' names of the instructions that multiply bfloat16: two of x86, one of ARM."""


def machine_name() -> str:
    """Return a name for this type of processor: machines may share a home folder, but not compiled programs."""
    return f"{platform.machine()}-{hashlib.sha256(chr(10).join(_features()).encode()).hexdigest()[:12]}"


@cache
def multiplies_bfloat16() -> bool:
    """Return whether the processor has instructions for products of bfloat16; False if the system does not say so."""
    return any(not BFLOAT16_FLAGS.isdisjoint(line.split()) for line in _features())


def _features() -> list[str]:
    """Return the lines that describe the processors, each once, sorted; only a name on systems other than Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = [platform.processor()]
    return sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}) or lines
