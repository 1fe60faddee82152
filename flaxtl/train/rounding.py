"""How an accuracy is shown: its interval, and as many decimals as the number of its images supports.

In files (summary.json, metrics.jsonl, predictions.csv, sweep.csv) accuracies keep all digits.
"""


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of an accuracy of `correct` out of `n`; (0, 1) for n = 0.

    Unlike p ± 1.96 s it stays inside [0, 1] and holds for small n and for accuracies near 1.
    """
    if n == 0:
        return 0.0, 1.0
    from scipy.stats import binomtest  # slow to import

    low, high = binomtest(correct, n).proportion_ci(0.95, method="wilson")
    return float(low), float(high)


def percent_digits(correct: int, n: int) -> int:
    """Return the number of decimals that an accuracy of `correct` out of `n` is written with, in percent.

    The half width h of its 95 % interval decides, as for any measured quantity (Particle Data Group, "Review of
    Particle Physics", section "Rounding"): h in (0.355, 3.55] points supports one decimal, a larger one none. Below
    100 images a decimal is never shown, because one image is more than one percent.
    """
    if n < 100:
        return 0
    low, high = wilson_interval(correct, n)
    half_width = 50 * (high - low)
    return 0 if half_width > 3.55 else 1 if half_width > 0.355 else 2


def rounded_accuracy(accuracy: float, n: int) -> str:
    """Return an accuracy in [0, 1] on n > 0 images as text, such as '67 %'."""
    return f"{100 * accuracy:.{percent_digits(round(accuracy * n), n)}f} %"


def rounded_percent(correct: int, n: int) -> str:
    """Return an accuracy as text, such as '67 %' for 40 of 60."""
    return rounded_accuracy(correct / n, n)


def rounded_interval(correct: int, n: int) -> str:
    """Return the 95 % Wilson interval of an accuracy as text, such as '54 to 77 %' for 40 of 60."""
    digits = percent_digits(correct, n)
    low, high = wilson_interval(correct, n)
    return f"{100 * low:.{digits}f} to {100 * high:.{digits}f} %"
