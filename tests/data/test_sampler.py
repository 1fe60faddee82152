import numpy as np
import pytest

from flaxtl.data.sampler import EpochSampler, padded_batches

UNEVEN = np.repeat(np.array([4, 0, 9], np.int32), [3, 17, 10])  # 30 examples; class indices may have gaps


def stream(order: EpochSampler, steps: int) -> tuple[np.ndarray, np.ndarray]:
    batches = [order.batch(step) for step in range(steps)]
    return np.concatenate([batch.indices for batch in batches]), np.concatenate([batch.epochs for batch in batches])


@pytest.mark.parametrize(("n", "batch"), [(10, 4), (10, 10), (10, 25), (7, 1), (1, 3)])
def test_every_pass_is_a_permutation_and_batches_run_across_passes(n, batch):
    order = EpochSampler(5, batch, n)
    first = order.batch(0)
    assert first.indices.shape == first.epochs.shape == (batch,)
    assert first.indices.dtype == first.epochs.dtype == np.int32
    seen, passes = stream(order, 3 * n)
    assert np.array_equal(passes, np.arange(len(seen)) // n)
    for each in seen.reshape(-1, n):
        assert sorted(each) == list(range(n))


def test_the_order_is_what_it_was():
    """Runs of earlier versions go on as they began."""
    found = EpochSampler(5, 10, 10).batch(1)
    assert found.indices.tolist() == np.random.default_rng([5, 1]).permutation(10).tolist()


@pytest.mark.parametrize("labels", [None, UNEVEN])
def test_the_order_is_a_function_of_seed_and_position_only(labels):
    order = EpochSampler(5, 4, 30, labels)
    later = order.batch(17)
    for found in (EpochSampler(5, 4, 30, labels).batch(17), order.batch(17)):
        assert np.array_equal(found, later)
    assert np.array_equal(stream(order, 40), stream(EpochSampler(5, 8, 30, labels), 20))


@pytest.mark.parametrize("labels", [None, np.arange(100, dtype=np.int32) % 3])
def test_passes_and_seeds_have_orders_of_their_own(labels):
    order = EpochSampler(5, 100, 100, labels)
    first, second = (order.batch(step).indices for step in (0, 1))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, EpochSampler(6, 100, 100, labels).batch(0).indices)


def test_balanced_passes_have_every_class_equally_often():
    labels = np.repeat(np.arange(4, dtype=np.int32), [1, 2, 9, 18])  # 30 places for 4 classes: 7 or 8 each
    seen, _ = stream(EpochSampler(3, 30, 30, labels), 12)
    counts = np.array([np.bincount(labels[each], minlength=4) for each in seen.reshape(12, 30)])
    assert set(counts.ravel()) == {7, 8}
    running = counts.cumsum(0)
    assert (running.max(1) - running.min(1) <= 1).all()
    assert running[1::2].max(1).tolist() == running[1::2].min(1).tolist()  # two passes are 60 places: 15 each


def test_balanced_sampling_takes_the_images_of_a_class_by_turns():
    seen, before = stream(EpochSampler(3, 30, 30, UNEVEN), 51)
    for label in (4, 0, 9):
        times = np.bincount(seen, minlength=30)[label == UNEVEN]
        assert times.max() - times.min() <= 1
    for index in range(30):  # each showing has a number of its own: that many were before it
        assert sorted(before[seen == index]) == list(range((seen == index).sum()))


def test_balanced_passes_are_shuffled():
    classes = UNEVEN[EpochSampler(3, 30, 30, UNEVEN).batch(0).indices]
    assert (np.diff(classes) != 0).sum() > 10


def test_balanced_sampling_of_even_classes_draws_everything_once_a_pass():
    labels = np.arange(12, dtype=np.int32) % 3
    seen, passes = stream(EpochSampler(8, 12, 12, labels), 3)
    for each in seen.reshape(3, 12):
        assert sorted(each) == list(range(12))
    assert np.array_equal(passes, np.repeat([0, 1, 2], 12))


@pytest.mark.parametrize("n", [1, 3, 4, 5, 8])
def test_evaluation_sees_every_example_once_in_order(n):
    batches = list(padded_batches(n, 4))
    assert len(batches) == -(-n // 4)
    assert all(indices.shape == real.shape == (4,) and indices.dtype == np.int32 for indices, real in batches)
    assert np.concatenate([indices[real] for indices, real in batches]).tolist() == list(range(n))
    assert all((indices[~real] == 0).all() for indices, real in batches)
