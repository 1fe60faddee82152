"""`flaxtl doctor`: a source examined, and what was found as tables on a terminal."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, RenderableType
from rich.text import Text

from flaxtl import fileio
from flaxtl.console import make_table, printable, progress_bar, truncate_rows
from flaxtl.data import doctor
from flaxtl.data.doctor import ISSUE_TYPES, DatasetReport, Issue, IssueType
from flaxtl.data.image_file import UnreadableError
from flaxtl.data.sources import base
from flaxtl.errors import UserError
from flaxtl.fileio import atomic_write
from flaxtl.report import galleries
from flaxtl.report.templating import load_template

_EXAMPLES = 3  # findings of a kind that its row tells, and files of a finding; --json and --html tell more


def diagnose_source(source: str, near_duplicates: int, console: Console) -> DatasetReport:
    """Examine a source under progress bars; see `check_dataset`. Raises UserError where there is no such source."""
    survey = base.inspect_source(source, fileio.cache_dir("data"))
    return doctor.check_dataset(survey, lambda title, total: progress_bar(console, title, total), near_duplicates)


def doctor_tables(diagnosis: DatasetReport) -> Iterator[RenderableType]:
    """The images by class and split, what would stop a run, what may spoil its result, and the outcome."""
    if diagnosis.classes:
        yield _images(diagnosis)
    for title, stops in (("Would stop a run", True), ("Worth a look", False)):
        rows = [
            _issue_row(kind, found) for kind, found in diagnosis.by_kind.items() if ISSUE_TYPES[kind].blocking == stops
        ]
        if rows:
            yield make_table(title, ("finding", "count", "such as, and what to do"), rows)
    yield Text(result_line(diagnosis))


def result_line(diagnosis: DatasetReport) -> str:
    """The result in one line: '2,570 images of 5 classes: nothing would stop a run'."""
    images = f"{_counted(len(diagnosis.index.images), 'image')} of {_counted(len(diagnosis.classes), 'class')}"
    found = _counted(diagnosis.num_blocking, "finding") if diagnosis.num_blocking else "nothing"
    return f"{images}: {found} would stop a run"


def short_path(path: Path) -> str:
    """The last three parts of a path, by which a person finds it: split, class and file name, where they lie so."""
    return printable("/".join(path.parts[-3:]))


def _counted(number: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number:,} {noun if number == 1 else plural}"


def _images(diagnosis: DatasetReport) -> RenderableType:
    splits = tuple(diagnosis.splits)
    rows = [
        (printable(label), *(f"{diagnosis.counts[label, split]:,}" for split in splits), f"{total:,}")
        for label, total in diagnosis.classes.items()
    ]
    return make_table("Images", ("class", *splits, "all"), truncate_rows(rows, " classes, all in --json=FILE"))


def _issue_row(kind: str, findings: Sequence[Issue]) -> tuple[str, str, str]:
    told = [_spelled(finding) for finding in findings[:_EXAMPLES]]
    if len(findings) > _EXAMPLES:
        told.append(f"and {len(findings) - _EXAMPLES:,} more")
    return ISSUE_TYPES[kind].title, f"{len(findings):,}", "\n".join((*told, f"→ {ISSUE_TYPES[kind].advice}"))


def _spelled(finding: Issue) -> str:
    """A file and its sentence in one line, or the sentence above the files that it is about."""
    names = [short_path(path) for path in finding.paths[:_EXAMPLES]]
    if len(finding.paths) > _EXAMPLES:
        names.append(f"and {len(finding.paths) - _EXAMPLES:,} more")
    message = printable(finding.message)
    return f"{names[0]}: {message}" if len(names) == 1 else "\n  ".join((message, *names))


TILE_SIZE = 128  # pixels of the longer side of a thumbnail
TILE_QUALITY = 75  # of its JPEG: about 4 kB
ITEMS, MEMBERS = 48, 6  # findings of a kind that are shown, and files of a finding: a page of 1 or 2 MB


@dataclass(frozen=True)
class ImageTile:
    """One file: its thumbnail as a data URI ('' where there is none), the end of its path, and the whole of it."""

    uri: str
    place: str
    path: str


@dataclass(frozen=True)
class IssueItem:
    """One finding: its sentence, the files that are shown, and how many more there are."""

    message: str
    tiles: Sequence[ImageTile]
    more: int


@dataclass(frozen=True)
class IssueSection:
    """The findings of one kind.

    Attributes:
        key: the kind's key in `doctor.ISSUE_TYPES`.
        kind: what is said about all of them.
        count: how many there are.
        items: the first ITEMS of them.
        shape: 'groups' where a finding is about files that belong together, 'thumbnails' where each is about one that
            can be shown, else 'lines'.
    """

    key: str
    kind: IssueType
    count: int
    items: Sequence[IssueItem]
    shape: str


def write_doctor_report(diagnosis: DatasetReport, source: str, file: Path) -> None:
    """Write the page; `source` as the user wrote it. Raises UserError where `file` cannot be written."""
    page = render_doctor_report(diagnosis, source)
    try:
        with atomic_write(file) as stream:
            stream.write(page)
    except OSError as error:
        raise UserError(f"cannot write {file} ({error.strerror}); choose another file") from error


def render_doctor_report(diagnosis: DatasetReport, source: str) -> str:
    """The page as text."""
    return load_template("doctor.html.jinja").render(
        source=source,
        images=len(diagnosis.index.images),
        classes=diagnosis.classes,
        splits=diagnosis.splits,
        counts=diagnosis.counts,
        findings=len(diagnosis.issues),
        stopping=diagnosis.num_blocking,
        sections=[_section(key, findings) for key, findings in diagnosis.by_kind.items()],
    )


def _section(key: str, findings: Sequence[Issue]) -> IssueSection:
    items = [_item(finding) for finding in findings[:ITEMS]]
    if any(len(item.tiles) > 1 for item in items):
        shape = "groups"
    else:
        shape = "thumbnails" if any(tile.uri for item in items for tile in item.tiles) else "lines"
    return IssueSection(key, ISSUE_TYPES[key], len(findings), items, shape)


def _item(finding: Issue) -> IssueItem:
    tiles = [ImageTile(_thumbnail(path), short_path(path), str(path)) for path in finding.paths[:MEMBERS]]
    return IssueItem(finding.message, tiles, len(finding.paths) - len(tiles))


def _thumbnail(path: Path) -> str:
    """The image as a data URI; '' for what is no image."""
    try:
        return galleries.thumbnail_uri(path, TILE_SIZE, TILE_QUALITY)
    except UnreadableError:
        return ""
