"""Thumbnails: what a page shows of an image file is what a run sees of it."""

import base64
import io

import pytest
from PIL import Image

from flaxtl.data.image_file import UnreadableError
from flaxtl.report.galleries import thumbnail_uri


def decoded(uri: str) -> Image.Image:
    prefix = "data:image/jpeg;base64,"
    assert uri.startswith(prefix)
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix(prefix))))


def test_it_is_upright_and_small(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # EXIF orientation: turn by 90 degrees
    Image.new("RGB", (800, 400)).save(tmp_path / "turned.jpg", exif=exif)
    assert decoded(thumbnail_uri(tmp_path / "turned.jpg", 100, 75)).size == (50, 100)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_every_mode_becomes_a_jpeg(tmp_path, mode):
    Image.new(mode, (30, 20)).save(tmp_path / "a.png")
    thumbnail = decoded(thumbnail_uri(tmp_path / "a.png", 100, 75))
    assert (thumbnail.size, thumbnail.mode) == ((30, 20), "RGB")


def test_what_is_transparent_is_white_as_in_training(tmp_path):
    Image.new("RGBA", (30, 20), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert decoded(thumbnail_uri(tmp_path / "a.png", 100, 75)).getextrema() == ((255, 255),) * 3


def test_a_broken_file_has_none(tmp_path):
    (tmp_path / "a.tif").write_bytes(b"II*\0\x08\0\0\0\xff\xff")
    with pytest.raises(UnreadableError):
        thumbnail_uri(tmp_path / "a.tif", 100, 75)
