import re
import shutil
from collections import namedtuple
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import tiny_run

from flaxtl.data.array_store import ArrayStore
from flaxtl.data.augment.config import AugmentConfig, example_keys
from flaxtl.data.augment.mixup import mix
from flaxtl.data.augment.ops import augment
from flaxtl.data.loaders import READ_AHEAD, DeviceLoader, HostLoader
from flaxtl.data.sampler import EpochSampler
from flaxtl.errors import UserError
from flaxtl.models.classifier import forward, unflatten_params
from flaxtl.parallel import devices
from flaxtl.train import datasets, feature_cache, train_step, trainer
from flaxtl.train.datasets import SplitData
from flaxtl.train.feature_cache import AugmentedViews, CutLayers
from flaxtl.train.train_step import StepConfig

CUTS = ("block1_pool", "block2_pool")
K, SEED = 3, 5
FLIPS = AugmentConfig(rotation=20.0, horizontal_flip=True)
AUGMENTED = {"frozen": {"augment": True}}


@pytest.fixture
def little_memory(monkeypatch):
    monkeypatch.setattr(devices, "device_memory", lambda mesh: (1000, "a small device's memory"))


def view_data(prepared, directory, cuts=CUTS, **changes):
    """The training images in float32 views."""
    views = AugmentedViews(np.dtype(np.float32), K, SEED, FLIPS)._replace(**changes)
    clean = tiny_run.inputs(prepared, "train", directory, CUTS)
    net = prepared.model_info
    return SplitData(
        "train",
        net.model,
        net.layers,
        prepared.mesh,
        clean._images,
        CUTS,
        directory,
        prepared.config.batch_size,
        CutLayers(cuts, views),
    )


def no_bar(title, total):
    raise AssertionError(f"computed: {title}")


def given(loader, first=0, last=15):
    """What the training steps get, as arrays: inputs and labels, [batch, ...] each."""
    batches = []
    for examples in loader.train_batches(EpochSampler(SEED, 4, 12), first, last, None):
        examples = jax.tree.map(jnp.asarray, examples)
        batches.append((np.asarray(examples.inputs(SEED, None)), np.asarray(examples.labels)))
    return batches


def same(ours, theirs):
    return len(ours) == len(theirs) and all(
        np.array_equal(*pair) for one, other in zip(ours, theirs, strict=True) for pair in zip(one, other, strict=True)
    )


def directly(prepared, parameters, images):
    """Every view of every image, image by image, up to the higher cut."""

    @jax.jit
    def run(indices, epochs):
        seen = augment(example_keys(SEED, epochs, indices), images[indices], FLIPS)
        return forward(prepared.model_info.model, unflatten_params(parameters), seen, stop=CUTS[1]).output

    return np.asarray(run(*(part.astype(np.int32) for part in np.divmod(np.arange(12 * K), K))))


@pytest.mark.parametrize(
    ("dtype", "rounded"),
    # the same float32 sums of at most 1,152 products, of another program; bfloat16 then keeps 8 bits of them
    [(np.float32, 1e-5), (feature_cache.VIEWS_DTYPE, 2**-8)],
    ids=["float32", "bfloat16"],
)
def test_views_equal_features_of_fresh_augmentation(prepared, parameters, tmp_path, dtype, rounded):
    data = view_data(prepared, tmp_path, dtype=np.dtype(dtype))
    direct = directly(prepared, parameters, data.image_loader().data.inputs)
    labels = prepared.manifest.labels(prepared.manifest.of_split("train"))
    loader = data.feature_loader(CUTS[1], parameters, tiny_run.bar, num_views=K)
    assert isinstance(loader, DeviceLoader)
    assert len(loader) == 12
    for step, (features, answers) in enumerate(given(loader)):  # five epochs: the views come again after three
        indices, epochs = EpochSampler(SEED, 4, 12).batch(step)
        expected = direct[indices * K + epochs % K]
        assert features.dtype == dtype
        np.testing.assert_allclose(features.astype(np.float32), expected, rtol=rounded, atol=1e-5 * direct.max())
        assert np.array_equal(answers, labels[indices])


