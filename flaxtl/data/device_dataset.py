"""Examples in device memory: how they are laid out there, divided among the devices, and read by a step."""

import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxtl.parallel import devices, processes

LANES = 128
"""Elements in a row of a TPU's tile."""

TILE_BYTES = 4096
"""Size of a tile of a TPU: 32 rows of LANES 8-bit numbers, 16 of 16 bits, or 8 of 32 bits."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DeviceDataset:
    """Examples in device memory; `put_dataset` creates it.

    Attributes:
      inputs: uint8 images [n, height, width, 3], or features [n, ...]; bfloat16 is stored as uint16 (see `bits`). On
        several devices n is padded with zeros to a multiple of their number, and each device has its part. See
        `stored_shape`.
      labels: int32 [n], on every device and not padded.
      example_shape: shape of one example on a TPU, where `inputs` have another; else None.
      mesh: the devices that `inputs` are divided among; None for one device.
    """

    inputs: jax.Array
    labels: jax.Array
    example_shape: tuple[int, ...] | None = field(default=None, metadata={"static": True})
    mesh: Mesh | None = field(default=None, metadata={"static": True})

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    @property
    def device_bytes(self) -> int:
        """Memory that the inputs use on each device."""
        return math.prod(self.inputs.sharding.shard_shape(self.inputs.shape)) * self.inputs.dtype.itemsize

    def shardings(self, mesh: Mesh) -> "DeviceDataset":
        """Return the shardings of the arrays on a mesh."""
        replicated = devices.replicated_sharding(mesh)
        return DeviceDataset(rows_sharding(mesh), replicated, self.example_shape, self.mesh)  # type: ignore[arg-type]  # a tree of shardings

    def gather(self, indices: jax.Array) -> jax.Array:
        """Return the inputs of some examples, [len(indices), ...], divided among the devices.

        Args:
          indices: int32 [batch], the same on every device.
        """
        inputs = self.inputs[indices] if self.mesh is None else _gather_from_parts(self.inputs, indices, self.mesh)
        if self.example_shape is not None:
            flat = inputs.reshape(len(indices), -1)[:, : math.prod(self.example_shape)]
            inputs = flat.reshape(len(indices), *self.example_shape)
        return jax.lax.bitcast_convert_type(inputs, jnp.bfloat16) if inputs.dtype == np.uint16 else inputs


def put_dataset(inputs: npt.NDArray[Any], labels: npt.NDArray[np.int32], mesh: Mesh) -> DeviceDataset:
    """Move examples to the devices of a mesh; each process sends what its own devices hold.

    Args:
      inputs: images or features [n, ...]; they must not be changed afterwards.
      labels: int32 [n].
      mesh: the devices.
    """
    rows = bits(inputs)
    shape, sharding = stored_shape(rows.shape, rows.itemsize, mesh), rows_sharding(mesh)

    def part(index: tuple[slice, ...] | None) -> npt.NDArray[Any]:
        assert index is not None, "the sharding has a part for each device"
        first, last, _ = index[0].indices(shape[0])
        return _store(rows[first:last], (last - first, *shape[1:]))

    if shape == rows.shape and mesh.size == 1:
        on_devices = processes.put_global(rows, sharding)
    else:  # part by part: the host never holds a padded copy of all examples
        on_devices = jax.make_array_from_callback(shape, sharding, part)
    replicated = processes.put_global(labels, devices.replicated_sharding(mesh))
    return DeviceDataset(on_devices, replicated, example_shape(rows.shape, mesh), split_over(mesh))


def stored_shape(shape: tuple[int, ...], itemsize: int, mesh: Mesh) -> tuple[int, ...]:
    """Return the shape of `DeviceDataset.inputs` for inputs [n, ...].

    The first axis is a multiple of the number of devices. On a TPU an example is [rows, LANES] of whole tiles, so that
    it is contiguous in memory. Otherwise the compiler would choose a layout that mixes examples in a tile, and copy
    everything to another one in each call; three channels as the last axis would even be padded to LANES.
    """
    num_rows = math.ceil(shape[0] / mesh.size) * mesh.size
    if devices.platform_of(mesh) != "tpu":
        return (num_rows, *shape[1:])
    num_tiles = math.ceil(math.prod(shape[1:]) * itemsize / TILE_BYTES)
    return num_rows, num_tiles * TILE_BYTES // itemsize // LANES, LANES


def example_shape(shape: tuple[int, ...], mesh: Mesh) -> tuple[int, ...] | None:
    """Return `DeviceDataset.example_shape` for inputs [n, ...]."""
    return shape[1:] if devices.platform_of(mesh) == "tpu" else None


def split_over(mesh: Mesh) -> Mesh | None:
    """Return `DeviceDataset.mesh`: the mesh, if it has several devices."""
    return mesh if mesh.size > 1 else None


def device_bytes(shape: tuple[int, ...], itemsize: int, mesh: Mesh) -> int:
    """Return the memory that inputs [n, ...] take on each device, with all padding."""
    return math.prod(stored_shape(shape, itemsize, mesh)) * itemsize // mesh.size


def rows_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of `DeviceDataset.inputs`: each device has a part of the examples."""
    return devices.batch_sharding(mesh)


def bits(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return bfloat16 as uint16 of the same bits, and any other dtype unchanged.

    XLA on CPU has no bfloat16 gather: within a loop over steps it would convert the whole array to float32 each time.
    """
    return array.view(np.uint16) if array.dtype == jnp.bfloat16 else array


def _gather_from_parts(inputs: jax.Array, indices: jax.Array, mesh: Mesh) -> jax.Array:
    """Return rows of an array that is split over the devices, split over them.

    Each device takes the rows that it has and zeros for all others; one sum over the devices gives each its part.
    """

    def gather(part: jax.Array, indices: jax.Array) -> jax.Array:
        positions = indices - jax.lax.axis_index("data") * len(part)
        is_here = (positions >= 0) & (positions < len(part))
        rows = part[jnp.clip(positions, 0, len(part) - 1)]
        rows = jnp.where(is_here.reshape(-1, *[1] * (rows.ndim - 1)), rows, 0)
        summed: jax.Array = jax.lax.psum_scatter(rows, "data", scatter_dimension=0, tiled=True)
        return summed

    split = PartitionSpec("data")
    rows: jax.Array = jax.shard_map(gather, mesh=mesh, in_specs=(split, PartitionSpec()), out_specs=split)(
        inputs, indices
    )
    return rows


def _store(rows: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return a copy of rows [n, ...] in a larger `shape`: examples, and elements of each, are padded with zeros."""
    stored = np.zeros((shape[0], math.prod(shape[1:])), rows.dtype)
    stored[: len(rows), : math.prod(rows.shape[1:])] = rows.reshape(len(rows), math.prod(rows.shape[1:]))
    return stored.reshape(shape)
