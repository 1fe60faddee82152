import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtl.errors import UserError
from flaxtl.parallel import devices as meshes


def numbers(error):
    """The whole numbers that an error names, in its order."""
    return [int(number) for number in re.findall(r"\d+", str(error))]


@pytest.mark.parametrize(
    ("devices", "batch", "near"),
    [(2, 3, [2, 4]), (4, 9, [8, 12]), (4, 3, [4]), (8, 1, [8])],
)
def test_a_batch_that_cannot_be_split(devices, batch, near):
    with pytest.raises(UserError) as error:
        meshes.check_batch_size(devices, batch)
    assert numbers(error.value) == [batch, devices, *near]


@pytest.mark.parametrize(("batch", "near"), [(12, [8, 16]), (4, [8])])
def test_a_batch_whose_parts_cannot_be_split(batch, near):
    with pytest.raises(UserError) as error:
        meshes.check_batch_size(2, batch, 4)
    assert numbers(error.value) == [batch, 2, 4, *near]
    with pytest.raises(UserError, match=r"\baccum\w*\D+\b0\b"):
        meshes.check_batch_size(2, batch, 0)


def test_determinism_is_asked_of_the_compiler_beside_other_flags(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
    meshes.make_deterministic()
    assert os.environ["XLA_FLAGS"] == "--xla_cpu_multi_thread_eigen=false --xla_gpu_deterministic_ops=true"


@pytest.mark.parametrize(("devices", "batch"), [(1, 1), (1, 7), (2, 4), (8, 32)])
def test_a_batch_that_can_be_split(devices, batch):
    meshes.check_batch_size(devices, batch)


@pytest.mark.parametrize(("batch", "devices"), [(8, 4), (6, 3), (5, 1), (2, 2)])
def test_the_mesh_holds_as_many_devices_as_share_a_batch(monkeypatch, batch, devices):
    made = {}
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    monkeypatch.setattr(jax, "devices", lambda: list(range(4)))
    monkeypatch.setattr(jax, "make_mesh", lambda shape, names, **options: made.update(shape=shape, **options))
    meshes.make_mesh(batch)
    assert made["shape"] == (devices,)
    assert made["devices"] == list(range(devices))


def test_placed_arrays_are_copies():
    mesh, value = meshes.make_mesh(4), jnp.arange(4.0)
    placed = meshes.replicate({"a": value}, mesh)
    assert placed["a"].sharding == meshes.replicated_sharding(mesh)
    jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)(placed)
    assert placed["a"].is_deleted()
    assert np.array_equal(value, [0, 1, 2, 3])
    assert meshes.replicate({"a": jax.device_put(value, meshes.replicated_sharding(mesh))}, mesh)["a"] is not value
