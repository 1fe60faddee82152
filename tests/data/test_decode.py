import re
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from flaxtl.data.decode import EXTENSIONS, MemoryImage, Resize, _crop_box, decode, decode_all
from flaxtl.errors import UserError

FLOWERS = Path(__file__).parents[3] / "shared" / "data" / "flowers" / "train"
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
ORIENTATION = 0x0112


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    image = np.random.default_rng(height * width).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return image[..., 0] if channels == 1 else image


def smooth(height: int, width: int) -> Image.Image:
    return Image.fromarray(noise(6, 6)).resize((width, height), Image.Resampling.BICUBIC)


def as_is(path: Path) -> np.ndarray:
    """Decoded at its own (upright) size: no resampling."""
    with Image.open(path) as image:
        return decode(path, Resize(image.height, image.width))


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("size", [(200, 200), (37, 64), (90, 41)])
def test_decode_squash_is_keras_load_img(tmp_path, interpolation, size):
    path = save(tmp_path / "a.jpg", smooth(120, 161), quality=80)
    ours = decode(path, Resize(*size, interpolation=interpolation))
    keras_own = np.asarray(keras.utils.load_img(path, target_size=size, interpolation=interpolation))
    assert ours.shape == (*size, 3)
    assert ours.dtype == np.uint8
    np.testing.assert_array_equal(ours, keras_own)


@pytest.mark.skipif(not FLOWERS.exists(), reason="no flower images here")
def test_decode_of_lecture_matches_keras_on_real_flowers():
    paths = [next(iter(sorted(folder.glob("*.jpg")))) for folder in sorted(FLOWERS.iterdir())]
    ours = decode_all(paths, Resize(200, 200, "squash", "nearest"))
    keras_own = [np.asarray(keras.utils.load_img(path, target_size=(200, 200))) for path in paths]
    np.testing.assert_array_equal(ours, np.stack(keras_own))


def scale_then_crop(
    image: Image.Image, size: tuple[int, int], height: int, width: int, interpolation: str
) -> np.ndarray:
    """Scale the whole image to `size` (width, height), then crop the center."""
    whole = image.resize(size, Image.Resampling[interpolation.upper()])
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return np.asarray(whole.crop((left, top, left + width, top + height)))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(
    ("image", "target", "size"),
    [
        ((300, 200), (112, 112), (128, 192)),  # the shorter side, 200 wide, to 128 = 112 / 0.875
        ((150, 333), (112, 112), (284, 128)),  # 333 * 128 / 150 = 284.16
        ((50, 41), (112, 112), (128, 156)),  # enlarged: 50 * 128 / 41 = 156.1
        ((300, 200), (56, 112), (128, 192)),  # a wide target: the width decides
        ((300, 200), (112, 56), (85, 128)),  # a tall target, 1.5 < 2: the height decides, 200 * 128 / 300 = 85.3
    ],
)
def test_decode_crop_scales_then_crops_center(tmp_path, interpolation, image, target, size):
    pil_image = smooth(*image)
    path = save(tmp_path / "a.png", pil_image)
    ours = decode(path, Resize(*target, policy="crop", interpolation=interpolation)).astype(int)
    reference = scale_then_crop(pil_image, size, *target, interpolation)
    if interpolation == "nearest":
        # A sample that falls exactly between two source pixels may go to either.
        assert (ours == reference).mean() > 0.97
    else:
        # Pillow rounds to 8 bits between its two passes, whose order may change if cropped first: 1 per rounding.
        assert np.abs(ours - reference).max() <= 2


def test_decode_crop_of_target_size_is_exact(tmp_path):
    image = noise(128, 140)
    path = save(tmp_path / "a.png", Image.fromarray(image))
    ours = decode(path, Resize(112, 112, "crop", "bicubic"))
    np.testing.assert_array_equal(ours, image[8:120, 14:126])


@pytest.mark.parametrize(
    ("side", "crop_pct", "file", "box"),
    [
        # torchvision: Resize(228) makes 333 x 500 (height x width) 228 x int(228 * 500 / 333) = 342, CenterCrop(200)
        # begins at row round(28 / 2) and column round(142 / 2)
        (200, 0.875, (500, 333), (71 * 500 / 342, 14 * 333 / 228, 271 * 500 / 342, 214 * 333 / 228)),
        (200, 1.0, (300, 200), (50, 0, 250, 200)),  # Keras' crop_to_aspect_ratio
        (200, 1.0, (203, 200), (2, 0, 202, 200)),  # 1.5 is rounded to even
        (200, 1.0, (201, 200), (0, 0, 200, 200)),
    ],
)
def test_crop_box_is_that_of_torchvision(side, crop_pct, file, box):
    assert _crop_box(Image.new("L", file), Resize(side, side, "crop", crop_pct=crop_pct)) == pytest.approx(box)


