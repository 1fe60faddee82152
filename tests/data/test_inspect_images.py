"""Properties of single image files."""

import struct
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flaxtl.data.doctor import ImageError, ImageInfo, inspect_image, inspect_images

ORIENTATION = 0x0112


def image(height=40, width=60, channels=3):
    pixels = np.random.default_rng(height * width).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels if channels > 1 else pixels[..., 0])


def saved(path, pil_image, **options):
    pil_image.save(path, **options)
    return path


def test_inspect_image_returns_properties(tmp_path):
    assert inspect_image(saved(tmp_path / "a.png", image())) == ImageInfo("PNG", "RGB", 60, 40, 1, 1, False)


def test_inspect_image_format_is_of_content(tmp_path):
    assert inspect_image(saved(tmp_path / "a.jpg", image(), format="WEBP")).format == "WEBP"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_inspect_image_size_is_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    facts = inspect_image(saved(tmp_path / "a.jpg", image(), exif=exif))
    assert facts.orientation == orientation
    # Exif 2.32, section 4.6.4: from 5 on, rows and columns are exchanged
    assert (facts.width, facts.height) == ((60, 40) if orientation < 5 else (40, 60))


@pytest.mark.parametrize("value", [0, 9])
def test_inspect_image_ignores_invalid_orientation(tmp_path, value):
    exif = Image.Exif()
    exif[ORIENTATION] = value
    assert inspect_image(saved(tmp_path / "a.jpg", image(), exif=exif)).orientation == 1


def test_inspect_image_ignores_damaged_metadata(tmp_path):
    path = saved(tmp_path / "a.webp", image(), lossless=True, exif=b"no TIFF header")
    assert inspect_image(path) == ImageInfo("WEBP", "RGB", 60, 40, 1, 1, False)


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "I;16"])
def test_inspect_image_mode_is_of_file(tmp_path, mode):
    pil_image = (
        Image.fromarray(np.arange(16, dtype=np.uint16).reshape(4, 4)) if mode == "I;16" else image().convert(mode)
    )
    assert inspect_image(saved(tmp_path / "a.png", pil_image)).mode == mode


def test_inspect_image_of_cmyk(tmp_path):
    assert inspect_image(saved(tmp_path / "a.jpg", image().convert("CMYK"))).mode == "CMYK"


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif", ".avif"])
def test_inspect_image_counts_frames(tmp_path, suffix):
    frames = [image(40, 60), image(60, 40).resize((60, 40)), image(41, 60).resize((60, 40))]
    path = saved(tmp_path / f"a{suffix}", frames[0], save_all=True, append_images=frames[1:])
    assert inspect_image(path).frames == 3


def test_inspect_image_of_mpo_has_one_frame(tmp_path):
    path = saved(tmp_path / "a.jpg", image(), format="MPO", save_all=True, append_images=[image(20, 30)])
    with Image.open(path) as pil_image:
        assert pil_image.n_frames == 2
    facts = inspect_image(path)
    assert (facts.format, facts.frames) == ("MPO", 1)


@pytest.mark.parametrize(("suffix", "colour"), [(".jpg", (200, 30, 90)), (".png", (0, 0, 0)), (".gif", (7, 7, 7))])
def test_inspect_image_of_single_color_is_flat(tmp_path, suffix, colour):
    assert inspect_image(saved(tmp_path / f"a{suffix}", Image.new("RGB", (30, 20), colour))).flat


def test_inspect_image_with_other_pixel_is_not_flat(tmp_path):
    pil_image = Image.new("RGB", (30, 20), (200, 30, 90))
    pil_image.putpixel((29, 19), (200, 31, 90))
    assert not inspect_image(saved(tmp_path / "a.png", pil_image)).flat


def test_inspect_image_transparent_everywhere_is_not_flat(tmp_path):
    pixels = np.asarray(image(9, 9, 4)).copy()
    pixels[..., 3] = 0  # not an empty image: a channel of zeros
    assert not inspect_image(saved(tmp_path / "a.png", Image.fromarray(pixels))).flat


def broken(folder):
    """type of damage -> a file with it."""
    whole = saved(folder / "whole.jpg", image()).read_bytes()
    header = struct.pack("<IiiHHIIiiII", 40, 40_000, 40_000, 1, 24, 0, 0, 0, 0, 0, 0)  # of a BMP: 40,000 x 40,000
    contents = {
        "empty": b"",
        "not-an-image": b"<html>404 not found</html>",
        "truncated": whole[: len(whole) // 2],
        "oversized": b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header,
    }
    for kind, content in contents.items():
        (folder / kind).write_bytes(content)
    saved(folder / "unconvertible", Image.fromarray(np.zeros((2, 2), np.float32)), format="TIFF")
    return {kind: folder / kind for kind in (*contents, "unconvertible", "unreadable")}  # the last is missing


def test_inspect_image_errors_have_kind_and_reason(tmp_path):
    found = {kind: inspect_image(path) for kind, path in broken(tmp_path).items()}
    assert {kind: fault.kind for kind, fault in found.items()} == {kind: kind for kind in found}
    assert found["unreadable"].reason == "no such file or directory"
    assert "image file is truncated" in found["truncated"].reason


def test_inspect_images_keeps_order_and_reports_progress(tmp_path):
    paths = [*(saved(tmp_path / f"{n}.png", image(n + 1, 5)) for n in range(20)), tmp_path / "missing.png"]
    done, callers = [], set()

    def on_progress(count):
        done.append(count)
        callers.add(threading.current_thread())

    found = inspect_images(paths[::-1], on_progress)
    assert isinstance(found[0], ImageError)
    assert [facts.height for facts in found[1:]] == list(range(20, 0, -1))
    assert done == list(range(1, 22))
    assert callers == {threading.current_thread()}


def test_inspect_images_silences_pillow_warnings(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.png", image(40, 60))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # 2,400 pixels cause a warning, 4,000 an error
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.warns(Image.DecompressionBombWarning):
            Image.open(path).close()
        (facts,) = inspect_images([path])
    assert isinstance(facts, ImageInfo)


def test_inspect_images_of_real_flowers(shared):
    paths = sorted(Path(shared, "data", "flowers", "validation").rglob("*.jpg"))[::7]
    assert {(facts.format, facts.mode, facts.flat) for facts in inspect_images(paths)} == {("JPEG", "RGB", False)}
