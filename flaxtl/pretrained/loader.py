"""Keras' HDF5 files of every vintage, and the `.keras` archives that hold one, as arrays by layer."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import h5py

from flaxtl.errors import UserError
from flaxtl.pretrained import convert, hdf5, keras_legacy, keras_v3, onnx_reader, safetensors_io, timm
from flaxtl.pretrained.hdf5 import MAX_BYTES, SafeFile, open_h5
from flaxtl.pretrained.merge import ExpectedShapes, LoadedLayers, ParamTree, StoredLayers, WeightRow, merge_params

_ZIP = b"PK\x03\x04"


def is_h5(path: Path, start: bytes) -> bool:
    """Whether the file at `path`, whose first bytes are `start`, is one of these."""
    return start.startswith(_ZIP) or bool(h5py.is_hdf5(path))


def read_h5(path: Path, known: Collection[str], expected: ExpectedShapes) -> tuple[StoredLayers, str]:
    """Every array of the file, by layer, and its layout in words; for the names see keras_h5.read and keras3.read.

    Raises UserError for a file that is damaged, unsafe or not one of Keras' weight files.
    """
    with path.open("rb") as stream:
        archive = stream.read(len(_ZIP)) == _ZIP
    if archive:
        with open_h5(keras_v3.weights_of_archive(path), path) as file:
            return keras_v3.read_keras_v3(file, expected), "Keras 3 .keras archive"
    with open_h5(path, path) as file:
        return _read_h5(file, known, expected)


def _read_h5(file: SafeFile, known: Collection[str], expected: ExpectedShapes) -> tuple[StoredLayers, str]:
    if keras_legacy.is_legacy_h5(file):
        return keras_legacy.read_legacy_h5(file, known), keras_legacy.describe_h5(file)
    if keras_v3.is_keras_v3(file):
        return keras_v3.read_keras_v3(file, expected), "Keras 3 .weights.h5"
    raise UserError(f"{file.path} is an HDF5 file, but not one of Keras' weight files; save the weights with Keras")


@dataclass(frozen=True)
class LoadedWeights:
    """A tree of exactly the expected leaves in float32; what became of each array; what kind of file it was."""

    tree: ParamTree
    rows: list[WeightRow]
    origin: str


def load_weights(
    path: Path, expected: ExpectedShapes, optional: Collection[str] = frozenset(), *, trusted: bool = False
) -> LoadedWeights:  # fmt: skip
    """Read the weight file at `path` and fit it to `expected`; layers named in `optional` are skipped.

    `optional` may name the layers of the whole network: layers that Keras named itself are known by their order in it.
    A file that is not `trusted` to be a published one may be anything: see h5_trial.
    Reads Keras' HDF5 files of every vintage, `.keras` archives, flaxtl's safetensors files, and ONNX.
    Raises UserError for a file that is none of these, is damaged or unsafe, or does not fit.
    """
    found, origin = _read(path, expected, dict.fromkeys((*optional, *expected)), trusted)
    return _fit(path, expected, found, optional, origin)


def load_timm_weights(
    path: Path, network: str, expected: ExpectedShapes, optional: Collection[str] = frozenset()
) -> LoadedWeights:
    """`load` for a safetensors file of PyTorch's `network` under the names of timm or torchvision (see timm.read)."""
    _first_bytes(path)  # tells what is wrong with a path
    _check_size(path)
    found = timm.read_timm(path, network, {*expected, *optional}, expected)
    return _fit(path, expected, found, optional, "PyTorch safetensors")


def _fit(
    path: Path, expected: ExpectedShapes, found: LoadedLayers, optional: Collection[str], origin: str
) -> LoadedWeights:
    merged = merge_params(expected, found, optional=optional, source=str(path))
    return LoadedWeights(merged.tree, merged.rows, origin)


def _read(path: Path, expected: ExpectedShapes, known: Collection[str], trusted: bool) -> tuple[LoadedLayers, str]:
    start = _first_bytes(path)
    if is_h5(path, start):
        if not trusted:
            hdf5.trial_read(path)
        layers, origin = read_h5(path, known, expected)
        return _leaves(keras_legacy.without_normalization(layers, path), path, expected, known), origin
    _check_size(path)
    if start[8:9] == b"{":  # eight bytes of length, then JSON
        leaves, metadata = safetensors_io.read_safetensors(path)
        return leaves, f"safetensors ({metadata.get('precision', 'precision not told')})"
    if onnx_reader.is_onnx(start):
        return onnx_reader.read_onnx(path), "ONNX"
    raise UserError(
        f"{path} is {_guess(start)}, not a weight file; give a Keras .h5, .keras, flaxtl .safetensors or .onnx file"
    )


def _leaves(layers: StoredLayers, path: Path, expected: ExpectedShapes, known: Collection[str]) -> LoadedLayers:
    return convert.to_params(keras_legacy.rename_automatic_layers(layers, (known, expected), path), expected)


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


def _check_size(path: Path) -> None:
    """Refuse a file that is no HDF5 file, and so is read whole, if no network needs so much."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise UserError(f"{path} has {size:,} bytes, more than any network needs; give the file of the weights alone")


def _guess(start: bytes) -> str:
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page (the download link led to a page, not to the file)"
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer (run `git lfs pull`)"
    return "of an unknown kind"
