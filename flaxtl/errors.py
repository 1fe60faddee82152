"""The one exception a user is meant to read."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A user's mistake, told in one sentence: what is wrong, where, and how to mend it.

    The command line prints the sentence without a traceback and exits with code 2; a notebook shows the sentence alone.
    """

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback."""
        return [f"flaxtl: {self}"]


def listed(names: Iterable[str]) -> str:
    """'a', 'a and b', 'a, b and c'; of many the first five and how many more."""
    *first, last = names
    if len(first) > 5:
        return ", ".join(first[:5]) + f" and {len(first) - 4:,} more"
    return f"{', '.join(first)} and {last}" if first else last


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist; suggests the nearest known name, or lists a few."""
    known = sorted(known)
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        hint = f"did you mean {near[0]!r}?"
    else:
        hint = "known: " + ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return UserError(f"no {kind} {name!r}; {hint}")
