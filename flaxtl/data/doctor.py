"""The health of a data set: what would stop a run, and what may spoil its result. Nothing is ever changed."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from flaxtl.data import duplicates, examine, fingerprint, splitting
from flaxtl.data.examine import Facts, Fault
from flaxtl.data.fingerprint import Fingerprint
from flaxtl.data.listing import Found, Listing, Survey
from flaxtl.errors import UserError, listed
from flaxtl.recipe import DEFAULTS

Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""A progress bar of a title and a total, as a context; it gives the function that advances it."""

SMALL = 32
"""Pixels of a side below which a picture is called tiny: the smallest input that the catalog's VGG networks take."""

FEW = 10
"""A class of fewer pictures is named: of those, validation gets one or two, a fifth by default."""

UNEVEN = 10
"""A largest class of more than so many times the smallest is named."""


@dataclass(frozen=True)
class Kind:
    """What findings of one kind have in common: whether they stop a run, a title, and what to do about them."""

    stops: bool
    title: str
    advice: str


_BROKEN = "replace or remove; or --config.data.on_error=skip"

KINDS: Mapping[str, Kind] = {
    "layout": Kind(True, "Layout", "arrange the pictures as the sentence says"),
    "too-small": Kind(True, "Class too small to split", "add pictures; or another --config.data.fractions"),
    "unreadable": Kind(True, "Unreadable", _BROKEN),
    "empty": Kind(True, "Empty", _BROKEN),
    "not-a-picture": Kind(True, "Not a picture", _BROKEN),
    "truncated": Kind(True, "Truncated or damaged", _BROKEN),
    "oversized": Kind(True, "Oversized", _BROKEN),
    "unconvertible": Kind(True, "Not convertible to RGB", _BROKEN),
    "changed": Kind(True, "Changed since it was listed", "restore it, or remove the column sha256"),
    "leak": Kind(True, "Leak between splits", "keep it in one split; or --config.data.allow_leaks=true"),
    "near-leak": Kind(False, "Near-duplicate across splits", "keep it in one split"),
    "label-conflict": Kind(False, "Label conflict", "keep the right label only"),
    "duplicate": Kind(False, "Duplicate", "keep one: copies weigh a picture more"),
    "near-duplicate": Kind(False, "Near-duplicate", "nothing, if it is a series"),
    "suffix": Kind(False, "Misnamed", "nothing: the content counts"),
    "tiny": Kind(False, "Tiny", "remove it if it is a stray thumbnail"),
    "single-colour": Kind(False, "Single colour", "remove it if it is a placeholder"),
    "mode": Kind(False, "Converted pixels", "nothing: transparency becomes white, 16 bits become 8"),
    "rotated": Kind(False, "Rotated by EXIF", "nothing: it is read upright; Keras and tf.image would not"),
    "animated": Kind(False, "Several frames", "nothing, if the first tells enough: only that is used"),
    "passed-over": Kind(False, "Passed over", "nothing, if it is not meant to be a picture"),
    "few": Kind(False, "Small class", "add pictures: so few teach and measure little"),
    "imbalance": Kind(False, "Class imbalance", "--config.class_weights=balanced, or data.sampling=balanced"),
}
"""Every kind of finding, the gravest first."""

_FORMATS = {
    ".avif": "AVIF",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".jfif": "JPEG",
    ".jpeg": "JPEG",
    ".jpg": "JPEG",
    ".pbm": "PPM",
    ".pgm": "PPM",
    ".png": "PNG",
    ".ppm": "PPM",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
}
"""What each suffix of `decode.EXTENSIONS` promises."""


@dataclass(frozen=True)
class Finding:
    """One thing found: its kind (a key of KINDS), the files it is about (none for a class), and a plain sentence."""

    kind: str
    paths: tuple[Path, ...]
    message: str

    @property
    def severity(self) -> str:
        """'stops' where a run would stop, 'warns' where it would go on."""
        return "stops" if KINDS[self.kind].stops else "warns"


@dataclass(frozen=True)
class Diagnosis:
    """What a data set holds, and what was found in it, the gravest first."""

    listing: Listing
    findings: tuple[Finding, ...]

    @cached_property
    def counts(self) -> Counter[tuple[str, str]]:
        """Pictures by class and split; the split is '' where none is given."""
        return Counter((one.label, one.split or "") for one in self.listing.found)

    @property
    def classes(self) -> dict[str, int]:
        """Pictures of each class, sorted by name."""
        return dict(sorted(Counter(one.label for one in self.listing.found).items()))

    @property
    def splits(self) -> dict[str, int]:
        """Pictures of each given split, in the order train, validation, test."""
        return {split: sum(one.split == split for one in self.listing.found) for split in self.listing.splits}

    @property
    def stopping(self) -> int:
        """How many of the findings would stop a run."""
        return sum(finding.severity == "stops" for finding in self.findings)

    @property
    def by_kind(self) -> dict[str, list[Finding]]:
        """The findings of each kind that was found."""
        kinds: dict[str, list[Finding]] = {}
        for finding in self.findings:
            kinds.setdefault(finding.kind, []).append(finding)
        return kinds

    def as_json(self, source: str) -> dict[str, Any]:
        """All of it as JSON values; `source` as the user wrote it."""
        return {
            "source": source,
            "pictures": len(self.listing.found),
            "classes": self.classes,
            "splits": self.splits,
            "findings": [
                {
                    "kind": finding.kind,
                    "severity": finding.severity,
                    "paths": [str(path) for path in finding.paths],
                    "message": finding.message,
                }
                for finding in self.findings
            ],
            "stops": self.stopping > 0,
        }


