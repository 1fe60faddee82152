import re
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtl.errors import UserError
from flaxtl.parallel import devices
from flaxtl.train.checkpoints import Checkpoints, EarlyStopping, PhaseProgress, _reason
from flaxtl.train.metrics import MetricSums
from flaxtl.train.optimizers import phase_optimizer
from flaxtl.train.param_groups import ParamGroups
from flaxtl.train.train_step import TrainState

GROUPS = {"head/out/kernel": "head", "backbone/conv/kernel": "block", "backbone/stem/kernel": "base"}
SPLIT = ParamGroups(GROUPS, {"head": 1e-2, "block": 1e-3, "base": 0.0})
LARGE = (1000, 1000)  # so that writing is still going on when the next step comes


@pytest.fixture(scope="module")
def mesh():
    return devices.make_mesh(4)


def progress(mesh, fill, memory):
    """Of a phase in which two groups of three learn."""
    learning = {path: jnp.full(LARGE, fill) for path in GROUPS if SPLIT.is_trainable(path)}
    state = phase_optimizer({"name": "nadam"}, SPLIT, "constant", 10, 0).init(learning)
    state = jax.tree.map(lambda leaf: leaf + jnp.asarray(fill, leaf.dtype), state)
    totals = MetricSums(jnp.float32(fill), jnp.int32(3), jnp.int32(4))
    made = TrainState.create(fill, learning, {}, state, num_classes=3)._replace(metrics=totals)
    return devices.replicate(PhaseProgress(made, learning, None), mesh)._replace(early_stopping=memory)


def same(first, second):
    leaves = [jax.tree.leaves(tree) for tree in (first, second)]
    return jax.tree.structure(first) == jax.tree.structure(second) and all(map(np.array_equal, *leaves))


def abstract(parameters):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), parameters)


def test_nothing_is_there_at_first(tmp_path, mesh):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.phases_done() is None
        assert checkpoints.restore_latest(0, 10, 9, progress(mesh, 0, EarlyStopping(0, None, 0))) is None


def test_parameters_after_phases_are_read_back(tmp_path, mesh):
    phases = [devices.replicate({"head/out/kernel": jnp.full((2, 3), 0.1 + done)}, mesh) for done in range(3)]
    with Checkpoints(tmp_path) as checkpoints:
        for done, parameters in enumerate(phases):
            checkpoints.save_phase(done, parameters)
            assert checkpoints.phases_done() == done
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.phases_done() == 2
        assert all(same(checkpoints.restore_phase(done, abstract(phases[0])), phases[done]) for done in range(3))


def test_progress_is_read_back_bit_for_bit_though_its_buffers_went_on(tmp_path, mesh):
    saved, expected = (progress(mesh, 5, EarlyStopping(2, 0.1, 1)) for _ in range(2))
    step = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 2 + 1, state), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_latest(saved)
        state = saved.state
        for _ in range(5):
            state = step(state)
    with Checkpoints(tmp_path) as checkpoints:
        found = checkpoints.restore_latest(0, 10, 9, progress(mesh, 0, EarlyStopping(0, None, 0)))
    assert same(found, expected)
    assert found.early_stopping == EarlyStopping(2, 0.1, 1)


@pytest.mark.parametrize(("first", "last", "there"), [(0, 5, True), (4, 10, True), (5, 10, False), (0, 4, False)])
def test_progress_belongs_to_the_phase_that_owns_its_step(tmp_path, mesh, first, last, there):
    one = progress(mesh, 5, EarlyStopping(1, None, 0))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_latest(one)
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.restore_latest(first, last, 9, one) is not None) == there


def test_the_latest_progress_and_the_one_before_are_kept(tmp_path, mesh):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save_latest(progress(mesh, step, EarlyStopping(step, None, 0)))
    assert sorted(place.name for place in (tmp_path / "checkpoints" / "latest").iterdir()) == ["2", "3"]


def test_a_damaged_checkpoint_is_named(tmp_path, mesh):
    parameters = devices.replicate({"head/out/kernel": jnp.ones((2, 3))}, mesh)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_phase(0, parameters)
    place = tmp_path / "checkpoints" / "phases" / "0"
    shutil.rmtree(place / "parameters")
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(UserError, match=rf"{re.escape(str(place))}\b.*(?i:damaged|corrupt)"),
    ):
        checkpoints.restore_phase(0, abstract(parameters))


