"""The page of a range test: the curve and what it suggests, in one file that asks nothing of the network."""

from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from flaxtl.errors import listed
from flaxtl.results import plots
from flaxtl.results.formats import rate, two_digits
from flaxtl.results.pages import template

if TYPE_CHECKING:
    from flaxtl.results.learning_rate import Found


def render(found: "Found", config: Any) -> str:
    """The page as text."""
    points = found.curve.points
    picture = plots.range_test(points, found.proposed)
    facts = {
        "learns": listed(found.shares),
        "optimizer": config.optimizer.name,
        "pictures a step": f"{config.batch:,}",
        "steps": f"{len(points):,} of {found.rates.steps:,}",
        "rates from": rate(found.rates.lowest),
        "to": rate(two_digits(points[-1].rate)),
    }
    return template("learning_rate.html.jinja").render(found=found, picture=Markup(picture), facts=facts)
