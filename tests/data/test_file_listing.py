"""Which files are images, by suffix or by content, and the walk over folders."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.image_folders import image, paint

from flaxtl.data import file_listing, heif
from flaxtl.data.file_listing import SkippedFile, describe_skipped, find_images, skip_reason, walk_images
from flaxtl.data.manifest import make_manifest
from flaxtl.data.sources.image_folder import inspect_folder, scan_folder
from flaxtl.errors import UserError

HEIC = b"\0\0\0\x24ftypheic\0\0\0\0mif1heic" + bytes(40)
JXL = b"\xff\x0a" + bytes(40)


@pytest.fixture(autouse=True)
def _without_heic_reader(monkeypatch):
    monkeypatch.setattr(heif, "register_reader", lambda: False)


@pytest.mark.parametrize("name", ["a", "a.jpe", "a.jpg_large", "a.jpg?w=600", "a.jpg ", "a.txt", "a.jpg.crdownload"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "PPM", "JPEG2000"])
def test_skip_reason_image_by_content_is_none(tmp_path, name, kind):
    image(0, 8).save(tmp_path / name, kind)
    assert skip_reason(tmp_path / name) is None


@pytest.mark.parametrize(
    ("name", "content", "fact"),
    [
        ("a.heic", HEIC, r"iPhone format: pip install 'flaxtl\[heif\]'"),
        ("a", HEIC, r"iPhone format: pip install 'flaxtl\[heif\]'"),
        ("a.jxl", JXL, "JPEG XL.*JPEG or PNG.*pillow-jxl-plugin"),
        ("a.nef", b"II*\0" + bytes(40), "RAW.*JPEG or PNG"),
        ("a.txt", b"BM is the license plate", "file type"),
        ("a.txt", b"P6 is a road", "file type"),
        ("a", b"", "file type"),
        ("a.zip", b"PK", "an archive: unpack it with unzip"),
        ("a.Tar.gz", b"", "an archive: unpack it with tar"),
        ("a.rar", b"", "an archive: unpack it with 7z"),
    ],
    ids=range(10),
)
def test_skip_reason_of_other_content_names_it(tmp_path, name, content, fact):
    (tmp_path / name).write_bytes(content)
    assert re.search(fact, skip_reason(tmp_path / name))


@pytest.mark.parametrize(
    ("names", "advice"),
    [
        (["a b.zip"], "Unpack a b.zip: unzip '{0}/a b.zip' -d {0}"),
        (["a.tgz", "b.tar", "c.txt"], "Unpack a.tgz and b.tar: tar -xf {0}/a.tgz -C {0}; tar -xf {0}/b.tar -C {0}"),
    ],
)
def test_folder_of_archives_says_how_to_unpack_them(tmp_path, names, advice):
    for name in names:
        (tmp_path / name).touch()
    advice = advice.format(tmp_path)
    assert inspect_folder(tmp_path).problems == (f"{tmp_path} contains no class folders. {advice}",)
    with pytest.raises(UserError) as error:
        find_images([str(tmp_path)])
    assert str(error.value) == f"No images found at {str(tmp_path)!r}. {advice}"
    with pytest.raises(UserError, match="Unpack"):
        find_images([str(tmp_path / names[0])])


def test_skip_reason_known_suffix_is_not_opened(tmp_path, monkeypatch):
    (tmp_path / "a.JPG").write_bytes(b"damaged")
    monkeypatch.setattr(Path, "open", lambda *arguments: pytest.fail("it was opened"))
    assert skip_reason(tmp_path / "a.JPG") is None


def test_walk_images_follows_links_but_no_loops(tmp_path):
    paint(tmp_path / "away", range(2))
    paint(tmp_path / "set" / "inner", range(2, 3))
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "away")
    (tmp_path / "set" / "inner" / "loop").symlink_to(tmp_path / "set")
    paint(tmp_path / "set" / ".hidden", range(3, 4))
    paint(tmp_path / "set" / "__MACOSX", range(3, 4))
    (tmp_path / "set" / "notes.txt").write_text("x")
    listing = walk_images(tmp_path / "set")
    assert [str(path.relative_to(tmp_path / "set")) for path in listing.images] == [
        "inner/2.png",
        "linked/0.png",
        "linked/1.png",
    ]
    assert listing.skipped == [SkippedFile(tmp_path / "set" / "notes.txt", "unsupported file type")]


def test_walk_images_unreadable_folder_raises(tmp_path, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(file_listing, "os", SimpleNamespace(scandir=refuse))
    with pytest.raises(UserError, match=r"Permission denied"):
        walk_images(tmp_path)


def test_describe_skipped_counts_suffixes():
    files = [SkippedFile(Path(name), "unsupported file type") for name in ("a.TXT", "b.txt", "c", "d.xml")]
    assert describe_skipped([SkippedFile(Path("e.heic"), heif.MISSING_READER), *files]) == (
        "Skipped 5 files that are not images flaxtl can read: .txt 2, .heic 1, .xml 1, without suffix 1. "
        "HEIC, an iPhone format: pip install 'flaxtl[heif]'"
    )
    assert describe_skipped(files[:1]) == "Skipped 1 file that is not an image flaxtl can read: .txt 1"


def test_make_manifest_uses_images_by_content_and_counts_others(tmp_path):
    for number, label in enumerate(("a", "b")):
        paint(tmp_path / label, range(10 * number, 10 * number + 10))
    shutil.move(tmp_path / "a" / "0.png", tmp_path / "a" / "0")
    (tmp_path / "b" / "x.heic").write_bytes(HEIC)
    (tmp_path / "LICENSE.txt").write_text("beside the classes")
    said = []
    manifest = make_manifest(
        scan_folder(tmp_path), {"train": 0.5, "validation": 0.5}, 0, near_duplicates=-1, warn=said.append
    )
    assert len(manifest.examples) == 20
    assert manifest.skipped_files == 1
    assert said == [describe_skipped([SkippedFile(tmp_path / "b" / "x.heic", skip_reason(tmp_path / "b" / "x.heic"))])]


def test_inspect_folder_class_of_other_files_names_them(tmp_path):
    paint(tmp_path / "a", range(1))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.heic").write_bytes(HEIC)
    (problem,) = (text for text in inspect_folder(tmp_path).problems if "no images" in text)
    assert ".heic 1" in problem
