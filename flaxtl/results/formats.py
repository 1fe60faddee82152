"""How numbers are written for people, in the report and in the model card."""

import math


def percent(share: float | None, digits: int = 2) -> str:
    """0.9261 -> 92.61 %; a dash for what is unknown or undefined."""
    return "–" if share is None or math.isnan(share) else f"{100 * share:.{digits}f}\N{NARROW NO-BREAK SPACE}%"


def threshold(share: float) -> str:
    """A confidence that is asked for: 0.979999, as predict writes it, but rounded down, so that who has it passes."""
    return f"{math.floor(1e6 * share) / 1e6:.6f}" if math.isfinite(share) else "–"


def points(gain: float) -> str:
    """A difference of two shares in percentage points: 0.0288 -> +2.88."""
    return f"{100 * gain:+.2f}".replace("-", "\N{MINUS SIGN}")


def count(number: int | None) -> str:
    """14714688 -> 14,714,688; a dash for what is unknown."""
    return "–" if number is None else f"{number:,}"


def duration(seconds: float | None) -> str:
    """Seconds -> 850 ms, 12.3 s, 2 min 05 s or 1 h 02 min; a dash for what is unknown."""
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def rate(value: float) -> str:
    """A learning rate as people write it: 0.001, 1e-6."""
    mantissa, exponent, power = f"{value:g}".partition("e")
    return mantissa + (f"e{int(power)}" if exponent else "")


def two_digits(rate: float) -> float:
    """As exactly as a curve tells a learning rate: 0.00077406 -> 0.00077."""
    return float(f"{rate:.2g}")


FILTERS = {function.__name__: function for function in (percent, threshold, points, count, duration, rate)}
"""By the names that templates call them."""
