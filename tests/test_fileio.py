"""Files appear whole or not at all."""

import pytest

from flaxtl.fileio import atomic_write, atomic_write_text


def test_a_file_takes_its_name_when_the_block_has_ended(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with atomic_write(path) as file:
        file.write("né")
        assert path.read_text() == "old"
    assert path.read_text(encoding="utf-8") == "né"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(TypeError), atomic_write(path, "wb") as file:
        file.writelines([b"half", 1])
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_text_that_cannot_be_encoded_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    atomic_write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        atomic_write_text(path, "new\ud800")
    assert path.read_text() == "old"