def test_decode_crop_of_long_image_stays_small(tmp_path):
    path = save(tmp_path / "long.png", Image.new("RGB", (20_000, 1), (10, 20, 30)))
    assert (decode(path, Resize(224, 224, "crop")) == (10, 20, 30)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy": "squish"}, "'squish'.*'squash'"),
        ({"interpolation": "linear"}, "'linear'.*'bilinear'"),
        ({"crop_pct": 0.0}, r"\bcrop_pct is 0\.0\b"),
        ({"crop_pct": 1.1}, r"\bcrop_pct is 1\.1\b"),
        ({"crop_pct": "0.8"}, r"\bcrop_pct is '0\.8'\. .*number"),
        ({"height": 0}, r"\b0\D+8\b"),
    ],
)
def test_resize_invalid_arguments_raise(arguments, message):
    with pytest.raises(UserError, match=message):
        Resize(**{"height": 8, "width": 8, **arguments})


# Where the stored pixel [0, 0] of a 2 x 3 image is seen, by orientation (Exif 2.32, 4.6.4: row 0 and column 0 are
# the visual top-left, top-right, bottom-right, bottom-left, left-top, right-top, right-bottom, left-bottom).
UPRIGHT = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: p.transpose(1, 0, 2)[:, ::-1],
    7: lambda p: p.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda p: p.transpose(1, 0, 2)[::-1],
}


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_decode_applies_exif_orientation_once(tmp_path, suffix, orientation):
    stored = noise(2, 3)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"lossless": True} if suffix == ".webp" else {}
    path = save(tmp_path / f"a{suffix}", Image.fromarray(stored), exif=exif, **options)
    expected = UPRIGHT[orientation](stored)
    np.testing.assert_array_equal(decode(path, Resize(*expected.shape[:2])), expected)


def test_decode_of_one_pil_image_in_two_threads_is_upright(tmp_path, monkeypatch):
    exif, load = Image.Exif(), Image.Exif.load
    exif[ORIENTATION] = 3
    file = save(tmp_path / "a.png", Image.fromarray(noise(8, 8)), exif=exif)
    monkeypatch.setattr(Image.Exif, "load", lambda *args: time.sleep(0.1) or load(*args))  # marked as loaded before
    image = MemoryImage("image 0", Image.open(file))
    with ThreadPoolExecutor(2) as pool:
        for pixels in pool.map(lambda image: decode(image, Resize(8, 8)), [image, image]):
            np.testing.assert_array_equal(pixels, noise(8, 8)[::-1, ::-1])


def test_decode_of_a_closed_pil_image_says_so(tmp_path):
    file = save(tmp_path / "a.png", Image.fromarray(noise(8, 8)))
    with Image.open(file) as loaded:
        loaded.load()
    np.testing.assert_array_equal(decode(MemoryImage("image 0", loaded), Resize(8, 8)), noise(8, 8))
    with Image.open(file) as unread:
        pass
    with pytest.raises(UserError, match=r"image 1: its file was closed before its pixels were read\."):
        decode(MemoryImage("image 1", unread), Resize(8, 8))


def test_decode_ignores_damaged_exif(tmp_path):
    path = save(tmp_path / "a.webp", Image.fromarray(noise(8, 8)), lossless=True, exif=b"no TIFF header")
    with Image.open(path) as image, pytest.raises(SyntaxError):
        image.getexif()
    np.testing.assert_array_equal(as_is(path), noise(8, 8))


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "YCbCr"])
def test_decode_opaque_modes_match_keras(tmp_path, mode):
    suffix = {"CMYK": ".tif", "YCbCr": ".tif"}.get(mode, ".png")
    path = save(tmp_path / f"a{suffix}", Image.fromarray(noise(9, 7)).convert(mode))
    with Image.open(path) as image:
        assert image.mode == mode
    np.testing.assert_array_equal(as_is(path), np.asarray(keras.utils.load_img(path)))


