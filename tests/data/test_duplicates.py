"""Duplicates: fingerprints against hashlib and imagehash, groups against a comparison of all pairs, and leaks."""

import hashlib
import itertools
import re
import time
from pathlib import Path

import imagehash
import numpy as np
import pytest
from helpers.image_folders import fill, image
from PIL import Image
from scipy.sparse.csgraph import connected_components

from flaxtl.data.duplicates import (
    MAX_THRESHOLD,
    Fingerprint,
    check_label_conflicts,
    check_split_leakage,
    duplicate_groups,
    fingerprint_files,
)
from flaxtl.data.sources.image_folder import SourceImage
from flaxtl.errors import UserError

ORIENTATION = 0x0112


def phash(pil_image: Image.Image) -> int:
    return int(str(imagehash.phash(pil_image)), 16)


def test_fingerprint_files_match_hashlib_and_imagehash(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}{suffix}" for number, suffix in enumerate((".png", ".jpg", ".webp"))]
    for number, path in enumerate(paths):
        image(number).save(path)
    for path, fingerprint in zip(paths, fingerprint_files(paths), strict=True):
        assert fingerprint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert fingerprint.phash == phash(Image.open(path).convert("RGB"))


def test_fingerprint_files_hash_upright_and_over_white(tmp_path: Path) -> None:
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
def test_fingerprint_files_of_large_jpeg_is_within_two_bits(tmp_path: Path, number: int) -> None:
    image(number, side=2048).save(tmp_path / "large.jpg", quality=90)
    reduced = fingerprint_files([tmp_path / "large.jpg"])[0].phash
    assert reduced is not None
    # Decoded at an eighth: each pixel is the mean of 8 x 8, rounded; that changes a bit only where a frequency lies
    # within rounding of the median, and such bits change in pairs.
    assert np.bitwise_count(np.uint64(reduced ^ phash(Image.open(tmp_path / "large.jpg")))) <= 2


