"""Safe extraction of .tar, .tar.gz, .tgz and .zip files into folders that appear complete or not at all."""

import gzip
import posixpath
import shlex
import stat
import tarfile
import zipfile
import zlib
from io import BufferedIOBase
from pathlib import Path, PureWindowsPath
from typing import IO, cast

from flaxtl.errors import UserError
from flaxtl.fileio import atomic_folder, suggest_path

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")

MAX_MEMBERS = 2_000_000
"""More than any common image archive holds (ImageNet-1k: 1,431,167)."""

MAX_EXPANSION = 20
"""Largest ratio of contents to archive. Compressed images expand by a few percent, BMP photographs about fivefold."""

GRACE_BYTES = 2**30
"""Contents that every archive may have in addition, so that small archives of flat drawings are accepted."""

MAX_HEADER = 2**16
"""Bytes of a tar header, which tarfile reads at once. A header may claim any size, and gzip compresses a thousandfold;
file names on Linux have at most 4,096 bytes."""

_WINDOWS = 0  # value of ZipInfo.create_system: APPNOTE.TXT, section 4.4.2

_UTF8_NAME = 1 << 11  # bit of ZipInfo.flag_bits: APPNOTE.TXT, section 4.4.4

_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, gzip.BadGzipFile)


def extract_archive(archive: Path, target: Path) -> Path:
    """Extract `archive` into the new folder `target`, and return `target`.

    An archive is refused if it has a member with an absolute name or '..', a link to anything but an earlier file of
    the archive, or a device; if it is a .zip with two different files of one name (in a .tar, the later one is an
    update); if it has more than MAX_MEMBERS members; or if its contents are larger than GRACE_BYTES +
    MAX_EXPANSION times the archive.

    Raises:
      UserError: the archive is missing, of an unknown type, refused or damaged, or does not fit on the disk.
    """
    check_archive(archive)
    extract = _extract_zip if archive.name.lower().endswith(".zip") else _extract_tar
    with atomic_folder(target) as folder:
        try:
            extract(archive, folder)
        except _DAMAGE as error:
            raise UserError(f"{archive} is damaged ({error}). Download it again.") from error
        except NotImplementedError as error:  # a compression method that zipfile does not support
            raise UserError(f"Cannot extract {archive} ({error}). Extract it yourself and use folder:PATH.") from error
    return target


def check_archive(archive: Path) -> None:
    """Raise UserError unless `archive` is a file with one of SUFFIXES."""
    if not archive.exists():
        raise UserError(f"There is no archive {archive}. {suggest_path(archive)}")
    if not archive.is_file():
        raise UserError(f"{archive} is not a file. For a folder of images use {shlex.quote(f'folder:{archive}')}")
    if not archive.name.lower().endswith(SUFFIXES):
        raise UserError(f"Unknown type of archive: {archive}. Supported: {', '.join(SUFFIXES)}")


def _extract_tar(archive: Path, folder: Path) -> None:
    limits, files = _Limits(archive), set[str]()

    def check(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo:
        limits.add(member.name, member.size)
        if member.issym() or member.islnk():
            _check_link(archive, member, files)
        elif member.isfile():
            files.add(posixpath.normpath(member.name))
        elif not member.isdir():
            raise UserError(f"{archive} contains the device {member.name!r} and is refused. Pack only the images.")
        return tarfile.data_filter(member, path)

    with _open_tar_stream(archive) as stream:
        with tarfile.open(fileobj=cast(IO[bytes], _LimitedReads(stream)), mode="r:") as tar:
            tar.extractall(folder, members=tar, filter=check)
        _check_end(stream, tar.offset)


def _open_tar_stream(archive: Path) -> BufferedIOBase:
    return archive.open("rb") if archive.name.lower().endswith(".tar") else gzip.open(archive, "rb")


class _LimitedReads:
    """A stream for tarfile that refuses large reads: contents are read 16 KiB at a time, headers in one piece."""

    def __init__(self, stream: BufferedIOBase) -> None:
        self._stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int) -> bytes:
        if size > MAX_HEADER:
            raise tarfile.ReadError(f"a header claims {size:,} bytes")
        return self._stream.read(size)


def _check_link(archive: Path, link: tarfile.TarInfo, files: set[str]) -> None:
    # A link to a folder could carry later members outside, however harmless each name looks. Files are safe.
    start = posixpath.dirname(link.name) if link.issym() else ""
    if posixpath.normpath(posixpath.join(start, link.linkname)) not in files:
        raise UserError(
            f"{archive} is refused: its link {link.name!r} points to {link.linkname!r}, which is not an earlier file "
            "of the archive. Pack the images themselves."
        )


def _check_end(stream: BufferedIOBase, end: int) -> None:
    # tarfile mistakes a truncation between two members for the end; a complete archive ends with zeros.
    stream.seek(end)
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("its end is missing")
    while stream.read(2**20):  # reading to the end checks the CRC of gzip
        pass


def _extract_zip(archive: Path, folder: Path) -> None:
    limits = _Limits(archive)
    with zipfile.ZipFile(archive) as bundle:
        members = bundle.infolist()
        for member in members:
            member.filename = _member_name(member)
            limits.add(member.filename, member.file_size)
            if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise UserError(
                    f"{archive} contains the link or device {member.filename!r} and is refused. Pack only the images."
                )
            if member.flag_bits & 1:
                raise UserError(f"{archive} is encrypted. Extract it yourself and use folder:PATH.")
        has_slashes = any("/" in member.filename for member in members)
        contents: dict[str, tuple[int, int]] = {}
        for member in members:
            # Tools on Windows write backslashes against the standard; a file name on Linux may contain some.
            if member.create_system == _WINDOWS or not has_slashes:
                member.filename = member.filename.replace("\\", "/")
            content = member.CRC, member.file_size
            if contents.setdefault(posixpath.normpath(member.filename), content) != content:
                raise UserError(
                    f"{archive} contains two different files {member.filename!r}, one of which would be lost. Rename "
                    "one, or extract it yourself and use folder:PATH."
                )
            bundle.extract(member, folder)


def _member_name(member: zipfile.ZipInfo) -> str:
    """Return the name of a member. macOS and `zip` on Linux write UTF-8 without the flag that says so."""
    if member.flag_bits & _UTF8_NAME:
        return member.filename
    try:
        return member.filename.encode("cp437").decode()  # zipfile reads names without the flag as cp437
    except UnicodeError:
        return member.filename


class _Limits:
    """The count and total size of an archive's members so far; refuses names and totals out of bounds."""

    def __init__(self, archive: Path) -> None:
        self._archive = archive
        self._max_bytes = GRACE_BYTES + MAX_EXPANSION * archive.stat().st_size
        self._members = self._bytes = 0

    def add(self, name: str, size: int) -> None:
        path = PureWindowsPath(name)  # parses both kinds of slash, and drives
        if path.anchor or ".." in path.parts:
            raise UserError(
                f"{self._archive} is refused: its member {name!r} would be written outside the folder. Pack it again "
                "with relative names."
            )
        self._members += 1
        self._bytes += size
        if self._members > MAX_MEMBERS:
            raise UserError(
                f"{self._archive} is refused: it has more than {MAX_MEMBERS:,} members. If you trust it, extract it "
                "yourself."
            )
        if self._bytes > self._max_bytes:
            raise UserError(
                f"{self._archive} is refused: it expands to more than {self._max_bytes:,} bytes, far more than images "
                "do. If you trust it, extract it yourself."
            )
