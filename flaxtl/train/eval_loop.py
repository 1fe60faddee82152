"""The evaluation loop, shared by training, evaluation, prediction and Grad-CAM.

`run_batches` calls a step function on batches and yields what it returns. The other functions reduce that: `collect`
to host arrays of all examples, `evaluate_metrics` to metrics, `evaluate` to both. `ResidentEvaluator` gives the same
metrics as `evaluate_metrics` in fewer calls.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import numpy.typing as npt

from flaxtl.data.loaders import DeviceLoader, Loader, Mask
from flaxtl.models.classifier import FlatParams
from flaxtl.train.device_calls import MAX_PENDING_RESULTS, CallLength, DispatchThrottle
from flaxtl.train.eval_steps import EvalStep, MultiEvalStep
from flaxtl.train.metrics import Metrics, MetricSums

Params = TypeVar("Params")
Inputs = TypeVar("Inputs")
Outputs = TypeVar("Outputs")


class Evaluation(NamedTuple):
    """Probabilities and their logarithms in the order of the data, and their metrics.

    Attributes:
      probabilities: float32 [n, classes].
      log_softmax: from the logits, [n, classes]: finite where a probability is 0.
      metrics: of these predictions.
    """

    probabilities: npt.NDArray[np.float32]
    log_softmax: npt.NDArray[np.floating]
    metrics: Metrics


def run_batches(
    step: Callable[[Params, Inputs, Mask], Outputs], params: Params, batches: Iterable[tuple[Inputs, Mask]]
) -> Iterator[tuple[Outputs, Mask]]:
    """Yield the outputs of `step(params, batch, mask)` for each batch, and its mask, in order.

    The host dispatches up to MAX_PENDING_RESULTS batches ahead of the results that it yields.

    Args:
      step: returns a pytree of arrays.
      params: passed on to `step`.
      batches: batches of one size with a mask [batch], False for the padding of the last one: `loader.eval_batches`,
        or any other source.
    """
    pending: deque[tuple[Outputs, Mask]] = deque()
    for batch, mask in batches:
        pending.append((step(params, batch, mask), mask))
        if len(pending) > MAX_PENDING_RESULTS:
            yield jax.block_until_ready(pending[0][0]), pending.popleft()[1]
    yield from pending


def collect(step: Callable[[Params, Inputs, Mask], Any], params: Params, batches: Iterable[tuple[Inputs, Mask]]) -> Any:
    """Return the outputs of all examples as NumPy arrays [n, ...], in the structure that `step` returns."""
    parts = [take_rows(outputs, mask) for outputs, mask in run_batches(step, params, batches)]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def evaluate(
    step: EvalStep,
    params: FlatParams,
    loader: Loader,
    batch_size: int,
    advance: Callable[[int], None] = lambda examples: None,
) -> Evaluation:
    """Return the probabilities of every example, and their metrics.

    Args:
      step: the evaluation step.
      params: all parameters.
      loader: the data.
      batch_size: examples per step.
      advance: called after each batch, with the number of its examples.
    """
    parts, sums = [], []
    for (batch_probabilities, batch_sums), mask in run_batches(step, params, loader.eval_batches(batch_size)):
        parts.append(take_rows(batch_probabilities, mask))
        sums.append(batch_sums)
        advance(int(mask.sum()))
    probabilities, log_softmax = map(np.concatenate, zip(*parts, strict=True))
    return Evaluation(probabilities, log_softmax, _total(sums).compute())


def evaluate_metrics(
    step: EvalStep, params: FlatParams, loader: Loader, batch_size: int, on_batch: Callable[[], None] = lambda: None
) -> Metrics:
    """Return loss and accuracies only; the host fetches one set of sums at the end.

    Args:
      step: the evaluation step.
      params: all parameters.
      loader: the data.
      batch_size: images per step.
      on_batch: called between batches; may raise to stop.
    """
    sums = []
    for (_, batch_sums), _ in run_batches(step, params, loader.eval_batches(batch_size)):
        sums.append(batch_sums)
        on_batch()
    return _total(sums).compute()


class ResidentEvaluator:
    """Evaluates metrics on data in device memory with many batches per call; the sums never leave the device.

    Args:
      step: `eval_steps.make_multi_eval_step` for the loader.
      loader: the data.
      batch_size: images per step.
      zero: the sums over no examples, on the devices.
    """

    def __init__(self, step: MultiEvalStep, loader: DeviceLoader, batch_size: int, zero: MetricSums) -> None:
        self._step, self._zero = step, zero
        self._batches, self._masks = loader.stacked_eval_batches(batch_size)
        self._length = CallLength(len(self._masks))

    def __call__(self, params: FlatParams, on_call: Callable[[], None] = lambda: None) -> Metrics:
        """Return loss and accuracies, equal to those of `evaluate_metrics`; `on_call` is called between calls."""
        sums, throttle = self._zero, DispatchThrottle()
        for first, last in self._length.calls(len(self._masks)):
            sums = self._step(params, self._batches, self._masks, np.int32(first), np.int32(last), sums)
            throttle.push(sums.loss)
            on_call()
        metrics = sums.compute()
        self._length.measure()
        return metrics


def take_rows(outputs: Any, mask: Mask) -> Any:
    """Fetch a pytree of arrays [batch, ...] without the padding."""
    return jax.tree.map(lambda array: np.asarray(array)[mask], outputs)


def _total(sums: list[MetricSums]) -> MetricSums:
    """Add up, in the order of the batches."""
    first, *rest = sums
    return sum(rest, start=first)
