"""predict.py reads image files exactly as flaxtl does."""

import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import awkward_inputs
import numpy as np
import pytest
from deep_images import chunk, save_png16, save_tiff
from PIL import Image

from flaxtl.data import file_listing
from flaxtl.data.decode import EXTENSIONS, Resize, decode
from flaxtl.data.image_file import FORMATS, RAW_ADVICE, RAW_SUFFIXES
from flaxtl.errors import UserError
from flaxtl.evaluation import classification
from flaxtl.evaluation.calibration import apply_temperature
from flaxtl.export import predict_script
from flaxtl.export.predict_script import calibrate, find_images, load_image

ONNXRUNTIME = """
import numpy as np
get_available_providers = list
class InferenceSession:
    def __init__(self, file, providers): ...
    def run(self, outputs, inputs): return [np.array([[0.25, 0.75]])]
"""

RESIZES = [
    Resize(24, 32),
    Resize(24, 32, "crop"),
    *(Resize(24, 24, "squash", interpolation) for interpolation in ("nearest", "bicubic", "lanczos", "box", "hamming")),
    Resize(24, 24, "crop", "bicubic"),
    Resize(24, 24, "crop", "nearest"),
    Resize(23, 31, "crop", crop_pct=1.0),
    Resize(24, 24, "squash", "nearest", bit_depth=12),
]


def random_image(mode):
    """Return an image of 41 x 67 pixels, partly transparent if the mode supports it."""
    noise = np.random.default_rng(0).integers(0, 256, (41, 67, 4), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(noise.view(np.uint16)[..., 0].copy())
    return Image.fromarray(noise, "RGBA").convert(mode)


def save(path, image, **options):
    image.save(path, **options)
    return path


def image_files(folder):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotated by 90 degrees
    yield save(folder / "rotated.jpg", random_image("RGB"), exif=exif)
    yield save(folder / "damaged.webp", random_image("RGB"), lossless=True, exif=b"no TIFF header")
    yield save(folder / "cmyk.jpg", random_image("CMYK"))
    yield save(folder / "color_key.png", random_image("RGB"), transparency=random_image("RGB").getpixel((0, 0)))
    transparent = random_image("RGBA")
    transparent.putalpha(0)
    yield save(folder / "transparent.png", transparent)
    yield save(folder / "declared.tif", random_image("RGBA"))
    yield save(folder / "palette.gif", random_image("P"), transparency=0)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        yield save(folder / f"{mode}.png".replace(";", ""), random_image(mode))


@pytest.mark.parametrize(
    "resize", RESIZES, ids=lambda resize: f"{resize.policy}-{resize.interpolation}-{resize.bit_depth}"
)
def test_load_image_every_mode_matches_decode(resize, tmp_path):
    for path in image_files(tmp_path):
        np.testing.assert_array_equal(load_image(path, vars(resize)), decode(path, resize), err_msg=path.name)


def test_load_image_png_with_refused_metadata_matches_decode(tmp_path):
    awkward_inputs.png_metadata(tmp_path)
    paths = sorted(tmp_path.rglob("*.png"))
    assert len(paths) >= 6
    for path in paths:
        np.testing.assert_array_equal(load_image(path, vars(RESIZES[0])), decode(path, RESIZES[0]), err_msg=path.name)


def test_load_image_undeclared_fourth_channel_matches_decode(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    path = save_tiff(tmp_path / "infrared.tif", values)
    np.testing.assert_array_equal(load_image(path, vars(RESIZES[0])), decode(path, RESIZES[0]))


def test_load_image_premultiplied_gray_matches_decode(tmp_path):
    path = tmp_path / "gray.tif"
    Image.new("LA", (7, 5), (100, 128)).save(path)
    unassociated, associated = (struct.pack("<HHIH", 338, 3, 1, value) for value in (2, 1))  # TIFF 6.0, ExtraSamples
    path.write_bytes(path.read_bytes().replace(unassociated, associated))
    np.testing.assert_array_equal(load_image(path, vars(RESIZES[0])), decode(path, RESIZES[0]))


def test_load_image_of_16_bits_matches_decode(tmp_path):
    values = np.random.default_rng(0).integers(0, 2**12, (5, 7, 4), dtype=np.uint16)
    values[..., 3] = 2**16 - 1
    rows = values[..., 0].astype(">u2").tobytes()
    (tmp_path / "scaled.pgm").write_bytes(b"P5 7 5 4095\n" + rows)
    save_png16(tmp_path / "a.png", values[..., :3])
    save_png16(tmp_path / "alpha.png", values, color_type=6)
    save_tiff(tmp_path / "little.tif", values[..., :3])
    save_tiff(tmp_path / "big.tif", values[..., :3], order=">")
    for resize in (Resize(5, 7, interpolation="nearest", bit_depth=depth) for depth in (0, 12)):
        for path in tmp_path.iterdir():
            np.testing.assert_array_equal(load_image(path, vars(resize)), decode(path, resize), err_msg=path.name)


def test_load_image_refuses_what_decode_refuses(tmp_path):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 4, 0, 0, 0))  # gray with alpha
    path = tmp_path / "gray_alpha.png"
    pixels = chunk(b"IDAT", zlib.compress(bytes(5)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b""))
    with pytest.raises(ValueError, match=r"LA;16B cannot be scaled"):
        load_image(path, vars(Resize(8, 8, bit_depth=12)))
    Image.new("RGB", (8, 8)).save(tmp_path / "preview.NEF", "TIFF")
    with pytest.raises(ValueError, match=RAW_ADVICE):
        load_image(tmp_path / "preview.NEF", vars(Resize(8, 8)))
    with pytest.raises(UserError, match=r"LA;16B cannot be scaled"):
        decode(path, Resize(8, 8, bit_depth=12))