def test_views_of_all_cut_layers_are_computed_once(prepared, parameters, tmp_path):
    calls = []

    def bar(title, total):
        calls.append((title, total))
        return tiny_run.bar(title, total)

    data = view_data(prepared, tmp_path)
    first = [given(data.feature_loader(cut, parameters, bar, num_views=K)) for cut in CUTS]
    ((title, total),) = calls
    assert total == 36
    assert re.search(r"\b3\b.*\bblock1_pool\b", title)
    assert [batches[0][0].shape for batches in first] == [(4, 16, 16, 64), (4, 8, 8, 128)]
    assert sorted(file.name.split("-")[0] for file in tmp_path.iterdir()) == list(CUTS)
    again = view_data(prepared, tmp_path)
    assert all(
        same(given(again.feature_loader(cut, parameters, no_bar, num_views=K)), batches)
        for cut, batches in zip(CUTS, first, strict=True)
    )


def test_feature_key_depends_on_views(prepared, parameters, tmp_path):
    view_data(prepared, tmp_path, CUTS[:1]).feature_loader(CUTS[0], parameters, tiny_run.bar, num_views=K)
    view_data(prepared, tmp_path, CUTS[:1]).feature_loader(CUTS[0], parameters, no_bar, num_views=K)
    for changes in (
        {"num_views": 2},
        {"seed": 6},
        {"augmentation": AugmentConfig(rotation=21.0)},
        {"dtype": feature_cache.VIEWS_DTYPE},
    ):
        with pytest.raises(AssertionError, match=rf"computed: .*\b{changes.get('num_views', K)}\b.*\bblock1_pool"):
            view_data(prepared, tmp_path, CUTS[:1], **changes).feature_loader(
                CUTS[0], parameters, no_bar, num_views=changes.get("num_views", K)
            )


@pytest.mark.parametrize("dtype", [np.float32, feature_cache.VIEWS_DTYPE], ids=["float32", "bfloat16"])
def test_host_and_device_loader_of_views_agree(monkeypatch, prepared, parameters, tmp_path, dtype):
    held = view_data(prepared, tmp_path, dtype=np.dtype(dtype)).feature_loader(
        CUTS[0], parameters, tiny_run.bar, num_views=K
    )
    monkeypatch.setattr(devices, "device_memory", lambda mesh: (1000, "a small device's memory"))
    mapped = view_data(prepared, tmp_path, dtype=np.dtype(dtype)).feature_loader(
        CUTS[0], parameters, no_bar, num_views=K
    )
    assert (type(held), type(mapped), len(mapped)) == (DeviceLoader, HostLoader, 12)
    assert same(given(mapped), given(held))
    assert same(given(mapped, 7), given(held)[7:])
    for (ours, real), (theirs, also_real) in zip(mapped.eval_batches(5), held.eval_batches(5), strict=True):
        assert np.array_equal(real, also_real)
        assert np.array_equal(*(jax.tree.map(jnp.asarray, examples).inputs(0, None) for examples in (ours, theirs)))


def test_feature_loader_counts_reserved_bytes(monkeypatch, prepared, parameters, tmp_path):
    n_bytes = 12 * K * 8 * 8 * 128 * 4
    monkeypatch.setattr(
        devices, "device_memory", lambda mesh: (2 * (n_bytes + 100), "memory")
    )  # half of it may be taken
    data = view_data(prepared, tmp_path)
    assert isinstance(
        data.feature_loader(CUTS[1], parameters, tiny_run.bar, num_views=K, reserved_bytes=100), DeviceLoader
    )
    assert data.device_bytes == n_bytes
    again = view_data(prepared, tmp_path)
    assert isinstance(again.feature_loader(CUTS[1], parameters, no_bar, num_views=K, reserved_bytes=101), HostLoader)
    assert again.device_bytes == 0


