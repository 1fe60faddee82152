"""What a picture file is known by: its bytes, and what it looks like."""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import imagehash
import numpy as np
from PIL import Image

from flaxtl.data.decode import refuse
from flaxtl.data.unpack import UnreadableError, rgb, unpacked, upright

BITS = 64
"""Of a perceptual hash."""

_SIDE = 32  # to which imagehash.phash shrinks a picture whose hash has 8 x 8 bits
_ENOUGH = 8 * _SIDE  # a JPEG unpacked no smaller than this hashes like the whole picture
_FLAT = 8  # grey levels of 256; a picture that spans fewer has no features to be known by, and hashes to its noise


class Fingerprint(NamedTuple):
    """The SHA-256 of a file in lower-case hex, and the perceptual hash, 64 bits, of its picture.

    phash is `imagehash.phash` of the picture as a run sees it: RGB, upright, over white where it is transparent. None
    where the file gives no picture, where that is of one shade all over, or where it was not asked for.
    """

    sha256: str
    phash: int | None


def of(
    paths: Sequence[Path],
    on_progress: Callable[[int], None] | None = None,
    *,
    look: bool = True,
    strict: bool = True,
) -> list[Fingerprint]:
    """The fingerprints of files, in their order, by threads.

    `on_progress` is called in the caller's thread after each file with the number of files done. Without `look` no
    picture is unpacked, which is many times quicker, and every phash is None.

    Raises one UserError for all the files that are empty or cannot be opened, if `strict`; that a file gives no picture
    is no error. For who decodes the files next, and tells of all bad ones at once, `strict` can be left out: such files
    then have the SHA-256 of their path, which is that of no picture.
    """

    def one(path: Path) -> Fingerprint | str:
        try:
            return Fingerprint(_sha256(path), _phash(path) if look else None)
        except OSError as error:
            return (error.strerror or str(error)).lower()

    found: list[Fingerprint] = []
    bad: dict[int, str] = {}
    with ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:  # more than cores: disks wait
        for index, print_or_reason in enumerate(pool.map(one, paths)):
            if isinstance(print_or_reason, str):
                bad[index] = print_or_reason
                found.append(Fingerprint(hashlib.sha256(os.fsencode(paths[index])).hexdigest(), None))
            else:
                found.append(print_or_reason)
            if on_progress is not None:
                on_progress(index + 1)
    if strict:
        refuse(paths, bad)
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        if not os.fstat(stream.fileno()).st_size:
            raise OSError("the file is empty")  # and no copy of all the other empty ones
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _phash(path: Path) -> int | None:
    try:
        with unpacked(path, _ENOUGH) as image:
            grey = rgb(upright(image)).convert("L")
            small = grey.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)  # as imagehash.phash would do
    except UnreadableError:
        return None
    if np.ptp(np.asarray(small)) < _FLAT:
        return None
    return int(str(imagehash.phash(small)), 16)
