"""What `flaxtl doctor` found as one HTML page, with the pictures themselves; it asks nothing of the network."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flaxtl.data.doctor import KINDS, Diagnosis, Finding, Kind
from flaxtl.data.unpack import UnreadableError
from flaxtl.errors import UserError
from flaxtl.files import whole
from flaxtl.results import thumbnail
from flaxtl.results.checkup import place
from flaxtl.results.pages import template

SIDE = 128  # pixels of the longer side of a thumbnail
QUALITY = 75  # of its JPEG: about 4 kB
ITEMS, MEMBERS = 48, 6  # findings of a kind that are shown, and files of a finding: a page of 1 or 2 MB


@dataclass(frozen=True)
class Tile:
    """One file: its thumbnail as a data URI ('' where there is none), the end of its path, and the whole of it."""

    uri: str
    place: str
    path: str


@dataclass(frozen=True)
class Item:
    """One finding: its sentence, the files that are shown, and how many more there are."""

    message: str
    tiles: Sequence[Tile]
    more: int


@dataclass(frozen=True)
class Section:
    """The findings of one kind.

    Attributes:
        key: the kind's key in `doctor.KINDS`.
        kind: what is said about all of them.
        count: how many there are.
        items: the first ITEMS of them.
        shape: 'groups' where a finding is about files that belong together, 'thumbnails' where each is about one that
            can be shown, else 'lines'.
    """

    key: str
    kind: Kind
    count: int
    items: Sequence[Item]
    shape: str


def write(diagnosis: Diagnosis, source: str, file: Path) -> None:
    """Write the page; `source` as the user wrote it. Raises UserError where `file` cannot be written."""
    page = render(diagnosis, source)
    try:
        with whole(file) as stream:
            stream.write(page)
    except OSError as error:
        raise UserError(f"cannot write {file} ({error.strerror}); choose another file") from error


def render(diagnosis: Diagnosis, source: str) -> str:
    """The page as text."""
    return template("doctor.html.jinja").render(
        source=source,
        pictures=len(diagnosis.listing.found),
        classes=diagnosis.classes,
        splits=diagnosis.splits,
        counts=diagnosis.counts,
        findings=len(diagnosis.findings),
        stopping=diagnosis.stopping,
        sections=[_section(key, findings) for key, findings in diagnosis.by_kind.items()],
    )


def _section(key: str, findings: Sequence[Finding]) -> Section:
    items = [_item(finding) for finding in findings[:ITEMS]]
    if any(len(item.tiles) > 1 for item in items):
        shape = "groups"
    else:
        shape = "thumbnails" if any(tile.uri for item in items for tile in item.tiles) else "lines"
    return Section(key, KINDS[key], len(findings), items, shape)


def _item(finding: Finding) -> Item:
    tiles = [Tile(_thumbnail(path), place(path), str(path)) for path in finding.paths[:MEMBERS]]
    return Item(finding.message, tiles, len(finding.paths) - len(tiles))


def _thumbnail(path: Path) -> str:
    """The picture as a data URI; '' for what is no picture."""
    try:
        return thumbnail.of_file(path, SIDE, QUALITY)
    except UnreadableError:
        return ""
