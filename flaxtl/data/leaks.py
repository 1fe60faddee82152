"""Pictures that lie in more than one of the given splits, so that a network is asked what it was told, or in more than
one class, so that one of their labels is wrong."""

from collections.abc import Callable, Sequence

from flaxtl.data import duplicates
from flaxtl.data.duplicates import Pair
from flaxtl.data.listing import Found
from flaxtl.errors import UserError

_LISTED = 3  # sets of like pictures that a sentence names before it only counts


def check(origin: str, found: Sequence[Found], pairs: Sequence[Pair], allow: bool, warn: Callable[[str], None]) -> None:
    """Refuses equal files in two splits, or warns of them if they are to be allowed; warns of near-duplicates.

    Args:
      origin: the source, for the sentences.
      found: the pictures with their splits.
      pairs: from `duplicates.pairs`.
      allow: whether equal files are only warned of. A perceptual hash can err, so near-duplicates always are.
      warn: is told the warnings.

    Raises:
      UserError: equal files lie in two splits; the sentence names some and says how to go on.
    """
    equal = across(found, [pair for pair in pairs if pair.exact])
    if equal:
        sentence = f"{len(equal)} picture(s) of {origin} lie in more than one split: {_named(origin, found, equal)}"
        if not allow:
            raise UserError(
                f"{sentence}; flaxtl doctor shows them all: remove them from one split, or train all the same with"
                " --config.data.allow_leaks=true"
            )
        warn(f"{sentence}; measures on these are flattered")
    similar = [group for group in across(found, pairs) if group not in equal]
    if similar:
        warn(
            f"{len(similar)} picture(s) of {origin} look nearly the same in more than one split:"
            f" {_named(origin, found, similar)}; flaxtl doctor shows them all"
        )


def check_labels(origin: str, found: Sequence[Found], pairs: Sequence[Pair], warn: Callable[[str], None]) -> None:
    """Warns of equal files that have different labels; arguments as of `check`."""
    torn = across(found, [pair for pair in pairs if pair.exact], "label")
    if torn:
        warn(
            f"{len(torn)} picture(s) of {origin} have more than one label: {_named(origin, found, torn, 'label')};"
            " flaxtl doctor shows them all"
        )


def across(found: Sequence[Found], pairs: Sequence[Pair], differing: str = "split") -> list[list[int]]:
    """The sets of like pictures, by index, that have more than one value of the field `differing`."""
    groups = duplicates.groups(len(found), pairs)
    return [group for group in groups if len({getattr(found[index], differing) for index in group}) > 1]


def _named(origin: str, found: Sequence[Found], groups: Sequence[Sequence[int]], differing: str = "split") -> str:
    """Of each group one picture for each value of the field `differing`."""
    first = ([found[index] for index in group] for group in groups[:_LISTED])
    told = [" = ".join(_one_of_each(origin, alike, differing)) for alike in first]
    return ", ".join(told) + (f" and {len(groups) - _LISTED} more" if len(groups) > _LISTED else "")


def _one_of_each(origin: str, alike: Sequence[Found], differing: str) -> list[str]:
    paths = {getattr(picture, differing): picture.path for picture in alike}
    return [
        f"{path.relative_to(origin) if path.is_relative_to(origin) else path} ({where})"
        for where, path in paths.items()
    ]
