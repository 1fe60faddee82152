"""Data sources: one string names a source, one function lists its images."""

import hashlib
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from flaxtl.data.file_listing import is_visible, skip_reason
from flaxtl.data.sources import archive, csv_file, hub_dataset, image_folder
from flaxtl.data.sources.class_folders import read_notes
from flaxtl.data.sources.image_folder import DatasetIndex, IndexReport
from flaxtl.errors import UserError, unknown
from flaxtl.fileio import cache_dir, suggest_path, user_path


def open_source(source: str, cache: Path, *, loader: str = "decoded") -> DatasetIndex:
    """List the images of `source`; what has to be drawn, extracted or downloaded is written to `cache` once.

    Args:
      source: 'folder:PATH', 'archive:FILE' (.tar, .tar.gz, .tgz, .zip), 'hf:ORG/NAME', 'tfds:NAME', 'csv:FILE' or
        'synthetic'.
      cache: contains synthetic_VERSION/, archives/KEY/ (KEY: name and content hash), hf/NAME@COMMIT/ and tfds/NAME/.
      loader: the setting `data.loader`; with 'tfdata', the images of 'tfds:NAME' are listed in TFDS' own files instead
        of being written to `cache`.

    Raises:
      UserError: the scheme is unknown, the source is not available, or its layout is invalid.
    """
    scheme, _, location = source.partition(":")
    if scheme == "tfds" and loader == "tfdata" and location:
        from flaxtl.data.sources import tfds

        return tfds.list_records(location)
    path = _resolve(source, cache)
    if _is_csv(source):
        return csv_file.scan_csv(path)
    try:
        index = image_folder.scan_folder(path)
    except UserError as error:
        raise UserError(_explain(str(error), source, path)) from error
    return _name_origin(index, source, path, cache)


def with_scheme(source: str) -> str:
    """Return `source`; if it is the path of a folder, a CSV file or another file, after 'folder:', 'csv:', 'archive:'.

    A path as a user types it on a command line is enough to know which of them it is.
    """
    if not source or source.partition(":")[0] in _SCHEMES:
        return source
    path = user_path(source)
    if path.is_dir():
        return f"folder:{source}"
    if path.is_file():
        return f"{'csv' if path.suffix.lower() == '.csv' else 'archive'}:{source}"
    return source


def inspect_source(source: str, cache: Path) -> IndexReport:
    """List the images of `source` with all problems of its layout, where `open_source` raises the first one."""
    path = _resolve(source, cache)
    if _is_csv(source):
        return csv_file.inspect_csv(path)
    report = image_folder.inspect_folder(path)
    problems = tuple(_explain(problem, source, path) for problem in report.problems)
    return IndexReport(_name_origin(report.index, source, path, cache), problems)


def _is_csv(source: str) -> bool:
    return source.startswith("csv:")


def _name_origin(index: DatasetIndex, source: str, folder: Path, cache: Path) -> DatasetIndex:
    """Name what a user knows as the origin, the archive or the dataset, and not the folder in the cache."""
    scheme, _, location = source.partition(":")
    if scheme == "archive":
        return replace(index, origin=_archive_name(source), notes=(*_describe_beside(folder, cache), *index.notes))
    if scheme == "hf":
        commit = filter(None, (hub_dataset.describe_commit(location, folder),))
        notes = (*commit, *read_notes(folder), *_describe_beside(folder, cache), *index.notes)
        return replace(index, origin=source, notes=notes)
    if scheme == "tfds":
        return replace(index, origin=source, notes=(*read_notes(folder), *index.notes))
    return index


def _describe_beside(folder: Path, cache: Path) -> list[str]:
    """Return a note on the images beside `folder` and the folders around it, up to CACHE/KIND/NAME; see _dataset_root.

    They have no class: a dataset may come with an image of itself.
    """
    outer = folder.parents[: len(folder.relative_to(cache).parts) - 2]
    files = [path for parent in outer for path in sorted(parent.iterdir()) if is_visible(path) and path.is_file()]
    images = [path.name for path in files if skip_reason(path) is None]
    if not images:
        return []
    return [f"Left out {len(images):,} image(s) outside of the folder {folder.name}, such as {images[0]}."]


def _explain(problem: str, source: str, folder: Path) -> str:
    """Return what is wrong with the layout in terms of the archive or dataset, not of its folder in the cache."""
    scheme, _, location = source.partition(":")
    if scheme == "hf":
        return hub_dataset.explain_layout(problem, location, folder)
    if scheme != "archive":
        return problem
    problem = re.sub(r"\bUnpack (.+?): .*", r"It contains \1.", problem)  # no command can unpack it there
    text = problem.replace(str(folder.resolve()), _archive_name(source))
    return f"{text} Pack the archive again, or extract it yourself and use folder:PATH."