def test_decode_cmyk_jpeg_matches_keras(tmp_path):
    path = save(tmp_path / "a.jpg", smooth(16, 24).convert("CMYK"))
    np.testing.assert_array_equal(as_is(path), np.asarray(keras.utils.load_img(path)))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_decode_composes_transparency_over_white(tmp_path, mode):
    pixels = noise(9, 7, len(mode))
    path = save(tmp_path / "a.png", Image.fromarray(pixels, mode))
    colour, alpha = pixels[..., :-1].astype(float), pixels[..., -1:] / 255
    expected = np.broadcast_to(255 + (colour - 255) * alpha, (9, 7, 3))
    # Pillow's integer compositing rounds to nearest, up to 1/2 from the true value, plus its fixed-point division.
    np.testing.assert_allclose(as_is(path), expected, atol=0.6)


def test_decode_composes_premultiplied_gray_over_white(tmp_path):
    path = save(tmp_path / "a.tif", Image.new("LA", (7, 9), (100, 128)))
    unassociated, associated = (struct.pack("<HHIH", 338, 3, 1, value) for value in (2, 1))  # TIFF 6.0, ExtraSamples
    path.write_bytes(path.read_bytes().replace(unassociated, associated))
    with Image.open(path) as image:
        assert image.mode == "La"
    np.testing.assert_array_equal(as_is(path), np.full((9, 7, 3), 100 + 255 - 128))


@pytest.mark.parametrize("suffix", [".png", ".gif"])
def test_decode_transparent_palette_entry_is_white(tmp_path, suffix):
    image = Image.fromarray(np.array([[0, 1], [2, 0]], np.uint8), "P")
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    path = save(tmp_path / f"a{suffix}", image, transparency=1)
    red, blue, white = (200, 0, 0), (0, 0, 200), (255, 255, 255)
    np.testing.assert_array_equal(as_is(path), [[red, white], [blue, red]])


def test_decode_transparent_rgb_color_is_white(tmp_path):
    image = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    path = save(tmp_path / "a.png", image, transparency=(1, 2, 3))
    np.testing.assert_array_equal(as_is(path), [[[255, 255, 255], [4, 5, 6]]])


