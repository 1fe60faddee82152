"""Peak floating-point operations per second of a device; a multiply-add counts as two."""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

PUBLISHED = {
    # device_kind: (dense bfloat16, float32) at JAX's default precision, which rounds factors to TensorFloat-32
    # on these GPUs and to bfloat16 on TPUs
    "NVIDIA H200": (989e12, 495e12),  # NVIDIA H200 data sheet, SXM: 1,979 and 989 with sparsity
    "NVIDIA H100 80GB HBM3": (989e12, 495e12),  # NVIDIA H100 data sheet, SXM: the same
    "NVIDIA A100-SXM4-40GB": (312e12, 156e12),  # NVIDIA A100 data sheet
    "NVIDIA A100-SXM4-80GB": (312e12, 156e12),
    "TPU v5 lite": (197e12, 197e12),  # cloud.google.com/tpu/docs/v5e, a chip
    "TPU v4": (275e12, 275e12),  # cloud.google.com/tpu/docs/v4, a chip
}

MATMUL_SIDE, CPU_MATMUL_SIDE = 8192, 2048
"""Side of the square matrices that are multiplied if no peak is published: large enough for full speed."""


class Peak(NamedTuple):
    """Operations per second, and the source of the number."""

    rate: float
    source: str


def peak_flops(device: jax.Device, dtype: str) -> Peak:
    """Return the published peak for 'float32' or 'bfloat16', or the speed of a large matrix product."""
    if device.device_kind in PUBLISHED:
        bfloat16, float32 = PUBLISHED[device.device_kind]
        return Peak(bfloat16 if dtype == "bfloat16" else float32, "published")
    side = CPU_MATMUL_SIDE if device.platform == "cpu" else MATMUL_SIDE
    return Peak(matmul(side, dtype, device), f"measured, a matmul of {side} x {side}")


def matmul(side: int, dtype: str, device: jax.Device) -> float:
    """Return the operations per second of the fastest of five products of square matrices."""
    factor = jax.device_put(jnp.ones((side, side), dtype), device)
    multiply = jax.jit(jnp.matmul)
    seconds = []
    for _ in range(1 + 5):
        start_time = time.perf_counter()
        multiply(factor, factor).block_until_ready()
        seconds.append(time.perf_counter() - start_time)
    return 2 * side**3 / min(seconds[1:])  # the first compiles
