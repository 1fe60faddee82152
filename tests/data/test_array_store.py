import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from flaxtl import fileio
from flaxtl.data import array_store
from flaxtl.data.array_store import ArrayStore, ArrayStoreWriter, check_space
from flaxtl.data.decode import Resize, decode_all, decode_into
from flaxtl.errors import UserError

SHAPE = (5, 6, 3)
UINT8 = np.dtype(np.uint8)
BFLOAT16 = np.dtype(jnp.bfloat16)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (12, *SHAPE), dtype=np.uint8)


@pytest.fixture
def store(tmp_path, images):
    store = ArrayStore(tmp_path / "folder" / "images.npy", images.shape, images.dtype)
    with ArrayStoreWriter(store) as writer:
        for index in reversed(range(len(images))):
            writer[index] = images[index]
    return store


def features(folder, n=4, dtype=np.float32):
    return ArrayStore(folder / "features.npy", (n, 2), np.dtype(dtype))


class Stop(Exception):
    """Interrupts a writer."""


# ---------------------------------------------------------------------- reading


def test_store_read_returns_rows_in_given_order(store, images):
    assert store.exists()
    assert (len(store), store.rows_done()) == (12, 12)
    for indices in ([3], [11, 0, 0, 7], np.arange(12, dtype=np.int32), [-1], []):
        rows = store.read(indices)
        assert rows.dtype == np.uint8
        assert np.array_equal(rows, images[np.asarray(indices, int)])
    assert np.array_equal(store.read(), images)
    assert np.array_equal(store.read(slice(2, 5)), images[2:5])


def test_store_read_of_all_rows_is_aligned_for_cpu_devices(store):
    assert store.read().ctypes.data % 64 == 0


def test_store_file_is_npy(store, images):
    assert np.array_equal(np.load(store.path), images)
    assert [file.name for file in store.path.parent.iterdir()] == ["images.npy"]


def test_store_part_is_a_range_of_rows(store, images):
    part = store.part(2, 9).part(1, 7)
    assert part.shape == (6, *SHAPE)
    assert np.array_equal(part.read([0, 5, 2, 0]), images[[3, 8, 5, 3]])
    assert np.array_equal(part.read(), images[3:9])


def test_store_read_is_thread_safe(store, images):
    orders = [np.random.default_rng(seed).permutation(12) for seed in range(50)]
    with ThreadPoolExecutor(8) as pool:
        assert all(
            np.array_equal(rows, images[order])
            for order, rows in zip(orders, pool.map(store.read, orders), strict=True)
        )


def test_store_exists_only_with_its_shape_and_dtype(store, tmp_path):
    assert not ArrayStore(tmp_path / "nothing", store.shape, UINT8).exists()
    assert not ArrayStore(store.path, (13, *SHAPE), UINT8).exists()
    assert not ArrayStore(store.path, store.shape, np.dtype(np.int8)).exists()
    store.path.write_bytes(store.path.read_bytes()[:-1])
    assert not store.exists()


def test_store_read_of_truncated_or_missing_file_names_it(store):
    with store.path.open("r+b") as file:
        file.truncate(len(store.header) + 100)
    assert store.read([0]).any()
    with pytest.raises(UserError, match=rf"{re.escape(str(store.path))}(?!.*No such file)"):
        store.read([1])
    store.path.unlink()
    with pytest.raises(UserError, match=rf"{re.escape(str(store.path))}.*No such file"):
        store.read([0])


# ---------------------------------------------------------------------- writing in any order


def test_writer_is_filled_by_decoding_threads(tmp_path):
    rng = np.random.default_rng(1)
    paths = [tmp_path / f"{number}.png" for number in range(20)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (9, 8, 3), dtype=np.uint8)).save(path)
    bad = tmp_path / "bad.jpg"
    bad.write_text("no image")
    resize = Resize(7, 8)
    with ArrayStoreWriter(ArrayStore(tmp_path / "images.npy", (21, 7, 8, 3), UINT8)) as writer:
        assert list(decode_into(writer, [*paths, bad], resize, workers=8)) == [20]
        assert np.array_equal(writer.read(range(20)), decode_all(paths, resize))
        assert not writer.read([20]).any()


@pytest.mark.parametrize("row", [np.zeros((6, 5, 3), np.uint8), np.zeros(SHAPE, np.float32)])
def test_writer_refuses_rows_of_another_kind(tmp_path, row):
    facts = rf"\b{row.dtype}\W+{re.escape(str(row.shape))}.*images\.npy"
    with (
        pytest.raises(ValueError, match=facts),
        ArrayStoreWriter(ArrayStore(tmp_path / "images.npy", (1, *SHAPE), UINT8)) as writer,
    ):
        writer[0] = row
    assert list(tmp_path.iterdir()) == []


