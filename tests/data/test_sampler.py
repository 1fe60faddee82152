import numpy as np
import pytest

from flaxtl.data.sampler import EpochSampler, padded_batches

UNEVEN = np.repeat(np.array([4, 0, 9], np.int32), [3, 17, 10])  # 30 examples; class indices may have gaps


def stream(sampler: EpochSampler, steps: int) -> tuple[np.ndarray, np.ndarray]:
    batches = [sampler.batch(step) for step in range(steps)]
    return np.concatenate([batch.indices for batch in batches]), np.concatenate([batch.epochs for batch in batches])


@pytest.mark.parametrize(("n", "batch"), [(10, 4), (10, 10), (10, 25), (7, 1), (1, 3)])
def test_sampler_epochs_are_permutations_across_batches(n, batch):
    sampler = EpochSampler(5, batch, n)
    first = sampler.batch(0)
    assert first.indices.shape == first.epochs.shape == (batch,)
    assert first.indices.dtype == first.epochs.dtype == np.int32
    drawn, epochs = stream(sampler, 3 * n)
    assert np.array_equal(epochs, np.arange(len(drawn)) // n)
    for each in drawn.reshape(-1, n):
        assert sorted(each) == list(range(n))


def test_sampler_order_is_stable():
    """A run that was started with an earlier version resumes with the same order."""
    batch = EpochSampler(5, 10, 10).batch(1)
    assert batch.indices.tolist() == np.random.default_rng([5, 1]).permutation(10).tolist()


@pytest.mark.parametrize("labels", [None, UNEVEN])
def test_sampler_is_a_pure_function_of_seed_and_step(labels):
    sampler = EpochSampler(5, 4, 30, labels)
    later = sampler.batch(17)
    for batch in (EpochSampler(5, 4, 30, labels).batch(17), sampler.batch(17)):
        assert np.array_equal(batch, later)
    assert np.array_equal(stream(sampler, 40), stream(EpochSampler(5, 8, 30, labels), 20))


@pytest.mark.parametrize("labels", [None, np.arange(100, dtype=np.int32) % 3])
def test_sampler_epochs_and_seeds_differ(labels):
    sampler = EpochSampler(5, 100, 100, labels)
    first, second = (sampler.batch(step).indices for step in (0, 1))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, EpochSampler(6, 100, 100, labels).batch(0).indices)


def test_balanced_sampler_draws_classes_equally_often():
    labels = np.repeat(np.arange(4, dtype=np.int32), [1, 2, 9, 18])  # 30 draws for 4 classes: 7 or 8 each
    drawn, _ = stream(EpochSampler(3, 30, 30, labels), 12)
    counts = np.array([np.bincount(labels[each], minlength=4) for each in drawn.reshape(12, 30)])
    assert set(counts.ravel()) == {7, 8}
    running = counts.cumsum(0)
    assert (running.max(1) - running.min(1) <= 1).all()
    assert running[1::2].max(1).tolist() == running[1::2].min(1).tolist()  # two epochs are 60 draws: 15 each


def test_balanced_sampler_draws_class_members_in_turn():
    drawn, before = stream(EpochSampler(3, 30, 30, UNEVEN), 51)
    for label in (4, 0, 9):
        times = np.bincount(drawn, minlength=30)[label == UNEVEN]
        assert times.max() - times.min() <= 1
    for index in range(30):  # each draw has its own number: the draws before it
        assert sorted(before[drawn == index]) == list(range((drawn == index).sum()))


def test_balanced_sampler_shuffles_epochs():
    classes = UNEVEN[EpochSampler(3, 30, 30, UNEVEN).batch(0).indices]
    assert (np.diff(classes) != 0).sum() > 10


def test_balanced_sampler_of_even_classes_draws_each_once():
    labels = np.arange(12, dtype=np.int32) % 3
    drawn, epochs = stream(EpochSampler(8, 12, 12, labels), 3)
    for each in drawn.reshape(3, 12):
        assert sorted(each) == list(range(12))
    assert np.array_equal(epochs, np.repeat([0, 1, 2], 12))


@pytest.mark.parametrize("n", [1, 3, 4, 5, 8])
def test_padded_batches_cover_each_example_once(n):
    batches = list(padded_batches(n, 4))
    assert len(batches) == -(-n // 4)
    assert all(indices.shape == mask.shape == (4,) and indices.dtype == np.int32 for indices, mask in batches)
    assert np.concatenate([indices[mask] for indices, mask in batches]).tolist() == list(range(n))
    assert all((indices[~mask] == 0).all() for indices, mask in batches)
