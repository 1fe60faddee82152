"""Valid images of every format and mode, and all that reads images."""

from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from flaxtl.data import doctor, duplicates
from flaxtl.data.decode import Resize, decode
from flaxtl.data.image_file import UnreadableError
from flaxtl.report import galleries
from fuzzing.subject import Subject

SIDE = (24, 20)


def images(folder: Path) -> list[Subject]:
    """JPEG, PNG, GIF, WebP, BMP, TIFF and PPM, a few of each in other modes, with metadata and in frames."""
    noise = np.random.default_rng(0).integers(0, 256, (SIDE[1], SIDE[0], 4), dtype=np.uint8)
    rgba = Image.fromarray(noise)
    rgb, cmyk = rgba.convert("RGB"), Image.fromarray(noise, "CMYK")
    deep = Image.fromarray(np.arange(SIDE[0] * SIDE[1], dtype=np.uint16).reshape(SIDE[::-1]) * 100)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "an image"  # Orientation, ImageDescription
    for name, image, options in (
        ("exif.jpg", rgb, {"exif": exif, "quality": 90}),
        ("progressive.jpg", rgb, {"progressive": True, "icc_profile": b"profile" * 20}),
        ("cmyk.jpg", cmyk, {}),
        ("grey.jpg", rgb.convert("L"), {}),
        ("rgb.png", rgb, {"exif": exif}),
        ("rgba.png", rgba, {}),
        ("palette.png", rgb.convert("P"), {"transparency": 3}),
        ("grey-alpha.png", rgba.convert("LA"), {}),
        ("deep.png", deep, {}),
        ("bits.png", rgb.convert("1"), {}),
        ("frames.gif", rgb, {"save_all": True, "append_images": [rgb.rotate(90)] * 2}),
        ("frames.png", rgb, {"save_all": True, "append_images": [rgb.rotate(90)]}),
        ("lossy.webp", rgb, {"exif": exif}),
        ("lossless.webp", rgba, {"lossless": True}),
        ("frames.webp", rgb, {"save_all": True, "append_images": [rgb.rotate(90)]}),
        ("rgb.bmp", rgb, {}),
        ("palette.bmp", rgb.convert("P"), {}),
        ("rgb.tif", rgb, {"exif": exif}),
        ("deflate.tif", rgba, {"compression": "tiff_deflate"}),
        ("lzw.tif", cmyk, {"compression": "tiff_lzw"}),
        ("jpeg.tif", rgb, {"compression": "jpeg"}),
        ("group4.tif", rgb.convert("1"), {"compression": "group4"}),
        ("deep.tif", deep, {"compression": "tiff_lzw"}),
        ("rgb.ppm", rgb, {}),
        ("lossy.avif", rgb, {}),
    ):
        image.save(folder / name, **options)
    return [Subject(folder, (file.name,), _read) for file in sorted(folder.iterdir())]


def _read(folder: Path, file: str) -> None:
    """As `flaxtl report`, `doctor`, `train` and `predict` do."""
    path = folder / file
    with suppress(UnreadableError):
        galleries.thumbnail_uri(path, side=240, quality=80)
    doctor.inspect_images([path])
    duplicates.fingerprint_files([path], strict=False)
    for policy in ("crop", "squash"):
        decode(path, Resize(32, 32, policy))
