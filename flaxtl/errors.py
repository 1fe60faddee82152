"""`UserError`, the exception for every error that a user can fix, and helpers for messages."""

from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager
from difflib import SequenceMatcher

MAX_SUGGESTIONS = 12
"""Names that the error for an unknown name lists, if no known name is similar to it."""

MIN_SIMILARITY = 0.6
"""Least similarity of a misspelled name to the known one, as `SequenceMatcher.ratio` measures it: 1 for equal names."""

_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "YNNPACK operation failed")
"""What XLA's errors say when a device, or its library for CPUs, cannot allocate a buffer."""


class UserError(Exception):
    """Invalid input: the message states what is wrong, where, and how to fix it.

    The command line prints the message without a traceback and exits with code 2; a notebook shows only the message.
    """

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows instead of a traceback."""
        return [f"flaxtl: {self}"]


def unknown(kind: str, name: object, known: Iterable[str]) -> UserError:
    """Return the error for a name that does not exist.

    It suggests the most similar known name, ignoring case: `Unknown layer 'block5_con3'. Did you mean 'block5_conv3'?`
    Names that are equally similar are all suggested: `Unknown model 'vgg'. Did you mean 'vgg16' or 'vgg19'?`
    If none is similar, it lists them, first those that contain the name: `Unknown phase 'late'. Available: frozen,
    augmented, finetune`

    Args:
      kind: what the name stands for, such as 'layer'.
      name: the unknown name; from Python it may be no text at all.
      known: all names that exist, in the order in which to list them (a set: alphabetical).
    """
    known = sorted(known) if isinstance(known, Set) else list(known)
    if similar := _most_similar(str(name), known):
        return UserError(f"Unknown {kind} {name!r}. Did you mean {join_names(map(repr, similar), 'or')}?")
    known.sort(key=lambda other: str(name).lower() not in other.lower())
    more = ", ..." if len(known) > MAX_SUGGESTIONS else ""
    return UserError(f"Unknown {kind} {name!r}. Available: {', '.join(known[:MAX_SUGGESTIONS]) or 'none'}{more}")


def _most_similar(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names that are most similar to `name`, ignoring case; none if none is similar enough."""
    matcher = SequenceMatcher(b=name.lower())
    similarities = {}
    for other in known:
        matcher.set_seq1(other.lower())
        similarities[other] = matcher.ratio()
    best = max(similarities.values(), default=0.0)
    return [other for other in similarities if similarities[other] == best] if best >= MIN_SIMILARITY else []


def missing_package(what: str, packages: str, extra: str) -> UserError:
    """Return the error for an optional package: `what` needs `packages`, which an extra of flaxtl installs."""
    return UserError(f"{what} needs {packages}: pip install 'flaxtl[{extra}]'")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether Python or XLA could not allocate memory."""
    return isinstance(error, MemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY)


@contextmanager
def memory_errors() -> Iterator[None]:
    """Raise UserError in place of the errors of Python and of XLA for memory that cannot be allocated."""
    try:
        yield
    except MemoryError as error:
        raise UserError("Out of memory. Lower batch_size, or set data.pipeline=stream.") from error
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            "The device is out of memory. Lower batch_size, raise accum_steps, or choose smaller images or a smaller "
            "network or head."
        ) from error


def first_line(error: Exception) -> str:
    """Return the first line of an error's message or the name of its type: at most 200 characters, without a period."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")


def join_names(names: Iterable[str], conjunction: str = "and") -> str:
    """Join names to 'a', 'a and b' or 'a, b and c'; of more than six, the first five and the number of the others."""
    *first, last = names
    if len(first) > 5:
        return ", ".join(first[:5]) + f" {conjunction} {len(first) - 4:,} more"
    return f"{', '.join(first)} {conjunction} {last}" if first else last
