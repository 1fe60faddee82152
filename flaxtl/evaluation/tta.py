"""Test-time augmentation (TTA): average the predictions on several views of each image."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
from rich.console import Console

from flaxtl.console import progress_bar
from flaxtl.data.augment import tta
from flaxtl.data.augment.tta import TtaTransform
from flaxtl.data.loaders import Batch, Loader, Mask
from flaxtl.errors import UserError
from flaxtl.evaluation import classification
from flaxtl.evaluation.classification import FloatArray
from flaxtl.evaluation.predictor import TrainedRun
from flaxtl.models.classifier import FlatParams
from flaxtl.train import eval_steps
from flaxtl.train.eval_loop import Evaluation, run_batches, take_rows
from flaxtl.train.metrics import ClassProbabilities, Metrics
from flaxtl.train.rounding import rounded_accuracy
from flaxtl.train.run_records import Count, Fraction, Record
from flaxtl.train.setup import RunSetup

Labels = npt.NDArray[np.int32]

TTA_METHODS: dict[str, Callable[[RunSetup], TtaTransform]] = {
    "flip": lambda setup: tta.flip_views(setup.resize),
    "crops": lambda setup: tta.crop_views(setup.resize),
}
"""Values of --tta other than a number of augmented views."""


def make_tta(method: str) -> Callable[[RunSetup], TtaTransform]:
    """Return the function that makes the views of --tta=`method` for a run.

    Raises:
      UserError: `method` is neither in TTA_METHODS nor a number of views from 2 up.
    """
    if method in TTA_METHODS:
        return TTA_METHODS[method]
    if method.isascii() and method.isdigit() and int(method) > 1:
        return partial(_augmented_views, int(method))
    raise UserError(
        f"Unknown TTA method --tta={method}. Use flip (the image and its mirror image), crops (ten crops), or a "
        "number of views from 2 up, such as 8 (augmented as in the config)."
    )


def _augmented_views(num_views: int, setup: RunSetup) -> TtaTransform:
    if not setup.augmentation.is_active:
        raise UserError(
            f"--tta={num_views} needs augmentation, but the config of {setup.workdir} has none that changes single "
            "images. Use --tta=flip or --tta=crops."
        )
    return tta.random_views(setup.resize, num_views, setup.config.seed, setup.augmentation)


def average_views(
    run: TrainedRun, views: TtaTransform, plain: Evaluation, labels: Labels, data: Loader, console: Console
) -> Evaluation:
    """Average the class probabilities over all views and evaluate the result.

    Probabilities are averaged, not logits, as in Krizhevsky et al. 2012: the mean is a distribution, and each view has
    the same weight however large its logits are. The logarithm of the mean is computed from those of the views, so that
    loss and gain are right where all views underflow. A batch is loaded once, for all of its views.

    Args:
      run: the model.
      views: the views of each image.
      plain: the evaluation of the original images.
      labels: true classes, int32 [n].
      data: the images, decoded with `views.resize`.
      console: shows a progress bar.
    """
    setup = run.setup
    step = eval_steps.make_tta_step(setup.model_info.model, setup.mesh, views.view_fn, data.sharding(setup.mesh))
    total = plain.probabilities.astype(np.float64) * views.include_original
    log_total = np.where(views.include_original, plain.log_softmax.astype(np.float64), -np.inf)

    def all_views(params: FlatParams, batch: Batch, mask: Mask) -> list[ClassProbabilities]:
        return [step(np.int32(view), params, batch, mask)[0] for view in range(views.num_generated)]

    first = 0
    with progress_bar(console, "Evaluating views", views.num_generated * len(labels)) as advance:
        for outputs, mask in run_batches(all_views, run.params, data.eval_batches(setup.config.batch_size)):
            rows = slice(first, first + int(mask.sum()))
            for probabilities, log_softmax in take_rows(outputs, mask):
                total[rows] += probabilities
                log_total[rows] = np.logaddexp(log_total[rows], log_softmax)
                advance(rows.stop - rows.start)
            first = rows.stop
    probabilities = (total / views.num_views).astype(np.float32)
    log_softmax = log_total - math.log(views.num_views)
    log_probs = classification.log_probabilities(probabilities, log_softmax)
    return Evaluation(probabilities, log_softmax, _metrics(log_probs, labels))


def _metrics(log_probs: FloatArray, labels: Labels) -> Metrics:
    """Compute on the host what an evaluation step computes on the device: the average exists only here."""
    n, matrix = len(labels), classification.confusion_matrix(labels, log_probs.argmax(1), log_probs.shape[1])
    return Metrics(
        loss=float(classification.cross_entropy(log_probs, labels).mean()),
        accuracy=(n - classification.num_errors(matrix)) / n,
        balanced_accuracy=classification.balanced_accuracy(matrix),
        n=n,
    )


class TtaViews(Record, frozen=True):
    """The value of --tta, and the number of views of each image."""

    name: str
    views: Count


class PlainMetrics(Record, frozen=True):
    """Metrics without TTA."""

    accuracy: Fraction
    loss: float


class TtaGain(Record, frozen=True):
    """The effect of TTA: percentage points of accuracy, predictions corrected and made wrong, McNemar's exact p."""

    points: float
    became_right: Count
    became_wrong: Count
    p: Fraction


def compare_evaluations(labels: Labels, plain: Evaluation, averaged: Evaluation) -> TtaGain:
    """Compare evaluations of the same images without and with TTA; `labels` are int32 [n]."""
    before, after = (evaluation.probabilities.argmax(1) == labels for evaluation in (plain, averaged))
    num_corrected, num_broken = int((after & ~before).sum()), int((before & ~after).sum())
    return TtaGain(
        points=100 * (num_corrected - num_broken) / len(labels),
        became_right=num_corrected,
        became_wrong=num_broken,
        p=classification.mcnemar(num_broken, num_corrected),
    )


def describe_gain(plain: Metrics, averaged: Metrics, gain: TtaGain) -> str:
    """Return the effect of TTA as one line for the console."""
    return (
        f"Test-time augmentation: accuracy {rounded_accuracy(plain.accuracy, plain.n)} -> "
        f"{rounded_accuracy(averaged.accuracy, averaged.n)}; "
        f"{gain.became_right} of {averaged.n} predictions corrected, {gain.became_wrong} made wrong "
        f"(McNemar p = {gain.p:.2g})"
    )
