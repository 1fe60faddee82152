"""What jax sees of this machine, and how fast it is: devices, memory, matrix products, memory bandwidth."""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from flaxtl.parallel import devices

MATMUL_SIZES = {"cpu": (512, 1024), "accelerator": (4096, 8192)}
"""Sides of the square matrices; the fastest size counts. Larger ones take seconds on a CPU; smaller ones leave an
accelerator idle between two calls."""

BANDWIDTH_BYTES = {"cpu": 2**27, "accelerator": 2**30}
"""Size of the array that is read and written: more than the caches of most (an H200 has 50 MB)."""

MEASURE_SECONDS = 0.5
"""Duration of one measurement, after a first call that compiles."""

MATMUL_DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class DeviceGroup:
    """The devices of one kind.

    Attributes:
      platform: 'cpu', 'gpu' or 'tpu'.
      kind: such as 'NVIDIA H200'.
      count: how many this process sees.
      memory_bytes: memory of each; CPU devices share the host's.
    """

    platform: str
    kind: str
    count: int
    memory_bytes: int


@dataclass(frozen=True)
class DeviceSpeed:
    """The measured speed of one device.

    Attributes:
      matmul_flops: dtype -> floating-point operations per second of a matrix product, two per multiply-add. In float32
        the precision is 'default', which is that of training.
      bytes_per_second: memory bandwidth, read and written.
    """

    matmul_flops: dict[str, float]
    bytes_per_second: float


def list_devices() -> list[DeviceGroup]:
    """Return the devices that jax uses, all of one platform, by kind."""
    kinds = [device.device_kind for device in jax.local_devices()]
    mesh = devices.make_mesh(jax.device_count())
    memory, _ = devices.device_memory(mesh)
    return [DeviceGroup(devices.platform_of(mesh), kind, kinds.count(kind), memory) for kind in dict.fromkeys(kinds)]


def measure_speed() -> DeviceSpeed:
    """Measure the first device; takes a few seconds, of which most are compiling."""
    platform = "cpu" if jax.local_devices()[0].platform == "cpu" else "accelerator"
    matmul = {
        name: max(_matmul_flops(size, jnp.dtype(name)) for size in MATMUL_SIZES[platform]) for name in MATMUL_DTYPES
    }
    return DeviceSpeed(matmul, _bytes_per_second(BANDWIDTH_BYTES[platform]))


def unused_gpu_hint(platform: str) -> str:
    """Return how to use an NVIDIA GPU that this machine has and jax does not use; '' if there is none."""
    has_gpu = Path("/proc/driver/nvidia/gpus").is_dir() or shutil.which("nvidia-smi") is not None
    if platform != "cpu" or not has_gpu:
        return ""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return "This machine has an NVIDIA GPU, but JAX_PLATFORMS=cpu hides it. Unset JAX_PLATFORMS."
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return "This machine has an NVIDIA GPU, but CUDA_VISIBLE_DEVICES hides it. Unset CUDA_VISIBLE_DEVICES."
    if not any(find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        return "This machine has an NVIDIA GPU, but jax has no support for it: pip install 'flaxtl[gpu]'"
    return "This machine has an NVIDIA GPU that jax cannot use. `nvidia-smi` shows whether its driver works."


def _matmul_flops(size: int, dtype: Any) -> float:
    """Return the operations per second of products of two [size, size] matrices."""
    left, right = jnp.ones((size, size), dtype), jnp.full((size, size), 1 / size, dtype)  # the product is `left` again
    product = jax.jit(jnp.matmul)
    return 2 * size**3 / _seconds_per_call(lambda value: product(value, right), left)


def _bytes_per_second(num_bytes: int) -> float:
    """Return the bandwidth of adding 1 to a float32 array in place, which reads and writes it."""
    increment = jax.jit(lambda array: array + 1, donate_argnums=0)
    return 2 * num_bytes / _seconds_per_call(increment, jnp.zeros(num_bytes // 4, jnp.float32))


def _seconds_per_call(step: Callable[[jax.Array], jax.Array], value: jax.Array) -> float:
    """Return the time of one of many calls, each on the result of the one before."""
    value = step(value).block_until_ready()  # compiles
    start = time.perf_counter()
    value = step(value).block_until_ready()
    num_calls = max(1, int(MEASURE_SECONDS / max(time.perf_counter() - start, 1e-6)))
    start = time.perf_counter()
    for _ in range(num_calls):
        value = step(value)
    value.block_until_ready()
    return (time.perf_counter() - start) / num_calls