def test_fingerprint_files_without_image_or_contrast_have_no_phash(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    noise = np.random.default_rng(0).integers(100, 103, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "gray.png")
    Image.new("F", (64, 64)).save(tmp_path / "float.tif")
    fingerprints = fingerprint_files([tmp_path / name for name in ("0000.jpg", "gray.png", "float.tif")])
    assert [fingerprint.phash for fingerprint in fingerprints] == [None] * 3
    assert len({fingerprint.sha256 for fingerprint in fingerprints}) == 3


def test_fingerprint_files_not_perceptual_read_bytes_only(tmp_path: Path) -> None:
    image(0).save(tmp_path / "a.png")
    (fingerprint,) = fingerprint_files([tmp_path / "a.png"], perceptual=False)
    assert fingerprint[:2] == (hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest(), None)


def test_fingerprint_files_report_progress_of_every_file(tmp_path: Path) -> None:
    fill(tmp_path, 5)
    done: list[int] = []
    fingerprint_files(sorted(tmp_path.iterdir()), done.append)
    assert done == [1, 2, 3, 4, 5]
    assert fingerprint_files([]) == []


def test_fingerprint_files_name_all_that_cannot_be_opened(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(UserError) as caught:
        fingerprint_files([tmp_path / name for name in ("gone.jpg", "0000.jpg", "folder.jpg")])
    assert re.search(r"\b2 of 3\b", str(caught.value))
    assert re.search(r"(?i)\bgone\.jpg\W+no such file or directory", str(caught.value))
    assert re.search(r"(?i)\bfolder\.jpg\W+is a directory", str(caught.value))


def test_fingerprint_files_not_strict_hash_paths_of_bad_files(tmp_path: Path) -> None:
    missing = [tmp_path / "a.jpg", tmp_path / "b.jpg"]
    missing[1].touch()  # an empty file is not a duplicate of another one
    first, second = fingerprint_files(missing, strict=False)
    assert first.phash is second.phash is None
    assert first.sha256 == hashlib.sha256(bytes(missing[0])).hexdigest() != second.sha256
    with pytest.raises(UserError, match=r"\b2 of 2\b.*\ba\.jpg\b.*\bb\.jpg\b"):
        fingerprint_files(missing)


def prints(*hashes: int | None) -> list[Fingerprint]:
    """Fingerprints of files that all differ."""
    return [Fingerprint(f"{i:064x}", phash) for i, phash in enumerate(hashes)]


def clustered(n: int, seed: int) -> list[int]:
    """n different hashes; many differ in a few bits only."""
    rng = np.random.default_rng(seed)
    centers = rng.integers(0, 2**64, n // 10, dtype=np.uint64)
    hashes: set[int] = set()
    while len(hashes) < n:
        flips = rng.choice(64, rng.integers(0, 10), replace=False)
        hashes.add(int(rng.choice(centers)) ^ sum(1 << int(bit) for bit in flips))
    return list(hashes)


@pytest.mark.parametrize("threshold", [0, 1, 4, 5, 8, MAX_THRESHOLD])
def test_duplicate_groups_match_comparison_of_all_pairs(threshold: int) -> None:
    hashes = clustered(300, threshold)
    near = np.zeros((300, 300), bool)
    for i, j in itertools.combinations(range(300), 2):
        near[i, j] = (hashes[i] ^ hashes[j]).bit_count() <= threshold
    count, component = connected_components(near, directed=False)
    expected = [np.flatnonzero(component == c).tolist() for c in range(count) if (component == c).sum() > 1]
    assert duplicate_groups(prints(*hashes), threshold) == sorted(expected)
    assert bool(expected) == (threshold > 0)


def test_duplicate_groups_join_equal_files_and_equal_hashes() -> None:
    same = Fingerprint("f" * 64, 5)
    fingerprints = [same, *prints(5, 7, 5), same, same]
    assert duplicate_groups(fingerprints, -1) == [[0, 4, 5]]
    assert duplicate_groups(fingerprints, 0) == [[0, 1, 3, 4, 5]]
    assert duplicate_groups(fingerprints, 1) == [[0, 1, 2, 3, 4, 5]]


def test_duplicate_groups_join_through_files_and_hashes() -> None:
    fingerprints = [Fingerprint("a" * 64, 1), Fingerprint("b" * 64, 3), Fingerprint("b" * 64, 3), *prints(2**40, None)]
    assert duplicate_groups(fingerprints, 1) == [[0, 1, 2]]


def test_duplicate_groups_without_phash_are_equal_files() -> None:
    nothing = Fingerprint("e" * 64, None)
    assert duplicate_groups([*prints(None, None, 0), nothing, nothing], MAX_THRESHOLD) == [[3, 4]]


def test_duplicate_groups_compare_the_highest_bit() -> None:
    assert duplicate_groups(prints(2**64 - 1, 2**63 - 1, 0), 1) == [[0, 1]]


def test_duplicate_groups_of_none_or_one_are_empty() -> None:
    for threshold in (-1, 0, 4):
        assert duplicate_groups([], threshold) == []
        assert duplicate_groups(prints(1), threshold) == []
        assert duplicate_groups(prints(None), threshold) == []


@pytest.mark.parametrize("threshold", [-2, MAX_THRESHOLD + 1])
def test_duplicate_groups_threshold_out_of_range_raises(threshold: int) -> None:
    with pytest.raises(UserError, match=rf"(?=.*\b0\b.*\b{MAX_THRESHOLD}\b.*-1\b).*(?<![\w-]){threshold}\b"):
        duplicate_groups([], threshold)


@pytest.mark.slow
def test_duplicate_groups_of_a_video_take_seconds() -> None:
    """2 s of one core; the 5,000,000,000 pairs, of which every 70th is near, would not fit into memory."""
    hashes = np.unique(np.random.default_rng(0).integers(0, 2**18, 100_000, dtype=np.uint64)).tolist()
    started = time.process_time()
    assert duplicate_groups(prints(*hashes), 4) == [list(range(len(hashes)))]
    assert time.process_time() - started < 30


@pytest.mark.slow
def test_duplicate_groups_of_a_hundred_thousand_images_take_seconds() -> None:
    """0.2 s of one core; comparing all pairs would take minutes."""
    hashes = np.random.default_rng(0).integers(0, 2**64, 100_000, dtype=np.uint64).tolist()
    hashes[70_000] = hashes[10] ^ 0b1011
    hashes[80_000:] = [hashes[20]] * 20_000
    started = time.process_time()
    groups = duplicate_groups(prints(*hashes), 4)
    assert time.process_time() - started < 10
    assert groups == [[10, 70_000], [20, *range(80_000, 100_000)]]


def images_in(*splits: str) -> list[SourceImage]:
    return [SourceImage(Path(f"{i}.jpg"), "a", split) for i, split in enumerate(splits)]


def nothing(message: str) -> None:
    raise AssertionError(message)


def test_split_leakage_within_a_split_is_none() -> None:
    check_split_leakage("/set", images_in("train", "train", "test"), [[0, 1]], [[0, 1]], False, nothing)


def test_split_leakage_of_equal_files_raises_or_warns_once() -> None:
    group = [[0, 1, 2]]
    names = r"0\.jpg \(train\) = 1\.jpg \(validation\) = 2\.jpg \(test\)"
    with pytest.raises(UserError, match=rf"\b1 .*{names}.*flaxtl doctor\b.*--config\.data\.allow_leaks=true"):
        check_split_leakage("/set", images_in("train", "validation", "test"), group, group, False, nothing)
    warnings: list[str] = []
    check_split_leakage("/set", images_in("train", "validation", "test"), group, group, True, warnings.append)
    assert len(warnings) == 1
    assert re.search(names, warnings[0])


def test_split_leakage_of_many_files_is_counted() -> None:
    images = images_in(*["train", "test"] * 10)
    groups = [[i, i + 1] for i in range(0, 20, 2)]
    with pytest.raises(UserError) as caught:
        check_split_leakage("list.csv", images, groups, groups, False, nothing)
    assert re.search(r"\b10 .*list\.csv\b.* 0\.jpg \(train\) = 1\.jpg \(test\)", str(caught.value))
    assert re.search(r" 5\.jpg \(test\).*\b7\b", str(caught.value))
    assert " 6.jpg" not in str(caught.value)


def test_split_leakage_of_near_duplicates_warns() -> None:
    warnings: list[str] = []
    check_split_leakage("/set", images_in("train", "validation", "train"), [], [[0, 1]], False, warnings.append)
    (text,) = warnings
    assert re.search(r"\b1 .*/set\b.* 0\.jpg \(train\) = 1\.jpg \(validation\).*flaxtl doctor\b", text)


def test_label_conflicts_of_equal_files_warn() -> None:
    images = [SourceImage(Path(f"{label}/{i}.jpg"), label, None) for i, label in enumerate("aabb")]
    warnings: list[str] = []
    check_label_conflicts("/set", images, [[0, 2, 3]], warnings.append)
    (text,) = warnings
    assert re.search(r"\b1 .*/set\b.* a/0\.jpg \(a\) = b/3\.jpg \(b\).*flaxtl doctor\b", text)
    check_label_conflicts("/set", images, [[0, 1]], nothing)
