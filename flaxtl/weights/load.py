"""A weight file of any kind to a checked tree; the kind is told by what the file holds, never by its name."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import h5py

from flaxtl.errors import UserError
from flaxtl.weights import convert, keras3, keras_h5, safetensors_file
from flaxtl.weights.h5_safety import SafeFile, opened
from flaxtl.weights.merge import Row, merge
from flaxtl.weights.tree import Expected, Found, Tree

_ZIP = b"PK\x03\x04"


@dataclass(frozen=True)
class Loaded:
    """A tree of exactly the expected leaves in float32; what became of each array; what kind of file it was."""

    tree: Tree
    rows: list[Row]
    origin: str


def load(path: Path, expected: Expected, optional: Collection[str] = frozenset()) -> Loaded:
    """Read the weight file at `path` and fit it to `expected`; layers named in `optional` are skipped.

    Reads Keras' HDF5 files of every vintage, `.keras` archives, and flaxtl's safetensors files.
    Raises UserError for a file that is none of these, is damaged or unsafe, or does not fit.
    """
    found, origin = _read(path, expected, {*expected, *optional})
    merged = merge(expected, found, optional=optional, source=str(path))
    return Loaded(merged.tree, merged.rows, origin)


def _read(path: Path, expected: Expected, known: Collection[str]) -> tuple[Found, str]:
    start = _first_bytes(path)
    if start.startswith(_ZIP):
        with opened(keras3.weights_of_archive(path), path) as file:
            return convert.to_leaves(keras3.read(file, expected)), "Keras 3 .keras archive"
    if h5py.is_hdf5(path):
        with opened(path, path) as file:
            return _read_h5(file, expected, known)
    if start[8:9] == b"{":  # eight bytes of length, then JSON
        leaves, metadata = safetensors_file.read(path)
        return leaves, f"safetensors ({metadata.get('precision', 'precision not told')})"
    raise UserError(
        f"{path} is {_guess(start)}, not a weight file; give a Keras .h5, .keras or flaxtl .safetensors file"
    )


def _read_h5(file: SafeFile, expected: Expected, known: Collection[str]) -> tuple[Found, str]:
    if keras_h5.recognises(file):
        return convert.to_leaves(keras_h5.read(file, known)), keras_h5.describe(file)
    if keras3.recognises(file):
        return convert.to_leaves(keras3.read(file, expected)), "Keras 3 .weights.h5"
    raise UserError(f"{file.path} is an HDF5 file, but not one of Keras' weight files; save the weights with Keras")


def _first_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise UserError(f"{path} is a directory; give the weight file in it")
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except FileNotFoundError as error:
        raise UserError(f"no weight file {path}; check the path") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    if not start:
        raise UserError(f"{path} is empty; copy or download it again")
    return start


def _guess(start: bytes) -> str:
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page (the download link led to a page, not to the file)"
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer (run `git lfs pull`)"
    return "of an unknown kind"
