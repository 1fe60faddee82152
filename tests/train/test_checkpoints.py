import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtl.errors import UserError
from flaxtl.parallel import devices
from flaxtl.train.checkpoints import Checkpoints, EarlyStopping, PhaseProgress, _Manager, _reason
from flaxtl.train.metrics import MetricSums
from flaxtl.train.optimizers import phase_optimizer
from flaxtl.train.param_groups import ParamGroups
from flaxtl.train.train_step import TrainState

GROUPS = {"head/out/kernel": "head", "backbone/conv/kernel": "block", "backbone/stem/kernel": "base"}
SPLIT = ParamGroups(GROUPS, {"head": 1e-2, "block": 1e-3, "base": 0.0})
LARGE = (1000, 1000)  # so that a background write would be running when the next step comes


@pytest.fixture(scope="module")
def mesh():
    return devices.make_mesh(4)


def progress(mesh, fill, early_stopping):
    """Progress of a phase that trains two of three groups."""
    learning = {path: jnp.full(LARGE, fill) for path in GROUPS if SPLIT.is_trainable(path)}
    state = phase_optimizer({"name": "nadam"}, SPLIT, "constant", 10, 0).init(learning)
    state = jax.tree.map(lambda leaf: leaf + jnp.asarray(fill, leaf.dtype), state)
    totals = MetricSums(jnp.float32(fill), jnp.int32(3), jnp.int32(4))
    made = TrainState.create(fill, learning, {}, state, num_classes=3)._replace(metrics=totals)
    return devices.replicate(PhaseProgress(made, learning, None), mesh)._replace(early_stopping=early_stopping)


def same(first, second):
    leaves = [jax.tree.leaves(tree) for tree in (first, second)]
    return jax.tree.structure(first) == jax.tree.structure(second) and all(map(np.array_equal, *leaves))


def abstract(params):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), params)


def test_checkpoints_of_new_run_are_empty(tmp_path, mesh):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.num_phases() is None
        assert checkpoints.restore_latest(0, 10, 9, progress(mesh, 0, EarlyStopping(0, None, 0))) is None


def test_restore_phase_returns_saved_params(tmp_path, mesh):
    phases = [devices.replicate({"head/out/kernel": jnp.full((2, 3), 0.1 + done)}, mesh) for done in range(3)]
    with Checkpoints(tmp_path) as checkpoints:
        for done, params in enumerate(phases):
            checkpoints.save_phase(done, params)
            assert checkpoints.num_phases() == done
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.num_phases() == 2
        assert all(same(checkpoints.restore_phase(done, abstract(phases[0])), phases[done]) for done in range(3))


@pytest.mark.parametrize("name", ["lr=[0.1]/run", "a\\b", "**", "gs:/run", "\udcff"])
def test_checkpoints_in_a_path_with_special_characters_are_read(tmp_path, mesh, name):
    workdir, params = tmp_path / name, devices.replicate({"head/out/kernel": jnp.ones((2, 3))}, mesh)
    workdir.mkdir(parents=True)
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save_phase(0, params)
        link = Path(checkpoints._link.name)
    assert not link.exists()
    assert (workdir / "checkpoints/phases/0").is_dir()
    assert [folder.name for folder in tmp_path.iterdir()] == [name.partition("/")[0]]  # "a/b" for "a\\b" would be new
    with Checkpoints(workdir) as checkpoints:
        assert same(checkpoints.restore_phase(0, abstract(params)), params)


def test_messages_name_a_path_with_special_characters_itself(tmp_path, mesh):
    messages, like = [], {"head/out/kernel": jax.ShapeDtypeStruct((2, 3), jnp.float32)}
    workdir = tmp_path / "a[1]"
    (workdir / "checkpoints/phases/0").mkdir(parents=True)
    with Checkpoints(workdir, messages.append) as checkpoints:
        assert checkpoints.restore_last_phase(like) is None
    (text,) = messages
    assert f"Checkpoint {workdir}/checkpoints/phases/0 is damaged" in text
    assert f"Moved it to {workdir}/checkpoints/damaged/phases-0;" in text
    assert (workdir / "checkpoints/damaged/phases-0").is_dir()


