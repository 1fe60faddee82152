"""How tests compile: quickly, or as users do. Does not import jax, which reads the environment when it starts."""

import os
from contextlib import contextmanager
from importlib.metadata import version

QUICK = (
    "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true"
)
"""Flags of XLA that take a fifth off the compile time without optimizations: MLIR's passes over each fusion take longer
than LLVM's. At level 0, which jax has an option for, the emitters that are used in their place compute wrong values."""


def choose_quick_programs():
    """Let this process, and those that it starts, compile with few optimizations."""
    if not version("jaxlib").startswith("0.10."):  # XLA aborts at a flag that it does not know, and has removed one
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    elif QUICK not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}".strip()


def compiled_quickly():
    """Disable compiler optimizations, where they do not matter and compiling takes most of the time."""
    return _optimizations(disabled=True)


def compiled_as_users_do():
    """Enable compiler optimizations, unless QUICK is set: at level 0, two programs may round a formula differently."""
    return _optimizations(disabled=False)


@contextmanager
def _optimizations(disabled):
    import jax

    if QUICK in os.environ.get("XLA_FLAGS", ""):  # all programs have level 1, and agree
        yield
        return
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", disabled)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