def diagnose(survey: Survey, bar: Bar, near_duplicates: int = 4) -> Diagnosis:
    """Unpack every picture, compare all of them, and tell what is wrong.

    Args:
      survey: what the source holds, in whatever state it is.
      bar: shows the progress of the two passes over the files.
      near_duplicates: perceptual hashes that differ in at most so many of their 64 bits count as the same picture;
        -1 compares bytes only.

    Raises:
      UserError: `near_duplicates` is out of the range of `duplicates.pairs`. Nothing in the files raises.
    """
    duplicates.check_threshold(near_duplicates)
    found = survey.listing.found
    paths = [one.path for one in found]
    with bar("examining pictures", len(paths)) as advance:
        facts = examine.all_of(paths, lambda done: advance(1))
    sound = [one for one, fact in zip(found, facts, strict=True) if isinstance(fact, Facts)]
    with bar("comparing pictures", len(sound)) as advance:
        prints = fingerprint.of([one.path for one in sound], lambda done: advance(1))
    groups = duplicates.groups(len(sound), duplicates.pairs(prints, near_duplicates))
    findings = [
        *(Finding("layout", (), complaint) for complaint in survey.complaints),
        *(finding for path, fact in zip(paths, facts, strict=True) for finding in _of_file(path, fact)),
        *_of_bytes(sound, prints),
        *_of_looks(sound, prints, groups),
        *(Finding("passed-over", (path,), "no picture by its suffix") for path in survey.passed_over),
        *_of_classes(survey.listing),
        *_of_split(sound, groups),
    ]
    order = list(KINDS)
    return Diagnosis(survey.listing, tuple(sorted(findings, key=lambda finding: order.index(finding.kind))))


def _of_file(path: Path, fact: Facts | Fault) -> Iterator[Finding]:
    """What one file alone tells."""
    if isinstance(fact, Fault):
        yield Finding(fact.kind, (path,), fact.reason)
        return
    claimed = _FORMATS.get(path.suffix.lower())
    actual = "JPEG" if fact.format == "MPO" else fact.format
    if claimed not in (None, actual):
        yield Finding("suffix", (path,), f"{path.suffix} by name, {actual} by content")
    if min(fact.width, fact.height) < SMALL:
        yield Finding("tiny", (path,), f"{fact.width} × {fact.height} pixels")
    if fact.flat:
        yield Finding("single-colour", (path,), "every pixel has the same colour")
    if fact.mode not in ("RGB", "L"):
        yield Finding("mode", (path,), f"stored as {fact.mode}, read as RGB")
    if fact.orientation != 1:
        yield Finding("rotated", (path,), f"turned or mirrored by its EXIF orientation {fact.orientation}")
    if fact.frames > 1:
        yield Finding("animated", (path,), f"{fact.frames} frames, of which the first is used")


def _of_bytes(found: Sequence[Found], prints: Sequence[Fingerprint]) -> Iterator[Finding]:
    """What the contents of the files tell: which are another one's, and which are not what a list says."""
    identical: dict[str, list[Found]] = defaultdict(list)
    for one, own in zip(found, prints, strict=True):
        identical[own.sha256].append(one)
        if one.sha256 not in (None, own.sha256):
            yield Finding("changed", (one.path,), "its SHA-256 is not the one that is listed")
    for members in identical.values():
        if len(members) > 1:
            yield from _of_group(members, "the same bytes", "leak", "duplicate")


def _of_looks(
    found: Sequence[Found], prints: Sequence[Fingerprint], groups: Sequence[Sequence[int]]
) -> Iterator[Finding]:
    """What pictures that look the same tell, beyond what `_of_bytes` does."""
    for group in groups:
        if len({prints[i].sha256 for i in group}) > 1:
            yield from _of_group([found[i] for i in group], "almost the same picture", "near-leak", "near-duplicate")


def _of_group(members: Sequence[Found], what: str, leak: str, copies: str) -> Iterator[Finding]:
    """What a group of pictures that are one picture means: a leak, a label conflict or both, else mere copies."""
    paths = tuple(one.path for one in members)
    labels = sorted({one.label for one in members})
    splits = list(dict.fromkeys(one.split for one in members if one.split))
    if len(splits) > 1:
        yield Finding(leak, paths, f"{what} in {listed(splits)}")
    if len(labels) > 1:
        yield Finding("label-conflict", paths, f"{what} under {listed(labels)}")
    if len(splits) < 2 and len(labels) < 2:
        yield Finding(copies, paths, f"{what} in {len(members)} files of {labels[0]}")


def _of_classes(listing: Listing) -> Iterator[Finding]:
    """What the numbers of pictures tell."""
    counts = Counter(one.label for one in listing.found)
    for label, n in sorted(counts.items()):
        if n < FEW:
            yield Finding("few", (), f"{label} holds {n} picture{'s' if n > 1 else ''}")
    if counts:
        (large, most), (small, least) = counts.most_common()[0], counts.most_common()[-1]
        if most > UNEVEN * least:
            yield Finding("imbalance", (), f"{large} holds {most:,} pictures, {small} {least:,}")


def _of_split(found: Sequence[Found], groups: Sequence[Sequence[int]]) -> Iterator[Finding]:
    """Whether pictures without given splits can be split as a recipe does that says nothing about it."""
    if found and not any(one.split for one in found):
        try:
            splitting.deal(
                [one.label for one in found], groups, DEFAULTS.data.fractions.to_dict(), 0, lambda told: None
            )
        except UserError as error:
            yield Finding("too-small", (), str(error))
