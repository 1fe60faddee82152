"""Programs that XLA has compiled, kept from run to run in the user's cache folder."""

import hashlib
import platform
from pathlib import Path

import jax

from flaxtl import cache

MAX_BYTES = 2**30
"""Of all that is kept; what was not used for longest goes first."""


def keep() -> None:
    """Let this process find what another one compiled; a folder that the user gave jax is left to do so."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache.directory("compiled") / _machine()))
        jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)


def _machine() -> str:
    """Tells processors apart: home folders are shared by machines, and jax would run another one's instructions."""
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        told = [platform.processor()]
    known = sorted({line for line in told if line.startswith(("flags", "Features", "model name"))}) or told
    return f"{platform.machine()}-{hashlib.sha256(chr(10).join(known).encode()).hexdigest()[:12]}"
