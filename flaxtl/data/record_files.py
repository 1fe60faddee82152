"""Open image files, and images that are inside TFRecord files, which have paths as if the record file were a folder.

`FILE/bytes=4711+10324/roses/train_000012.jpg` is the image of 10,324 bytes from byte 4,711 of FILE on. Class folder and
name are those that the image would have as a file of its own, so such paths sort and read as others do.
"""

import errno
import os
import re
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import NamedTuple

from flaxtl.data.tf_example import bytes_field_head

_RANGE = re.compile(r"bytes=(\d{1,18})\+(\d{1,18})")


class RecordImage(NamedTuple):
    """Where the encoded bytes of an image are: `length` bytes from byte `offset` of a TFRecord file on."""

    file: Path
    offset: int
    length: int

    def path(self, relative: str) -> Path:
        """Return the path of the image; `relative` is CLASS/NAME."""
        return self.file / f"bytes={self.offset}+{self.length}" / relative

    def read(self) -> bytes:
        """Return the encoded image. Raises OSError: the file cannot be opened, or has changed."""
        with self._open() as stream:
            return stream.read(self.length)

    def exists(self) -> bool:
        """Return whether `read` would succeed, without reading the image."""
        try:
            self._open().close()
        except OSError:
            return False
        return True

    def _open(self) -> BufferedReader:
        """Open the file where the image begins.

        The bytes before an image tell its length. If they do not, TFDS has written the file anew since it was listed.
        """
        head = bytes_field_head(self.length)
        stream = self.file.open("rb")
        size = stream.seek(0, os.SEEK_END)
        is_inside = len(head) <= self.offset <= size - self.length
        stream.seek(self.offset - len(head) if is_inside else 0)
        if not is_inside or stream.read(len(head)) != head:
            stream.close()
            raise OSError(errno.ESTALE, "its record file has changed since it was listed")
        return stream


def parse_path(path: Path) -> RecordImage | None:
    """Return which part of a record file a path stands for; None: it is an ordinary path."""
    if match := _RANGE.fullmatch(path.parent.parent.name):
        return RecordImage(path.parents[2], int(match[1]), int(match[2]))
    return None


def open_binary(path: Path) -> BufferedReader | BytesIO:
    """Open an image for reading, whether it is a file or inside a record file. Raises OSError."""
    image = parse_path(path)
    return path.open("rb") if image is None else BytesIO(image.read())


def image_exists(path: Path) -> bool:
    """Return whether there is such a file, or its record file still has an image of this length there."""
    image = parse_path(path)
    return path.is_file() if image is None else image.exists()
