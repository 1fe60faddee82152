import os
import re
from dataclasses import dataclass
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from flaxtl.errors import UserError
from flaxtl.parallel import devices

CACHE_SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture
def no_compilation_cache():
    """Switch jax's compilation cache off; restore its settings afterwards."""
    before = {name: getattr(jax.config, name) for name in CACHE_SETTINGS}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def numbers(error):
    """Return the integers in an error message, in order."""
    return [int(number) for number in re.findall(r"\d+", str(error))]


@pytest.mark.parametrize(
    ("num_devices", "batch_size", "valid"),
    [(2, 3, [2, 4]), (4, 9, [8, 12]), (4, 3, [4]), (8, 1, [8])],
)
def test_check_batch_size_uneven_suggests_sizes(num_devices, batch_size, valid):
    with pytest.raises(UserError) as error:
        devices.check_batch_size(num_devices, batch_size)
    assert numbers(error.value) == [batch_size, num_devices, *valid]


@pytest.mark.parametrize(("batch_size", "valid"), [(12, [8, 16]), (4, [8])])
def test_check_batch_size_uneven_microbatch_suggests_sizes(batch_size, valid):
    with pytest.raises(UserError) as error:
        devices.check_batch_size(2, batch_size, 4)
    assert numbers(error.value) == [batch_size, 2, 4, *valid]
    with pytest.raises(UserError, match=r"\baccum_steps\D+\b0\b"):
        devices.check_batch_size(2, batch_size, 0)


@pytest.mark.parametrize(("num_devices", "batch_size"), [(1, 1), (1, 7), (2, 4), (8, 32)])
def test_check_batch_size_even_passes(num_devices, batch_size):
    devices.check_batch_size(num_devices, batch_size)


def test_make_deterministic_keeps_other_flags(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
    devices.make_deterministic()
    assert os.environ["XLA_FLAGS"] == "--xla_cpu_multi_thread_eigen=false --xla_gpu_deterministic_ops=true"


@dataclass(frozen=True)
class Chip:
    """A device of a TPU pod."""

    id: int
    process_index: int


def mesh_of(monkeypatch, chips, batch_size):
    """Return the devices of the mesh that `make_mesh` chooses of `chips`."""
    monkeypatch.setattr(jax, "device_count", lambda: len(chips))
    monkeypatch.setattr(jax, "devices", lambda: chips)
    mesh = devices.make_mesh(batch_size)
    assert mesh.axis_names == ("data",)
    return mesh.devices.tolist()


@pytest.mark.parametrize(("batch_size", "num_devices"), [(8, 4), (6, 3), (5, 1), (2, 2)])
def test_make_mesh_uses_devices_that_divide_the_batch(monkeypatch, batch_size, num_devices):
    chips = [Chip(number, 0) for number in range(4)]
    assert mesh_of(monkeypatch, chips, batch_size) == chips[:num_devices]


def test_make_mesh_keeps_the_devices_of_a_process_together(monkeypatch):
    chips = [Chip(number, process) for number, process in enumerate((0, 0, 1, 1, 0, 0, 1, 1))]
    assert [chip.id for chip in mesh_of(monkeypatch, chips, 8)] == [0, 1, 4, 5, 2, 3, 6, 7]


def test_replicate_returns_copies():
    mesh, value = devices.make_mesh(4), jnp.arange(4.0)
    copies = devices.replicate({"a": value}, mesh)
    assert copies["a"].sharding == devices.replicated_sharding(mesh)
    jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)(copies)
    assert copies["a"].is_deleted()
    assert np.array_equal(value, [0, 1, 2, 3])
    on_mesh = jax.device_put(value, devices.replicated_sharding(mesh))
    assert devices.replicate({"a": on_mesh}, mesh)["a"] is not on_mesh


def test_compilation_cache_is_in_flaxtl_cache(tmp_path, monkeypatch, no_compilation_cache):
    monkeypatch.setenv("FLAXTL_CACHE", str(tmp_path))
    devices.enable_compilation_cache()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()
    jax.jit(lambda x: jnp.cos(x) + 7)(jnp.ones(3)).block_until_ready()
    (machine,) = (tmp_path / "compiled").iterdir()
    assert list(machine.glob("jit__lambda*"))


def test_compilation_cache_of_the_user_is_kept(tmp_path, no_compilation_cache):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    devices.enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")


@pytest.mark.parametrize(
    ("platforms", "facts"),
    [
        ("cuda", r"JAX_PLATFORMS=cuda\b.*\bonly cpu\b.*'flaxtl\[gpu\]'.*\bunset JAX_PLATFORMS\b"),
        ("tpu", r"JAX_PLATFORMS=tpu\b.*\bonly cpu\b.*'flaxtl\[tpu\]'.*\bunset JAX_PLATFORMS\b"),
        ("typo", r"JAX_PLATFORMS=typo\b.*\bonly cpu\b.*\bCorrect or unset\b"),
    ],
)
def test_check_backend_that_jax_cannot_use_names_it(monkeypatch, platforms, facts):
    def find_devices():
        if jax.config.values["jax_platforms"] is None:
            return [SimpleNamespace(platform="cpu")]
        raise AssertionError if platforms == "cuda" else RuntimeError("Unable to initialize backend")

    before = jax.config.values["jax_platforms"]
    monkeypatch.setattr(jax, "devices", find_devices)
    try:
        jax.config.update("jax_platforms", platforms)
        with pytest.raises(UserError, match=facts):
            devices.check_backend()
    finally:
        jax.config.update("jax_platforms", before)


def test_check_backend_that_jax_can_use_passes():
    devices.check_backend()
