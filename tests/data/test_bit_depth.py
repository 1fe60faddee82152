"""Images whose values use a part of 16 bits, and channels that are not transparency."""

import struct

import numpy as np
import pytest
from deep_images import save_png16, save_tiff
from helpers.image_folders import paint
from PIL import Image

from flaxtl.data.bit_depth import describe_range
from flaxtl.data.decode import Resize, decode
from flaxtl.data.doctor import inspect_image
from flaxtl.data.duplicates import fingerprint_files
from flaxtl.data.manifest import make_manifest
from flaxtl.data.sources.image_folder import scan_folder
from flaxtl.errors import UserError

VALUES = np.random.default_rng(0).integers(0, 4096, (5, 7, 3))
SCALED = np.round(VALUES / 4095 * 255)


def as_is(path, bit_depth=0):
    return decode(path, Resize(5, 7, interpolation="nearest", bit_depth=bit_depth))


def test_decode_scales_gray_by_bit_depth(tmp_path):
    Image.fromarray(VALUES[..., 0].astype(np.uint16)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(as_is(tmp_path / "a.png", 12)[..., 0], SCALED[..., 0])
    assert as_is(tmp_path / "a.png").max() <= 16
    assert as_is(tmp_path / "a.png", 11).max() == 255  # values that do not fit


def test_decode_scales_16_bit_colors_by_bit_depth(tmp_path):
    rgb = VALUES.astype(np.uint16)
    rgba = np.concatenate([rgb, np.full_like(rgb[..., :1], 65535)], axis=-1)
    files = [
        save_png16(tmp_path / "a.png", rgb),
        save_png16(tmp_path / "b.png", rgba, color_type=6),
        save_tiff(tmp_path / "a.tif", rgb),
        save_tiff(tmp_path / "b.tif", rgb, order=">"),
        save_tiff(tmp_path / "c.tif", rgba, (2,)),
        save_tiff(tmp_path / "d.tif", rgba),
    ]
    for file in files:
        np.testing.assert_array_equal(as_is(file, 12), SCALED, err_msg=file.name)
        np.testing.assert_array_equal(as_is(file), VALUES // 256, err_msg=file.name)
        assert inspect_image(file).mode in ("RGB;16", "RGBA;16")


def test_decode_bit_depth_keeps_8_bit_images(tmp_path):
    paint(tmp_path, range(1))
    np.testing.assert_array_equal(as_is(tmp_path / "0.png", 12), as_is(tmp_path / "0.png"))


def test_decode_bit_depth_keeps_formats_that_state_it(tmp_path):
    pixels = b"".join(struct.pack(">H", value) for value in (0, 2048, 4095))
    (tmp_path / "a.pgm").write_bytes(b"P5 3 1 4095\n" + pixels)
    for bit_depth in (0, 12):
        scaled = decode(tmp_path / "a.pgm", Resize(1, 3, interpolation="nearest", bit_depth=bit_depth))
        assert scaled[0, :, 0].tolist() == [0, 128, 255]


def test_make_manifest_follows_the_bit_depth(tmp_path):
    """Without hashes, 16-bit images are noticed; with the bit depth, dark images have hashes."""
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(3):
            cells = np.random.default_rng([ord(label), number]).integers(0, 16, (8, 8))
            deep = np.kron(cells, np.ones((8, 8))).astype(np.uint16) * 64  # 10 bits: up to 4 of 255 levels
            Image.fromarray(deep).save(tmp_path / label / f"{number}.png")
    index, fractions = scan_folder(tmp_path), {"train": 0.5, "validation": 0.5}
    for near_duplicates in (-1, 4):
        warnings = []
        make_manifest(index, fractions, 0, near_duplicates=near_duplicates, warn=warnings.append)
        assert any("--config.data.bit_depth=10." in warning for warning in warnings)
    paths = [image.path for image in index.images]
    assert [fingerprint.phash for fingerprint in fingerprint_files(paths)] == [None] * 6
    assert None not in [fingerprint.phash for fingerprint in fingerprint_files(paths, bit_depth=10)]


@pytest.mark.parametrize("bit_depth", [1, 7, 17, -8])
def test_resize_impossible_bit_depth_raises(bit_depth):
    with pytest.raises(UserError, match=rf"data\.bit_depth is {bit_depth}\. .*8 to 16"):
        Resize(8, 8, bit_depth=bit_depth)


@pytest.mark.parametrize(
    ("largest", "bits"),
    [((4095, 0, 1023), 12), ((200,), 8), ((16383,), 14), ((16384,), None), ((0, 0), None), ((), None)],
)
def test_describe_range_suggests_bit_depth(largest, bits):
    text = describe_range(largest)
    assert text is None if bits is None else f"up to {max(largest)} " in text and f"data.bit_depth={bits}." in text


def test_make_manifest_warns_of_small_values(tmp_path):
    paint(tmp_path / "a", range(10))
    paint(tmp_path / "b", range(10, 20))
    save_png16(tmp_path / "b" / "x.png", VALUES)
    (fingerprint,) = fingerprint_files([tmp_path / "b" / "x.png"])
    assert fingerprint.largest_value == 4095
    fractions, said = {"train": 0.5, "validation": 0.5}, []
    make_manifest(scan_folder(tmp_path), fractions, 0, warn=said.append)
    assert said == [describe_range([4095])]
    make_manifest(scan_folder(tmp_path), fractions, 0, bit_depth=12, warn=said.append)
    assert len(said) == 1


def test_decode_4_band_tiff_is_composed_only_if_declared(tmp_path):
    values = np.random.default_rng(1).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    infrared = save_tiff(tmp_path / "a.tif", values)
    np.testing.assert_array_equal(as_is(infrared), values[..., :3])
    with Image.open(save_tiff(tmp_path / "b.tif", values, (2,))) as declared:
        assert declared.mode == "RGBA"
    assert not np.array_equal(as_is(tmp_path / "b.tif"), values[..., :3])


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_decode_transparent_everywhere_keeps_colors(tmp_path, mode):
    image = Image.fromarray(np.random.default_rng(2).integers(0, 256, (5, 7, 3), dtype=np.uint8)).convert(mode)
    image.putalpha(0)
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(as_is(tmp_path / "a.png"), np.asarray(image.convert("RGB")))


def test_decode_float_image_tells_what_to_do(tmp_path):
    Image.fromarray(np.zeros((5, 7), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"mode F .*Scale them to 8 or 16 bits"):
        as_is(tmp_path / "a.tif")
