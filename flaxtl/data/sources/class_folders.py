"""Class folders with the encoded images of a published dataset, byte for byte."""

import os
from collections.abc import Sequence
from pathlib import Path

from flaxtl.data import heif
from flaxtl.data.image_file import FORMAT_SUFFIXES, SIGNATURE_BYTES, matching_formats
from flaxtl.errors import UserError

NOTES_NAME = ".notes.txt"
"""Hidden file in the folder of an exported dataset: one line for each kind of image that was left out."""

MAX_NAME = 255
"""Bytes of the name of a file or folder on the file systems of Linux; no other allows more."""


def write_notes(folder: Path, notes: Sequence[str]) -> None:
    """Keep notes on an export in its folder; see `read_notes`."""
    if notes:
        (folder / NOTES_NAME).write_text("\n".join(notes), encoding="utf-8")


def read_notes(folder: Path) -> tuple[str, ...]:
    """Return what `write_notes` wrote to an exported folder."""
    file = folder / NOTES_NAME
    return tuple(file.read_text(encoding="utf-8").splitlines()) if file.exists() else ()


class ClassFolders:
    """Writes images to FOLDER/CLASS, where FOLDER is that of the dataset or of one of its splits.

    A '/' in a class name becomes '-'.

    Args:
      dataset: how errors name the dataset.
    """

    def __init__(self, dataset: str) -> None:
        self._dataset = dataset
        self._labels: dict[str, str] = {}  # name of a class folder -> class

    def check(self, label: str) -> str:
        """Return the name of a class' folder. Raises UserError for a name that is invalid or that two classes share."""
        name = label.replace("/", "-")
        if self._labels.setdefault(name, label) != label:
            raise UserError(f"{self._dataset} has two classes with the folder name {name!r}. Export it yourself.")
        is_hidden = name.startswith(".")  # '..' would lead outside; hidden folders are not listed
        if is_hidden or not name or "\0" in name or len(os.fsencode(name)) > MAX_NAME:
            raise UserError(f"{self._dataset} has the class {label!r}, which cannot be a folder. Export it yourself.")
        return name

    def relative_path(self, label: str, stem: str, start: bytes) -> str:
        """Return CLASS/`stem`.SUFFIX; the suffix follows from the first SIGNATURE_BYTES of the image.

        Raises:
          UserError: it is not an image of a known format, or the name of the class is not one of a folder.
        """
        formats = matching_formats(start)
        if not formats:
            raise UserError(f"{self._dataset} contains an image of an unknown format: {stem}")
        suffix = FORMAT_SUFFIXES.get(formats[0], (heif.SUFFIX,))[0]
        return f"{self.check(label)}/{stem}{suffix}"

    def write(self, folder: Path, label: str, stem: str, image: bytes) -> None:
        """Write an image of the class `label` below `folder`; see `relative_path` for its name and for errors."""
        path = folder / self.relative_path(label, stem, image[:SIGNATURE_BYTES])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
