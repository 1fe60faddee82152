import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from flaxtl.data import array_store
from flaxtl.data.decode import Resize, decode_all, decode_into
from flaxtl.errors import UserError

SHAPE = (5, 6, 3)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (12, *SHAPE), dtype=np.uint8)


@pytest.fixture
def filled(tmp_path, images):
    path = tmp_path / "made" / "images.u8"
    with array_store.create_store(path, len(images), *SHAPE[:2]) as fresh:
        for index in reversed(range(len(images))):
            fresh[index] = images[index]
    return array_store.open_store(path, len(images), *SHAPE[:2])


def test_images_come_back_in_the_order_they_are_asked_for(filled, images):
    assert filled.shape == images.shape
    for indices in ([3], [11, 0, 0, 7], np.arange(12, dtype=np.int32), []):
        read = filled.read(indices)
        assert read.dtype == np.uint8
        assert np.array_equal(read, images[np.asarray(indices, int)])


def test_the_file_is_the_pixels_and_nothing_else(filled, images):
    assert filled.path.read_bytes() == images.tobytes()
    assert [file.name for file in filled.path.parent.iterdir()] == ["images.u8"]


def test_a_part_is_a_store_of_its_own(filled, images):
    part = filled.part(slice(2, 9)).part(slice(1, None))
    assert part.shape == (6, *SHAPE)
    assert np.array_equal(part.read([0, 5, 2, 0]), images[[3, 8, 5, 3]])


def test_threads_fill_it_as_they_fill_an_array(tmp_path):
    rng = np.random.default_rng(1)
    paths = [tmp_path / f"{number}.png" for number in range(20)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (9, 8, 3), dtype=np.uint8)).save(path)
    bad = tmp_path / "bad.jpg"
    bad.write_text("no image")
    resize = Resize(7, 8)
    with array_store.create_store(tmp_path / "images.u8", 21, 7, 8) as fresh:
        assert list(decode_into(fresh, [*paths, bad], resize, workers=8)) == [20]
        assert np.array_equal(fresh.read(range(20)), decode_all(paths, resize))
        assert not fresh.read([20]).any()


def test_threads_read_at_once(filled, images):
    orders = [np.random.default_rng(seed).permutation(12) for seed in range(50)]
    with ThreadPoolExecutor(8) as pool:
        assert all(
            np.array_equal(read, images[order])
            for order, read in zip(orders, pool.map(filled.read, orders), strict=True)
        )


@pytest.mark.parametrize("wrong", [np.zeros((6, 5, 3), np.uint8), np.zeros(SHAPE, np.float32)])
def test_only_images_of_its_kind_go_in(tmp_path, wrong):
    facts = rf"\b{wrong.dtype}\W+{re.escape(str(wrong.shape))}.*images\.u8"
    with (
        array_store.create_store(tmp_path / "images.u8", 1, *SHAPE[:2]) as fresh,
        pytest.raises(ValueError, match=facts),
    ):
        fresh[0] = wrong


def test_a_failure_leaves_nothing(tmp_path):
    facts = r"\buint8\W+\(1, 1, 3\).*images\.u8"
    with pytest.raises(ValueError, match=facts), array_store.create_store(tmp_path / "images.u8", 4, 5, 6) as fresh:
        fresh[0] = np.zeros((1, 1, 3), np.uint8)
    assert list(tmp_path.iterdir()) == []


def test_room_is_looked_for_first(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**12, 0, 2 * 10**9))
    facts = rf"\b6\.0 GB\b.*{re.escape(str(tmp_path))}.*\b2\.0 GB\b"
    with pytest.raises(UserError, match=facts), array_store.create_store(tmp_path / "x", 1000, 1000, 2000):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_plain_sentence(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=rf"{re.escape(str(tmp_path))}/file\b.*(File exists|Not a directory)"),
        array_store.create_store(tmp_path / "file" / "x", 1, 5, 6),
    ):
        pass


def test_what_is_not_there_is_not_loaded(filled, tmp_path):
    assert array_store.open_store(tmp_path / "nothing", 12, *SHAPE[:2]) is None
    assert array_store.open_store(filled.path, 13, *SHAPE[:2]) is None


def test_a_file_that_goes_or_shrinks_is_a_plain_sentence(filled):
    with filled.path.open("r+b") as file:
        file.truncate(100)
    assert filled.read([0]).any()
    with pytest.raises(UserError, match=rf"{re.escape(str(filled.path))}(?!.*No such file)"):
        filled.read([1])
    filled.path.unlink()
    with pytest.raises(UserError, match=rf"{re.escape(str(filled.path))}.*No such file"):
        filled.read([0])
