"""Fingerprints, against hashlib and imagehash."""

import hashlib
import re
from pathlib import Path

import imagehash
import numpy as np
import pytest
from helpers.image_folders import fill, image
from PIL import Image

from flaxtl.data.duplicates import fingerprint_files
from flaxtl.errors import UserError

ORIENTATION = 0x0112


def phash(pil_image: Image.Image) -> int:
    return int(str(imagehash.phash(pil_image)), 16)


def test_hashes_are_those_of_hashlib_and_imagehash(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}{suffix}" for number, suffix in enumerate((".png", ".jpg", ".webp"))]
    for number, path in enumerate(paths):
        image(number).save(path)
    for path, found in zip(paths, fingerprint_files(paths), strict=True):
        assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert found.phash == phash(Image.open(path).convert("RGB"))


def test_a_image_is_seen_upright_and_over_white(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image(1).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    clear = image(1).convert("RGBA")
    clear.paste((0, 0, 0, 0), (0, 0, 32, 64))
    clear.save(tmp_path / "clear.png")
    white = image(1)
    white.paste((255, 255, 255), (0, 0, 32, 64))
    turned, over = fingerprint_files([tmp_path / "turned.png", tmp_path / "clear.png"])
    assert turned.phash == phash(image(1))
    assert over.phash == phash(white)


@pytest.mark.parametrize("number", range(10))
def test_a_large_jpeg_that_is_unpacked_small_hashes_alike(tmp_path: Path, number: int) -> None:
    image(number, side=2048).save(tmp_path / "large.jpg", quality=90)
    found = fingerprint_files([tmp_path / "large.jpg"])[0].phash
    assert found is not None
    # Unpacked at an eighth: each pixel is the mean of 8 x 8, rounded; that moves a bit only where a frequency lies
    # within rounding of the median, and such bits change in pairs.
    assert np.bitwise_count(np.uint64(found ^ phash(Image.open(tmp_path / "large.jpg")))) <= 2


def test_what_is_no_image_or_of_one_shade_has_no_looks(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    noise = np.random.default_rng(0).integers(100, 103, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "grey.png")
    Image.new("F", (64, 64)).save(tmp_path / "float.tif")
    names = ("0000.jpg", "grey.png", "float.tif")
    found = fingerprint_files([tmp_path / name for name in names])
    assert [each.phash for each in found] == [None] * 3
    assert len({each.sha256 for each in found}) == 3


def test_without_looking_only_bytes_are_read(tmp_path: Path) -> None:
    image(0).save(tmp_path / "a.png")
    (found,) = fingerprint_files([tmp_path / "a.png"], perceptual=False)
    assert found == (hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest(), None)


def test_progress_counts_every_file(tmp_path: Path) -> None:
    fill(tmp_path, 5)
    done: list[int] = []
    fingerprint_files(sorted(tmp_path.iterdir()), done.append)
    assert done == [1, 2, 3, 4, 5]
    assert fingerprint_files([]) == []


def test_files_that_cannot_be_opened_are_told_at_once(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(UserError) as caught:
        fingerprint_files([tmp_path / name for name in ("gone.jpg", "0000.jpg", "folder.jpg")])
    assert re.search(r"\b2 of 3\b", str(caught.value))
    assert re.search(r"(?i)\bgone\.jpg\W+no such file or directory", str(caught.value))
    assert re.search(r"(?i)\bfolder\.jpg\W+is a directory", str(caught.value))


def test_who_decodes_next_need_not_be_told_of_files_that_cannot_be_opened(tmp_path: Path) -> None:
    missing = [tmp_path / "a.jpg", tmp_path / "b.jpg"]
    missing[1].touch()  # an empty file is no copy of another
    first, second = fingerprint_files(missing, strict=False)
    assert first.phash is second.phash is None
    assert first.sha256 == hashlib.sha256(bytes(missing[0])).hexdigest() != second.sha256
    with pytest.raises(UserError, match=r"\b2 of 2\b.*\ba\.jpg\b.*\bb\.jpg\b"):
        fingerprint_files(missing)
