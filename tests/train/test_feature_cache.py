import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_run
from ml_collections import ConfigDict

from flaxtl.errors import UserError
from flaxtl.models.classifier import forward, unflatten_params
from flaxtl.train import feature_cache
from flaxtl.train.datasets import feature_cache_dir

CUTS = ("block1_pool", "block2_pool")


def no_bar(title, total):
    raise AssertionError(f"computed: {title}")


def test_features_equal_the_direct_forward_pass(prepared, parameters, tmp_path):
    inputs = tiny_run.inputs(prepared, "train", tmp_path, CUTS)
    images = inputs.image_loader().data.inputs
    for cut in CUTS:
        direct = forward(prepared.model_info.model, unflatten_params(parameters), images, stop=cut).output
        found = inputs.feature_loader(cut, parameters, tiny_run.bar)
        # batches of 4 against one of 12: the same float32 sums of at most 1,152 products, split in another way
        np.testing.assert_allclose(found.data.inputs, direct, rtol=1e-5, atol=1e-5 * float(direct.max()))
        assert np.array_equal(found.data.labels, prepared.manifest.labels(prepared.manifest.of_split("train")))
        assert len(found) == len(inputs) == 12


def test_features_of_all_cut_layers_are_computed_at_once(prepared, parameters, tmp_path):
    inputs = tiny_run.inputs(prepared, "validation", tmp_path, [*CUTS, CUTS[0]])
    titles = []

    def bar(title, total):
        titles.append((title, total))
        return tiny_run.bar(title, total)

    shapes = [inputs.feature_loader(cut, parameters, bar).data.inputs.shape for cut in CUTS]
    ((title, total),) = titles
    assert "block1_pool" in title
    assert total == 6
    assert shapes == [(6, 16, 16, 64), (6, 8, 8, 128)]
    assert sorted(file.name.split("-")[0] for file in tmp_path.iterdir()) == list(CUTS)


def test_feature_extraction_compiles_once_for_all_splits(prepared, parameters, tmp_path):
    feature_cache.make_feature_step.cache_clear()
    for split in ("train", "validation"):
        tiny_run.inputs(prepared, split, tmp_path, CUTS).feature_loader(CUTS[1], parameters, tiny_run.bar)
    assert feature_cache.make_feature_step.cache_info().misses == 1


def test_cached_features_are_not_recomputed(prepared, parameters, tmp_path):
    first = tiny_run.inputs(prepared, "train", tmp_path, CUTS).feature_loader(CUTS[1], parameters, tiny_run.bar)
    again = tiny_run.inputs(prepared, "train", tmp_path, CUTS).feature_loader(CUTS[1], parameters, no_bar)
    assert np.array_equal(first.data.inputs, again.data.inputs)


@pytest.mark.parametrize("keep", [0, 64, 5000])
def test_damaged_feature_file_is_recomputed(prepared, parameters, tmp_path, keep):
    first = tiny_run.inputs(prepared, "train", tmp_path, CUTS[:1]).feature_loader(CUTS[0], parameters, tiny_run.bar)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:keep])
    again = tiny_run.inputs(prepared, "train", tmp_path, CUTS[:1]).feature_loader(CUTS[0], parameters, tiny_run.bar)
    assert np.array_equal(first.data.inputs, again.data.inputs)
    assert file.read_bytes() == whole


def test_cached_bfloat16_features_are_not_recomputed(folder, tmp_path):
    prepared = tiny_run.setup(folder, tmp_path, dtype="bfloat16")
    parameters = tiny_run.parameters(prepared.model_info, prepared.config)
    first = tiny_run.inputs(prepared, "train", tmp_path, CUTS).feature_loader(CUTS[1], parameters, tiny_run.bar)
    again = tiny_run.inputs(prepared, "train", tmp_path, CUTS).feature_loader(CUTS[1], parameters, no_bar)
    assert again.data.gather(jnp.arange(2)).dtype == jnp.bfloat16
    assert np.array_equal(first.data.inputs, again.data.inputs)


