"""Keras' HDF5 files of every vintage, and the `.keras` archives that hold one, as arrays by layer."""

from collections.abc import Collection
from pathlib import Path

import h5py

from flaxtl.errors import UserError
from flaxtl.weights import keras3, keras_h5
from flaxtl.weights.h5_safety import SafeFile, opened
from flaxtl.weights.tree import Expected, Layers

_ZIP = b"PK\x03\x04"


def recognises(path: Path, start: bytes) -> bool:
    """Whether the file at `path`, whose first bytes are `start`, is one of these."""
    return start.startswith(_ZIP) or bool(h5py.is_hdf5(path))


def read(path: Path, known: Collection[str], expected: Expected) -> tuple[Layers, str]:
    """Every array of the file, by layer, and its layout in words; for the names see keras_h5.read and keras3.read.

    Raises UserError for a file that is damaged, unsafe or not one of Keras' weight files.
    """
    with path.open("rb") as stream:
        archive = stream.read(len(_ZIP)) == _ZIP
    if archive:
        with opened(keras3.weights_of_archive(path), path) as file:
            return keras3.read(file, expected), "Keras 3 .keras archive"
    with opened(path, path) as file:
        return _read(file, known, expected)


def _read(file: SafeFile, known: Collection[str], expected: Expected) -> tuple[Layers, str]:
    if keras_h5.recognises(file):
        return keras_h5.read(file, known), keras_h5.describe(file)
    if keras3.recognises(file):
        return keras3.read(file, expected), "Keras 3 .weights.h5"
    raise UserError(f"{file.path} is an HDF5 file, but not one of Keras' weight files; save the weights with Keras")
