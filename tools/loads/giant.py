"""Images of 20,000 x 20,000 pixels, and the largest that are used: never more than 2 GiB, never a warning."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from PIL import ExifTags, Image

from flaxtl.data.image_file import MAX_PIXELS
from loads.check import Row, ended
from loads.command import apart, config, flaxtl
from loads.images import paint

SIDE = 20_000
ALLOWED = int(MAX_PIXELS**0.5)
SPARSE = 3 * 2**30  # bytes of a file that holds nothing


KINDS = (
    ("RGB", "jpg", {}),
    ("RGB", "jpg", {"progressive": True}),
    ("RGBA", "png", {"compress_level": 1}),
    ("I;16", "png", {"compress_level": 1}),
    ("CMYK", "jpg", {}),
    ("P", "gif", {}),
)
"""Mode, suffix and options of the large images that are used."""


def run(folder: Path) -> Iterator[Row]:
    """Beside small images, first those that are refused, then those that are used, several at once."""
    cache, refused, used = folder / "cache", folder / "refused", folder / "used"
    apart(make_refused, refused)
    yield from _commands("20,000²", folder, refused, cache, codes=(1, 2))
    apart(make_used, used)
    yield from _commands(f"{ALLOWED:,}²", folder, used, cache, codes=(0,))


def make_refused(folder: Path) -> None:
    """Small images, and among them what is too large to be unpacked or read."""
    Image.MAX_IMAGE_PIXELS = None
    paint(folder, ("a", "b"), 10)
    bomb(folder / "a" / "bomb.png", SIDE)
    Image.new("RGB", (SIDE, SIDE), "green").save(folder / "a" / "giant.jpg")
    Image.new("L", (SIDE, SIDE), 77).save(folder / "b" / "giant.png", compress_level=1)
    with (folder / "b" / "sparse.jpg").open("wb") as file:
        file.truncate(SPARSE)


def make_used(folder: Path) -> None:
    """Small images, and among them one of the largest that are used of every kind, and one to be turned."""
    paint(folder, ("a", "b"), 10)
    for number, (mode, suffix, options) in enumerate(KINDS):
        image = Image.new(mode, (ALLOWED, ALLOWED), 40 * number)
        image.save(folder / "ab"[number % 2] / f"large{number}.{suffix}", **options)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGBA", (ALLOWED, ALLOWED), 7).save(folder / "a" / "turned.png", compress_level=1, exif=exif)


def _commands(size: str, folder: Path, images: Path, cache: Path, codes: tuple[int, ...]) -> Iterator[Row]:
    source, workdir = f"folder:{images}", folder / f"run-{images.name}"
    made = config(folder / "config.py", source)
    yield _told(
        f"doctor, {size}", "doctor", f"--data={source}", f"--html={folder / 'doctor.html'}", cache=cache, codes=codes
    )
    yield _told(f"train, {size}", "train", f"--config={made}", f"--workdir={workdir}", cache=cache, codes=codes)
    if 2 in codes:
        made = config(folder / "config.py", source, on_error="skip")
        yield _told(f"train without them, {size}", "train", f"--config={made}", f"--workdir={workdir}", cache=cache)
    yield _told(f"predict, {size}", "predict", f"--workdir={workdir}", f"--input={images}", cache=cache, codes=codes)
    yield _told(f"report, {size}", "report", f"--workdir={workdir}", cache=cache)


def _told(what: str, *arguments: object, cache: Path, codes: tuple[int, ...] = (0,)) -> Row:
    done = flaxtl(what, *arguments, cache=cache)
    return ended(done, codes=codes, found=done.last[:150] if done.code else "")


def bomb(file: Path, side: int) -> None:
    """A lawful PNG of side x side white pixels in a file of some kilobytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    squeeze, row = zlib.compressobj(9), bytes(1 + side // 8)  # one bit a pixel
    content = b"".join(squeeze.compress(row) for _ in range(side)) + squeeze.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b""))
