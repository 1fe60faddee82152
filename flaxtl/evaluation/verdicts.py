"""What the figures of a run mean, in plain sentences: for the end of a run, its report, and comparisons of runs.

Figures are rounded to what the number of images supports; see `train.rounding`.
"""

import math
from collections.abc import Mapping, Sequence

from flaxtl.evaluation import classification
from flaxtl.evaluation.classification import CountArray
from flaxtl.train.rounding import rounded_accuracy, rounded_interval, rounded_percent, wilson_interval
from flaxtl.train.run_records import SplitMetrics

SIGNIFICANT = 0.05
"""p-values below it count as a difference."""

MAX_HALF_WIDTH = 0.05
"""An accuracy with a wider 95 % interval, ± 5 percentage points, is said to be from too few images."""

MIN_GAP = 0.05
"""Smallest difference of training and validation accuracy that counts as overfitting."""

MIN_LOSS_CHANGE = 0.05
"""Smallest relative change of a validation loss that counts as falling or rising; smaller ones are noise."""

MIN_STEPS = 1000
"""Number of train steps that train a new head, as measured for `min_steps` of configs/folder.py."""

UNTRAINED_LOSS = 0.8
"""A training loss above this share of that of guessing, after fewer than MIN_STEPS steps, counts as untrained."""


def describe_accuracy(split: str, correct: int, n: int) -> str:
    """Return the main result of n > 0 images of a split as a sentence."""
    return (
        f"{rounded_percent(correct, n)} of {n:,} {split} images are classified correctly "
        f"(95 % interval {rounded_interval(correct, n)})."
    )


def describe_few_images(split: str, correct: int, n: int) -> str:
    """Return how uncertain an accuracy on n > 0 images is, and how many would do; '' if its interval is narrow.

    The number is that of a normal interval of ± MAX_HALF_WIDTH at the accuracy of Agresti and Coull (1998), which is
    never 0 or 1, rounded up to two digits.
    """
    low, high = wilson_interval(correct, n)
    if high - low <= 2 * MAX_HALF_WIDTH:
        return ""
    share = (correct + 2) / (n + 4)
    needed = share * (1 - share) * (1.96 / MAX_HALF_WIDTH) ** 2
    unit = 10 ** max(0, math.floor(math.log10(needed)) - 1)
    return (
        f"{n:,} {split} images are too few for a precise figure: the accuracy may be anything from "
        f"{rounded_interval(correct, n)}. About {math.ceil(needed / unit) * unit:,} {split} images would give ± "
        f"{100 * MAX_HALF_WIDTH:.0f} points."
    )


def describe_guessing(split: str, matrix: CountArray, classes: Sequence[str]) -> str:
    """Return a warning if the model is no better than predicting the largest class for every image; else ''."""
    n, correct, (largest, support) = int(matrix.sum()), int(matrix.trace()), _largest_class(matrix)
    if correct > support:
        return ""
    return (
        f"No better than guessing: predicting {classes[largest]} for every image would be correct for "
        f"{rounded_percent(support, n)} of the {split} images."
    )


def describe_possible_guessing(split: str, matrix: CountArray, classes: Sequence[str]) -> str:
    """Return a warning if the model is better than predicting the largest class, but may be so by chance; else ''.

    It may be chance if the interval of the accuracy contains the share of the largest class.
    """
    n, correct, (largest, support) = int(matrix.sum()), int(matrix.trace()), _largest_class(matrix)
    if correct <= support or wilson_interval(correct, n)[0] > support / n:
        return ""
    return (
        f"{n:,} {split} images do not show that the model is better than guessing: predicting {classes[largest]} for "
        f"every image would be correct for {rounded_percent(support, n)} of them."
    )


def describe_untrained(num_steps: int, loss: float | None, guessing_loss: float) -> str:
    """Return that training has hardly begun, if the loss is still near that of guessing after few steps; else ''.

    Args:
      num_steps: train steps of all phases together.
      loss: training loss of the last phase (nats); None if it was not measured.
      guessing_loss: that of predicting the frequencies of the classes for every image (nats); 0 if unknown.
    """
    if loss is None or not math.isfinite(loss) or not guessing_loss:
        return ""
    if num_steps >= MIN_STEPS or loss <= UNTRAINED_LOSS * guessing_loss:
        return ""
    return (
        f"The model has hardly trained in {num_steps:,} steps: its training loss is {loss:.2f}, and guessing by class "
        f"frequencies would give {guessing_loss:.2f}."
    )


