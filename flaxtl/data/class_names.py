"""Class names that look alike: different spaces, upper case, or forms of the same Unicode characters."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable

from flaxtl.errors import join_names


def similar_classes(classes: Iterable[str]) -> list[tuple[str, ...]]:
    """Return the groups of class names that differ in upper case, spaces or Unicode forms only, sorted."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(classes):
        groups[_skeleton(name)].append(name)
    return sorted(tuple(names) for names in groups.values() if len(names) > 1)


def _skeleton(name: str) -> str:
    """Return what names that look alike have in common."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    visible = "".join(char for char in folded if unicodedata.category(char) != "Cf")  # zero-width characters
    return " ".join(visible.split())


def show_difference(names: Iterable[str]) -> str:
    """Return similar names so that their difference shows: "'rose' / 'rose '", "'gänse' (NFC) / 'gänse' (NFD)"."""
    names = list(names)
    composed = [unicodedata.normalize("NFC", name) for name in names]
    return " / ".join(
        _show(name) + (f" ({_form(name)})" if composed.count(composed[i]) > 1 else "") for i, name in enumerate(names)
    )


def _show(name: str) -> str:
    """Return the quoted name, with escapes if it has characters that are invisible or look like a space."""
    hidden = any(unicodedata.category(char) in ("Cf", "Zs") and char != " " for char in name)
    return ascii(name) if hidden else repr(name)


def _form(name: str) -> str:
    return next((form for form in ("NFC", "NFD") if unicodedata.is_normalized(form, name)), "mixed Unicode forms")


def explain_missing(missing: Iterable[str], present: Iterable[str]) -> str:
    """Return ', but these names look alike: ...' for missing names that are present in another form; '' if none is."""
    absent, others = set(missing), set(present)
    groups = [names for names in similar_classes(absent | others) if absent & set(names) and others & set(names)]
    return f", but these names look alike: {join_names(map(show_difference, groups))}" if groups else ""


def describe_similar(classes: Iterable[str]) -> str | None:
    """Return a warning about classes that look alike, or None if there are none."""
    groups = similar_classes(classes)
    if not groups:
        return None
    shown = join_names([show_difference(names) for names in groups])
    return f"Classes that look alike are trained as separate classes: {shown}. Rename them if they are the same."
