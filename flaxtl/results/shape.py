"""Whether a JSON value has the shape that flaxtl writes.

A shape is a test of one value, such as `is_count`; [shape], a list of such; {key: shape}, an object in which keys may
be absent and others present; {...: shape}, an object with any keys; or a `Record`, in which some keys must be present.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

LARGEST = 10**15
"""Of counts, seconds and rates, which no run comes near."""

Shape = Any  # see above; it is recursive
Key = str | int


class Record(NamedTuple):
    """The shape of an object that has all the keys of `required`, and may have those of `optional`."""

    required: Mapping[str, Shape]
    optional: Mapping[str, Shape] = {}


def is_text(value: Any) -> bool:
    """A text."""
    return isinstance(value, str)


def is_flag(value: Any) -> bool:
    """True or false."""
    return isinstance(value, bool)


def is_count(value: Any) -> bool:
    """A whole number of 0 or more."""
    return isinstance(value, int) and is_amount(value)


def is_amount(value: Any) -> bool:
    """A number of 0 or more."""
    return isinstance(value, int | float) and not is_flag(value) and 0 <= value <= LARGEST


def is_temperature(value: Any) -> bool:
    """A number above 0, or null where none was found."""
    return value is None or (is_amount(value) and value >= 1 / LARGEST)


def is_share(value: Any) -> bool:
    """A number from 0 to 1, or null where nothing was measured."""
    return value is None or (is_amount(value) and value <= 1)


def is_loss(value: Any) -> bool:
    """Any number, also one that is infinite or undefined, as where training diverged; or null."""
    return value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) <= LARGEST)


_KINDS = {
    is_text: "a text",
    is_flag: "true or false",
    is_count: "a count",
    is_amount: "an amount",
    is_temperature: "a temperature",
    is_share: "a share of 1",
    is_loss: "a loss",
}


def fault(value: Any, shape: Shape, name: str = "it") -> str | None:
    """What is wrong with `value`, which is called `name`: "'phases.frozen.epochs' is not a count"; None if nothing."""
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{name} is not a list"
        return _first(enumerate(value), lambda key: shape[0], name)
    if isinstance(shape, Mapping | Record):
        if not isinstance(value, dict):
            return f"{name} is not an object"
        return _of_object(value, shape if isinstance(shape, Record) else Record({}, shape), name)
    return None if shape(value) else f"{name} is not {_KINDS[shape]}"


def _of_object(value: dict[str, Any], shape: Record, name: str) -> str | None:
    if absent := [key for key in shape.required if key not in value]:
        return f"{name} has no {absent[0]!r}"
    shapes: dict[Any, Shape] = {**shape.optional, **shape.required}
    rest = shapes.get(..., lambda anything: True)
    return _first(value.items(), lambda key: shapes.get(key, rest), name)


def _first(members: Iterable[tuple[Key, Any]], shape_of: Callable[[Key], Shape], name: str) -> str | None:
    """The first fault of the members of a list or an object."""
    within = "" if name == "it" else f"{name}."
    faults = (fault(value, shape_of(key), f"{within}{key}") for key, value in members)
    return next((found for found in faults if found), None)
