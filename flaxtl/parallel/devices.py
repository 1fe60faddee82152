"""Devices: the mesh and its shardings, memory, determinism, and the cache of compiled programs."""

import os
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flaxtl import fileio
from flaxtl.errors import UserError
from flaxtl.parallel import processes
from flaxtl.parallel.host import host_memory, machine_name

Tree = TypeVar("Tree")

MAX_CACHE_BYTES = 2**30
"""Size of the compilation cache; the least recently used programs are removed first."""


BACKENDS = {
    "cuda": "pip install 'flaxtl[gpu]', for NVIDIA GPUs",
    "gpu": "pip install 'flaxtl[gpu]', for NVIDIA GPUs",
    "rocm": "docs.jax.dev/en/latest/installation.html, for AMD GPUs",
    "tpu": "pip install 'flaxtl[tpu]', on a TPU machine",
}
"""Name of an accelerator in JAX_PLATFORMS -> how to install jax for it."""


def check_backend() -> None:
    """Raise UserError if jax cannot use the platform that JAX_PLATFORMS requests."""
    requested = jax.config.values["jax_platforms"]
    if not requested:
        return
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError: the plugin of an accelerator is not installed
        jax.config.update("jax_platforms", None)
        available = sorted({device.platform for device in jax.devices()})
        jax.config.update("jax_platforms", requested)
        install = " or ".join(BACKENDS[name] for name in requested.split(",") if name in BACKENDS)
        advice = f"Install jax for it ({install}), or unset" if install else "Correct or unset"
        raise UserError(
            f"JAX_PLATFORMS={requested}, but jax finds only {' and '.join(available)} here. {advice} JAX_PLATFORMS."
        ) from error


def make_mesh(batch_size: int) -> Mesh:
    """Return a mesh with one axis, 'data', of as many devices as divide the batch evenly.

    Devices of one process are next to one another, in the order of the processes, so that the part of a batch that a
    process reads is what its own devices hold. `jax.make_mesh` follows the links between the chips of a TPU pod
    instead, which changes this order, and refuses three devices of four.
    """
    num_devices = max(n for n in range(1, jax.device_count() + 1) if batch_size % n == 0)
    by_process = sorted(jax.devices(), key=lambda device: int(device.process_index))
    return Mesh(np.array(by_process[:num_devices]), ("data",), axis_types=(AxisType.Auto,))


def replicated_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of arrays that are whole on each device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Return the sharding of arrays that are split over the devices along one axis."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """Return copies of a tree's arrays on each device; donating them leaves the originals valid."""
    copies: Tree = jax.tree.map(lambda leaf: processes.put_global(leaf, replicated_sharding(mesh)), tree)
    return copies


def platform_of(mesh: Mesh) -> str:
    """Return 'cpu', 'gpu' or 'tpu': what the mesh's devices are, which need not be the process's own."""
    name: str = mesh.devices.flat[0].platform
    return "gpu" if name in ("cuda", "rocm") else name


def is_one_cpu(mesh: Mesh) -> bool:
    """Return whether the mesh is a single CPU, on which a network is faster for a few images at a time."""
    return mesh.size == 1 and platform_of(mesh) == "cpu"


def device_memory(mesh: Mesh) -> tuple[int, str]:
    """Return the size in bytes of a device's memory, and its name; CPU devices share the host's equally."""
    stats = mesh.local_devices[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"], "device memory"
    return host_memory() // len(mesh.local_devices), "memory"


def make_deterministic() -> None:
    """Make XLA choose deterministic kernels on GPUs. It has no effect once a device was used: XLA reads its flags then.

    These kernels are slower for scatters and the gradients of pooling and some convolutions. On CPU and TPU, XLA is
    deterministic anyway.
    """
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()


def check_batch_size(num_devices: int, batch_size: int, accum_steps: int = 1) -> None:
    """Raise UserError unless each microbatch can be split evenly over all devices, so that no device is idle."""
    if accum_steps < 1:
        raise UserError(f"accum_steps is {accum_steps}; it must be at least 1.")
    divisor = num_devices * accum_steps
    if batch_size % divisor:
        lower = max(batch_size // divisor, 1) * divisor
        valid = str(lower) if lower >= batch_size else f"{lower} or {lower + divisor}"
        steps = f" in {accum_steps} accumulation steps" if accum_steps > 1 else ""
        raise UserError(
            f"batch_size {batch_size} cannot be split over {num_devices} device(s){steps}. Set batch_size to {valid}."
        )


def enable_compilation_cache() -> None:
    """Keep compiled programs in the cache folder, unless the user has configured jax's own."""
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(fileio.cache_dir("compiled") / machine_name()))
        jax.config.update("jax_compilation_cache_max_size", MAX_CACHE_BYTES)
