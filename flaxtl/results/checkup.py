"""`flaxtl doctor`: a source examined, and what was found as tables on a terminal."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console, RenderableType
from rich.text import Text

from flaxtl import cache
from flaxtl.data import doctor, sources
from flaxtl.data.doctor import KINDS, Diagnosis, Finding
from flaxtl.terminal import advancing, printable, screenful, table

_EXAMPLES = 3  # findings of a kind that its row tells, and files of a finding; --json and --html tell more


def of_source(source: str, near_duplicates: int, console: Console) -> Diagnosis:
    """Examine a source under progress bars; see `doctor.diagnose`. Raises UserError where there is no such source."""
    survey = sources.survey(source, cache.directory("data"))
    return doctor.diagnose(survey, lambda title, total: advancing(console, title, total), near_duplicates)


def tables(diagnosis: Diagnosis) -> Iterator[RenderableType]:
    """The pictures by class and split, what would stop a run, what may spoil its result, and the outcome."""
    if diagnosis.classes:
        yield _pictures(diagnosis)
    for title, stops in (("Would stop a run", True), ("Worth a look", False)):
        rows = [_row(kind, found) for kind, found in diagnosis.by_kind.items() if KINDS[kind].stops == stops]
        if rows:
            yield table(title, ("finding", "count", "such as, and what to do"), rows)
    yield Text(outcome(diagnosis))


def outcome(diagnosis: Diagnosis) -> str:
    """The result in one line: '2,570 pictures of 5 classes: nothing would stop a run'."""
    pictures = f"{_counted(len(diagnosis.listing.found), 'picture')} of {_counted(len(diagnosis.classes), 'class')}"
    found = _counted(diagnosis.stopping, "finding") if diagnosis.stopping else "nothing"
    return f"{pictures}: {found} would stop a run"


def place(path: Path) -> str:
    """The last three parts of a path, by which a person finds it: split, class and file name, where they lie so."""
    return printable("/".join(path.parts[-3:]))


def _counted(number: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number:,} {noun if number == 1 else plural}"


def _pictures(diagnosis: Diagnosis) -> RenderableType:
    splits = tuple(diagnosis.splits)
    rows = [
        (printable(label), *(f"{diagnosis.counts[label, split]:,}" for split in splits), f"{total:,}")
        for label, total in diagnosis.classes.items()
    ]
    return table("Pictures", ("class", *splits, "all"), screenful(rows, " classes, all in --json=FILE"))


def _row(kind: str, findings: Sequence[Finding]) -> tuple[str, str, str]:
    told = [_told(finding) for finding in findings[:_EXAMPLES]]
    if len(findings) > _EXAMPLES:
        told.append(f"and {len(findings) - _EXAMPLES:,} more")
    return KINDS[kind].title, f"{len(findings):,}", "\n".join((*told, f"→ {KINDS[kind].advice}"))


def _told(finding: Finding) -> str:
    """A file and its sentence in one line, or the sentence above the files that it is about."""
    names = [place(path) for path in finding.paths[:_EXAMPLES]]
    if len(finding.paths) > _EXAMPLES:
        names.append(f"and {len(finding.paths) - _EXAMPLES:,} more")
    message = printable(finding.message)
    return f"{names[0]}: {message}" if len(names) == 1 else "\n  ".join((message, *names))