def describe_overfitting(phase: str, train: SplitMetrics, validation: SplitMetrics) -> str:
    """Return how much worse the validation images of a phase are classified than its training images; '' if not.

    The gap counts if it is at least MIN_GAP and the training accuracy is above the interval of the validation accuracy.
    Training accuracy is measured with dropout and augmentation, so the gap is larger than it seems.
    """
    if train.accuracy is None or validation.accuracy is None or not validation.n or not train.n:
        return ""
    correct = round(validation.accuracy * validation.n)
    _, high = wilson_interval(correct, validation.n)
    if train.accuracy < max(validation.accuracy + MIN_GAP, high):
        return ""
    return (
        f"Overfitting in phase {phase}: {rounded_accuracy(train.accuracy, train.n)} of the training images are "
        f"classified correctly, but only {rounded_percent(correct, validation.n)} of the validation images."
    )


def describe_rising_loss(phase: str, losses: Sequence[float]) -> str:
    """Return how far the validation loss of each epoch of a phase has risen above its minimum; '' if it has not."""
    if not losses or not all(map(math.isfinite, losses)):
        return ""
    best = min(range(len(losses)), key=losses.__getitem__)
    if losses[-1] <= (1 + MIN_LOSS_CHANGE) * losses[best]:
        return ""
    lowest, last = _format_losses(losses[best], losses[-1])
    return (
        f"The validation loss of phase {phase} rose from {lowest} in epoch {best + 1} to {last} in epoch {len(losses)}."
    )


def describe_falling_loss(phase: str, losses: Sequence[float]) -> str:
    """Return that training ended too early, if the last quarter of a phase's epochs improved the validation loss."""
    if len(losses) < 2 or not all(map(math.isfinite, losses)):
        return ""
    late = max(1, len(losses) // 4)
    before, last = min(losses[:-late]), min(losses[-late:])
    if last >= (1 - MIN_LOSS_CHANGE) * before:
        return ""
    earlier, lowest = _format_losses(before, last)
    return (
        f"Phase {phase} ended too early: its validation loss still fell from {earlier} to {lowest} in "
        f"{'the last epoch' if late == 1 else f'the last {late} epochs'} of {len(losses)}."
    )


def describe_weakest_class(matrix: CountArray, classes: Sequence[str]) -> str:
    """Return the class with the lowest recall; '' if all classes have the same.

    It may be chance unless a binomial test against the accuracy of all images rejects that, with Bonferroni's
    correction, because the lowest of all classes is tested.
    """
    metrics, accuracy = classification.class_metrics(matrix), matrix.trace() / matrix.sum()
    present = [index for index in range(len(classes)) if metrics.support[index]]
    weakest = min(present, key=lambda index: metrics.recall[index])
    if metrics.recall[weakest] == max(metrics.recall[index] for index in present):
        return ""
    correct, n = int(matrix[weakest, weakest]), int(metrics.support[weakest])
    p_value = len(present) * classification.binomial_test(correct, n, accuracy)
    doubt = "" if p_value < SIGNIFICANT else "; on so few images this may be chance"
    return f"Weakest class: {classes[weakest]}, {correct:,} of {n:,} images recognized{doubt}."


def describe_confused_pair(matrix: CountArray, classes: Sequence[str]) -> str:
    """Return the most frequent error, if it occurs more than once; else ''."""
    pairs = classification.most_confused_pairs(matrix, 1)
    if not pairs or pairs[0].count < 2:
        return ""
    (pair,) = pairs
    return (
        f"Most frequent error: {classes[pair.true]} predicted as {classes[pair.predicted]}, {pair.count:,} of "
        f"{int(matrix[pair.true].sum()):,} images."
    )


def describe_ties(num_images: int, discordant: Mapping[str, tuple[int, int]]) -> str:
    """Return which models are not significantly worse than the best one on the same images; '' if all of them are.

    Args:
      num_images: number of images.
      discordant: model -> (images that only the best model predicts correctly, images that only this one does).
    """
    p_values = {name: classification.mcnemar(*counts) for name, counts in discordant.items()}
    ties = [f"{name} (McNemar {format_p(p)})" for name, p in p_values.items() if p >= SIGNIFICANT]
    if not ties:
        return ""
    return f"No significant difference from the best on {num_images:,} images: {', '.join(ties)}."


def format_p(p_value: float) -> str:
    """Return 'p = 0.7', 'p = 0.031' or 'p < 0.001'."""
    if p_value < 0.001:
        return "p < 0.001"
    return f"p = {p_value:.{1 if p_value >= 0.1 else 2}g}"


def _largest_class(matrix: CountArray) -> tuple[int, int]:
    """Return the index of the class with the most images, and their number."""
    support = matrix.sum(axis=1)
    return int(support.argmax()), int(support.max())


def _format_losses(first: float, last: float) -> tuple[str, str]:
    """Return two losses with two digits, or with three if two would write them alike: 1.44 and 1.36."""
    two, three = ((_significant(first, digits), _significant(last, digits)) for digits in (2, 3))
    return two if two[0] != two[1] else three


def _significant(value: float, digits: int) -> str:
    return f"{value:.{digits}g}" if value < 10 ** (digits - 1) else f"{value:.0f}"