def test_writer_in_unwritable_folder_names_it(tmp_path):
    (tmp_path / "file").touch()
    store = ArrayStore(tmp_path / "file" / "x", (1, *SHAPE), UINT8)
    facts = rf"{re.escape(str(tmp_path))}/file\b.*(File exists|Not a directory)"
    with pytest.raises(UserError, match=facts), ArrayStoreWriter(store):
        pass


def test_check_space_with_small_disk_names_both_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**12, 0, 2 * 10**9))
    big = ArrayStore(tmp_path / "new" / "x", (1000, 1000, 2000, 3), UINT8)
    with pytest.raises(UserError, match=rf"\b6\.0 GB\b.*{re.escape(str(tmp_path))}.*\b2\.0 GB\b"):
        check_space([big], "Images need", "Free some space.")
    check_space([ArrayStore(tmp_path / "new" / "y", (1000, 1000, 600, 3), UINT8)], "Images need", "")


# ---------------------------------------------------------------------- writing in order, resuming


@pytest.mark.parametrize("damage", ["no record", "half a record", "truncated"])
def test_writer_with_uncertain_progress_starts_over(tmp_path, damage):
    store = features(tmp_path)
    with suppress(Stop), ArrayStoreWriter(store) as writer:
        writer.write(0, np.ones((3, 2), np.float32))
        raise Stop
    assert store.rows_done() == 3
    if damage == "no record":
        store.progress_path.unlink()
    elif damage == "half a record":
        store.progress_path.write_text(store.progress_path.read_text()[:5])
    else:
        store.partial_path.write_bytes(store.partial_path.read_bytes()[:-1])
    assert store.rows_done() == 0
    with ArrayStoreWriter(store) as writer:
        writer.write(0, np.zeros((4, 2), np.float32))
    assert not store.read().any()
    assert list(tmp_path.iterdir()) == [store.path]


def test_killed_writer_resumes_at_its_last_record(monkeypatch, tmp_path):
    store = features(tmp_path, dtype=BFLOAT16)
    rows = np.arange(8, dtype=BFLOAT16).reshape(4, 2)
    killed = ArrayStoreWriter(store).__enter__()
    monkeypatch.setattr(array_store, "SYNC_SECONDS", 0.0)
    killed.write(0, rows[:2])
    monkeypatch.setattr(array_store, "SYNC_SECONDS", 1e9)
    killed.write(2, rows[2:3])
    killed._file.close()  # all that the system does
    assert not store.exists()
    assert store.rows_done() == 2
    with ArrayStoreWriter(store) as writer:
        assert writer.rows_done == 2
        writer.write(2, rows[2:])
    assert np.array_equal(store.read(), rows)
    assert store.read(np.array([3, 0, 3])).tolist() == [[6, 7], [0, 1], [6, 7]]


def test_remove_stores_keeps_all_other_files(tmp_path):
    digest = "0123456789abcdef0123"
    ours = (f"{digest}.npy", f"block4_pool-{digest}.npy", f".a-{digest}.npy.part", f".a-{digest}.npy.json")
    theirs = ("mine.npy", "0.jpg", f"{digest}.jpg", f"{digest}0.npy.gz", f"block4_pool-{digest[1:]}.npy")
    for name in ours + theirs:
        (tmp_path / name).write_text("x")
    (tmp_path / f"b-{digest}.npy").mkdir()
    array_store.remove_stores(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*theirs, f"b-{digest}.npy"}
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / ours[0]).touch()
    array_store.remove_stores(tmp_path / "own")
    assert not (tmp_path / "own").exists()
    array_store.remove_stores(tmp_path / "own")  # a folder that does not exist


def test_second_writer_waits_and_writes_nothing(tmp_path, monkeypatch):
    store = features(tmp_path, n=3)
    events = []
    waits, file_lock = threading.Event(), fileio.file_lock

    def lock(*args, **options):
        waits.set()
        return file_lock(*args, **options)

    def second():
        with ArrayStoreWriter(store) as writer:
            events.append(f"second, {writer.rows_done} rows done")
            writer.write(0, np.zeros((3, 2), np.float32))

    with ArrayStoreWriter(store) as writer:
        monkeypatch.setattr(fileio, "file_lock", lock)
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(60)
        writer.write(0, np.arange(6, dtype=np.float32).reshape(3, 2))
        events.append("first")
    thread.join(10)
    assert events == ["first", "second, 3 rows done"]
    assert store.read().tolist() == [[0, 1], [2, 3], [4, 5]]
    assert list(tmp_path.iterdir()) == [store.path]


def test_writer_of_complete_file_leaves_nothing_beside_it(store):
    with suppress(KeyboardInterrupt), ArrayStoreWriter(store) as writer:
        assert writer.rows_done == len(store)
        raise KeyboardInterrupt
    assert [file.name for file in store.path.parent.iterdir()] == [store.path.name]


def test_discarded_file_never_has_its_final_name(tmp_path):
    store = features(tmp_path)
    with ArrayStoreWriter(store) as writer:
        writer[0] = np.zeros(2, np.float32)
        writer.discard()
    assert list(tmp_path.iterdir()) == []
