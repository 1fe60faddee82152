import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from flaxtl.data.resident import Resident, training_batch
from flaxtl.models.classifier import logits_of
from flaxtl.train import mesh as meshes
from flaxtl.train import steps
from flaxtl.train.evaluate import evaluate, measure
from flaxtl.train.features import digest
from flaxtl.train.groups import nest
from flaxtl.train.metrics import Totals
from flaxtl.train.optim import optimizer
from flaxtl.train.steps import State

CUT = "block2_pool"


class World:
    """A prepared run with its parameters, its training pictures and their features."""

    def __init__(self, folder, workdir):
        self.setup = small.setup(folder, workdir)
        self.parameters = small.parameters(self.setup.network, self.setup.config)
        data = small.inputs(self.setup, "train", workdir / "features", [CUT])
        self.pictures = data.pictures()
        self.features = data.features(CUT, self.parameters, small.bar)
        self.frozen, self.finetune = self.setup.phases

    def start(self, phase, step=0):
        """(first state, frozen parameters)."""
        learning, frozen = phase.split.part(self.parameters)
        state = State(jnp.int32(step), learning, self.optimizer(phase).init(learning), Totals.zero())
        return meshes.place(state, self.setup.mesh), frozen

    def optimizer(self, phase):
        return optimizer(self.setup.config.optimizer, phase.split, "constant", phase.steps, 0)

    def step(self, phase, *, seed=3, start=None, augmentation=None):
        return steps.train_step(
            self.setup.network.model, self.optimizer(phase), self.setup.mesh, seed, start, augmentation
        )

    def losses(self, phase, data, first=0, **settings):
        """Of three steps over four examples, the loss summed up to each, and the last state."""
        step = self.step(phase, **settings)
        state, frozen = self.start(phase, first)
        found = []
        for number in range(3):
            batch = training_batch(3, number, 4, len(data))
            state = step(state, frozen, data, batch.indices, batch.passes)
            found.append(float(state.totals.loss))
        return found, state


@pytest.fixture(scope="module", autouse=True)
def compile_once(tmp_path_factory):
    with small.compiled_once(tmp_path_factory.mktemp("compiled")):
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(small.pictures(tmp_path_factory.mktemp("pictures")), tmp_path_factory.mktemp("run"))


def test_what_learns_changes_and_nothing_else(world):
    step = world.step(world.finetune, augmentation=world.setup.augmentation)
    state, frozen = world.start(world.finetune)
    before, old = digest(frozen), {path: np.array(value) for path, value in state.learning.items()}
    for number in range(4):
        batch = training_batch(3, number, 4, len(world.pictures))
        state = step(state, frozen, world.pictures, batch.indices, batch.passes)
        # as at the start of an epoch
        state = state._replace(totals=meshes.place(Totals.zero(), world.setup.mesh))
    assert digest(frozen) == before
    assert {path.split("/")[1] for path in frozen} == {"block1_conv1", "block1_conv2"}
    assert len(old) == 8
    assert [path for path, value in state.learning.items() if np.array_equal(value, old[path])] == []
    assert int(state.step) == 4
    assert step._cache_size() == 1


def test_only_what_learns_has_optimizer_state(world):
    learning, _ = world.frozen.split.part(world.parameters)
    state = world.optimizer(world.frozen).init(learning)
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(state))
    # nadam: the count, the momentum product and two means of each leaf
    assert sizes == sorted([1, 1] + 2 * [leaf.size for leaf in learning.values()])
    assert sum(leaf.size for leaf in learning.values()) == 128 * 8 + 8 + 8 * 3 + 3


def test_a_step_from_features_is_a_step_from_pictures(world):
    from_pictures, state = world.losses(world.frozen, world.pictures)
    from_features, other = world.losses(world.frozen, world.features, start=CUT)
    # The same float32 sums in another order: measured 0; the 12 terms of a loss explain 12 x 2**-24.
    np.testing.assert_allclose(from_features, from_pictures, rtol=12 * 2.0**-24)
    assert int(state.totals.seen) == int(other.totals.seen) == 12
    assert int(state.totals.right) == int(other.totals.right)


def test_dropout_is_a_function_of_seed_and_step(world):
    losses, _ = world.losses(world.frozen, world.features, start=CUT)
    assert world.losses(world.frozen, world.features, start=CUT)[0] == losses
    assert world.losses(world.frozen, world.features, start=CUT, seed=4)[0][0] != losses[0]
    assert world.losses(world.frozen, world.features, start=CUT, first=1)[0][0] != losses[0]


def test_augmentation_is_a_function_of_seed_pass_and_picture(world):
    augmented = {"augmentation": world.setup.augmentation}
    step, (state, frozen) = world.step(world.finetune, **augmented), world.start(world.finetune)
    indices = np.array([0, 1, 2, 3], np.int32)

    def loss(passes, step=step):
        fresh = jax.tree.map(jnp.copy, state)
        return float(step(fresh, frozen, world.pictures, indices, np.array(passes, np.int32)).totals.loss)

    first = loss([0, 0, 0, 0])
    assert loss([0, 0, 0, 0]) == first
    assert loss([0, 0, 0, 1]) != first
    assert loss([0, 0, 0, 0], world.step(world.finetune)) != first


def test_donation_harms_nobody(world):
    state, frozen = world.start(world.frozen)
    before = digest(world.parameters)
    batch = training_batch(3, 0, 4, len(world.features))
    after = world.step(world.frozen, start=CUT)(state, frozen, world.features, batch.indices, batch.passes)
    assert all(leaf.is_deleted() for leaf in state.learning.values())  # so it was donated
    assert not any(leaf.is_deleted() for leaf in (*world.parameters.values(), *after.learning.values()))
    assert digest(world.parameters) == before


@pytest.mark.parametrize("n", [1, 3, 4, 5])
def test_every_example_is_evaluated_once(world, n):
    data = Resident(world.features.inputs[:n], world.features.labels[:n])
    step = steps.eval_step(world.setup.network.model, world.setup.mesh, CUT)
    probabilities, measures = evaluate(step, world.parameters, data, batch=4)
    direct = jax.nn.softmax(logits_of(world.setup.network.model, nest(world.parameters), world.pictures.inputs[:n]))
    labels = np.asarray(data.labels)
    # Logits up to 30 are rounded to 2e-6, and a probability moves by at most a quarter of that: measured 5e-7.
    np.testing.assert_allclose(probabilities, direct, rtol=0, atol=2e-6)
    assert measures.n == len(probabilities) == n
    assert measures.accuracy == (probabilities.argmax(1) == labels).mean()
    assert measures.loss == pytest.approx(-np.log(probabilities[np.arange(n), labels]).mean(), rel=1e-5)
    assert measure(step, world.parameters, data, batch=4) == measures
