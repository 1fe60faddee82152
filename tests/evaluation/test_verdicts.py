"""The sentences about the figures of a run, on plain arrays."""

import math

import numpy as np
import pytest

from flaxtl.evaluation import verdicts
from flaxtl.train.run_records import SplitMetrics

CLASSES = ("daisy", "roses", "tulips")


def test_describe_accuracy():
    assert verdicts.describe_accuracy("test", 40, 60) == (
        "67 % of 60 test images are classified correctly (95 % interval 54 to 77 %)."
    )


@pytest.mark.parametrize(
    ("correct", "n", "text"),
    [
        (40, 60, "60 test images are too few for a precise figure: the accuracy may be anything from 54 to 77 %. "
         "About 350 test images would give ± 5 points."),
        (20, 20, "20 test images are too few for a precise figure: the accuracy may be anything from 84 to 100 %. "
         "About 120 test images would give ± 5 points."),
        (150, 300, "300 test images are too few for a precise figure: the accuracy may be anything from 44 to 56 %. "
         "About 390 test images would give ± 5 points."),
        (258, 300, ""),
        (60, 60, ""),
    ],
)  # fmt: skip
def test_describe_few_images(correct, n, text):
    assert verdicts.describe_few_images("test", correct, n) == text


GUESSING = "No better than guessing: predicting daisy for every image would be correct for 50 % of the test images."


@pytest.mark.parametrize(
    ("matrix", "guessing", "possible"),
    [
        ([[20, 5, 5], [10, 5, 5], [8, 1, 1]], GUESSING, ""),
        ([[24, 3, 3], [10, 5, 5], [8, 1, 1]], GUESSING, ""),  # 30 of 60, as many as are daisies
        ([[25, 3, 2], [10, 5, 5], [8, 1, 1]], "",
         "60 test images do not show that the model is better than guessing: predicting daisy for every image would be "
         "correct for 50 % of them."),
        ([[10, 0, 0], [1, 3, 0], [0, 0, 0]], "",  # 13 of 14: the interval is 69 to 99 %
         "14 test images do not show that the model is better than guessing: predicting daisy for every image would be "
         "correct for 71 % of them."),
        (np.diag([30, 20, 10]), "", ""),
    ],
)  # fmt: skip
def test_describe_guessing_compares_with_the_largest_class(matrix, guessing, possible):
    assert verdicts.describe_guessing("test", np.array(matrix), CLASSES) == guessing
    assert verdicts.describe_possible_guessing("test", np.array(matrix), CLASSES) == possible


@pytest.mark.parametrize(
    ("steps", "loss", "text"),
    [
        (10, 1.5512, "The model has hardly trained in 10 steps: its training loss is 1.55"),
        (999, 3.0, "The model has hardly trained in 999 steps: its training loss is 3.00"),
        (10, 1.29, "The model has hardly trained in 10 steps: its training loss is 1.29"),
        (10, 1.28, ""),  # 0.8 of ln 5 is 1.288
        (1000, 3.0, ""),
        (10, None, ""),
        (10, math.nan, ""),
        (10, math.inf, ""),
    ],
)
def test_describe_untrained_needs_few_steps_and_a_high_loss(steps, loss, text):
    guessing = ", and guessing by class frequencies would give 1.61." if text else ""
    assert verdicts.describe_untrained(steps, loss, math.log(5)) == text + guessing


def test_describe_untrained_unknown_loss_of_guessing_is_empty():
    assert verdicts.describe_untrained(10, 1.55, 0.0) == ""