def test_features_in_compute_dtype_are_those_of_a_run_in_that_dtype(folder, parameters, tmp_path):
    whole = tiny_run.setup(folder, tmp_path, dtype="bfloat16")
    tiny_run.inputs(whole, "train", tmp_path, CUTS).feature_loader(CUTS[1], parameters, tiny_run.bar)
    cached = tiny_run.setup(folder, tmp_path, feature_cache={"compute_dtype": "bfloat16"})
    again = tiny_run.inputs(cached, "train", tmp_path, CUTS).feature_loader(CUTS[1], parameters, no_bar)
    assert again.data.gather(jnp.arange(2)).dtype == jnp.bfloat16
    assert cached.model_info.model.dtype == jnp.float32


def test_feature_key_depends_on_weights_images_and_dtype(prepared, parameters, folder, tmp_path):
    def files(of=prepared, split="train", weights=parameters):
        before = set(tmp_path.iterdir())
        tiny_run.inputs(of, split, tmp_path, CUTS[:1]).feature_loader(CUTS[0], weights, tiny_run.bar)
        return len(set(tmp_path.iterdir()) - before)

    def moved(path):
        return {**parameters, path: parameters[path].at[0].add(1e-3)}

    assert files() == 1
    assert files() == 0
    assert files(weights=moved("backbone/block1_conv1/bias")) == 1
    assert files(split="validation") == 1
    assert files(of=tiny_run.setup(folder, tmp_path, dtype="bfloat16")) == 1
    assert files(weights=moved("backbone/block2_conv1/bias")) == 0  # above the cut
    assert files(weights=moved("head/predictions/bias")) == 0


def test_features_in_memory_are_dropped_if_weights_change(prepared, parameters, tmp_path):
    inputs = tiny_run.inputs(prepared, "train", tmp_path, CUTS[:1])
    first = inputs.feature_loader(CUTS[0], parameters, tiny_run.bar)
    path = "backbone/block1_conv2/bias"
    other = inputs.feature_loader(CUTS[0], {**parameters, path: parameters[path] + 1}, tiny_run.bar)
    assert not np.array_equal(first.data.inputs, other.data.inputs)


def test_unwritable_feature_cache_dir_is_named(prepared, parameters, tmp_path):
    (tmp_path / "file").touch()
    inputs = tiny_run.inputs(prepared, "train", tmp_path / "file", CUTS[:1])
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "file"))):
        inputs.feature_loader(CUTS[0], parameters, tiny_run.bar)


def test_param_digests_change_with_one_bit():
    value = jnp.arange(3.0)
    assert feature_cache.param_digests({"a": value}) == feature_cache.param_digests({"a": jnp.array([0.0, 1.0, 2.0])})
    assert feature_cache.param_digests({"a": value}) != feature_cache.param_digests({"a": jnp.nextafter(value, 9.0)})
    assert feature_cache.param_digests({"a": jnp.zeros(3)}) != feature_cache.param_digests({"a": -jnp.zeros(3)})


def test_param_digests_read_the_device_not_a_cached_copy(monkeypatch):
    """On an accelerator `_npy_value` is kept from the first fetch; here it is planted."""
    value = jnp.arange(3.0)
    honest = feature_cache.param_digests({"a": value})
    value._npy_value = np.array([7.0, 7.0, 7.0], np.float32)
    assert jax.device_get(value).tolist() == [7.0, 7.0, 7.0]
    assert feature_cache.param_digests({"a": value}) == honest


def test_feature_cache_dir_expands_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = ConfigDict({"feature_cache": {"dir": "~/cache"}})
    setup = SimpleNamespace(config=config, workdir=tmp_path / "run")
    assert feature_cache_dir(setup) == tmp_path / "cache"
    config.feature_cache.dir = ""
    assert feature_cache_dir(setup) == tmp_path / "run/features"
