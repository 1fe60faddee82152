"""The devices as a one-dimensional mesh: batches are split over it, everything else is on every device."""

import hashlib
import os
import platform
from pathlib import Path
from typing import TypeVar

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flaxtl import fileio
from flaxtl.errors import UserError
from flaxtl.parallel import processes

Tree = TypeVar("Tree")


def make_mesh(batch: int) -> Mesh:
    """As many devices as share a batch evenly, along the axis 'data'."""
    devices = max(n for n in range(1, jax.device_count() + 1) if batch % n == 0)
    return jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


def replicated_sharding(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """One axis, the first unless told, split over the devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """Fresh copies of a tree's arrays on every device: donating them harms no other holder."""
    placed: Tree = jax.tree.map(lambda leaf: processes.put_global(leaf, replicated_sharding(mesh)), tree)
    return placed


def device_memory(mesh: Mesh) -> tuple[int, str]:
    """How many bytes arrays on every device may take at most, and a name for where they lie."""
    statistics = mesh.local_devices[0].memory_stats()
    if statistics and "bytes_limit" in statistics:
        return statistics["bytes_limit"], "device memory"
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "memory"


def make_deterministic() -> None:
    """Have XLA choose, on a GPU, kernels that give the same bits in every run; before anything is computed.

    They are slower where the fast ones add up in the order in which threads come: scatters, and gradients of pooling
    and of some convolutions. On CPU and TPU XLA is deterministic as it is.
    """
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()


def check_batch_size(devices: int, batch: int, accumulate: int = 1) -> None:
    """Raise unless every part of a training batch can be split evenly over all the devices: none shall idle unasked."""
    if accumulate < 1:
        raise UserError(f"accumulate is {accumulate}; it is the number of parts of a batch, 1 or more")
    shares = devices * accumulate
    if batch % shares:
        lower = max(batch // shares, 1) * shares
        near = str(lower) if lower >= batch else f"{lower} or {lower + shares}"
        parts = f" in {accumulate} parts" if accumulate > 1 else ""
        raise UserError(f"a batch of {batch} cannot be split over {devices} device(s){parts}; set batch to {near}")


MAX_CACHE_BYTES = 2**30
"""Of all that is kept; what was not used for longest goes first."""


def enable_compilation_cache() -> None:
    """Let this process find what another one compiled; a folder that the user gave jax is left to do so."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(fileio.cache_dir("compiled") / _machine_name()))
        jax.config.update("jax_compilation_cache_max_size", MAX_CACHE_BYTES)


def _machine_name() -> str:
    """Tells processors apart: home folders are shared by machines, and jax would run another one's instructions."""
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        told = [platform.processor()]
    known = sorted({line for line in told if line.startswith(("flags", "Features", "model name"))}) or told
    return f"{platform.machine()}-{hashlib.sha256(chr(10).join(known).encode()).hexdigest()[:12]}"
