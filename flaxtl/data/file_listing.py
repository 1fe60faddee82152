"""Decide which files of a folder are images, and list those below it: one answer for every command."""

import os
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from flaxtl.data import heif
from flaxtl.data.decode import EXTENSIONS
from flaxtl.data.image_file import (
    FORMATS,
    RAW_ADVICE,
    RAW_SUFFIXES,
    SIGNATURE_BYTES,
    foreign_format,
    matching_formats,
)
from flaxtl.data.record_files import image_exists
from flaxtl.errors import UserError, join_names
from flaxtl.fileio import user_path

JUNK = frozenset(("__macosx", "thumbs.db", "desktop.ini", "@eadir"))
"""Names, in lower case, that file managers and network storage (Synology's thumbnails) write."""

# Formats that the first bytes tell for certain: files of them that cannot be decoded are reported, not skipped.
_CLEAR_FORMATS = frozenset(("JPEG", "PNG", "GIF", "WEBP", heif.FORMAT))

_UNPACK = {
    (".zip",): "unzip {file} -d {folder}",
    (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"): "tar -xf {file} -C {folder}",
    (".7z", ".rar"): "7z x {file} -o{folder}",
}
"""Suffixes of archives -> the command that unpacks one."""

_MAX_SUFFIXES = 8  # suffixes that a message lists


class SkippedFile(NamedTuple):
    """A file that flaxtl cannot read as an image, and why: 'unsupported file type', or what it is and what to do."""

    path: Path
    reason: str


class FolderImages(NamedTuple):
    """Image files below a folder, sorted, and the other files."""

    images: list[Path]
    skipped: list[SkippedFile]


def is_visible(path: Path) -> bool:
    """Return whether a file or folder is neither hidden nor one of JUNK."""
    return not path.name.startswith(".") and path.name.lower() not in JUNK


def skip_reason(path: Path) -> str | None:
    """Return why a file is not an image that flaxtl can read, or None if it is one.

    A known suffix is enough, and the decoder reports the file if it is none (a broken link counts, so that it is
    reported as missing). Any other file is an image if its first bytes say so and its header can be read.
    """
    if path.suffix.lower() in EXTENSIONS:
        return None if path.is_file() or not path.exists() else "not a regular file"
    if not path.is_file():  # reading a named pipe would wait forever
        return "not a regular file"
    if path.suffix.lower() in RAW_SUFFIXES:
        return RAW_ADVICE
    if command := _unpack_command(path):
        return f"an archive: unpack it with {command.split()[0]}"
    try:
        with path.open("rb") as file:
            start = file.read(SIGNATURE_BYTES)
    except OSError as error:
        return f"cannot be read ({(error.strerror or str(error)).lower()})"
    if foreign := foreign_format(start):
        return foreign
    formats = matching_formats(start)
    is_image = not _CLEAR_FORMATS.isdisjoint(formats) or (formats and _has_header(path))
    return None if is_image else "unsupported file type"


def unpack_advice(files: Iterable[Path]) -> str:
    """Return 'Unpack photos.zip: unzip a/photos.zip -d a' for the archives among the files; '' without any."""
    commands = {path.name: command for path in files if (command := _unpack_command(path))}
    return f"Unpack {join_names(commands)}: {'; '.join(commands.values())}" if commands else ""


def _unpack_command(path: Path) -> str | None:
    """Return the command that unpacks an archive into the folder that it is in; None for any other file."""
    command = next((text for suffixes, text in _UNPACK.items() if path.name.lower().endswith(suffixes)), None)
    return command and command.format(file=shlex.quote(str(path)), folder=shlex.quote(str(path.parent)))


def _has_header(path: Path) -> bool:
    """Return whether Pillow can read the header: text may begin with the two letters of a BMP or PPM file."""
    try:
        with Image.open(path, formats=FORMATS):
            return True
    except Image.DecompressionBombError:
        return True  # an image, which the decoder reports as too large
    except Exception:  # Pillow's readers raise almost any exception on bytes of something else
        return False


def walk_images(folder: Path, outer: Sequence[Path] = ()) -> FolderImages:
    """Return all images below a folder, also in linked folders; a link to a folder that contains it is not followed.

    Args:
      folder: where to begin.
      outer: the folders around it to which links are not followed either.

    Raises:
      UserError: a folder cannot be read.
    """
    listing = FolderImages([], [])
    for path in _walk(folder, frozenset(map(_inode, outer))):
        if (reason := skip_reason(path)) is None:
            listing.images.append(path)
        else:
            listing.skipped.append(SkippedFile(path, reason))
    listing.images.sort()
    return listing


def find_images(inputs: Sequence[str]) -> FolderImages:
    """Return the image files that `inputs` stand for: files, all images below folders, and matches of globs.

    Sorted within each input, without duplicates. Files are images whatever they are called; in folders,
    `skip_reason` decides.

    Raises:
      UserError: an input matches no image, or a folder cannot be read.
    """
    paths: dict[Path, None] = {}
    skipped: dict[SkippedFile, None] = {}
    for text in inputs:
        path = user_path(text)
        matches = [path]
        if has_magic(text) and not path.exists():
            matches = [Path(match) for match in sorted(glob(str(path), recursive=True))]  # noqa: PTH207
        listings = [walk_images(match) if match.is_dir() else _as_listing(match) for match in matches]
        if not any(listing.images for listing in listings):
            others = [file for listing in listings for file in listing.skipped]
            if advice := unpack_advice(file.path for file in others):
                raise UserError(f"No images found at {text!r}. {advice}")
            reason = f" {describe_skipped(others)}." if others else ""
            raise UserError(f"No images found at {text!r}.{reason} Give image files, folders or glob patterns.")
        for listing in listings:
            paths.update(dict.fromkeys(listing.images))
            skipped.update(dict.fromkeys(listing.skipped))
    return FolderImages(list(paths), list(skipped))


def _as_listing(path: Path) -> FolderImages:
    """Return the listing of one file, which only an archive is not; an empty one if there is no such file."""
    if path.is_file() and unpack_advice([path]):
        return FolderImages([], [SkippedFile(path, "an archive")])
    return FolderImages([path] if image_exists(path) else [], [])


def _walk(folder: Path, outer: frozenset[tuple[int, int]]) -> Iterator[Path]:
    """Yield the visible files below a folder; `outer` are the devices and inodes of the folders around it."""
    try:
        inode = _inode(folder)
        entries = sorted(Path(entry.path) for entry in os.scandir(folder))
    except OSError as error:
        raise UserError(f"Cannot read the folder {folder}: {error.strerror}. Correct its permissions.") from error
    if inode in outer:
        return
    for path in filter(is_visible, entries):
        if path.is_dir():
            yield from _walk(path, outer | {inode})
        else:
            yield path


def _inode(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def describe_skipped(skipped: Sequence[SkippedFile]) -> str:
    """Return one line about skipped files, with the number of each suffix, the most frequent first."""
    counts = Counter(file.path.suffix.lower() or "without suffix" for file in skipped)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    suffixes = [f"{suffix} {n:,}" for suffix, n in ordered[:_MAX_SUFFIXES]]
    if len(ordered) > _MAX_SUFFIXES:
        suffixes.append(f"others {sum(n for _, n in ordered[_MAX_SUFFIXES:]):,}")
    what = "file that is not an image" if len(skipped) == 1 else "files that are not images"
    advice = sorted({file.reason for file in skipped if ":" in file.reason})
    hints = "".join(f". {reason[0].upper()}{reason[1:]}" for reason in advice)
    return f"Skipped {len(skipped):,} {what} flaxtl can read: {', '.join(suffixes)}{hints}"
