import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from flaxtl.parallel import devices

NAMES = ("jax_compilation_cache_dir", "jax_compilation_cache_max_size", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture(autouse=True)
def settings_come_back():
    before = {name: getattr(jax.config, name) for name in NAMES}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_what_was_compiled_is_kept_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FLAXTL_CACHE", str(tmp_path))
    devices.enable_compilation_cache()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()
    jax.jit(lambda x: jnp.cos(x) + 7)(jnp.ones(3)).block_until_ready()
    (machine,) = (tmp_path / "compiled").iterdir()
    assert list(machine.glob("jit__lambda*"))


def test_a_folder_of_the_users_own_stays(tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    devices.enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")


def test_another_processor_has_another_folder(monkeypatch):
    own = devices._machine_name()
    assert own == devices._machine_name()
    monkeypatch.setattr(devices.Path, "read_text", lambda *given, **named: "flags\t: other\n")
    assert devices._machine_name() != own