@pytest.mark.parametrize(
    ("suffix", "dtype", "mode"),
    [(".png", "<u2", "I;16"), (".tif", "<u2", "I;16"), (".tif", ">u2", "I;16B"), (".pgm", "<i4", "I")],
)
def test_decode_16_bit_gray_is_scaled(tmp_path, suffix, dtype, mode):
    grey = np.array([[0, 128, 129, 257, 32768, 65406, 65407, 65535]], dtype)
    path = tmp_path / f"a{suffix}"
    if dtype == ">u2":
        Image.frombytes("I;16B", (8, 1), grey.tobytes()).save(path)
    else:
        Image.fromarray(grey).save(path)
    with Image.open(path) as image:
        assert image.mode == mode
    expected = np.round(grey / 257)  # 65535 / 255; no value here is a tie
    np.testing.assert_array_equal(as_is(path), np.repeat(expected[..., None], 3, -1))


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif"])
def test_decode_animation_uses_first_frame(tmp_path, suffix):
    frames = [Image.new("RGB", (4, 3), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    options = {"lossless": True} if suffix == ".webp" else {}
    path = save(tmp_path / f"a{suffix}", frames[0], save_all=True, append_images=frames[1:], **options)
    assert (decode(path, Resize(3, 4)) == (255, 0, 0)).all()


def test_decode_reads_every_extension(tmp_path):
    formats = {".jfif": "JPEG"}
    for suffix in sorted(EXTENSIONS):
        mode = {".pbm": "1", ".pgm": "L"}.get(suffix, "RGB")
        path = save(tmp_path / f"a{suffix}", Image.new(mode, (16, 16), "white"), format=formats.get(suffix))
        assert decode(path, Resize(4, 4)).min() >= 254, suffix


def test_decode_detects_format_by_content(tmp_path):
    path = save(tmp_path / "really_a_png.jpg", Image.fromarray(noise(5, 5)), format="PNG")
    np.testing.assert_array_equal(as_is(path), noise(5, 5))


def bomb() -> bytes:
    """A BMP header that claims 40,000 x 40,000 pixels."""
    header = struct.pack("<IiiHHIIiiII", 40, 40_000, 40_000, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header


def truncated(folder: Path, suffix: str) -> bytes:
    content = save(folder / f"whole{suffix}", Image.fromarray(noise(40, 40))).read_bytes()
    return content[: len(content) * 2 // 3]


def broken_files(folder: Path) -> dict[str, tuple[Path, str]]:
    contents = {
        "empty.jpg": (b"", "empty"),
        "text.jpg": (b"<html>404 not found</html>", "format"),
        "postscript.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "format"),
        "letters.ppm": (b"P6\n20 2x0\n255\n", "truncated|damaged"),
        "bomb.bmp": (bomb(), "110,000,000"),
        "cut.jpg": (truncated(folder, ".jpg"), "truncated"),
        "cut.png": (truncated(folder, ".png"), "truncated"),
        "cut.gif": (truncated(folder, ".gif"), "truncated"),
        "cut.bmp": (truncated(folder, ".bmp"), "truncated"),
        "cut.tif": (truncated(folder, ".tif"), "truncated|format"),
    }
    files = {
        "missing.jpg": (folder / "missing.jpg", "no such file"),
        "folder.jpg": (folder / "folder.jpg", "directory"),
    }
    (folder / "folder.jpg").mkdir()
    for name, (content, reason) in contents.items():
        (folder / name).write_bytes(content)
        files[name] = (folder / name, reason)
    floats = save(folder / "float.tif", Image.fromarray(np.zeros((2, 2), np.float32)))
    files["float.tif"] = (floats, r"\bF\b")
    beyond = save(folder / "beyond.tif", Image.fromarray(np.array([[70_000]], np.int32)))
    files["beyond.tif"] = (beyond, r"\b16\b")
    return files


def test_decode_bad_file_raises_one_user_error(tmp_path):
    for path, reason in broken_files(tmp_path).values():
        with pytest.raises(UserError) as error:
            decode(path, Resize(8, 8))
        assert str(path) in str(error.value)
        message = str(error.value).replace(str(path), "")
        assert re.search(f"(?i){reason}", message), message
        assert re.search(r"(?i)\b(replace|remove)\b", message)
        assert "\n" not in str(error.value)


def test_decode_without_permission_raises(tmp_path, monkeypatch):
    def forbidden(path: Path, *args: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    save(tmp_path / "a.png", Image.new("L", (2, 2)))
    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(UserError, match=r"(?i)a\.png\b.*permission denied"):
        decode(tmp_path / "a.png", Resize(2, 2))


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow, on damaged TIFF tags
def test_decode_damaged_bytes_raise_user_error_only(tmp_path):
    rng = np.random.default_rng(0)
    for suffix in (".jpg", ".png", ".gif", ".bmp", ".tif", ".webp", ".ppm", ".avif"):
        whole = np.frombuffer(save(tmp_path / f"whole{suffix}", smooth(20, 20)).read_bytes(), np.uint8)
        for _ in range(20):
            content = whole.copy()
            content[rng.integers(0, len(content), 8)] = rng.integers(0, 256, 8)
            path = tmp_path / f"damaged{suffix}"
            path.write_bytes(content[: rng.integers(1, len(content) + 1)].tobytes())
            with suppress(UserError):
                assert decode(path, Resize(8, 8)).shape == (8, 8, 3)


def images(folder: Path, n: int) -> list[Path]:
    return [save(folder / f"{i:02}.png", Image.new("RGB", (5, 4), (i, 2 * i, 3 * i))) for i in range(n)]


@pytest.mark.parametrize("workers", [None, 1, 7])
def test_decode_all_keeps_order_and_reports_progress(tmp_path, workers):
    paths = images(tmp_path, 20)[::-1]
    done, callers = [], set()

    def on_progress(count: int) -> None:
        done.append(count)
        callers.add(threading.current_thread())

    batch = decode_all(paths, Resize(3, 2), on_progress, workers)
    assert batch.shape == (20, 3, 2, 3)
    assert batch.dtype == np.uint8
    np.testing.assert_array_equal(batch, np.stack([decode(path, Resize(3, 2)) for path in paths]))
    assert done == list(range(1, 21))
    assert callers == {threading.current_thread()}


def test_decode_all_of_no_files_is_empty():
    assert decode_all([], Resize(3, 2)).shape == (0, 3, 2, 3)


def test_decode_all_names_all_bad_files(tmp_path):
    bad = broken_files(tmp_path)
    three = [path for path, _ in list(bad.values())[:3]]
    with pytest.raises(UserError) as error:
        decode_all([*images(tmp_path, 4), *three], Resize(8, 8))
    message = str(error.value)
    assert re.search(r"\b3 of (the )?7\b", message)
    assert [path.name for path in three if str(path) in message] == [path.name for path in three]
    assert " more" not in message


def test_decode_all_names_first_hundred_bad_files(tmp_path):
    paths = [tmp_path / f"{i:03}.jpg" for i in range(115)]
    with pytest.raises(UserError) as error:
        decode_all(paths, Resize(8, 8))
    message = str(error.value)
    assert [path for path in paths if str(path) in message] == paths[:100]
    assert re.search(r"\b15\b", message.split(str(paths[99]))[-1])
