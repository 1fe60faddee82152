"""Where images come from: one string names a source, one function lists its images."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from flaxtl.data.sources import archive, csv_file, image_folder
from flaxtl.data.sources.image_folder import DatasetIndex, IndexReport
from flaxtl.errors import UserError, unknown


def open_source(source: str, cache: Path) -> DatasetIndex:
    """The images of `source`; what must be drawn, extracted or downloaded lands in `cache`, once.

    Args:
      source: 'folder:PATH', 'archive:FILE' (.tar, .tar.gz, .tgz, .zip), 'tfds:NAME', 'csv:FILE' or 'synthetic'.
      cache: where made folders are kept: garden_EDITION/, archives/KEY/ (KEY: name and content hash) and tfds/NAME/.

    Raises:
      UserError: the scheme is unknown, the source cannot be had, or `listing.of_folder` or `listing_csv.of_csv`
        refuses it.
    """
    place = _place(source, cache)
    return csv_file.scan_csv(place) if _is_csv(source) else image_folder.scan_folder(place)


def inspect_source(source: str, cache: Path) -> IndexReport:
    """What `find` lists and all that is wrong about it, instead of an error for the first fault of its layout."""
    place = _place(source, cache)
    return csv_file.inspect_csv(place) if _is_csv(source) else image_folder.inspect_folder(place)


def _is_csv(source: str) -> bool:
    return source.startswith("csv:")


def _place(source: str, cache: Path) -> Path:
    """The folder, or the CSV file, of a source."""
    scheme, _, place = source.partition(":")
    if scheme not in _SCHEMES:
        raise _no_scheme(source, scheme)
    if (scheme == "synthetic") == bool(place):
        raise UserError(f"source {source!r} is incomplete or too long; write it as {_SCHEMES[scheme][0]}")
    return _SCHEMES[scheme][1](place, cache)


def _no_scheme(source: str, scheme: str) -> UserError:
    path = Path(source).expanduser()
    if source and path.is_dir():
        return UserError(f"source {source!r} is a folder; write folder:{source}")
    if path.is_file():
        kind = "csv" if path.suffix.lower() == ".csv" else "archive"
        return UserError(f"source {source!r} is a file; write {kind}:{source}")
    if ":" in source:
        return unknown("source scheme", scheme, _SCHEMES)
    forms = ", ".join(form for form, _ in _SCHEMES.values())
    return UserError(f"no source {source!r}; a source is one of {forms}")


def _path(place: str, cache: Path) -> Path:
    return Path(place).expanduser()


def _garden(place: str, cache: Path) -> Path:
    from flaxtl.data.sources import synthetic

    return synthetic.generate_dataset(cache / f"garden_{synthetic.DATASET_VERSION}")


def _archive(place: str, cache: Path) -> Path:
    file = Path(place).expanduser()
    target = cache / "archives" / (_key(file) if file.is_file() else file.name)
    if not target.is_dir():
        archive.extract_archive(file, target)
    return _descended(target)


def _key(file: Path) -> str:
    # The content names the folder, so that a new archive under an old name is extracted anew.
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return f"{file.name.split('.')[0][:40]}-{digest[:16]}"


def _descended(folder: Path) -> Path:
    """The innermost folder that is alone at its level and holds folders itself: flower_photos/ of flower_photos.tgz."""
    inside = image_folder.subfolders(folder)
    while (
        len(inside) == 1
        and image_folder.parse_split_name(inside[0].name) is None
        and image_folder.subfolders(inside[0])
    ):
        folder = inside[0]
        inside = image_folder.subfolders(folder)
    return folder


def _tfds(place: str, cache: Path) -> Path:
    from flaxtl.data.sources import tfds

    return tfds.export_tfds(place, cache / "tfds" / place.replace("/", "-").replace(":", "-"))


_SCHEMES: dict[str, tuple[str, Callable[[str, Path], Path]]] = {
    "folder": ("folder:PATH", _path),
    "synthetic": ("synthetic", _garden),
    "archive": ("archive:FILE", _archive),
    "tfds": ("tfds:NAME", _tfds),
    "csv": ("csv:FILE", _path),
}