@pytest.mark.parametrize(
    ("mode", "level", "reason"),
    [
        ("F", 0, "pixels of mode F cannot be converted to RGB"),
        ("LAB", 0, "pixels of mode LAB cannot be converted to RGB"),
        ("I", 70_000, "gray values do not fit into 16 bits"),
        ("I", -1, "gray values do not fit into 16 bits"),
    ],
)
def test_load_image_refuses_pixels_that_decode_refuses(mode, level, reason, tmp_path):
    path = tmp_path / "a.tif"
    Image.new(mode, (8, 8), level).save(path)
    with pytest.raises(UserError, match=reason):
        decode(path, RESIZES[0])
    with pytest.raises(ValueError, match=reason):
        load_image(path, vars(RESIZES[0]))


@pytest.mark.parametrize("resize", [Resize(200, 200, "squash", "nearest"), Resize(224, 224, "crop", "bicubic")])
def test_load_image_real_photos_match_decode(shared, resize):
    paths = sorted(Path(shared / "data/flowers/validation").rglob("*.jpg"))[::80]
    assert len(paths) >= 8
    for path in paths:
        np.testing.assert_array_equal(load_image(path, vars(resize)), decode(path, resize), err_msg=path.name)


def test_find_images_finds_what_flaxtl_finds_in_the_same_order(tmp_path):
    folder = tmp_path / "photos"
    for inner in ("b", "b/c", "__MACOSX", ".hidden"):
        (folder / inner).mkdir(parents=True)
        random_image("RGB").save(folder / inner / "10.png")
    for name in ("2.jpg", "10.JPG", "no_suffix", "b/other.txt"):
        random_image("RGB").save(folder / name, "JPEG")
    for name in ("notes.txt", "Thumbs.db", ".jpg", "raw.nef", "damaged.png"):
        (folder / name).write_text("BM, but not an image")
    (folder / "raw2.nef").write_bytes((folder / "2.jpg").read_bytes())
    (folder / "b" / "loop").symlink_to(folder)
    (folder / "missing.png").symlink_to(tmp_path / "nowhere")
    found = find_images(folder)
    assert found == file_listing.walk_images(folder).images
    names = ["10.JPG", "2.jpg", "b/10.png", "b/c/10.png", "b/other.txt", "damaged.png", "missing.png", "no_suffix"]
    assert [str(path.relative_to(folder)) for path in found] == names


def test_script_prints_names_that_the_terminal_lacks(tmp_path):
    shutil.copy(predict_script.__file__, tmp_path / "predict.py")
    (tmp_path / "onnxruntime.py").write_text(ONNXRUNTIME)
    (tmp_path / "model.onnx").touch()
    metadata = {"classes": ["daisy", "Löwenzahn"], "temperature": None, "resize": vars(RESIZES[0])}
    (tmp_path / "model.json").write_text(json.dumps(metadata))
    random_image("RGB").save(tmp_path / "10_é.png")
    command = [sys.executable, tmp_path / "predict.py", tmp_path / "10_é.png"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.stdout == f"{tmp_path}/10_\\xe9.png: L\\xf6wenzahn 75.0%, daisy 25.0%\n"
    assert (result.returncode, result.stderr) == (0, "")


def test_image_kinds_are_those_of_flaxtl():
    assert predict_script.SUFFIXES == EXTENSIONS
    assert predict_script.FORMATS == FORMATS
    assert predict_script.RAW_SUFFIXES == RAW_SUFFIXES
    assert predict_script.JUNK == file_listing.JUNK


def test_calibrate_agrees_with_flaxtl():
    probabilities = np.array([[0.97, 0.02, 0.01], [1.0, 0.0, 0.0]], np.float32)
    expected = np.exp(apply_temperature(classification.log_probabilities(probabilities), 2.5))
    np.testing.assert_allclose(calibrate(probabilities, 2.5), expected, rtol=1e-12)  # float64, in another order
