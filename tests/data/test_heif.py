"""HEIC photos: recognized by content, read upright where pillow-heif is installed, named where it is not."""

import re
import sys
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.image_folders import image
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from flaxtl.data import heif
from flaxtl.data.decode import Resize, decode, decode_all
from flaxtl.data.doctor import ImageError, ImageInfo, inspect_image
from flaxtl.data.file_listing import describe_skipped, skip_reason, walk_images
from flaxtl.errors import UserError
from flaxtl.export import predict_script

SIZE = Resize(24, 32, interpolation="nearest")


def header(*brands):
    """Return the first bytes of a file of the container that HEIC and AVIF share."""
    return b"\0\0\0\x1cftyp" + brands[0] + bytes(4) + b"".join(brands[1:]) + bytes(40)


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (header(b"heic", b"mif1"), True),
        (header(b"hevc", b"msf1"), True),
        (header(b"mif1", b"miaf", b"heic"), True),
        (header(b"avif", b"mif1"), False),
        (header(b"mif1", b"avif"), False),
        (b"\xff\xd8\xff\xe0\0\x10JFIF heic" + bytes(40), False),
    ],
    ids=range(6),
)
def test_is_heic_decides_by_brand(start, expected):
    assert heif.is_heic(start[:32]) is expected
    assert predict_script._is_heic(start) is expected


def test_register_reader_without_package_is_false(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert heif.register_reader.__wrapped__() is False
    with pytest.raises(ValueError, match="pip install pillow-heif"):
        predict_script._heic_formats()


def test_heic_without_reader_is_skipped_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(heif, "register_reader", lambda: False)
    image(0).save(tmp_path / "a.png")
    (tmp_path / "b.HEIC").write_bytes(header(b"heic"))
    listing = walk_images(tmp_path)
    assert listing.images == [tmp_path / "a.png"]
    assert describe_skipped(listing.skipped) == (
        "Skipped 1 file that is not an image flaxtl can read: .heic 1. "
        "HEIC, an iPhone format: pip install 'flaxtl[heif]'"
    )
    (tmp_path / "b.HEIC").rename(tmp_path / "b.jpg")  # a suffix of images is believed, so the decoder reports it
    with pytest.raises(UserError, match=re.escape("b.jpg (HEIC, an iPhone format: pip install 'flaxtl[heif]')")):
        decode_all(walk_images(tmp_path).images, SIZE)


@pytest.fixture
def fake_reader(monkeypatch):
    """Install a package with pillow-heif's API for Pillow; its reader finds a PNG behind the header of HEIC."""

    class Reader(PngImageFile):
        format = "HEIF"

        def _open(self):
            self.fp = BytesIO(self.fp.read()[60:])
            super()._open()

    def register_heif_opener():
        Image.register_open("HEIF", Reader, heif.is_heic)

    Image.init()
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=register_heif_opener))
    monkeypatch.setattr(heif, "register_reader", heif.register_reader.__wrapped__)


@pytest.mark.usefixtures("fake_reader")
def test_heic_with_reader_is_an_image(tmp_path):
    image(0).save(tmp_path / "a.png")
    start = header(b"heic", b"mif1")
    (tmp_path / "a.heic").write_bytes(start.ljust(60, b"\0") + (tmp_path / "a.png").read_bytes())
    assert walk_images(tmp_path).skipped == []
    assert np.array_equal(*decode_all([tmp_path / "a.heic", tmp_path / "a.png"], SIZE))
    assert np.array_equal(predict_script.load_image(tmp_path / "a.heic", vars(SIZE)), decode(tmp_path / "a.png", SIZE))
    (tmp_path / "cut.heic").write_bytes(start)
    assert skip_reason(tmp_path / "cut.heic") is None  # damaged, and reported as such instead of skipped
    assert inspect_image(tmp_path / "cut.heic").kind == "undecodable"


def test_heic_of_pillow_heif_is_rotated_once(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs pillow-heif")
    pillow_heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotated by 90 degrees
    corners = Image.fromarray(np.zeros((48, 96, 3), np.uint8))
    corners.paste((255, 0, 0), (0, 0, 48, 24))
    for name in ("a.heic", "a.png"):
        corners.save(tmp_path / name, exif=exif.tobytes())
    upright, expected = decode_all([tmp_path / "a.heic", tmp_path / "a.png"], Resize(96, 48))
    assert np.abs(upright.astype(int) - expected).mean() < 4  # of 255: HEVC is lossy
    assert inspect_image(tmp_path / "a.heic") == ImageInfo("HEIF", "RGB", 48, 96, 1, 1, False)
    assert np.array_equal(predict_script.load_image(tmp_path / "a.heic", vars(Resize(96, 48))), upright)
    general = (tmp_path / "a.heic").read_bytes().replace(b"ftypheic", b"ftypmif1", 1)
    (tmp_path / "general.heic").write_bytes(general)
    assert np.array_equal(decode(tmp_path / "general.heic", Resize(96, 48)), upright)
    (tmp_path / "cut.heic").write_bytes(general[: len(general) // 2])
    assert isinstance(inspect_image(tmp_path / "cut.heic"), ImageError)
