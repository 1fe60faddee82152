"""How tests compile: quickly, or as users do. Does not import jax, which reads the environment when it starts."""

import os
from contextlib import contextmanager
from importlib.metadata import version

QUICK = "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0"
"""Flags of XLA with which programs compile in less than half of the time. Level 0 alone, which jax has an option for,
takes longer than level 1 without the fusion emitters: MLIR's passes over each fusion take longer than LLVM's.

The older emitters may compute a value twice, in two fusions that round differently."""


def quick_variables():
    """Return environment variables with which a process, and those that it starts, compile with few optimizations."""
    if not version("jaxlib").startswith("0.10."):  # XLA aborts at a flag that it does not know, and has removed one
        return {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    flags = os.environ.get("XLA_FLAGS", "")
    return {"XLA_FLAGS": flags if QUICK in flags else f"{flags} {QUICK}".strip()}


def compiled_quickly():
    """Disable compiler optimizations, where they do not matter and compiling takes most of the time."""
    return _optimizations(disabled=True)


def compiled_as_users_do():
    """Enable compiler optimizations, unless QUICK is set: without, two programs may round a formula differently."""
    return _optimizations(disabled=False)


@contextmanager
def _optimizations(disabled):
    import jax

    if QUICK in os.environ.get("XLA_FLAGS", ""):  # flags are for the whole process
        yield
        return
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", disabled)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
