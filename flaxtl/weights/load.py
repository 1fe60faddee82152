"""A weight file of any kind to a checked tree; the kind is told by what the file holds, never by its name."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import h5py

from flaxtl.errors import UserError
from flaxtl.weights import autonames, convert, keras3, keras_h5, normalization, onnx, safetensors_file, timm
from flaxtl.weights.h5_safety import SafeFile, opened
from flaxtl.weights.merge import Row, merge
from flaxtl.weights.tree import Expected, Found, Layers, Tree

_ZIP = b"PK\x03\x04"


@dataclass(frozen=True)
class Loaded:
    """A tree of exactly the expected leaves in float32; what became of each array; what kind of file it was."""

    tree: Tree
    rows: list[Row]
    origin: str


def load(path: Path, expected: Expected, optional: Collection[str] = frozenset()) -> Loaded:
    """Read the weight file at `path` and fit it to `expected`; layers named in `optional` are skipped.

    `optional` may name the layers of the whole network: layers that Keras named itself are known by their order in it.
    Reads Keras' HDF5 files of every vintage, `.keras` archives, flaxtl's safetensors files, and ONNX.
    Raises UserError for a file that is none of these, is damaged or unsafe, or does not fit.
    """
    found, origin = _read(path, expected, dict.fromkeys((*optional, *expected)))
    return _fit(path, expected, found, optional, origin)


def load_timm(path: Path, network: str, expected: Expected, optional: Collection[str] = frozenset()) -> Loaded:
    """`load` for a safetensors file of PyTorch's `network` under the names of timm or torchvision (see timm.read)."""
    _first_bytes(path)  # tells what is wrong with a path
    found = timm.read(path, network, {*expected, *optional}, expected)
    return _fit(path, expected, found, optional, "PyTorch safetensors")


def _fit(path: Path, expected: Expected, found: Found, optional: Collection[str], origin: str) -> Loaded:
    merged = merge(expected, found, optional=optional, source=str(path))
    return Loaded(merged.tree, merged.rows, origin)


def _read(path: Path, expected: Expected, known: Collection[str]) -> tuple[Found, str]:
    start = _first_bytes(path)
    if start.startswith(_ZIP):
        with opened(keras3.weights_of_archive(path), path) as file:
            return _leaves(file, keras3.read(file, expected), expected, known), "Keras 3 .keras archive"
    if h5py.is_hdf5(path):
        with opened(path, path) as file:
            return _read_h5(file, expected, known)
    if start[8:9] == b"{":  # eight bytes of length, then JSON
        leaves, metadata = safetensors_file.read(path)
        return leaves, f"safetensors ({metadata.get('precision', 'precision not told')})"
    if onnx.recognises(start):
        return onnx.read(path), "ONNX"
    raise UserError(
        f"{path} is {_guess(start)}, not a weight file; give a Keras .h5, .keras, flaxtl .safetensors or .onnx file"
    )


def _read_h5(file: SafeFile, expected: Expected, known: Collection[str]) -> tuple[Found, str]:
    if keras_h5.recognises(file):
        return _leaves(file, keras_h5.read(file, known), expected, known), keras_h5.describe(file)
    if keras3.recognises(file):
        return _leaves(file, keras3.read(file, expected), expected, known), "Keras 3 .weights.h5"
    raise UserError(f"{file.path} is an HDF5 file, but not one of Keras' weight files; save the weights with Keras")


def _leaves(file: SafeFile, layers: Layers, expected: Expected, known: Collection[str]) -> Found:
    layers = normalization.without(layers, file.path)
    return convert.to_leaves(autonames.rename(layers, (known, expected), file.path), expected)


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