@pytest.mark.parametrize("shape", [(3, 2), (2, 4)])
def test_a_checkpoint_of_another_shape_is_refused(tmp_path, mesh, shape):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_phase(0, devices.replicate({"head/out/kernel": jnp.ones((2, 3))}, mesh))
        like = abstract(devices.replicate({"head/out/kernel": jnp.ones(shape)}, mesh))
        with pytest.raises(UserError, match=re.escape(str(tmp_path / "checkpoints" / "phases" / "0"))):
            checkpoints.restore_phase(0, like)


def saved(tmp_path, mesh, *fills):
    """A place with one progress after another, each of its own fill."""
    with Checkpoints(tmp_path) as checkpoints:
        for fill in fills:
            checkpoints.save_latest(progress(mesh, fill, EarlyStopping(fill, None, 0)))
    return tmp_path / "checkpoints" / "latest"


def harms(data):
    """What a loss of power, or a failing disk, makes of a file."""
    yield "cut", data[: len(data) // 2]
    yield "empty", b""
    yield "zeros", bytes(len(data))
    yield "one bit", data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :]


def test_whatever_file_is_harmed_the_arrays_are_right_or_those_before_are_taken(tmp_path, mesh, monkeypatch):
    monkeypatch.setitem(globals(), "LARGE", (3, 5))
    place = saved(tmp_path / "whole", mesh, 4, 5)
    right = {fill: progress(mesh, fill, EarlyStopping(fill, None, 0)) for fill in (4, 5)}
    names = sorted(file.relative_to(place) for file in (place / "2").rglob("*") if file.is_file())
    assert len(names) > 5
    fell_back = 0
    for name in names:
        for harm, data in harms((place / name).read_bytes()):
            workdir, told = tmp_path / f"{name}-{harm}".replace("/", "-"), []
            shutil.copytree(tmp_path / "whole", workdir)
            (workdir / "checkpoints" / "latest" / name).write_bytes(data)
            with Checkpoints(workdir, told.append) as checkpoints:
                found = checkpoints.restore_latest(0, 10, 9, right[5])
            fill = found.early_stopping.epoch
            assert same(found, right[fill]), (name, harm)
            assert (fill == 4) == bool(told), (name, harm)
            fell_back += fill == 4
    assert fell_back > len(names)


def test_what_comes_after_lost_epochs_is_put_aside(tmp_path, mesh):
    place, told = saved(tmp_path, mesh, 4, 5), []
    with Checkpoints(tmp_path, told.append) as checkpoints:
        found = checkpoints.restore_latest(0, 10, 4, progress(mesh, 0, EarlyStopping(0, None, 0)))
    assert found.early_stopping.epoch == 4
    (said,) = told
    assert re.search(r"\bmetrics\.jsonl\b.*\bcheckpoint 2\b", said)
    assert str(tmp_path / "checkpoints/damaged/latest-2") in said
    assert [checkpoint.name for checkpoint in place.iterdir()] == ["1"]


def test_numbers_go_on_after_one_was_put_aside(tmp_path, mesh):
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
    assert sorted(place.name for place in (tmp_path / "checkpoints" / "damaged").iterdir()) == [
        "latest-2",
        "latest-2-again",
    ]


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path, mesh, monkeypatch):
    place = saved(tmp_path, mesh, 4)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    with Checkpoints(tmp_path) as checkpoints:
        # 5 arrays of a learning leaf, 4 MB each, of two leaves, and a few scalars
        with pytest.raises(UserError, match=rf"\b32\.0 MB\b.*{re.escape(str(tmp_path))}.*\b1\.0 MB\b"):
            checkpoints.save_latest(progress(mesh, 5, EarlyStopping(5, None, 0)))
        with pytest.raises(UserError, match=rf"\b4\.0 MB\b.*{re.escape(str(tmp_path))}"):
            checkpoints.save_phase(1, {"head/out/kernel": jnp.ones(LARGE)})
    assert [checkpoint.name for checkpoint in place.iterdir()] == ["1"]


def test_the_systems_word_is_found_in_what_tensorstore_says():
    said = (
        "RESOURCE_EXHAUSTED: Error writing 'a/0': Failed to write 9 bytes: No space left on device [os_error_code='28']"
    )
    assert _reason(ValueError(said)) == "No space left on device"
    assert _reason(ValueError("short\nlong")) == "short"
    assert _reason(ValueError()) == "ValueError"
