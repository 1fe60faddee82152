"""The devices as a one-dimensional mesh: batches are split over it, everything else is on every device."""

import os
from typing import TypeVar

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flaxtl.errors import UserError
from flaxtl.train import hosts

Tree = TypeVar("Tree")


def make(batch: int) -> Mesh:
    """As many devices as share a batch evenly, along the axis 'data'."""
    devices = max(n for n in range(1, jax.device_count() + 1) if batch % n == 0)
    return jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batched(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """One axis, the first unless told, split over the devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def place(tree: Tree, mesh: Mesh) -> Tree:
    """Fresh copies of a tree's arrays on every device: donating them harms no other holder."""
    placed: Tree = jax.tree.map(lambda leaf: hosts.spread(leaf, replicated(mesh)), tree)
    return placed


def memory(mesh: Mesh) -> tuple[int, str]:
    """How many bytes arrays on every device may take at most, and a name for where they lie."""
    statistics = mesh.local_devices[0].memory_stats()
    if statistics and "bytes_limit" in statistics:
        return statistics["bytes_limit"], "each device's memory"
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "this machine's memory"


def make_deterministic() -> None:
    """Have XLA choose, on a GPU, kernels that give the same bits in every run; before anything is computed.

    They are slower where the fast ones add up in the order in which threads come: scatters, and gradients of pooling
    and of some convolutions. On CPU and TPU XLA is deterministic as it is.
    """
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()


def check_batch(devices: int, batch: int, accumulate: int = 1) -> None:
    """Raise unless every part of a training batch can be split evenly over all the devices: none shall idle unasked."""
    if accumulate < 1:
        raise UserError(f"accumulate is {accumulate}; it is the number of parts of a batch, 1 or more")
    shares = devices * accumulate
    if batch % shares:
        lower = max(batch // shares, 1) * shares
        near = str(lower) if lower >= batch else f"{lower} or {lower + shares}"
        parts = f" in {accumulate} parts" if accumulate > 1 else ""
        raise UserError(f"a batch of {batch} cannot be split over {devices} device(s){parts}; set batch to {near}")
