"""How far the confidence of a run's answers is to be believed, on the split that judges it."""

from collections.abc import Sequence
from dataclasses import dataclass

from flaxtl.results import abstention, calibration
from flaxtl.results.abstention import Answering, Curve
from flaxtl.results.calibration import COLDEST, HOTTEST, Calibration
from flaxtl.results.run_files import Json, Run

PERCENTS = (100, 95, 90, 80, 50)
"""Of the pictures answered: the rows of the table."""


@dataclass(frozen=True)
class Confidence:
    """What the answers on the judged split show.

    Attributes:
        before: the probabilities as they are.
        after: the probabilities at the run's temperature; None where it has none.
        temperature: fitted on the validation pictures when the run ended, or None.
        reason: why there is no temperature, a sentence without its full stop; "" where there is one.
        fitted_on: how many validation pictures it was fitted on.
        curve: accuracy against the share of pictures answered.
        answering: points of the curve at PERCENTS.
    """

    before: Calibration
    after: Calibration | None
    temperature: float | None
    reason: str
    fitted_on: int
    curve: Curve
    answering: Sequence[Answering]


def confidence(run: Run) -> Confidence | None:
    """What the answers on the judged split show; None when there are no predictions of it."""
    if not run.predictions or run.judged not in run.predictions.splits:
        return None
    judged = run.predictions.of_split(run.judged)
    temperature = run.summary.get("calibration", {}).get("temperature")
    tempered = calibration.at_temperature(judged.probabilities, temperature) if temperature else None
    curve = abstention.curve(judged.confidence, judged.predicted == judged.labels)
    return Confidence(
        before=calibration.calibration(judged.probabilities, judged.labels),
        after=None if tempered is None else calibration.calibration(tempered, judged.labels),
        temperature=temperature,
        reason=reason(run.summary),
        fitted_on=run.summary.get("calibration", {}).get("n", 0),
        curve=curve,
        answering=[abstention.answering(curve, percent) for percent in PERCENTS],
    )


def reason(summary: Json) -> str:
    """Why a run has no temperature, a sentence without its full stop; "" where it has one."""
    fitted = summary.get("calibration")
    if fitted is None:
        return "No temperature was kept with this run: it has not ended, or was made by a flaxtl that fitted none"
    if fitted["temperature"] is not None:
        return ""
    if not fitted["n"]:
        return "There is no temperature, for the run has no validation pictures to fit one on"
    return (
        f"There is no temperature: none between {COLDEST:g} and {HOTTEST:g} is best for the {fitted['n']:,} validation "
        "pictures, of which nearly all were answered right, or so few that guessing does as well"
    )