@pytest.mark.parametrize(("name", "item"), [("phases/0", "params"), ("latest/1", "state"), ("latest/1", "best_params")])
def test_save_of_checkpoint_that_cannot_be_read_back_fails(name, item, tmp_path, mesh, monkeypatch):
    save = _Manager.save

    def save_on_a_bad_disk(manager, number, **arguments):
        save(manager, number, **arguments)
        shutil.rmtree(manager.shown / str(number) / item, ignore_errors=True)

    monkeypatch.setattr(_Manager, "save", save_on_a_bad_disk)
    folder = re.escape(f"{tmp_path}/checkpoints/{name}")
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match=rf"{folder}\b.*cannot be read back"):
        save_both_kinds(checkpoints, mesh)


@pytest.mark.parametrize("error", [MemoryError("8 bytes"), RuntimeError("RESOURCE_EXHAUSTED: 8 bytes")])
def test_restore_without_memory_keeps_the_checkpoint(error, tmp_path, mesh, monkeypatch):
    def restore(manager, number, **arguments):
        raise error

    with Checkpoints(tmp_path) as checkpoints:
        save_both_kinds(checkpoints, mesh)
    monkeypatch.setattr(_Manager, "restore", restore)
    like = progress(mesh, 0, EarlyStopping(0, None, 0))
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(type(error), match=re.escape(str(error))):
        checkpoints.restore_latest(0, 10, 9, like)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(type(error), match=re.escape(str(error))):
        checkpoints.restore_last_phase(abstract({"head/out/kernel": jnp.ones((2, 3))}))
    assert not (tmp_path / "checkpoints" / "damaged").exists()


def save_both_kinds(checkpoints, mesh):
    checkpoints.save_phase(0, devices.replicate({"head/out/kernel": jnp.ones((2, 3))}, mesh))
    checkpoints.save_latest(progress(mesh, 5, EarlyStopping(2, 0.1, 1)))


def test_restore_latest_is_bit_identical_after_donation(tmp_path, mesh):
    saved, expected = (progress(mesh, 5, EarlyStopping(2, 0.1, 1)) for _ in range(2))
    step = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 2 + 1, state), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_latest(saved)
        state = saved.state
        for _ in range(5):
            state = step(state)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore_latest(0, 10, 9, progress(mesh, 0, EarlyStopping(0, None, 0)))
    assert same(restored, expected)
    assert restored.early_stopping == EarlyStopping(2, 0.1, 1)


@pytest.mark.parametrize(("first", "last", "there"), [(0, 5, True), (4, 10, True), (5, 10, False), (0, 4, False)])
def test_restore_latest_returns_only_steps_of_the_phase(tmp_path, mesh, first, last, there):
    saved_progress = progress(mesh, 5, EarlyStopping(1, None, 0))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_latest(saved_progress)
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.restore_latest(first, last, 9, saved_progress) is not None) == there


def test_save_latest_keeps_two_checkpoints(tmp_path, mesh):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save_latest(progress(mesh, step, EarlyStopping(step, None, 0)))
    assert sorted(folder.name for folder in (tmp_path / "checkpoints" / "latest").iterdir()) == ["2", "3"]


def test_restore_phase_of_damaged_checkpoint_names_it(tmp_path, mesh):
    params = devices.replicate({"head/out/kernel": jnp.ones((2, 3))}, mesh)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_phase(0, params)
    folder = tmp_path / "checkpoints" / "phases" / "0"
    shutil.rmtree(folder / "params")
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(UserError, match=rf"{re.escape(str(folder))}\b.*(?i:damaged|corrupt)"),
    ):
        checkpoints.restore_phase(0, abstract(params))


@pytest.mark.parametrize("shape", [(3, 2), (2, 4)])
def test_restore_phase_of_another_shape_names_it(tmp_path, mesh, shape):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_phase(0, devices.replicate({"head/out/kernel": jnp.ones((2, 3))}, mesh))
        like = abstract(devices.replicate({"head/out/kernel": jnp.ones(shape)}, mesh))
        with pytest.raises(UserError, match=re.escape(str(tmp_path / "checkpoints" / "phases" / "0"))):
            checkpoints.restore_phase(0, like)


def saved(tmp_path, mesh, *fills):
    """Save one progress after another; return the folder of the checkpoints."""
    with Checkpoints(tmp_path) as checkpoints:
        for fill in fills:
            checkpoints.save_latest(progress(mesh, fill, EarlyStopping(fill, None, 0)))
    return tmp_path / "checkpoints" / "latest"