def test_host_loader_closed_early_stops_reading(monkeypatch, prepared, parameters, tmp_path, little_memory):
    loader = view_data(prepared, tmp_path).feature_loader(CUTS[1], parameters, tiny_run.bar, num_views=K)
    calls = []
    read = ArrayStore.read
    monkeypatch.setattr(ArrayStore, "read", lambda store, rows: calls.append(rows) or read(store, rows))
    batches = loader.train_batches(EpochSampler(SEED, 4, 12), 0, 1000, None)
    next(batches)
    batches.close()
    assert len(calls) <= 1 + 2 * READ_AHEAD  # the batch, those on their way to the device, those being read


def test_host_loader_of_deleted_file_names_it(prepared, parameters, tmp_path, little_memory):
    loader = view_data(prepared, tmp_path).feature_loader(CUTS[1], parameters, tiny_run.bar, num_views=K)
    for file in tmp_path.iterdir():
        file.unlink()
    with pytest.raises(UserError, match=rf"{re.escape(str(tmp_path))}/block2_pool-.*\.npy\b"):
        given(loader)


class Stop(Exception):
    """Ends a computation."""


def stopping_bar(at):
    """A progress bar that raises once `at` rows are done, and the list of its advances."""
    calls = []

    def advance(rows):
        calls.append(rows)
        if sum(calls) >= at:
            raise Stop

    return lambda title, total: nullcontext(advance), calls


def test_interrupted_extraction_continues(prepared, parameters, tmp_path):
    whole = view_data(prepared, tmp_path / "whole")
    whole.feature_loader(CUTS[0], parameters, tiny_run.bar, num_views=K)
    bar, _ = stopping_bar(16)
    with pytest.raises(Stop):
        view_data(prepared, tmp_path / "parts").feature_loader(CUTS[0], parameters, bar, num_views=K)
    assert not list((tmp_path / "parts").glob("[!.]*.npy"))
    bar, calls = stopping_bar(99)
    view_data(prepared, tmp_path / "parts").feature_loader(CUTS[0], parameters, bar, num_views=K)
    assert calls == [16, 4, 4, 4, 4, 4]
    files = [sorted((tmp_path / name).iterdir()) for name in ("whole", "parts")]
    assert [file.name for file in files[0]] == [file.name for file in files[1]]
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]


def test_extraction_on_small_disk_fails_before_computing(monkeypatch, prepared, parameters, tmp_path):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(0, 0, 10**5))
    bar, calls = stopping_bar(99)
    facts = rf"(?=.*\b[1-9]\.\d MB)(?=.*{re.escape(str(tmp_path))})(?=.*\b0\.1 MB)"
    with pytest.raises(UserError, match=facts):
        view_data(prepared, tmp_path).feature_loader(CUTS[0], parameters, bar, num_views=K)
    assert calls == []


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"feature_cache": {"views": -1}}, r"\.views\b.*-1\b"),
        (
            {
                "feature_cache": {"views": 4},
                "augmentation": {"cutmix": 1.0},
                "model": {"name": "vit_tiny_patch16_224"},
                "param_groups": (),
                "phases": ("finetune",),
                "finetune": {"lr": {"head": 1e-3, "top": 1e-4, "base": 0.0}, "augment": True},
            },
            r"(?=.*\baugmentation\.cutmix\b)(?=.*\bfinetune\b)(?=.*\.views=0\b)",
        ),
    ],
)
def test_invalid_view_settings_are_named(folder, tmp_path, changes, facts):
    with pytest.raises(UserError, match=facts):
        tiny_run.setup(folder, tmp_path, **changes)


def test_cached_views_are_not_mixed(folder, parameters, tmp_path):
    """So a change of mixup or CutMix does not compute them again."""
    settings = {"feature_cache": {"views": 2, "dir": str(tmp_path / "features")}, "frozen": {"augment": True}}
    for mixing, bar in ({}, tiny_run.bar), ({"mixup": 0.4}, no_bar), ({"cutmix": 1.0}, no_bar):
        setup = tiny_run.setup(folder, tmp_path, augmentation={"horizontal_flip": True} | mixing, **settings)
        images = tiny_run.inputs(setup, "train", tmp_path, CUTS)._images
        data = datasets._split_data(setup, "train", images)
        data.feature_loader("block2_pool", parameters, bar, num_views=2)


