"""Images that are too large are refused before they take memory; large ones are decoded one at a time."""

import io
import re
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flaxtl.data import image_file
from flaxtl.data.image_file import MAX_FILE_BYTES, MAX_PIXELS, UnreadableError, open_image, to_rgb


def png(width: int, height: int) -> bytes:
    """A PNG without pixels whose header claims that many one-bit pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = (header, b"IDAT" + zlib.compress(b""), b"IEND")
    body = b"".join(struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def chunk(name: bytes, content: bytes, checksum: int = 0) -> bytes:
    """A chunk of a PNG; `checksum` is added to the right one."""
    crc = (zlib.crc32(name + content) + checksum) % 2**32
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)


LONG = zlib.compress(bytes(2**21))  # more than Pillow inflates
METADATA = {
    "zTXt": chunk(b"zTXt", b"Comment\0\0" + LONG),
    "iTXt": chunk(b"iTXt", b"Comment\0\x01\0\0\0" + LONG),
    "iCCP": chunk(b"iCCP", b"profile\0\0" + LONG),
    "many": 80 * chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**20 - 1))),
    "tEXt checksum": chunk(b"tEXt", b"Comment\0words", 1),
    "gAMA checksum": chunk(b"gAMA", struct.pack(">I", 45455), 1),
    "tRNS checksum": chunk(b"tRNS", bytes(6), 1),
}


@pytest.mark.parametrize("name", METADATA)
@pytest.mark.parametrize("last", [False, True])
def test_open_image_ignores_metadata_of_png(tmp_path, name, last):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    content = (tmp_path / "a.png").read_bytes()
    place = content.index(b"IEND") - 4 if last else content.index(b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(content[:place] + METADATA[name] + content[place:])
    with open_image(tmp_path / "a.png") as opened:
        np.testing.assert_array_equal(np.asarray(opened), np.asarray(image))
        assert opened.getexif()[0x0112] == 6


@pytest.mark.parametrize("name", [b"IHDR", b"PLTE"])
def test_open_image_refuses_wrong_checksum_of_critical_chunk(tmp_path, name):
    Image.new("P", (5, 7)).save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    place = content.index(name)
    size = int.from_bytes(content[place - 4 : place], "big")
    content[place + 4 + size] ^= 1
    (tmp_path / "a.png").write_bytes(content)
    error = fault(tmp_path / "a.png")
    assert error.kind in ("truncated", "undecodable")
    assert re.search(f"checksum|CRC|{name.decode()}", str(error))


def test_open_image_tells_why_a_jpeg_cannot_be_decoded(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    content = bytearray((tmp_path / "a.jpg").read_bytes())
    content[content.index(b"\xff\xc0") + 4] = 12  # bits of a sample
    (tmp_path / "a.jpg").write_bytes(content)
    assert fault(tmp_path / "a.jpg").kind == "undecodable"
    assert str(fault(tmp_path / "a.jpg")) == "a JPEG file that cannot be decoded: cannot handle 12-bit layers"


def fault(path: Path) -> UnreadableError:
    with pytest.raises(UnreadableError) as caught, open_image(path):
        pass
    return caught.value


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_open_image_refuses_the_preview_in_a_raw_file(tmp_path):
    Image.new("RGB", (4, 3)).save(tmp_path / "a.DNG", "TIFF")
    error = fault(tmp_path / "a.DNG")
    assert (error.kind, str(error)) == ("undecodable", "a camera RAW image: convert it to JPEG or PNG")


@pytest.mark.parametrize("size", [(20_000, 20_000), (MAX_PIXELS + 1, 1), (10_489, 10_489)])
def test_open_image_refuses_too_many_pixels_by_header(tmp_path, size):
    (tmp_path / "a.png").write_bytes(png(*size))
    assert fault(tmp_path / "a.png").kind == "oversized"
    assert "110,000,000" in str(fault(tmp_path / "a.png"))


@pytest.mark.parametrize("header", [b"P5 0 5 65535\n", b"P5 5 0 65535\n"])
def test_open_image_refuses_no_pixels(tmp_path, header):
    (tmp_path / "a.pgm").write_bytes(header)
    assert re.fullmatch("truncated|undecodable", fault(tmp_path / "a.pgm").kind)


def test_open_image_refuses_large_file_unread(tmp_path, monkeypatch):
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)  # takes no disk space
    monkeypatch.setattr(Path, "open", lambda path, *args: pytest.fail("it was read"))
    assert fault(tmp_path / "a.jpg").kind == "oversized"


def test_open_image_waits_for_pixel_budget(tmp_path, monkeypatch):
    monkeypatch.setattr(image_file, "_pixel_budget", image_file._PixelBudget(250))
    Image.new("L", (10, 10)).save(tmp_path / "a.png")
    lock, inside, most = threading.Lock(), [0], [0]
    both = threading.Barrier(2, timeout=20)

    def work():
        with open_image(tmp_path / "a.png"):
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            both.wait()  # two of them are inside at once, or this would wait in vain
            with lock:
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 2  # of 100 pixels each


def test_open_image_releases_pixel_budget_after_error(tmp_path, monkeypatch):
    monkeypatch.setattr(image_file, "_pixel_budget", image_file._PixelBudget(100))
    Image.new("F", (10, 10)).save(tmp_path / "a.tif")
    for _ in range(3):
        with pytest.raises(UnreadableError), open_image(tmp_path / "a.tif") as image:
            to_rgb(image)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "I;16", "I"])
def test_to_rgb_by_strips_is_identical(monkeypatch, mode):
    noise = np.random.default_rng(0).integers(0, 256, (37, 23, 4), dtype=np.uint8)
    grey = noise[..., 0].astype(np.int32) * 257 if mode.startswith("I") else None
    image = Image.fromarray(noise).convert(mode) if grey is None else Image.fromarray(grey).convert(mode)
    whole = np.asarray(to_rgb(image))
    monkeypatch.setattr(image_file, "_STRIP", 100)  # four rows
    np.testing.assert_array_equal(np.asarray(to_rgb(image)), whole)


def test_to_rgb_by_strips_keeps_palette_transparency(monkeypatch):
    file = io.BytesIO()
    image = Image.new("P", (9, 40), 1)
    image.putpalette([10, 20, 30, 0, 0, 0])
    image.save(file, "PNG", transparency=1)
    monkeypatch.setattr(image_file, "_STRIP", 30)
    assert to_rgb(Image.open(file)).getextrema() == ((255, 255),) * 3