def _archive_name(source: str) -> str:
    return str(user_path(source.removeprefix("archive:")))


def open_config_source(data: Any) -> DatasetIndex:
    """List the images of the section `data` of a config; see `open_source`.

    Raises:
      UserError: also if its folder does not exist, which may be that of an example.
    """
    scheme, _, location = data.source.partition(":")
    if scheme == "folder" and location and not (folder := user_path(location)).exists():
        raise UserError(
            f"There is no folder {folder}, from which the config reads its images. {suggest_path(folder)} "
            "Give the folder of your images: --config.data.source=folder:PATH"
        )
    return open_source(data.source, cache_dir("data"), loader=data.loader)


def _resolve(source: str, cache: Path) -> Path:
    """Return the folder, or the CSV file, of a source."""
    _check_local(source)
    scheme, _, location = source.partition(":")
    if scheme not in _SCHEMES:
        raise _not_a_source(source, scheme)
    form, resolve = _SCHEMES[scheme]
    if (scheme == "synthetic") == bool(location):
        raise UserError(f"Invalid data source {source!r}. Write it as {form}")
    return resolve(location, cache)


def _check_local(source: str) -> None:
    """Raise UserError for a folder or file in cloud storage: each image is read many times, also by the report."""
    match = re.fullmatch(r"(?:folder:|archive:|csv:)?((s3|gs)://.*?([^/]+)/?)", source)
    if match:
        url, scheme, name = match.groups()
        raise UserError(f"{url} is not on this machine. Copy it: {_COPY[scheme]} {shlex.join([url, name])}")


def _not_a_source(source: str, scheme: str) -> UserError:
    """Return the error for a source without a known scheme; a path that exists gets its scheme suggested."""
    if (complete := with_scheme(source)) != source:
        kind = "folder" if complete.startswith("folder:") else "file"
        return UserError(f"The data source {source!r} is a {kind}. Write {shlex.quote(complete)}")
    if len(scheme) == 1:  # a Windows drive
        return UserError(f"Not a data source: {source!r}. For a folder write {shlex.quote(f'folder:{source}')}")
    if ":" in source:
        return unknown("source scheme", scheme, _SCHEMES)
    forms = ", ".join(form for form, _ in _SCHEMES.values())
    advice = f" {suggest_path(user_path(source))}" if source else ""
    return UserError(f"Not a data source, nor an existing path: {source!r}.{advice} Available: {forms}")


def _existing_path(location: str, cache: Path) -> Path:
    return user_path(location)


def _synthetic(location: str, cache: Path) -> Path:
    from flaxtl.data.sources import synthetic

    return synthetic.generate_dataset(cache / f"synthetic_{synthetic.DATASET_VERSION}")


def _archive(location: str, cache: Path) -> Path:
    file = user_path(location)
    archive.check_archive(file)
    target = cache / "archives" / _archive_key(file)
    if not target.is_dir():
        archive.extract_archive(file, target)
    return _dataset_root(target)


def _archive_key(file: Path) -> str:
    # Named by content, so that a new archive with an old name is extracted again.
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return f"{file.name.split('.')[0][:40]}-{digest[:16]}"


def _dataset_root(folder: Path) -> Path:
    """Descend while a folder contains one folder only, and that has folders: flower_photos/ of flower_photos.tgz."""
    inside = image_folder.subfolders(folder)
    while (
        len(inside) == 1
        and image_folder.parse_split_name(inside[0].name) is None
        and (deeper := image_folder.subfolders(inside[0]))
    ):
        folder, inside = inside[0], deeper
    return folder


def _tfds(location: str, cache: Path) -> Path:
    from flaxtl.data.sources import tfds

    return tfds.export_tfds(location, cache / "tfds" / location.replace("/", "-").replace(":", "-"))


def _hub_dataset(location: str, cache: Path) -> Path:
    return _dataset_root(hub_dataset.export_dataset(location, cache))


_COPY = {"s3": "aws s3 sync", "gs": "gcloud storage rsync -r"}
"""Scheme of cloud storage -> the command that copies a folder of it."""

_SCHEMES: dict[str, tuple[str, Callable[[str, Path], Path]]] = {
    "folder": ("folder:PATH", _existing_path),
    "synthetic": ("synthetic", _synthetic),
    "archive": ("archive:FILE", _archive),
    "hf": ("hf:ORG/NAME", _hub_dataset),
    "tfds": ("tfds:NAME", _tfds),
    "csv": ("csv:FILE", _existing_path),
}
"""Scheme -> how it is written, and the function that returns its folder or CSV file."""
