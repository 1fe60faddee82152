"""The script in an exported folder reads image files as flaxtl does, to the last bit."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flaxtl.data.decode import CROP_PCT, Resize, decode
from flaxtl.export.predict_script import load_image

RESIZES = [
    Resize(24, 32),
    Resize(24, 32, "crop"),
    *(Resize(24, 24, "squash", filter) for filter in ("nearest", "bicubic", "lanczos", "box", "hamming")),
    Resize(24, 24, "crop", "bicubic"),
    Resize(24, 24, "crop", "nearest"),
]


def told(resize):
    """As model.json tells it."""
    return {**vars(resize), "crop_pct": CROP_PCT}


def drawn(mode):
    """An image of 41 x 67 in that mode, parts of it transparent where the mode knows that."""
    noise = np.random.default_rng(0).integers(0, 256, (41, 67, 4), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(noise.view(np.uint16)[..., 0].copy())
    return Image.fromarray(noise, "RGBA").convert(mode)


def save(path, image, **options):
    image.save(path, **options)
    return path


def files(folder):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turned by a quarter
    yield save(folder / "turned.jpg", drawn("RGB"), exif=exif)
    yield save(folder / "damaged.webp", drawn("RGB"), lossless=True, exif=b"no TIFF header")
    yield save(folder / "cmyk.jpg", drawn("CMYK"))
    yield save(folder / "colour.png", drawn("RGB"), transparency=drawn("RGB").getpixel((0, 0)))
    yield save(folder / "palette.gif", drawn("P"), transparency=0)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        yield save(folder / f"{mode}.png".replace(";", ""), drawn(mode))


@pytest.mark.parametrize("resize", RESIZES, ids=lambda resize: f"{resize.policy}-{resize.interpolation}")
def test_every_kind_of_file(resize, tmp_path):
    for path in files(tmp_path):
        np.testing.assert_array_equal(load_image(path, told(resize)), decode(path, resize), err_msg=path.name)


@pytest.mark.parametrize("resize", [Resize(200, 200, "squash", "nearest"), Resize(224, 224, "crop", "bicubic")])
def test_real_photographs(shared, resize):
    paths = sorted(Path(shared / "data/flowers/validation").rglob("*.jpg"))[::80]
    assert len(paths) >= 8
    for path in paths:
        np.testing.assert_array_equal(load_image(path, told(resize)), decode(path, resize), err_msg=path.name)
