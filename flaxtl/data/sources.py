"""Where pictures come from: one string names a source, one function makes a folder of it."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from flaxtl.data import archive, manifest
from flaxtl.errors import UserError, unknown


def folder_of(source: str, cache: Path) -> Path:
    """The folder of pictures that `source` names; what must be drawn, extracted or downloaded lands in `cache`, once.

    Args:
      source: 'folder:PATH', 'archive:FILE' (.tar, .tar.gz, .tgz, .zip), 'tfds:NAME' or 'garden'.
      cache: where made folders are kept: garden_EDITION/, archives/KEY/ (KEY: name and content hash) and tfds/NAME/.

    Returns:
      A folder that `manifest.build` understands. For 'folder:' it is the path itself, not checked.

    Raises:
      UserError: the scheme is unknown, or the source cannot be had.
    """
    scheme, _, place = source.partition(":")
    if scheme not in _SCHEMES:
        raise _no_scheme(source, scheme)
    if (scheme == "garden") == bool(place):
        raise UserError(f"source {source!r} is incomplete or too long; write it as {_SCHEMES[scheme][0]}")
    return _SCHEMES[scheme][1](place, cache)


def _no_scheme(source: str, scheme: str) -> UserError:
    path = Path(source).expanduser()
    if source and path.is_dir():
        return UserError(f"source {source!r} is a folder; write folder:{source}")
    if path.is_file():
        return UserError(f"source {source!r} is a file; write archive:{source}")
    if ":" in source:
        return unknown("source scheme", scheme, _SCHEMES)
    forms = ", ".join(form for form, _ in _SCHEMES.values())
    return UserError(f"no source {source!r}; a source is one of {forms}")


def _folder(place: str, cache: Path) -> Path:
    return Path(place).expanduser()


def _garden(place: str, cache: Path) -> Path:
    from flaxtl.data import garden

    return garden.plant(cache / f"garden_{garden.EDITION}")


def _archive(place: str, cache: Path) -> Path:
    file = Path(place).expanduser()
    target = cache / "archives" / (_key(file) if file.is_file() else file.name)
    if not target.is_dir():
        archive.extract(file, target)
    return _descended(target)


def _key(file: Path) -> str:
    # The content names the folder, so that a new archive under an old name is extracted anew.
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return f"{file.name.split('.')[0]}-{digest[:16]}"


def _descended(folder: Path) -> Path:
    """The innermost folder that is alone at its level and holds folders itself: flower_photos/ of flower_photos.tgz."""
    inside = manifest.subfolders(folder)
    while len(inside) == 1 and manifest.split_of(inside[0].name) is None and manifest.subfolders(inside[0]):
        folder = inside[0]
        inside = manifest.subfolders(folder)
    return folder


def _tfds(place: str, cache: Path) -> Path:
    from flaxtl.data import tfds_export

    return tfds_export.export(place, cache / "tfds" / place.replace("/", "-").replace(":", "-"))


_SCHEMES: dict[str, tuple[str, Callable[[str, Path], Path]]] = {
    "folder": ("folder:PATH", _folder),
    "garden": ("garden", _garden),
    "archive": ("archive:FILE", _archive),
    "tfds": ("tfds:NAME", _tfds),
}
