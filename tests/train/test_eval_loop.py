"""The evaluation loop with a step that returns its inputs."""

import jax.numpy as jnp
import numpy as np
import pytest

from flaxtl.data.sampler import padded_batches
from flaxtl.train import eval_loop
from flaxtl.train.metrics import MetricSums

DATA = np.arange(14, dtype=np.float32).reshape(7, 2)


def batches():
    for indices, mask in padded_batches(len(DATA), 3):
        yield DATA[indices], mask


def step(params, batch, mask):
    return {"scaled": params * jnp.asarray(batch), "mask": jnp.asarray(mask)}


def test_collect_returns_examples_in_order_without_padding():
    outputs = eval_loop.collect(step, 2.0, batches())
    np.testing.assert_array_equal(outputs["scaled"], 2 * DATA)
    assert outputs["mask"].tolist() == [True] * 7


def test_run_batches_dispatches_two_batches_ahead():
    dispatched = []
    results = eval_loop.run_batches(
        lambda params, batch, mask: dispatched.append(mask) or jnp.zeros(3), None, batches()
    )
    assert len(dispatched) == 0
    next(results)
    assert len(dispatched) == 1 + eval_loop.MAX_PENDING_RESULTS
    assert [mask.sum() for _, mask in results] == [3, 1]


class Loader:
    def eval_batches(self, batch_size):
        return batches()


def test_evaluate_advances_by_the_examples_of_each_batch():
    advanced = []

    def eval_step(params, batch, mask):
        return (batch, np.log(batch + 1)), MetricSums.zero(2)

    evaluation = eval_loop.evaluate(eval_step, None, Loader(), 3, advanced.append)
    np.testing.assert_array_equal(evaluation.probabilities, DATA)
    assert advanced == [3, 3, 1]


def test_evaluate_metrics_on_batch_may_stop_the_loop():
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        eval_loop.evaluate_metrics(lambda params, batch, mask: (None, jnp.zeros(3)), None, Loader(), 3, stop)