@pytest.mark.parametrize(
    ("train", "validation", "text"),
    [
        (
            SplitMetrics(0.99, 735),
            SplitMetrics(0.81, 300),
            "Overfitting in phase frozen: 99.0 % of the training images are classified correctly, but only 81 % of the "
            "validation images.",
        ),
        (
            SplitMetrics(0.9936, 280),  # a mean over several uses of each image
            SplitMetrics(0.875, 80),
            "Overfitting in phase frozen: 99.4 % of the training images are classified correctly, but only 88 % of the "
            "validation images.",
        ),
        (SplitMetrics(0.99, 735), SplitMetrics(0.95, 735), ""),  # less than 5 points
        (SplitMetrics(0.75, 60), SplitMetrics(0.68, 40), ""),  # inside the interval of 40 images, 52 to 80 %
        (SplitMetrics(0.99, 735), SplitMetrics(None, 0), ""),
        (SplitMetrics(0.6, 60), SplitMetrics(0.9, 40), ""),
    ],
)
def test_describe_overfitting(train, validation, text):
    assert verdicts.describe_overfitting("frozen", train, validation) == text


@pytest.mark.parametrize(
    ("losses", "rising", "falling"),
    [
        (
            [1.0, 0.52, 0.5, 0.6, 0.714],
            "The validation loss of phase frozen rose from 0.5 in epoch 3 to 0.71 in epoch 5.",
            "",
        ),
        (
            [1.36, 1.44],
            "The validation loss of phase frozen rose from 1.36 in epoch 1 to 1.44 in epoch 2.",
            "",
        ),
        (
            [1.44, 1.36],
            "",
            "Phase frozen ended too early: its validation loss still fell from 1.44 to 1.36 in the last epoch of 2.",
        ),
        (
            [2.0, 1.0, 0.9, 0.8],
            "",
            "Phase frozen ended too early: its validation loss still fell from 0.9 to 0.8 in the last epoch of 4.",
        ),
        (
            [12, 11, 10, 9, 9, 9, 8, 7],
            "",
            "Phase frozen ended too early: its validation loss still fell from 9 to 7 in the last 2 epochs of 8.",
        ),
        ([0.6, 0.5, 0.5, 0.51], "", ""),
        ([0.6], "", ""),
        ([], "", ""),
        ([0.6, float("nan")], "", ""),
    ],
)
def test_describe_losses(losses, rising, falling):
    assert verdicts.describe_rising_loss("frozen", losses) == rising
    assert verdicts.describe_falling_loss("frozen", losses) == falling


@pytest.mark.parametrize(
    ("matrix", "text"),
    [
        ([[12, 0, 0], [2, 7, 3], [0, 2, 10]],
         "Weakest class: roses, 7 of 12 images recognized; on so few images this may be chance."),
        ([[120, 0, 0], [20, 70, 30], [0, 20, 100]], "Weakest class: roses, 70 of 120 images recognized."),
        ([[12, 0, 0], [0, 12, 0], [0, 0, 12]], ""),
        ([[12, 0, 0], [0, 0, 0], [2, 0, 10]],
         "Weakest class: tulips, 10 of 12 images recognized; on so few images this may be chance."),
    ],
)  # fmt: skip
def test_describe_weakest_class(matrix, text):
    assert verdicts.describe_weakest_class(np.array(matrix), CLASSES) == text


@pytest.mark.parametrize(
    ("matrix", "text"),
    [
        ([[12, 0, 0], [1, 7, 4], [0, 2, 10]], "Most frequent error: roses predicted as tulips, 4 of 12 images."),
        ([[12, 0, 0], [0, 11, 1], [0, 1, 11]], ""),
    ],
)
def test_describe_confused_pair(matrix, text):
    assert verdicts.describe_confused_pair(np.array(matrix), CLASSES) == text


def test_describe_ties_lists_only_models_that_may_be_as_good():
    discordant = {"lr=0.01": (5, 3), "lr=0.1": (14, 2), "lr=0.001": (0, 0)}
    assert verdicts.describe_ties(40, discordant) == (
        "No significant difference from the best on 40 images: lr=0.01 (McNemar p = 0.7), lr=0.001 (McNemar p = 1)."
    )
    assert verdicts.describe_ties(40, {"lr=0.1": (14, 2)}) == ""


@pytest.mark.parametrize(("p", "text"), [(0.7266, "p = 0.7"), (0.0313, "p = 0.031"), (1e-9, "p < 0.001")])
def test_format_p(p, text):
    assert verdicts.format_p(p) == text
