"""Images inside TFRecord files have paths, which are read as files are."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flaxtl.data.decode import EncodedImages, Resize, decode, largest_values, load_images
from flaxtl.data.duplicates import fingerprint_files
from flaxtl.data.file_listing import find_images
from flaxtl.data.image_file import MAX_FILE_BYTES, UnreadableError, has_deep_header, open_image
from flaxtl.data.record_files import RecordImage, image_exists, open_binary, parse_path
from flaxtl.data.tf_example import bytes_field_head
from flaxtl.errors import UserError


def encoded(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


COLORS = encoded(np.random.default_rng(0).integers(0, 256, (24, 31, 3), np.uint8))
GRAY16 = encoded(np.arange(400, dtype=np.uint16).reshape(20, 20))


@pytest.fixture
def record_file(tmp_path: Path) -> Path:
    """A file with COLORS, GRAY16 and an empty image, each after what precedes it in a record."""
    file = tmp_path / "flowers-train.tfrecord-00000-of-00001"
    file.write_bytes(b"".join(b"before" + bytes_field_head(len(image)) + image for image in (COLORS, GRAY16, b"")))
    return file


def place(file: Path, image: bytes, name: str = "roses/train_000007.png") -> Path:
    return RecordImage(file, file.read_bytes().index(image), len(image)).path(name)


def test_parse_path_returns_file_and_range() -> None:
    path = Path("/data/flowers-train.tfrecord-00000-of-00002/bytes=4711+10324/roses/train_000012.jpg")
    image = parse_path(path)
    assert image == RecordImage(Path("/data/flowers-train.tfrecord-00000-of-00002"), 4711, 10324)
    assert image.path("roses/train_000012.jpg") == path


@pytest.mark.parametrize(
    "path",
    ["a.jpg", "roses/a.jpg", "/bytes=1+2/a.jpg", "/x/bytes=1+2", "/x/bytes=1-2/roses/a.jpg", "/x/bytes=1+/roses/a.jpg"],
)
def test_parse_path_of_an_ordinary_path_is_none(path: str) -> None:
    assert parse_path(Path(path)) is None


def test_open_binary_reads_files_and_parts_of_record_files(record_file: Path) -> None:
    for image in (COLORS, GRAY16):
        with open_binary(place(record_file, image)) as stream:
            assert stream.read() == image
    with open_binary(record_file) as stream:
        assert stream.read() == record_file.read_bytes()


def test_record_images_decode_and_hash_as_files(record_file: Path, tmp_path: Path) -> None:
    files = [tmp_path / "colors.png", tmp_path / "gray.png"]
    for file, image in zip(files, (COLORS, GRAY16), strict=True):
        file.write_bytes(image)
    paths = [place(record_file, image) for image in (COLORS, GRAY16)]
    assert np.array_equal(load_images(paths, 16), load_images(files, 16))
    images = [EncodedImages(tuple(group), Resize(9, 8)).read([1, 0, 1]) for group in (paths, files)]
    assert np.array_equal(*images)
    fingerprints = fingerprint_files(paths)
    assert fingerprints == fingerprint_files(files)
    assert fingerprints[0].sha256 == hashlib.sha256(COLORS).hexdigest()
    assert [has_deep_header(path) for path in paths] == [False, True]
    assert largest_values(paths) == [0, 399]


def test_image_exists_while_its_record_file_is_unchanged(record_file: Path) -> None:
    path = place(record_file, COLORS)
    assert image_exists(path)
    assert image_exists(record_file)
    assert find_images([str(path)]).images == [path]
    content = record_file.read_bytes()
    for changed in (b"x" + content, content[:40], b""):
        record_file.write_bytes(changed)
        assert not image_exists(path)
    record_file.unlink()
    assert not image_exists(path)
    assert not image_exists(record_file)


def test_decode_of_a_changed_record_file_names_it(record_file: Path) -> None:
    path = place(record_file, COLORS)
    record_file.write_bytes(b"x" + record_file.read_bytes())
    with pytest.raises(UserError, match=f"{record_file.name}.*record file has changed"):
        decode(path, Resize(8, 8))
    with pytest.raises(UserError, match=f"{record_file.name}.*record file has changed"):
        fingerprint_files([path])
    record_file.unlink()
    with pytest.raises(UserError, match=f"{record_file.name}.*no such file"):
        decode(path, Resize(8, 8))


def test_open_image_of_impossible_ranges_is_unreadable(record_file: Path) -> None:
    reasons = {
        RecordImage(record_file, 0, 5): "changed",
        RecordImage(record_file, 10**17, 5): "changed",
        RecordImage(record_file, 8, MAX_FILE_BYTES + 1): "too large",
        RecordImage(record_file, record_file.stat().st_size, 0): "empty",
        RecordImage(record_file.parent, 8, 5): "directory",
    }
    for image, reason in reasons.items():
        with pytest.raises(UnreadableError, match=reason), open_image(image.path("roses/a.png")):
            pass
