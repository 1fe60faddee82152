import numpy as np
import pytest

from flaxtl.data.resident import evaluation_batches, training_batch


@pytest.mark.parametrize(("n", "batch"), [(10, 4), (10, 10), (10, 25), (7, 1), (1, 3)])
def test_every_pass_is_a_permutation_and_batches_run_across_passes(n, batch):
    batches = [training_batch(5, step, batch, n) for step in range(3 * n)]
    assert all(found.indices.shape == found.passes.shape == (batch,) for found in batches)
    assert batches[0].indices.dtype == batches[0].passes.dtype == np.int32
    seen = np.concatenate([found.indices for found in batches])
    passes = np.concatenate([found.passes for found in batches])
    assert np.array_equal(passes, np.arange(len(seen)) // n)
    for order in seen.reshape(-1, n):
        assert sorted(order) == list(range(n))


def test_the_order_is_a_function_of_seed_and_position_only():
    later = training_batch(5, 7, 4, 10)
    again = training_batch(5, 7, 4, 10)
    assert np.array_equal(later.indices, again.indices)
    twice_as_large = np.concatenate([training_batch(5, step, 8, 10).indices for step in range(5)])
    assert np.array_equal(
        np.concatenate([training_batch(5, step, 4, 10).indices for step in range(10)]), twice_as_large
    )


def test_passes_and_seeds_have_orders_of_their_own():
    first, second = (training_batch(5, step, 100, 100).indices for step in (0, 1))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, training_batch(6, 0, 100, 100).indices)


@pytest.mark.parametrize("n", [1, 3, 4, 5, 8])
def test_evaluation_sees_every_example_once_in_order(n):
    batches = list(evaluation_batches(n, 4))
    assert len(batches) == -(-n // 4)
    assert all(indices.shape == real.shape == (4,) and indices.dtype == np.int32 for indices, real in batches)
    assert np.concatenate([indices[real] for indices, real in batches]).tolist() == list(range(n))
    assert all((indices[~real] == 0).all() for indices, real in batches)
