"""Devices that are not there: meshes of a TPU or GPU topology, for their compilers, which need no hardware."""

from pathlib import Path

import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from flaxtl.errors import UserError


def topology_mesh(name: str, gpu_target: Path | None = None) -> Mesh:
    """Return a mesh with one axis, 'data', of the devices of a topology.

    Args:
      name: 'v5e:2x2', as libtpu names TPUs, or 'h200:4' for four GPUs.
      gpu_target: XLA's description of the GPU, a GpuTargetConfigProto in text format. XLA's repository has them in
        xla/backends/gpu/target_config/specs.
    """
    kind, _, shape = name.partition(":")
    if kind.startswith("v"):
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    elif kind == "h200" and shape.isdigit():
        if gpu_target is None:
            raise UserError(f"{name} needs --gpu-target=FILE, XLA's description of the GPU (h200.txtpb)")
        _resolve_gpu_to_cuda()
        target = gpu_target.read_text(encoding="utf-8")
        devices = topologies.get_topology_desc(platform="cuda", target_config=target, topology=f"1x1x{shape}").devices
    else:
        raise UserError(f"Unknown topology {name!r}; known: v5e:2x2, v5e:2x4, h200:1, h200:4")
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def _resolve_gpu_to_cuda() -> None:
    """Let jax lower for CUDA where no GPU is: it resolves "gpu" by the backends that are present (jax issue 23971).

    The only use of a private module of jax, and only for GPUs.
    """
    from jax._src import xla_bridge

    resolve = xla_bridge.canonicalize_platform
    xla_bridge.canonicalize_platform = lambda name: "cuda" if name in ("gpu", "cuda") else resolve(name)
