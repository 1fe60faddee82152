"""`flaxtl doctor`: check a dataset, and show the issues as tables on the console and as an HTML page."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console, RenderableType
from rich.text import Text

from flaxtl import fileio
from flaxtl.console import make_table, printable, progress_bar, truncate_rows
from flaxtl.data import doctor
from flaxtl.data.doctor import ISSUE_TYPES, DatasetReport, Issue, IssueType
from flaxtl.data.image_file import UnreadableError
from flaxtl.data.sources.base import inspect_source
from flaxtl.report.photos import thumbnail_uri
from flaxtl.report.templating import load_template

MAX_CONSOLE_EXAMPLES = 3  # issues of each type on the console, and files of each issue
MAX_PAGE_ISSUES, MAX_PAGE_FILES = 48, 6  # issues of each type on the page, and files of each issue: 1 or 2 MB
MAX_SIDE, JPEG_QUALITY = 128, 75  # of a thumbnail: about 4 kB


@dataclass(frozen=True)
class FileThumbnail:
    """One file on the page: its thumbnail as a data URI ("" if it cannot be read), the end of its path, its path."""

    uri: str
    short_path: str
    path: str


@dataclass(frozen=True)
class IssueItem:
    """One issue on the page, with its first files and the number of the others."""

    message: str
    files: Sequence[FileThumbnail]
    num_more: int


@dataclass(frozen=True)
class IssueSection:
    """All issues of one type.

    Attributes:
      key: of the type in ISSUE_TYPES.
      type: title and advice.
      count: number of issues.
      items: the first MAX_PAGE_ISSUES of them.
      layout: 'groups' if an issue has several files, 'thumbnails' if each has one readable image, else 'lines'.
    """

    key: str
    type: IssueType
    count: int
    items: Sequence[IssueItem]
    layout: Literal["groups", "thumbnails", "lines"]


def diagnose_source(source: str, near_duplicates: int, console: Console) -> DatasetReport:
    """Check a data source and show progress bars; see `doctor.check_dataset`.

    Raises UserError if the source does not exist.
    """
    index = inspect_source(source, fileio.cache_dir("data"))
    return doctor.check_dataset(index, lambda title, total: progress_bar(console, title, total), near_duplicates)


def doctor_tables(diagnosis: DatasetReport, source: str) -> Iterator[RenderableType]:
    """Yield tables of the images, of errors that stop training and of warnings, and the result with the next command.

    Args:
      diagnosis: the result of `diagnose_source`.
      source: the source as the user has written it.
    """
    if diagnosis.classes:
        yield _image_table(diagnosis)
    for title, blocking in (("Errors that stop training", True), ("Warnings", False)):
        rows = [
            _issue_row(ISSUE_TYPES[key], issues)
            for key, issues in diagnosis.by_kind.items()
            if ISSUE_TYPES[key].blocking == blocking
        ]
        if rows:
            yield make_table(title, ("issue", "count", "examples, and what to do"), rows)
    yield Text(result_line(diagnosis))
    if not diagnosis.num_blocking:
        command = f"flaxtl train {printable(shlex.quote(source))}"
        yield Text(f"Train on them: {command}", no_wrap=True, overflow="ignore")


def result_line(diagnosis: DatasetReport) -> str:
    """Return the result in one line: '2,570 images of 5 classes: no errors found'."""
    images = f"{_count(len(diagnosis.index.images), 'image')} of {_count(len(diagnosis.classes), 'class')}"
    errors = _count(diagnosis.num_blocking, "error") if diagnosis.num_blocking else "no errors"
    return f"{images}: {errors} found"


def short_path(path: Path) -> str:
    """Return the last three parts of a path, usually split, class and file name."""
    return printable("/".join(path.parts[-3:]))


def _count(number: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number:,} {noun if number == 1 else plural}"


def _image_table(diagnosis: DatasetReport) -> RenderableType:
    splits = tuple(diagnosis.splits)
    rows = [
        (printable(label), *(f"{diagnosis.counts[label, split]:,}" for split in splits), f"{total:,}")
        for label, total in diagnosis.classes.items()
    ]
    return make_table("Images", ("class", *splits, "all"), truncate_rows(rows, " classes, all in --json=FILE"))


def _issue_row(issue_type: IssueType, issues: Sequence[Issue]) -> tuple[str, str, str]:
    lines = [_describe(issue) for issue in issues[:MAX_CONSOLE_EXAMPLES]]
    if len(issues) > MAX_CONSOLE_EXAMPLES:
        lines.append(f"and {len(issues) - MAX_CONSOLE_EXAMPLES:,} more")
    return issue_type.title, f"{len(issues):,}", "\n".join((*lines, f"→ {issue_type.advice}"))


def _describe(issue: Issue) -> str:
    """Return 'file: message' for one file, or the message followed by the files on separate lines."""
    names = [short_path(path) for path in issue.paths[:MAX_CONSOLE_EXAMPLES]]
    if len(issue.paths) > MAX_CONSOLE_EXAMPLES:
        names.append(f"and {len(issue.paths) - MAX_CONSOLE_EXAMPLES:,} more")
    message = printable(issue.message)
    return f"{names[0]}: {message}" if len(names) == 1 else "\n  ".join((message, *names))


def render_doctor_report(diagnosis: DatasetReport, source: str) -> str:
    """Return the page as HTML; `source` is shown as given."""
    return load_template("doctor.html.jinja").render(
        source=source,
        num_images=len(diagnosis.index.images),
        classes=diagnosis.classes,
        splits=diagnosis.splits,
        counts=diagnosis.counts,
        num_issues=len(diagnosis.issues),
        num_errors=diagnosis.num_blocking,
        sections=[_section(key, issues, diagnosis.bit_depth) for key, issues in diagnosis.by_kind.items()],
    )


def _section(key: str, issues: Sequence[Issue], bit_depth: int) -> IssueSection:
    items = [_item(issue, bit_depth) for issue in issues[:MAX_PAGE_ISSUES]]
    layout: Literal["groups", "thumbnails", "lines"] = "lines"
    if any(len(item.files) > 1 for item in items):
        layout = "groups"
    elif any(file.uri for item in items for file in item.files):
        layout = "thumbnails"
    return IssueSection(key, ISSUE_TYPES[key], len(issues), items, layout)


def _item(issue: Issue, bit_depth: int) -> IssueItem:
    files = [
        FileThumbnail(_thumbnail_or_empty(path, bit_depth), short_path(path), str(path))
        for path in issue.paths[:MAX_PAGE_FILES]
    ]
    return IssueItem(issue.message, files, len(issue.paths) - len(files))


def _thumbnail_or_empty(path: Path, bit_depth: int) -> str:
    try:
        return thumbnail_uri(path, MAX_SIDE, JPEG_QUALITY, bit_depth)
    except UnreadableError:
        return ""
