"""Many steps in one call of the device are the steps that are made one by one."""

import jax
import numpy as np
import pytest
from helpers import tiny_run

from flaxtl.data.loaders import DeviceLoader
from flaxtl.data.sampler import EpochSampler
from flaxtl.parallel import devices
from flaxtl.train import epoch_loop, train_step
from flaxtl.train.epoch_loop import ScannedStepper, Way
from flaxtl.train.optimizers import phase_optimizer
from flaxtl.train.train_step import StepConfig, TrainState

pytestmark = pytest.mark.usefixtures("compile_once")

CUT = "block2_pool"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tiny_run.images(tmp_path_factory.mktemp("images")), tmp_path_factory.mktemp("run"))


class World:
    """The phases of a small run on features of the whole backbone, and on images."""

    def __init__(self, folder, workdir):
        self.setup = tiny_run.setup(folder, workdir)
        self.parameters = tiny_run.parameters(self.setup.model_info, self.setup.config)
        data = tiny_run.inputs(self.setup, "train", workdir / "features", [CUT])
        self.images, self.features = data.image_loader(), data.feature_loader(CUT, self.parameters, tiny_run.bar)
        self.order = EpochSampler(3, 4, len(self.images))

    def begin(self, phase, **options):
        """(way, first state)."""
        setup = self.setup
        learning, statistics, frozen = phase.param_groups.partition(self.parameters)
        transformation = phase_optimizer(setup.config.optimizer, phase.param_groups, "cosine", phase.steps, 0)
        task = StepConfig(setup.model_info.model, transformation, setup.mesh, 3, **options)
        data = self.features if "start_layer" in options else self.images
        backbone = tuple(layer.name for layer in setup.model_info.layers if layer.section == "backbone")
        state = TrainState.create(phase.first_step, learning, statistics, transformation.init(learning), 3)
        return Way(task, data, frozen, backbone), devices.replicate(state, setup.mesh)

    def end(self, way, state, spans, phase):
        """(global steps that calls came to, last state) of going through spans of steps."""
        reached = []
        with way.advancing(phase, self.order, spans[0][0]) as going:
            for first, last in spans:
                for step, moved in going(state, first, last):
                    reached.append(step)
                    state = moved
        return reached, state


def equal(ours, theirs):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True))


def test_calls_of_any_length_make_the_same_steps_bit_for_bit(world, monkeypatch):
    phase = world.setup.phases[0]
    way, state = world.begin(phase, start_layer=CUT)
    made = []
    maker = train_step.make_scanned_steps
    monkeypatch.setattr(train_step, "make_scanned_steps", lambda *given: made.append(maker(*given)) or made[-1])
    spans = [(0, 2), (2, 4), (4, 6)]
    monkeypatch.setattr(epoch_loop, "CALL_SECONDS", 1e-9)  # a step a call
    reached, one_by_one = world.end(way, state, spans, phase)
    assert reached == [1, 2, 3, 4, 5, 6]
    monkeypatch.setattr(epoch_loop, "CALL_SECONDS", 1e9)  # from the second epoch on, an epoch a call
    reached, at_once = world.end(way, world.begin(phase, start_layer=CUT)[1], spans, phase)
    assert reached == [1, 2, 4, 6]
    assert equal(one_by_one, at_once)
    reached, resumed = world.end(way, world.begin(phase, start_layer=CUT)[1], [(0, 1), (1, 2), *spans[1:]], phase)
    assert reached == [1, 2, 4, 6]  # an epoch that was broken off within
    assert equal(one_by_one, resumed)
    assert [compiled._cache_size() for compiled in made] == [1, 1, 1]


def test_a_call_makes_the_steps_of_the_step_by_step_program(world):
    phase = world.setup.phases[0]
    way, state = world.begin(phase, start_layer=CUT)
    _, looped = world.end(way, state, [(0, 2), (2, 4)], phase)
    step, (_, state) = (
        train_step.make_train_step(way.task, way.data.sharding(world.setup.mesh)),
        world.begin(phase, start_layer=CUT),
    )
    for examples in way.data.train_batches(world.order, 0, 4, None):
        state = step(state, way.frozen, examples)
    assert int(state.step) == int(looped.step) == 4
    # Measured 0. XLA may fuse the two programs otherwise, and a loss is a sum of 16 terms.
    np.testing.assert_allclose(looped.metrics.loss, state.metrics.loss, rtol=16 * 2.0**-24)


def test_convolutions_that_learn_do_not_loop_on_a_cpu_but_could(world, monkeypatch):
    phase = world.setup.phases[1]
    options = {"augmentation": world.setup.augmentation}
    way, state = world.begin(phase, **options)
    assert isinstance(way.data, DeviceLoader)
    assert not way._loops()
    first = phase.first_step
    _, stepped = world.end(way, state, [(first, first + 2)], phase)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert way._loops()
    with way.advancing(phase, world.order, first) as going:
        assert isinstance(going, ScannedStepper)
        *_, (_, looped) = going(world.begin(phase, **options)[1], first, first + 2)
    # Losses of 8 images, summed: convolutions within a loop add up in another order.
    np.testing.assert_allclose(looped.metrics.loss, stepped.metrics.loss, rtol=1e-5)
    assert looped.metrics.count.sum() == 8


def test_many_processes_go_step_by_step(world, monkeypatch):
    way, _ = world.begin(world.setup.phases[0], start_layer=CUT)
    assert way._loops()
    monkeypatch.setattr(epoch_loop.processes, "process_count", lambda: 2)
    assert not way._loops()


def test_the_rows_of_an_epoch_are_the_batches_of_its_steps(world):
    epoch = world.images.stacked_batches(world.order, 5, 8, 4)
    batches = list(world.images.train_batches(world.order, 5, 8, None))
    assert epoch.indices.shape == epoch.epochs.shape == (4, 4)
    for row, batch in enumerate([*batches, batches[-1]]):
        assert epoch.indices[row].tolist() == batch.indices.tolist()
        assert epoch.epochs[row].tolist() == batch.epochs.tolist()
