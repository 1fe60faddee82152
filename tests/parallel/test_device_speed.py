import jax
import pytest

from flaxtl.parallel import device_speed


def test_list_devices_counts_those_of_jax():
    (group,) = device_speed.list_devices()
    assert (group.platform, group.count) == ("cpu", jax.device_count())
    assert group.memory_bytes > 2**20


def test_measure_speed_returns_rates(monkeypatch):
    monkeypatch.setattr(device_speed, "MATMUL_SIZES", {"cpu": (8,)})
    monkeypatch.setattr(device_speed, "BANDWIDTH_BYTES", {"cpu": 2**12})
    monkeypatch.setattr(device_speed, "MEASURE_SECONDS", 0.0)
    speed = device_speed.measure_speed()
    assert speed.matmul_flops.keys() == {"float32", "bfloat16"}
    assert all(0 < rate < 1e12 for rate in [*speed.matmul_flops.values(), speed.bytes_per_second])


@pytest.mark.parametrize(
    ("platform", "variables", "plugins", "facts"),
    [
        ("gpu", {}, (), ""),
        ("cpu", {"JAX_PLATFORMS": "cpu"}, (), "JAX_PLATFORMS=cpu hides it"),
        ("cpu", {"CUDA_VISIBLE_DEVICES": ""}, (), "CUDA_VISIBLE_DEVICES hides it"),
        ("cpu", {}, (), "pip install 'flaxtl[gpu]'"),
        ("cpu", {}, ("jax_cuda12_plugin",), "nvidia-smi"),
    ],
)
def test_unused_gpu_hint_says_why(monkeypatch, platform, variables, plugins, facts):
    monkeypatch.setattr(device_speed.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(device_speed, "find_spec", lambda name: name if name in plugins else None)
    for name in ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    hint = device_speed.unused_gpu_hint(platform)
    assert facts in hint
    assert bool(hint) == bool(facts)


def test_unused_gpu_hint_without_a_gpu_is_empty(monkeypatch):
    monkeypatch.setattr(device_speed.shutil, "which", lambda name: None)
    assert device_speed.unused_gpu_hint("cpu") == ""