def damages(data):
    """Damages that a power loss or a failing disk does to a file."""
    yield "cut", data[: len(data) // 2]
    yield "empty", b""
    yield "zeros", bytes(len(data))
    yield "one bit", data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :]


@pytest.mark.slow
def test_restore_latest_with_any_damaged_file_is_exact_or_falls_back(tmp_path, mesh, monkeypatch):
    monkeypatch.setitem(globals(), "LARGE", (3, 5))
    folder = saved(tmp_path / "whole", mesh, 4, 5)
    expected = {fill: progress(mesh, fill, EarlyStopping(fill, None, 0)) for fill in (4, 5)}
    names = sorted(file.relative_to(folder) for file in (folder / "2").rglob("*") if file.is_file())
    assert len(names) > 5
    fell_back = 0
    for name in names:
        for damage, data in damages((folder / name).read_bytes()):
            workdir, messages = tmp_path / f"{name}-{damage}".replace("/", "-"), []
            shutil.copytree(tmp_path / "whole", workdir)
            (workdir / "checkpoints" / "latest" / name).write_bytes(data)
            with Checkpoints(workdir, messages.append) as checkpoints:
                restored = checkpoints.restore_latest(0, 10, 9, expected[5])
            fill = restored.early_stopping.epoch
            assert same(restored, expected[fill]), (name, damage)
            assert (fill == 4) == bool(messages), (name, damage)
            fell_back += fill == 4
    assert fell_back > len(names)


def test_restore_latest_discards_progress_after_lost_epochs(tmp_path, mesh):
    folder, messages = saved(tmp_path, mesh, 4, 5), []
    with Checkpoints(tmp_path, messages.append) as checkpoints:
        restored = checkpoints.restore_latest(0, 10, 4, progress(mesh, 0, EarlyStopping(0, None, 0)))
    assert restored.early_stopping.epoch == 4
    (text,) = messages
    assert re.search(r"\bmetrics\.jsonl\b.*\bcheckpoint 2\b", text)
    assert str(tmp_path / "checkpoints/damaged/latest-2") in text
    assert [checkpoint.name for checkpoint in folder.iterdir()] == ["1"]


def test_save_latest_after_discard_continues_numbering(tmp_path, mesh):
    saved(tmp_path, mesh, 4, 5)
    with Checkpoints(tmp_path) as checkpoints:
        assert (
            checkpoints.restore_latest(0, 10, 4, progress(mesh, 0, EarlyStopping(0, None, 0))).early_stopping.epoch == 4
        )
    saved(tmp_path, mesh, 6)
    with Checkpoints(tmp_path) as checkpoints:
        assert (
            checkpoints.restore_latest(0, 10, 9, progress(mesh, 0, EarlyStopping(0, None, 0))).early_stopping.epoch == 6
        )
        assert (
            checkpoints.restore_latest(0, 10, 5, progress(mesh, 0, EarlyStopping(0, None, 0))).early_stopping.epoch == 4
        )
    assert sorted(folder.name for folder in (tmp_path / "checkpoints" / "damaged").iterdir()) == [
        "latest-2",
        "latest-2-again",
    ]


def test_save_on_full_disk_fails_before_writing(tmp_path, mesh, monkeypatch):
    folder = saved(tmp_path, mesh, 4)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    with Checkpoints(tmp_path) as checkpoints:
        # 5 arrays of a learning leaf, 4 MB each, of two leaves, and a few scalars
        with pytest.raises(UserError, match=rf"\b32\.0 MB\b.*{re.escape(str(tmp_path))}.*\b1\.0 MB\b"):
            checkpoints.save_latest(progress(mesh, 5, EarlyStopping(5, None, 0)))
        with pytest.raises(UserError, match=rf"\b4\.0 MB\b.*{re.escape(str(tmp_path))}"):
            checkpoints.save_phase(1, {"head/out/kernel": jnp.ones(LARGE)})
    assert [checkpoint.name for checkpoint in folder.iterdir()] == ["1"]


def test_reason_finds_system_message_of_tensorstore():
    text = (
        "RESOURCE_EXHAUSTED: Error writing 'a/0': Failed to write 9 bytes: No space left on device [os_error_code='28']"
    )
    assert _reason(ValueError(text)) == "No space left on device"
    assert _reason(ValueError("short\nlong")) == "short"
    assert _reason(ValueError()) == "ValueError"
