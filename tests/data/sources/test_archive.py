"""Archives: extracted completely, or refused with one message; never outside their folder."""

import gzip
import io
import re
import stat
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flaxtl.data.sources import archive
from flaxtl.data.sources.archive import extract_archive
from flaxtl.errors import UserError

FILES = {
    "set/a/1.jpg": b"one" * 999,
    "set/a/2.jpg": b"two" * 5000,
    "set/b/3.jpg": bytes(700),
    "set/LICENSE.txt": b"CC-BY",
}


DAMAGED = re.compile("(?i)damaged|corrupt")


def tar_of(path: Path, *members: tarfile.TarInfo | tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def zip_of(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, data in members:
            bundle.writestr(name, data)
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = target
    return info


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(path: Path, into: Path) -> str:
    """Return the error for `path`; nothing may be left behind."""
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(UserError) as caught:
        extract_archive(path, into)
    assert sorted(path.parent.rglob("*")) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_extract_zip_with_two_files_of_one_name_is_refused(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "f.zip", ("a/1.jpg", b"one"), ("a/2.jpg", b"two"), ("./a/1.jpg", b"three"))
    assert re.search(r"f\.zip contains two different files '\./a/1\.jpg'.*folder:PATH", refused(path, tmp_path / "out"))
    path = zip_of(tmp_path / "g.zip", ("a/1.jpg", b"one"), ("a/", b""), ("a/", b""), ("a/1.jpg", b"one"))
    assert contents(extract_archive(path, tmp_path / "out")) == {"a/1.jpg": b"one"}


@pytest.mark.parametrize("name", ["f.tar", "f.tar.gz", "f.tgz", "F.TGZ", "f.zip"])
def test_extract_every_type_keeps_bytes(tmp_path: Path, name: str) -> None:
    make: Callable[..., Path] = zip_of if name.endswith("zip") else tar_of
    path = make(tmp_path / name, *FILES.items())
    assert extract_archive(path, tmp_path / "out") == tmp_path / "out"
    assert contents(tmp_path / "out") == FILES


def test_extract_creates_parent_folders(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "f.tgz", *FILES.items())
    extract_archive(path, tmp_path / "not" / "yet" / "there")
    assert contents(tmp_path / "not" / "yet" / "there") == FILES


@pytest.mark.parametrize("name", ["../evil.jpg", "a/../../evil.jpg", "/tmp/evil.jpg", "..\\evil.jpg", "C:\\evil.jpg"])
@pytest.mark.parametrize("kind", ["f.tar", "f.zip"])
def test_extract_refuses_names_outside_folder(tmp_path: Path, name: str, kind: str) -> None:
    make: Callable[..., Path] = zip_of if kind == "f.zip" else tar_of
    path = make(tmp_path / kind, ("fine.jpg", b"x"), (name, b"x"))
    assert repr(name) in refused(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("kind", "name", "target"),
    [
        (tarfile.SYMTYPE, "link", "/etc/passwd"),
        (tarfile.SYMTYPE, "a/link", "../../outside.jpg"),
        (tarfile.SYMTYPE, "link", "."),  # a folder: later members could be written through it
        (tarfile.SYMTYPE, "link", "later.jpg"),
        (tarfile.LNKTYPE, "link", "/etc/passwd"),
        (tarfile.LNKTYPE, "link", "../outside.jpg"),
    ],
)
def test_extract_refuses_links_to_other_than_earlier_files(tmp_path: Path, kind: bytes, name: str, target: str) -> None:
    (tmp_path / "outside.jpg").write_bytes(b"mine")
    path = tar_of(tmp_path / "f.tar", ("fine.jpg", b"x"), special(name, kind, target), ("later.jpg", b"x"))
    assert re.search(re.escape(repr(name)) + ".*" + re.escape(repr(target)), refused(path, tmp_path / "out"))


def test_extract_refuses_members_through_links(tmp_path: Path) -> None:
    """Nothing is written below or over a link to a file, neither outside nor to another member."""
    link = special("link", tarfile.SYMTYPE, "a/1.jpg")
    path = tar_of(tmp_path / "f.tar", ("a/1.jpg", b"one"), link, ("link/evil.jpg", b"x"))
    assert re.search(rf"{tmp_path / 'out'}\b.*\blink/evil\.jpg\b", refused(path, tmp_path / "out"))
    chain = [special("b", tarfile.SYMTYPE, "a"), special("a", tarfile.SYMTYPE, "../outside")]
    assert "'../outside'" in refused(tar_of(tmp_path / "g.tar", ("a", b"x"), *chain), tmp_path / "out")


def test_extract_ignores_modes_and_owners(tmp_path: Path) -> None:
    info = special("a/1.jpg", tarfile.REGTYPE)
    info.mode, info.uid = 0o6777, 12345
    folder = extract_archive(tar_of(tmp_path / "f.tar", info), tmp_path / "out")
    made = (folder / "a" / "1.jpg").stat()
    assert made.st_mode & 0o7022 == 0
    assert made.st_uid == tmp_path.stat().st_uid


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_extract_refuses_huge_headers_in_little_memory(tmp_path: Path, kind: bytes) -> None:
    header = special("././@LongLink", kind)
    header.size = 64 * 2**20
    with gzip.open(tmp_path / "f.tgz", "wb") as stream:
        stream.write(header.tobuf(tarfile.GNU_FORMAT) + bytes(header.size))
    tracemalloc.start()
    assert "67,108,864" in refused(tmp_path / "f.tgz", tmp_path / "out")
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


@pytest.mark.parametrize("name", ["é" * 125 + ".jpg", "-rf.jpg", "<b>.jpg", "a\nb.jpg", "\udcff.jpg"])
def test_extract_keeps_unusual_names(tmp_path: Path, name: str) -> None:
    assert contents(extract_archive(tar_of(tmp_path / "f.tar", (name, b"x")), tmp_path / "out")) == {name: b"x"}


def test_extract_keeps_links_to_earlier_files(tmp_path: Path) -> None:
    symbolic = special("b/symbolic.jpg", tarfile.SYMTYPE, "../a/1.jpg")
    hard = special("b/hard.jpg", tarfile.LNKTYPE, "a/1.jpg")
    extract_archive(tar_of(tmp_path / "f.tar", ("./a/1.jpg", b"one"), symbolic, hard), tmp_path / "out")
    assert contents(tmp_path / "out") == dict.fromkeys(("a/1.jpg", "b/symbolic.jpg", "b/hard.jpg"), b"one")


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_extract_tar_refuses_devices(tmp_path: Path, kind: bytes) -> None:
    path = tar_of(tmp_path / "f.tgz", ("fine.jpg", b"x"), special("null", kind))
    assert re.search("(?i)device.*'null'", refused(path, tmp_path / "out"))


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_extract_zip_refuses_links_and_devices(tmp_path: Path, kind: int) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = (kind | 0o777) << 16
    path = zip_of(tmp_path / "f.zip", ("fine.jpg", b"x"), (link, b"/etc/passwd"))
    assert re.search(r"f\.zip\b.*'link'", refused(path, tmp_path / "out"))


@pytest.mark.parametrize("kind", ["f.tgz", "f.zip"])
def test_extract_limits_members_and_bytes(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make: Callable[..., Path] = zip_of if kind == "f.zip" else tar_of
    path = make(tmp_path / kind, ("a.jpg", bytes(2**20)), ("b.jpg", b"x"))
    monkeypatch.setattr(archive, "GRACE_BYTES", 2**20 - archive.MAX_EXPANSION * path.stat().st_size)
    assert "1,048,576" in refused(path, tmp_path / "out")
    monkeypatch.setattr(archive, "GRACE_BYTES", archive.GRACE_BYTES + 1)
    assert contents(extract_archive(path, tmp_path / "out")) == {"a.jpg": bytes(2**20), "b.jpg": b"x"}
    monkeypatch.setattr(archive, "MAX_MEMBERS", 1)
    assert re.search(r"(?i) 1 (member|file|entr)", refused(path, tmp_path / "other"))


@pytest.mark.parametrize("name", ["f.tar", "f.tgz", "f.zip"])
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.8])
def test_extract_refuses_truncated_archive(tmp_path: Path, name: str, part: float) -> None:
    make: Callable[..., Path] = zip_of if name == "f.zip" else tar_of
    noise = np.random.default_rng(0).integers(0, 256, (9, 5000), dtype=np.uint8)
    path = make(tmp_path / name, *((f"a/{i}.jpg", row.tobytes()) for i, row in enumerate(noise)))
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    assert DAMAGED.search(refused(path, tmp_path / "out"))


def test_extract_refuses_tar_cut_between_members(tmp_path: Path) -> None:
    # Where tarfile itself detects nothing: after the header and the data (512 bytes each) of the first member.
    path = tar_of(tmp_path / "f.tar", ("1.jpg", b"one"), ("2.jpg", b"two"))
    path.write_bytes(path.read_bytes()[:1024])
    message = refused(path, tmp_path / "out")
    assert DAMAGED.search(message)
    assert re.search(r"(?i)\bend\b|truncated|incomplete", message)


@pytest.mark.parametrize("name", ["f.tgz", "f.zip"])
def test_extract_refuses_flipped_bit(tmp_path: Path, name: str) -> None:
    make: Callable[..., Path] = zip_of if name == "f.zip" else tar_of
    noise = np.random.default_rng(0).integers(0, 256, 50_000, dtype=np.uint8).tobytes()
    path = make(tmp_path / name, ("a/1.jpg", noise), ("a/2.jpg", b"x"))
    data = bytearray(path.read_bytes())
    data[25_000] ^= 4
    path.write_bytes(data)
    assert DAMAGED.search(refused(path, tmp_path / "out"))


def test_extract_refuses_web_page_as_archive(tmp_path: Path) -> None:
    for name in ("f.tar", "f.tgz", "f.zip"):
        (tmp_path / name).write_bytes(b"<html>404 not found</html>" * 99)
        assert DAMAGED.search(refused(tmp_path / name, tmp_path / "out"))
    (tmp_path / "g.tgz").write_bytes(gzip.compress(b"<html>404 not found</html>" * 99))
    assert DAMAGED.search(refused(tmp_path / "g.tgz", tmp_path / "out"))


def test_extract_of_missing_folder_or_unknown_type_raises(tmp_path: Path) -> None:
    (tmp_path / "f.rar").write_bytes(b"Rar!")
    missing = refused(tmp_path / "none.zip", tmp_path / "out")
    assert str(tmp_path / "none.zip") in missing
    assert not DAMAGED.search(missing)
    assert f"folder:{tmp_path}" in refused(tmp_path, tmp_path / "out")
    assert re.search(r"f\.rar\b.* \.tar, \.tar\.gz, \.tgz, \.zip", refused(tmp_path / "f.rar", tmp_path / "out"))


def test_extract_refuses_encrypted_zip(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "f.zip", ("1.jpg", b"x"))
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag in the central directory
    path.write_bytes(data)
    assert re.search("(?i)encrypted", refused(path, tmp_path / "out"))


def test_extract_refuses_unknown_compression(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "f.zip", ("1.jpg", b"x"))
    data = bytearray(path.read_bytes())
    for method in (8, data.index(b"PK\x01\x02") + 10):
        data[method] = 9  # Deflate64, in the member's own header and in the central directory
    path.write_bytes(data)
    assert re.search(r"f\.zip\b.*compression.*folder:PATH", refused(path, tmp_path / "out"))


def test_extract_interrupted_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zip_of(tmp_path / "f.zip", *FILES.items())
    written: list[str] = []

    def interrupted(self: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path) -> None:
        if written:
            raise KeyboardInterrupt
        (folder / "half").write_bytes(b"x")
        written.append(member.filename)

    monkeypatch.setattr(zipfile.ZipFile, "extract", interrupted)
    with pytest.raises(KeyboardInterrupt):
        extract_archive(path, tmp_path / "out")
    assert written
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("names", "system", "expected"),
    [
        (("set\\a\\1.jpg", "set\\b\\2.jpg"), 3, {"set/a/1.jpg", "set/b/2.jpg"}),
        (("a\\1.jpg", "b/2.jpg"), 0, {"a/1.jpg", "b/2.jpg"}),
        (("a/x\\1.jpg", "b/2.jpg"), 3, {"a/x\\1.jpg", "b/2.jpg"}),  # a file name on Linux
    ],
)
def test_extract_zip_with_backslashes_keeps_folders(tmp_path: Path, names, system: int, expected: set[str]) -> None:
    with zipfile.ZipFile(tmp_path / "f.zip", "w") as bundle:
        for name in names:
            member = zipfile.ZipInfo(name)
            member.create_system = system
            bundle.writestr(member, b"x")
    assert contents(extract_archive(tmp_path / "f.zip", tmp_path / "out")).keys() == expected


@pytest.mark.parametrize("encoding", ["utf-8", "cp437"])
def test_extract_zip_with_names_without_utf8_flag(tmp_path: Path, encoding: str) -> None:
    """Names in UTF-8 are those of macOS and of `zip` on Linux, names in code page 437 those of Windows."""
    name = "gänse/1.jpg".encode(encoding)
    placeholder = "x" * len(name)
    path = zip_of(tmp_path / "f.zip", (placeholder, b"y"))
    path.write_bytes(path.read_bytes().replace(placeholder.encode(), name))
    assert contents(extract_archive(path, tmp_path / "out")) == {"gänse/1.jpg": b"y"}
