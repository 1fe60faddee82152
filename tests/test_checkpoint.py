import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxtl.errors import UserError
from flaxtl.train import mesh as meshes
from flaxtl.train.checkpoint import Checkpoints, Memory, Progress
from flaxtl.train.groups import Split
from flaxtl.train.metrics import Totals
from flaxtl.train.optim import optimizer
from flaxtl.train.steps import State

GROUPS = {"head/out/kernel": "head", "backbone/conv/kernel": "block", "backbone/stem/kernel": "base"}
SPLIT = Split(GROUPS, {"head": 1e-2, "block": 1e-3, "base": 0.0})
LARGE = (1000, 1000)  # so that writing is still going on when the next step comes


@pytest.fixture(scope="module")
def mesh():
    return meshes.make(4)


def progress(mesh, fill, memory):
    """Of a phase in which two groups of three learn."""
    learning = {path: jnp.full(LARGE, fill) for path in GROUPS if SPLIT.learns(path)}
    state = optimizer({"name": "nadam"}, SPLIT, "constant", 10, 0).init(learning)
    state = jax.tree.map(lambda leaf: leaf + jnp.asarray(fill, leaf.dtype), state)
    totals = Totals(jnp.float32(fill), jnp.int32(3), jnp.int32(4))
    return meshes.place(Progress(State(jnp.int32(fill), learning, {}, state, totals), learning, None), mesh)._replace(
        memory=memory
    )


def same(first, second):
    leaves = [jax.tree.leaves(tree) for tree in (first, second)]
    return jax.tree.structure(first) == jax.tree.structure(second) and all(map(np.array_equal, *leaves))


def abstract(parameters):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), parameters)


def test_nothing_is_there_at_first(tmp_path, mesh):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.phases_done() is None
        assert checkpoints.restore_latest(0, 10, progress(mesh, 0, Memory(0, None, 0))) is None


def test_parameters_after_phases_are_read_back(tmp_path, mesh):
    phases = [meshes.place({"head/out/kernel": jnp.full((2, 3), 0.1 + done)}, mesh) for done in range(3)]
    with Checkpoints(tmp_path) as checkpoints:
        for done, parameters in enumerate(phases):
            checkpoints.save_phase(done, parameters)
            assert checkpoints.phases_done() == done
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.phases_done() == 2
        assert all(same(checkpoints.restore_phase(done, abstract(phases[0])), phases[done]) for done in range(3))


def test_progress_is_read_back_bit_for_bit_though_its_buffers_went_on(tmp_path, mesh):
    saved, expected = (progress(mesh, 5, Memory(2, 0.1, 1)) for _ in range(2))
    step = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf * 2 + 1, state), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_latest(5, saved)
        state = saved.state
        for _ in range(5):
            state = step(state)
    with Checkpoints(tmp_path) as checkpoints:
        found = checkpoints.restore_latest(0, 10, progress(mesh, 0, Memory(0, None, 0)))
    assert same(found, expected)
    assert found.memory == Memory(2, 0.1, 1)


@pytest.mark.parametrize(("first", "last", "there"), [(0, 5, True), (4, 10, True), (5, 10, False), (0, 4, False)])
def test_progress_belongs_to_the_phase_that_owns_its_step(tmp_path, mesh, first, last, there):
    one = progress(mesh, 5, Memory(1, None, 0))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_latest(5, one)
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.restore_latest(first, last, one) is not None) == there


def test_only_the_latest_progress_is_kept(tmp_path, mesh):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save_latest(step, progress(mesh, step, Memory(step, None, 0)))
    assert [place.name for place in (tmp_path / "checkpoints" / "latest").iterdir()] == ["3"]


def test_a_damaged_checkpoint_is_named(tmp_path, mesh):
    parameters = meshes.place({"head/out/kernel": jnp.ones((2, 3))}, mesh)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_phase(0, parameters)
    place = tmp_path / "checkpoints" / "phases" / "0"
    shutil.rmtree(place / "default")
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match=f"{place} is damaged"):
        checkpoints.restore_phase(0, abstract(parameters))


@pytest.mark.parametrize("shape", [(3, 2), (2, 4)])
def test_a_checkpoint_of_another_shape_is_refused(tmp_path, mesh, shape):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_phase(0, meshes.place({"head/out/kernel": jnp.ones((2, 3))}, mesh))
        like = abstract(meshes.place({"head/out/kernel": jnp.ones(shape)}, mesh))
        with pytest.raises(UserError, match="of another run"):
            checkpoints.restore_phase(0, like)
