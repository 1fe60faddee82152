"""The devices as a one-dimensional mesh: batches are split over it, everything else is on every device."""

from typing import TypeVar

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flaxtl.errors import UserError

Tree = TypeVar("Tree")


def make() -> Mesh:
    """All devices along the axis 'data'."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batched(mesh: Mesh) -> NamedSharding:
    """The first axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def place(tree: Tree, mesh: Mesh) -> Tree:
    """Fresh copies of a tree's arrays on every device: donating them harms no other holder."""
    placed: Tree = jax.tree.map(lambda leaf: jax.device_put(leaf, replicated(mesh), may_alias=False), tree)
    return placed


def check_batch(mesh: Mesh, batch: int) -> None:
    """Raise unless a batch can be split evenly over the devices."""
    devices = mesh.size
    if batch % devices:
        lower = max(batch // devices, 1) * devices
        near = str(lower) if lower >= batch else f"{lower} or {lower + devices}"
        raise UserError(f"a batch of {batch} cannot be split over {devices} devices; set batch to {near}")