@pytest.mark.parametrize("mixing", [{"mixup": 0.4}, {"cutmix": 1.0}], ids=str)
def test_steps_on_views_mix_features_and_labels(prepared, parameters, tmp_path, mixing):
    """And apply nothing else: the views are augmented already."""
    loader = view_data(prepared, tmp_path).feature_loader(CUTS[1], parameters, tiny_run.bar, num_views=K)
    augmentation = replace(FLIPS, **mixing)
    cfg = StepConfig(prepared.model_info.model, optax.sgd(0.1), prepared.mesh, SEED, CUTS[1], augmentation)
    (batch,) = loader.train_batches(EpochSampler(SEED, 4, 12), 0, 1, augmentation)
    examples = jax.jit(partial(train_step._make_examples, cfg))(batch, jnp.int32(0))
    keys = example_keys(SEED, batch.epochs, batch.indices)
    expected = mix(keys, batch.inputs(SEED, None), batch.labels, AugmentConfig(**mixing))
    assert not np.array_equal(expected.images, batch.inputs(SEED, None))
    np.testing.assert_array_equal(examples.inputs, expected.images)
    main, other = examples.targets
    np.testing.assert_array_equal(main.labels, expected.labels)
    np.testing.assert_array_equal(other.labels, expected.labels_b)
    np.testing.assert_array_equal(main.weight, expected.lam)


# ---------------------------------------------------------------------- whole runs


def train(folder, workdir, **changes):
    """The epochs' measures, and what was output."""
    console = tiny_run.quiet()
    trainer.train(tiny_run.config(folder, **AUGMENTED | changes), workdir, console, "flaxtl train")
    return tiny_run.metrics(workdir), tiny_run.texts(console)


def compare(ours, theirs, rel):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        for key in ("train_loss", "validation_loss"):
            assert one[key] == pytest.approx(other[key], rel=rel), (one["phase"], one["epoch"], key)


@pytest.mark.slow
def test_run_with_a_view_per_epoch_equals_fresh_augmentation(monkeypatch, folder, tmp_path):
    phases = ("frozen", "finetune")
    num_views = 2 * len(phases)  # epochs of 3 batches of 4 out of 12 images
    fresh, output = train(folder, tmp_path / "fresh", phases=phases)
    assert "views" not in output
    with monkeypatch.context() as patch:
        patch.setattr(datasets, "VIEWS_DTYPE", np.dtype(np.float32))
        epochs, output = train(folder, tmp_path / "views", phases=phases, feature_cache={"views": num_views})
    compare(epochs, fresh, rel=1e-5)  # the sums of another program, through 12 steps at most; here all bits are equal
    for phase in phases:
        (line,) = re.findall(rf"^.*\b{phase}\b.*\b{num_views} views\b.*$", output, re.MULTILINE)
        assert not re.search(r"\bfile\b", line)
    # once for these, once for the clean validation images
    assert len(re.findall(r"^.*(?<!\w)block\d_pool\b.*$", output, re.MULTILINE)) == 2
    epochs, _ = train(folder, tmp_path / "bfloat16", phases=phases, feature_cache={"views": num_views})
    compare(epochs, fresh, rel=2e-3)  # 8 bits of each feature, rounded up and down alike


@pytest.mark.slow
def test_run_reading_features_from_disk_equals_device(monkeypatch, folder, tmp_path):
    settings = {"data": tiny_run.config(folder).data.to_dict() | {"pipeline": "resident", "sampling": "balanced"}}
    settings["feature_cache"] = {"views": 2, "dir": str(tmp_path / "features")}
    held, _ = train(folder, tmp_path / "held", **settings)
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "features").iterdir()}
    assert len(files) == 4
    monkeypatch.setattr(devices, "device_memory", lambda mesh: (1000, "a small device's memory"))
    mapped, output = train(folder, tmp_path / "mapped", **settings)
    compare(mapped, held, rel=1e-5)
    assert re.search(r"^.*\bfinetune\b.*\b2 views\b.*\bfile\b", output, re.MULTILINE)
    assert files == {file: file.stat().st_mtime_ns for file in (tmp_path / "features").iterdir()}
