"""Safe extraction of .tar, .tar.gz, .tgz and .zip files into folders that appear whole or not at all."""

import gzip
import posixpath
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedIOBase
from pathlib import Path, PureWindowsPath
from typing import IO, cast

from flaxtl.errors import UserError

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")

# No common set of images holds more in one archive (ImageNet-1k: 1,431,167); archives made to do harm may.
MAX_MEMBERS = 2_000_000
# Images are compressed already and expand by a few percent, uncompressed BMP photographs about fivefold.
MAX_EXPANSION = 20
# Granted to every archive beside MAX_EXPANSION times its size, so that small archives of flat drawings pass.
GRACE_BYTES = 2**30

# Bytes of a tar header, which tarfile reads at once: names of files end at 4,096 bytes on Linux, but a header may claim
# any number, and gzip packs a thousandfold.
MAX_HEADER = 2**16

_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, gzip.BadGzipFile)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yields an empty folder to fill, which takes the name `target` only when the block ends without an error.

    An interruption leaves no `target`, so a folder of that name is always whole. Where another process was faster,
    its folder stays and ours is dropped.

    Raises:
      UserError: the disk is full, `target` cannot be made there, or any other OSError of the block.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
            filled = Path(scratch, target.name)
            filled.mkdir()
            yield filled
            try:
                filled.rename(target)
            except OSError:
                if not target.is_dir():
                    raise
    except OSError as error:
        raise UserError(f"cannot make the folder {target} ({error}); check disk space and permissions") from error


def extract_archive(archive: Path, into: Path) -> Path:
    """Extracts `archive` into the new folder `into`, which must not exist, and returns `into`.

    Refused are members with absolute names or '..', links to anything but an earlier file of the archive, devices,
    more than MAX_MEMBERS members, and more than GRACE_BYTES + MAX_EXPANSION times the archive's size of contents.

    Raises:
      UserError: the archive is missing, of an unknown kind, refused, damaged, or does not fit on the disk.
    """
    unpack = _unpacker(archive)
    with atomic_folder(into) as folder:
        try:
            unpack(archive, folder)
        except _DAMAGE as error:
            raise UserError(f"{archive} is damaged ({error}); download it again") from error
        except NotImplementedError as error:  # a compression that zipfile does not know
            raise UserError(f"cannot extract {archive} ({error}); extract it yourself and write folder:PATH") from error
    return into


def _unpacker(archive: Path) -> Callable[[Path, Path], None]:
    if not archive.exists():
        raise UserError(f"there is no archive {archive}; check the path")
    if not archive.is_file():
        raise UserError(f"{archive} is no file; for a folder of images write folder:{archive}")
    name = archive.name.lower()
    if not name.endswith(SUFFIXES):
        raise UserError(f"{archive} is no archive by its name; expected one of {', '.join(SUFFIXES)}")
    return _unpack_zip if name.endswith(".zip") else _unpack_tar


def _unpack_tar(archive: Path, folder: Path) -> None:
    gauge = _Gauge(archive)
    with _uncompressed(archive) as stream, tarfile.open(fileobj=cast(IO[bytes], _Sips(stream)), mode="r:") as tar:
        files: set[str] = set()
        for member in tar:
            gauge.admit(member.name, member.size)
            if member.issym() or member.islnk():
                _check_link(archive, member, files)
            elif member.isfile():
                files.add(posixpath.normpath(member.name))
            elif not member.isdir():
                raise UserError(f"{archive} holds the device {member.name!r} and is refused; pack the images alone")
            tar.extract(member, folder, filter="data")
        _check_end(stream, tar.offset)


def _uncompressed(archive: Path) -> BufferedIOBase:
    return archive.open("rb") if archive.name.lower().endswith(".tar") else gzip.open(archive, "rb")


class _Sips:
    """What tarfile needs of a stream: it reads contents in pieces of 16 KiB, headers as long as they claim to be."""

    def __init__(self, stream: BufferedIOBase) -> None:
        self._stream = stream
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int) -> bytes:
        if size > MAX_HEADER:
            raise tarfile.ReadError(f"a header claims {size:,} bytes")
        return self._stream.read(size)


def _check_link(archive: Path, link: tarfile.TarInfo, files: set[str]) -> None:
    # A link to a folder could carry later members outside, however harmless each name looks; files alone are safe.
    start = posixpath.dirname(link.name) if link.issym() else ""
    if posixpath.normpath(posixpath.join(start, link.linkname)) not in files:
        raise UserError(
            f"{archive} is refused: its link {link.name!r} points to {link.linkname!r}, which is no earlier file of the"
            " archive; pack the images themselves"
        )


def _check_end(stream: BufferedIOBase, end: int) -> None:
    # tarfile takes a cut between two members for the end; a whole archive ends in zeros. Reading on checks gzip's CRC.
    stream.seek(end)
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("its end is missing")
    while stream.read(2**20):
        pass


def _unpack_zip(archive: Path, folder: Path) -> None:
    gauge = _Gauge(archive)
    with zipfile.ZipFile(archive) as bundle:
        members = bundle.infolist()
        for member in members:
            gauge.admit(member.filename, member.file_size)
            if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise UserError(
                    f"{archive} holds the link or device {member.filename!r} and is refused; pack the files"
                )
            if member.flag_bits & 1:
                raise UserError(f"{archive} is encrypted; extract it yourself and write folder:PATH")
        for member in members:
            bundle.extract(member, folder)


@dataclass
class _Gauge:
    """Counts what an archive would write, and refuses what goes too far."""

    archive: Path
    members: int = 0
    bytes: int = 0
    limit: int = field(init=False)

    def __post_init__(self) -> None:
        self.limit = GRACE_BYTES + MAX_EXPANSION * self.archive.stat().st_size

    def admit(self, name: str, size: int) -> None:
        path = PureWindowsPath(name)  # knows both kinds of slash, and drives
        if path.anchor or ".." in path.parts:
            raise UserError(
                f"{self.archive} is refused: its member {name!r} would be written outside the folder; pack it again"
                " with relative names"
            )
        self.members += 1
        self.bytes += size
        if self.members > MAX_MEMBERS:
            raise UserError(
                f"{self.archive} is refused: it holds more than {MAX_MEMBERS:,} members; extract it yourself"
            )
        if self.bytes > self.limit:
            raise UserError(
                f"{self.archive} is refused: it expands to more than {self.limit:,} bytes, which no images do;"
                " extract it yourself if you trust it"
            )
