import csv
import io
import os
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flaxtl import fileio
from flaxtl.errors import UserError
from flaxtl.fileio import atomic_folder, atomic_write, atomic_write_text, check_disk_space, output_path, suggest_path


def test_output_path_needs_a_folder_that_exists(tmp_path):
    (tmp_path / "results").mkdir()
    assert output_path(f"{tmp_path}/results/new.json") == tmp_path / "results" / "new.json"
    assert output_path("/dev/stdout") == Path("/dev/stdout")
    with pytest.raises(UserError, match=rf"result is not a folder\. Did you mean {re.escape(str(tmp_path))}/results\?"):
        output_path(f"{tmp_path}/result/new.json")
    with pytest.raises(UserError, match=r"/results: it is a folder\."):
        output_path(f"{tmp_path}/results")


def test_atomic_write_replaces_file_at_the_end(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with atomic_write(path) as file:
        file.write("né")
        assert path.read_text() == "old"
    assert path.read_text(encoding="utf-8") == "né"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_write_keeps_links_and_pipes(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    atomic_write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor() as pool:
        read = pool.submit((tmp_path / "pipe").read_text)
        atomic_write_text(tmp_path / "pipe", "sent")
    assert read.result() == "sent"
    assert (tmp_path / "pipe").is_fifo()


def test_atomic_write_to_a_full_disk_names_the_file():
    with pytest.raises(OSError, match="No space left") as error:
        atomic_write_text(Path("/dev/full"), "text")
    assert error.value.filename == "/dev/full"


def test_atomic_write_keeps_the_text_of_an_error_of_a_library(tmp_path):
    with pytest.raises(OSError, match=r"^encoder error -2$"), atomic_write(tmp_path / "file"):
        raise OSError("encoder error -2")


def test_atomic_write_after_error_keeps_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(TypeError), atomic_write(path, "wb") as file:
        file.writelines([b"half", 1])
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_write_text_of_invalid_unicode_keeps_old_file(tmp_path):
    path = tmp_path / "file"
    atomic_write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        atomic_write_text(path, "new\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_folder_appears_at_the_end_only(tmp_path):
    filling = atomic_folder(tmp_path / "out")
    folder = filling.__enter__()
    (folder / "half").write_bytes(b"x")
    assert not (tmp_path / "out").exists()
    filling.__exit__(None, None, None)
    assert [(file.name, file.read_bytes()) for file in (tmp_path / "out").iterdir()] == [("half", b"x")]


def test_atomic_folder_keeps_the_first_of_two(tmp_path):
    with atomic_folder(tmp_path / "out") as slow:
        (slow / "slow").write_bytes(b"")
        with atomic_folder(tmp_path / "out") as fast:
            (fast / "fast").write_bytes(b"")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["fast"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["a" * 255, "ß" * 127, "a" * 239 + "ß" * 8])
def test_atomic_writes_accept_names_of_255_bytes(tmp_path, name):
    atomic_write_text(tmp_path / name, "text")
    with atomic_folder(tmp_path / "folders" / name) as folder:
        (folder / "file").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "folders"])
    assert [path.name for path in (tmp_path / "folders").iterdir()] == [name]


def test_atomic_folder_not_writable_raises(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with (
        pytest.raises(UserError, match=rf"{tmp_path / 'file' / 'out'} .*File exists"),
        atomic_folder(tmp_path / "file" / "out"),
    ):
        pass


def test_check_disk_space_names_both_sizes_and_advice(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**12, 0, 2 * 10**9))
    check_disk_space(tmp_path, 2 * 10**9, "Tests need", "")
    with pytest.raises(UserError, match=r"^Tests need 3\.0 GB .*\b2\.0 GB\b.* Be brief\.$"):
        check_disk_space(tmp_path, 3 * 10**9, "Tests need", "Be brief.")


@pytest.mark.parametrize(
    "name", ["a\rb", "a\r\nb", "a\nb", 'a"b', "a,b", " a ", "=cmd|' /C'!A0", "'", "\udcff", "\0", ""]
)
def test_write_csv_round_trips_any_text(name):
    stream = io.StringIO(newline="")
    fileio.write_csv(stream, [("path", "label"), (name, "x"), ("y", name)])
    assert list(csv.reader(io.StringIO(stream.getvalue(), newline=""))) == [["path", "label"], [name, "x"], ["y", name]]


def test_write_csv_does_not_quote_plain_rows():
    stream = io.StringIO(newline="")
    fileio.write_csv(stream, [("a", 1), ("b c", 0.5)])
    assert stream.getvalue() == "a,1\nb c,0.5\n"


def test_suggest_path_names_a_similar_file_or_what_exists(tmp_path):
    (tmp_path / "Photos").mkdir()
    assert suggest_path(tmp_path / "fotos") == f"Did you mean {tmp_path}/Photos?"
    assert suggest_path(tmp_path / "x") == "Check the path."
    assert suggest_path(tmp_path / "data" / "2023" / "x") == f"The part that exists is {tmp_path}."


def test_user_path_expands_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fileio.user_path("~/runs/a") == tmp_path / "runs/a"
    assert fileio.user_path("~") == tmp_path
    assert str(fileio.user_path("runs/~/a")) == "runs/~/a"
    with pytest.raises(UserError, match=r"~no-such-user\b.*home folder.*\./~no-such-user"):
        fileio.user_path("~no-such-user/runs")
    with pytest.raises(UserError, match=r"path .*, not 3"):
        fileio.user_path(3)
    with pytest.raises(UserError, match=r"^A path is empty\."):
        fileio.user_path("")


@pytest.mark.parametrize("text", ["a" * 256, "~/" + "ß" * 128, "a/" * 2048 + "a"])
def test_user_path_that_is_too_long_raises(monkeypatch, tmp_path, text):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/a").symlink_to("../a")
    with pytest.raises(UserError, match=rf"^Cannot use '{text}': .* too long\. Give a shorter one\.$"):
        fileio.user_path(text)
    assert fileio.user_path("~/" + "ß" * 127) == tmp_path / ("ß" * 127)
    assert fileio.user_path("a\0b") == Path("a\0b")


def test_cache_dir_without_home_folder_names_the_variable(monkeypatch, tmp_path):
    for name in ("FLAXTL_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # the user has no entry: KeyError
    with pytest.raises(UserError, match=r"\bhome folder\b.*\bFLAXTL_CACHE\b"):
        fileio.cache_dir("data")
    monkeypatch.setenv("FLAXTL_CACHE", str(tmp_path))
    assert fileio.cache_dir("data") == tmp_path / "data"


def test_exclusive_lock_waits_for_its_holder_and_leaves_no_file(tmp_path):
    path, events = tmp_path / ".lock", []
    with ThreadPoolExecutor() as pool:
        with fileio.exclusive_lock(path):
            waits = threading.Event()

            def wait():
                with fileio.exclusive_lock(path, waits.set):
                    events.append("second")

            second = pool.submit(wait)
            assert waits.wait(30)
            events.append("first")
        second.result(30)
    assert events == ["first", "second"]
    assert list(tmp_path.iterdir()) == []
