"""Test-time augmentation: the answer on an image is the mean of the answers on several views of it."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from rich.console import Console

from flaxtl.console import progress_bar
from flaxtl.data.augment import tta
from flaxtl.data.augment.tta import TtaTransform
from flaxtl.data.loaders import Loader
from flaxtl.errors import UserError
from flaxtl.evaluation import classification
from flaxtl.evaluation.predictor import TrainedRun
from flaxtl.train import train_step
from flaxtl.train.eval_loop import Evaluation, evaluate
from flaxtl.train.metrics import Metrics
from flaxtl.train.setup import RunSetup

Labels = npt.NDArray[np.int32]

TTA_METHODS: dict[str, Callable[[RunSetup], TtaTransform]] = {
    "flip": lambda setup: tta.flip_views(setup.resize),
    "crops": lambda setup: tta.crop_views(setup.resize),
}
"""What --tta knows by name; a number stands for so many views by the config's own augmentation."""


def make_tta(asked: str) -> Callable[[RunSetup], TtaTransform]:
    """What makes the views that --tta=`asked` is for; raises UserError, saying what there is, for anything else."""
    if asked in TTA_METHODS:
        return TTA_METHODS[asked]
    if asked.isascii() and asked.isdigit() and int(asked) > 1:
        return partial(_augmented, int(asked))
    raise UserError(
        f"--tta={asked} is no way to augment; give flip (the image and its mirror image), crops (ten of them) or "
        "a number of views from 2 up, such as 8 (by the config's own augmentation)"
    )


def _augmented(n: int, setup: RunSetup) -> TtaTransform:
    if not setup.augmentation.is_active:
        raise UserError(
            f"--tta={n} takes views by the config's own augmentation, but the config of {setup.workdir} has none that "
            "changes single images; give --tta=flip or --tta=crops"
        )
    return tta.random_views(setup.resize, n, setup.config.seed, setup.augmentation)


def average_views(
    run: TrainedRun, views: TtaTransform, plain: Evaluation, labels: Labels, data: Loader, console: Console
) -> Evaluation:
    """The mean of the probabilities over all views, and what it comes to; `plain` is that of images as they are.

    `data` are the images as `views` wants them decoded. The mean is of probabilities, not of logits: it is a
    distribution over the classes again, and no view has more than its share of the say, however far its logits go.
    Krizhevsky et al. 2012 average the softmax too.
    """
    setup = run.setup
    step = train_step.make_tta_step(setup.model_info.model, setup.mesh, views.view_fn, data.sharding(setup.mesh))
    total = plain.probabilities.astype(np.float64) * views.include_original
    with progress_bar(console, "views", views.num_generated) as advance:
        for view in range(views.num_generated):
            seen = partial(step, np.int32(view))
            total += evaluate(seen, run.params, data, setup.config.batch_size).probabilities
            advance(1)
    probabilities = (total / views.num_views).astype(np.float32)
    return Evaluation(probabilities, _measured(probabilities, labels))


def _measured(probabilities: npt.NDArray[np.float32], labels: Labels) -> Metrics:
    """What the evaluation step measures on the device, where the average never was."""
    n, matrix = len(labels), classification.confusion_matrix(labels, probabilities.argmax(1), probabilities.shape[1])
    return Metrics(
        loss=float(classification.cross_entropy(probabilities, labels).mean()),
        accuracy=(n - classification.num_errors(matrix)) / n,
        balanced_accuracy=classification.balanced_accuracy(matrix),
        n=n,
    )


class TtaGain(NamedTuple):
    """What test-time augmentation changed: `right` images are right that were wrong, `wrong` the other way round."""

    without: Metrics
    averaged: Metrics
    right: int
    wrong: int

    @classmethod
    def of(cls, labels: Labels, without: Evaluation, averaged: Evaluation) -> "TtaGain":
        """Count; `labels` are int32 [n]."""
        before, after = (found.probabilities.argmax(1) == labels for found in (without, averaged))
        right, wrong = int((after & ~before).sum()), int((before & ~after).sum())
        return cls(without.metrics, averaged.metrics, right, wrong)

    @property
    def p(self) -> float:
        """How often chance alone would come out at least as unevenly: see measures.mcnemar."""
        return classification.mcnemar(self.wrong, self.right)

    def to_json(self) -> dict[str, Any]:
        """`points` are percentage points of accuracy."""
        points = 100 * (self.right - self.wrong) / self.averaged.n
        without = {"accuracy": self.without.accuracy, "loss": self.without.loss}
        gain = {"points": points, "became_right": self.right, "became_wrong": self.wrong, "p": self.p}
        return {"without": without, "gain": gain}

    def __str__(self) -> str:
        """One line for the console."""
        return (
            f"test-time augmentation: {100 * self.without.accuracy:.2f} % -> {100 * self.averaged.accuracy:.2f} %, "
            f"{self.right} of {self.averaged.n} images right that were wrong, "
            f"{self.wrong} wrong that were right, p = {self.p:.2g}"
        )
